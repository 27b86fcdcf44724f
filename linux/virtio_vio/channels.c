// SPDX-License-Identifier: GPL-2.0
/*
 * Sub-CRQs that carry the notifications of one queue each, with an interrupt of its own (P5.13).
 *
 * Who has none, or not enough, goes on without: the queue stays on the CRQ (P5.15).
 */
#include <linux/slab.h>

#include "adapter.h"

#define PLACES	(TCE_PAGE / sizeof(struct sub_crq_element))

/* P5.17: what does not belong to this session and this life of the queue is dropped. */
static bool is_for(const struct vvio_channel *channel, u64 high, u64 low)
{
	const struct vvio_queue *queue = channel->queue;
	const struct vvio_adapter *adapter = queue->adapter;

	return high >> 56 == CRQ_MESSAGE && (u8)(high >> 48) == VVIO_USED && READ_ONCE(adapter->is_open) &&
	       (u16)(high >> 32) == adapter->session_number && (u16)(high >> 16) == queue->index &&
	       (u16)(low >> 48) == queue->generation;
}

static void interrupt(struct vvio_source *source)
{
	struct vvio_channel *channel = container_of(source, struct vvio_channel, source);
	struct sub_crq_element *ring = channel->memory.cpu;
	unsigned long flags;
	unsigned int left;
	bool used = false;

	local_irq_save(flags);
	for (left = PLACES; left; left--) {
		struct crq_element *element = &ring[channel->position].message;
		u64 high = be64_to_cpu(READ_ONCE(element->high)), low;

		if (high >> 56 == CRQ_FREE)
			break;
		virt_rmb();	/* the header before what it says is there */
		high = be64_to_cpu(READ_ONCE(element->high));
		low = be64_to_cpu(READ_ONCE(element->low));
		virt_mb();	/* nothing of it is read after it is free */
		WRITE_ONCE(element->high, 0);
		channel->position = (channel->position + 1) % PLACES;
		used |= is_for(channel, high, low);
	}
	if (used) {
		vvio_queue_complete(channel->queue);
		tce_flush(&channel->queue->adapter->dma.window);
	}
	local_irq_restore(flags);
}

static struct vvio_channel *make(struct vvio_queue *queue)
{
	struct vvio_channel *channel = kzalloc(sizeof(*channel), GFP_KERNEL);

	if (!channel)
		return NULL;
	channel->queue = queue;
	channel->source.handler = interrupt;
	if (vvio_memory_get(&queue->adapter->dma, &channel->memory, TCE_PAGE)) {
		kfree(channel);
		return NULL;
	}
	return channel;
}

static void close(struct vvio_queue *queue)
{
	struct vvio_adapter *adapter = queue->adapter;
	struct vvio_channel *channel = queue->channel;

	WRITE_ONCE(queue->partner, 0);
	if (!channel || !channel->is_registered)
		return;
	adapter->hv->ops->free_source(adapter->hv, &channel->source);
	vvio_call_patiently(adapter->hv, PAPR_FREE_SUB_CRQ, adapter->unit_address, channel->cookie);
	channel->is_registered = false;
}

static bool open(struct vvio_queue *queue)
{
	struct vvio_adapter *adapter = queue->adapter;
	struct vvio_channel *channel;
	u64 results[VVIO_REGISTERS];
	s64 code;

	if (!queue->channel)
		queue->channel = make(queue);
	channel = queue->channel;
	if (!channel)
		return false;
	memset(channel->memory.cpu, 0, channel->memory.size);
	channel->position = 0;
	code = adapter->hv->ops->call(adapter->hv, true, PAPR_REG_SUB_CRQ,
				      (u64[]){ adapter->unit_address, channel->memory.ioba, TCE_PAGE }, 3, results);
	if (code != PAPR_SUCCESS && code != PAPR_CLOSED)
		return false;
	channel->cookie = results[0];
	channel->source.number = results[1];
	channel->is_registered = true;
	if (adapter->hv->ops->request_source(adapter->hv, &channel->source) ||
	    vvio_call(adapter->hv, PAPR_VIOCTL, adapter->unit_address, PAPR_VIOCTL_ENABLE_INTERRUPT,
		      channel->source.number)) {
		close(queue);
		return false;
	}
	return true;
}

static void take_entries(struct vvio_adapter *adapter, unsigned int count)
{
	const struct vvio_channel_entry *entry = adapter->block.cpu;
	unsigned int i;

	for (i = 0; i < count; i++, entry++) {
		if (entry->status == VVIO_CARRIED)
			WRITE_ONCE(adapter->queues[i]->partner, be64_to_cpu(entry->server));
		else
			close(adapter->queues[i]);
	}
}

/**
 * vvio_channels_open - let Sub-CRQs carry as many of the queues as can be
 * @adapter: the adapter, with the session's mutex, before DRIVER_OK
 *
 * Return: 0, also without any, or as vvio_request() when there is no session any more.
 */
int vvio_channels_open(struct vvio_adapter *adapter)
{
	struct vvio_channel_entry *entries = adapter->block.cpu;
	unsigned int count = 0, room = adapter->block.size / sizeof(*entries);
	u16 generation = ++adapter->channel_generation;
	struct vvio_reply reply;
	int err;

	while (count < adapter->queues_found && count < room && open(adapter->queues[count])) {
		adapter->queues[count]->generation = generation;
		entries[count] = (struct vvio_channel_entry){
			.queue = cpu_to_be16(count),
			.generation = cpu_to_be16(generation),
			.client = cpu_to_be64(adapter->queues[count]->channel->cookie),
		};
		count++;
	}
	if (!count)
		return 0;
	virt_wmb();
	err = vvio_request(adapter, VVIO_CHANNELS, (u32)count << 16 | (u16)(count * sizeof(*entries)),
			   adapter->block.ioba, &reply);
	if (err) {
		vvio_channels_close(adapter);
		return err == -EPROTO ? 0 : err;
	}
	virt_rmb();
	take_entries(adapter, count);
	return 0;
}

/**
 * vvio_channels_close - the CRQ carries everything again
 * @adapter: the adapter, with the session's mutex
 */
void vvio_channels_close(struct vvio_adapter *adapter)
{
	unsigned int i;

	for (i = 0; i < adapter->queues_found; i++)
		close(adapter->queues[i]);
}

/**
 * vvio_channels_release - as vvio_channels_close(), for good
 * @adapter: the adapter, with the session's mutex
 */
void vvio_channels_release(struct vvio_adapter *adapter)
{
	unsigned int i;

	vvio_channels_close(adapter);
	for (i = 0; i < adapter->queues_found; i++) {
		struct vvio_channel *channel = adapter->queues[i]->channel;

		adapter->queues[i]->channel = NULL;
		if (!channel)
			continue;
		vvio_memory_put(&adapter->dma, &channel->memory);
		kfree(channel);
	}
}
