// SPDX-License-Identifier: GPL-2.0
/*
 * Virtqueues: what the driver makes available is mapped and put into the ring that the server sees,
 * and what the server has used is unmapped and put into the driver's.
 *
 * What the server has not given back is remembered, in order. When the server is lost, all of it
 * is put into the new ring of the next one; when the adapter is lost, it is given back unserved.
 */
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

#include "adapter.h"

#define SERVE_LIMIT	(5 * HZ)
#define FAIL_AGAIN	(HZ / 50)	/* of an adapter that is lost */
#define SOON		1		/* jiffies until a look at what had to wait */
#define SELDOM		(HZ / 20)	/* and until one at what has waited for long */

static void remember(struct vvio_queue *queue, u16 head)
{
	struct vvio_chain *chain = &queue->chains[head];

	chain->is_pending = true;
	chain->before = queue->newest;
	chain->after = NO_CHAIN;
	if (queue->newest == NO_CHAIN)
		queue->oldest = head;
	else
		queue->chains[queue->newest].after = head;
	queue->newest = head;
}

static void forget(struct vvio_queue *queue, u16 head)
{
	struct vvio_chain *chain = &queue->chains[head];

	chain->is_pending = false;
	if (chain->before == NO_CHAIN)
		queue->oldest = chain->after;
	else
		queue->chains[chain->before].after = chain->after;
	if (chain->after == NO_CHAIN)
		queue->newest = chain->before;
	else
		queue->chains[chain->after].before = chain->before;
}

static void look_again(struct vvio_queue *queue)
{
	timer_reduce(&queue->again, jiffies + SOON);
}

/* What nobody will tell of is looked for less and less often. */
static void look_later(struct vvio_queue *queue)
{
	timer_reduce(&queue->again, jiffies + READ_ONCE(queue->pause));
}

/*
 * What found no room waits for something that comes back: forward() is called for this queue's, and has
 * this one looked at soon for that of others (wake_waiting()).
 */
static void wait_for_room(struct vvio_queue *queue)
{
	if (!queue->waits) {
		WRITE_ONCE(queue->waits, true);
		atomic_inc(&queue->adapter->dma.waiting);
		queue->pause = SOON;
	}
	look_later(queue);
}

static void wait_no_more(struct vvio_queue *queue)
{
	if (!queue->waits)
		return;
	WRITE_ONCE(queue->waits, false);
	atomic_dec(&queue->adapter->dma.waiting);
}

/* Something of a queue has come back: there may be room for others. */
static void wake_waiting(struct vvio_adapter *adapter, const struct vvio_queue *queue)
{
	unsigned int i, count = smp_load_acquire(&adapter->queues_found);

	for (i = 0; i < count; i++)
		if (adapter->queues[i] != queue && READ_ONCE(adapter->queues[i]->waits))
			look_again(adapter->queues[i]);
}

static void kicked(void *context, s64 code)
{
	struct vvio_queue *queue = context;

	/* its CRQ is full, or the hypervisor was busy: later, with the newest position (P2.6) */
	if (code == PAPR_DROPPED || papr_is_busy(code)) {
		WRITE_ONCE(queue->kick_again, true);
		look_later(queue);
	} else if (code == PAPR_PARAMETER && READ_ONCE(queue->partner)) {
		WRITE_ONCE(queue->partner, 0);	/* the server has no such Sub-CRQ (P5.18) */
		WRITE_ONCE(queue->kick_again, true);
		look_later(queue);
	} else if (READ_ONCE(queue->pause) != SOON) {
		WRITE_ONCE(queue->pause, SOON);
	}
}

static void kick(struct vvio_queue *queue)
{
	struct vvio_adapter *adapter = queue->adapter;
	u32 position = wire_position(&queue->wire);
	u64 high = vvio_high(VVIO_KICK, adapter->session_number, (u32)queue->index << 16 | (position & 0xffff));
	u64 low = (u64)queue->generation << 48 | (u64)(position >> 16) << 32;
	u64 number;

	queue->kick_again = false;
	if (READ_ONCE(queue->partner) && !READ_ONCE(adapter->waits_for_room))
		number = vvio_post(adapter->hv, kicked, queue, PAPR_SEND_SUB_CRQ, adapter->unit_address,
				   queue->partner, high, low, 0, 0);
	else
		number = vvio_post(adapter->hv, kicked, queue, PAPR_SEND_CRQ, adapter->unit_address, high, low);
	if (!number) {
		queue->kick_again = true;
		look_later(queue);
	}
}

static u16 available(const struct vvio_queue *queue)
{
	return virtio16_to_cpu(&queue->adapter->vdev, smp_load_acquire(&queue->vring->avail->idx));
}

static u16 next_head(const struct vvio_queue *queue)
{
	return virtio16_to_cpu(&queue->adapter->vdev, queue->vring->avail->ring[queue->seen % queue->vring->num]);
}

/* The server reaches the chain no more. */
static void unmap(struct vvio_queue *queue, u16 head, bool copy)
{
	if (!queue->chains[head].is_mapped)
		return;
	vvio_chain_unmap(&queue->adapter->dma, queue->pieces, head, &queue->received, copy);
	queue->chains[head].is_mapped = false;
	atomic_dec(&queue->adapter->dma.chains);
}

/* Give a chain back to the driver, who sees it at show_used(). */
static void use(struct vvio_queue *queue, u16 head, u32 length)
{
	struct virtio_device *vdev = &queue->adapter->vdev;
	struct vring_used_elem *used = &queue->vring->used->ring[queue->used++ % queue->vring->num];

	used->id = cpu_to_virtio32(vdev, head);
	used->len = cpu_to_virtio32(vdev, length);
	forget(queue, head);
}

static void show_used(struct vvio_queue *queue)
{
	smp_wmb();	/* the elements before the index */
	WRITE_ONCE(queue->vring->used->idx, cpu_to_virtio16(&queue->adapter->vdev, queue->used));
}

/* Give a chain back that nobody served. */
static void use_unserved(struct vvio_queue *queue, u16 head)
{
	unmap(queue, head, false);
	use(queue, head, vvio_queue_excuse(queue, head));
}

/* -E2BIG for a chain that finds no room while there is no other: there is as much as there will ever be. */
static int map_chain(struct vvio_queue *queue, u16 head)
{
	struct vvio_dma *dma = &queue->adapter->dma;
	unsigned int attempts = 2;	/* the last one of the others may have gone just after the first */
	int err;

	atomic_inc(&dma->chains);
	do
		err = vvio_chain_map(dma, &queue->adapter->vdev, queue->vring, head, queue->pieces, &queue->received);
	while (err == -ENOSPC && atomic_read(&dma->chains) == 1 && --attempts);
	if (err)
		atomic_dec(&dma->chains);
	return attempts ? err : -E2BIG;
}

/* Map the next chain for the server; -ENOSPC or -EBUSY if that has to wait. */
static int take_available(struct vvio_queue *queue)
{
	u16 head = next_head(queue);
	int err = -EINVAL;

	if (head < queue->vring->num && !queue->chains[head].is_pending) {
		err = map_chain(queue, head);
		if (err == -ENOSPC || err == -EBUSY)
			return err;
		remember(queue, head);
		if (!err) {
			queue->chains[head].is_mapped = true;
			wire_put(&queue->wire, queue->pieces, head);
			queue->has_hidden = true;
		} else {
			use_unserved(queue, head);
			show_used(queue);
			queue->has_unserved = true;	/* the driver hears of it when it has let go of its lock */
			look_again(queue);
		}
	}
	if (err)
		dev_err_ratelimited(queue->adapter->dev, "queue %u: chain %u cannot be mapped: %d\n", queue->index,
				    head, err);
	queue->seen++;
	return 0;
}

/* Show the server what the driver has made available; called with the lock. */
static void forward(struct vvio_queue *queue)
{
	struct vvio_dma *dma = &queue->adapter->dma;
	int err = 0;
	u16 until;

	if (!queue->is_live || !READ_ONCE(dma->open))
		return;
	until = available(queue);
	while (queue->seen != until && !err)
		err = take_available(queue);
	if (queue->has_hidden && tce_settle(&dma->window)) {
		wait_for_room(queue);
		return;
	}
	if (err)
		wait_for_room(queue);
	else
		wait_no_more(queue);
	if (!queue->has_hidden)
		return;
	queue->has_hidden = false;
	wire_show(&queue->wire);
	if (wire_wants_kick(&queue->wire))
		kick(queue);
}

/* All that the driver made available; whether there was something. Called with the lock. */
static bool fail_all(struct vvio_queue *queue)
{
	bool some = false;
	u16 head;

	for (; queue->seen != available(queue); queue->seen++) {
		head = next_head(queue);
		if (head < queue->vring->num && !queue->chains[head].is_pending)
			remember(queue, head);
	}
	while (queue->oldest != NO_CHAIN) {
		use_unserved(queue, queue->oldest);
		some = true;
	}
	if (some)
		show_used(queue);
	return some;
}

/* What the server has used; whether there was something. Called with the lock. */
static bool take_used(struct vvio_queue *queue)
{
	bool some = false;
	u32 id, length;

	while (queue->is_live && wire_take(&queue->wire, &id, &length)) {
		if (id >= queue->vring->num || !queue->chains[id].is_pending) {
			WRITE_ONCE(queue->adapter->broken, "the server used a buffer that it did not have");
			queue->is_live = false;
			vvio_wake(queue->adapter);
			break;
		}
		unmap(queue, id, true);
		if (vvio_queue_has_commands(queue))
			vvio_command_served(queue, id);
		length = min(length, queue->wire.rooms[id]);	/* drivers believe it */
		if (!length && vvio_queue_needs_answer(queue))
			length = vvio_queue_excuse(queue, id);
		use(queue, id, length);
		some = true;
	}
	if (some)
		show_used(queue);
	return some;
}

#define OUTPUT_LIMIT	(100 * NSEC_PER_MSEC)
#define COMMAND_LIMIT	(2 * NSEC_PER_SEC)

/*
 * Some drivers look at their ring until a buffer comes back, so that this processor does nothing else meanwhile: the
 * console's when it writes with interrupts off, so that no interrupt brings it, and the network's for a
 * command, so that what would see to a server that has gone never runs. How long they may, or 0.
 */
static u64 poll_limit(const struct vvio_queue *queue)
{
	if (queue->adapter->vdev.id.device == VIRTIO_ID_CONSOLE && queue->index & 1 && irqs_disabled())
		return OUTPUT_LIMIT;
	return vvio_queue_has_commands(queue) ? COMMAND_LIMIT : 0;
}

/* Whether such a driver goes on looking. Called with the lock. */
static bool poll_used(struct vvio_queue *queue, u64 until)
{
	struct vvio_adapter *adapter = queue->adapter;

	if (queue->is_live) {
		if (queue->oldest == NO_CHAIN && queue->seen == available(queue))
			return false;
		if (take_used(queue))
			return false;
		if (READ_ONCE(adapter->dma.open) && ktime_get_ns() <= until) {
			forward(queue);		/* what found no room, or was not settled */
			return true;
		}
		if (READ_ONCE(adapter->dma.open)) {
			WRITE_ONCE(adapter->broken, "the server does not answer what its driver waits for");
			vvio_wake(adapter);
		}
		queue->is_live = false;		/* else the connection has ended, which is about to be seen to */
	}
	fail_all(queue);
	tce_flush(&adapter->dma.window);
	return false;
}

static bool notify(struct virtqueue *vq)
{
	struct vvio_queue *queue = vq->priv;
	u64 limit = poll_limit(queue), until = limit ? ktime_get_ns() + limit : 0;
	bool is_waiting = limit;
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	forward(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	while (is_waiting) {
		spin_lock_irqsave(&queue->lock, flags);
		is_waiting = poll_used(queue, until);
		spin_unlock_irqrestore(&queue->lock, flags);
		cpu_relax();
	}
	if (READ_ONCE(queue->adapter->is_lost))
		/* the driver holds its lock: not here; and what brings data is made available again and again */
		schedule_delayed_work(&queue->adapter->fail_work, FAIL_AGAIN);
	return true;
}

static void again(struct timer_list *timer)
{
	struct vvio_queue *queue = from_timer(queue, timer, again);
	unsigned long flags;
	bool tell;

	spin_lock_irqsave(&queue->lock, flags);
	queue->pause = min_t(unsigned long, queue->pause * 2, SELDOM);
	forward(queue);
	if (queue->is_live && queue->kick_again && !queue->has_hidden)	/* a KICK says what the ring shows (P6.2) */
		kick(queue);
	tell = queue->has_unserved;
	queue->has_unserved = false;
	spin_unlock(&queue->lock);
	if (tell)
		vring_interrupt(0, queue->vq);
	local_irq_restore(flags);
}

/**
 * vvio_queue_complete - hand the driver what the server has used
 * @queue: the queue
 *
 * Called with interrupts off; calls the driver.
 */
void vvio_queue_complete(struct vvio_queue *queue)
{
	bool some;

	spin_lock(&queue->lock);
	some = take_used(queue);
	if (queue->is_live && queue->seen != available(queue))
		forward(queue);		/* what had to wait for room */
	spin_unlock(&queue->lock);
	if (some && atomic_read(&queue->adapter->dma.waiting))
		wake_waiting(queue->adapter, queue);
	if (some)
		vring_interrupt(0, queue->vq);
}

/* From a context that may sleep. */
static void tell_driver(struct vvio_queue *queue)
{
	unsigned long flags;

	local_bh_disable();	/* what a callback raises is run at the end of this */
	local_irq_save(flags);
	vring_interrupt(0, queue->vq);
	local_irq_restore(flags);
	local_bh_enable();
}

/**
 * vvio_queue_begin - a new ring for a server that has not seen it
 * @queue: the queue
 */
void vvio_queue_begin(struct vvio_queue *queue)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	queue->kick_again = false;
	queue->has_hidden = false;
	wire_reset(&queue->wire);
	spin_unlock_irqrestore(&queue->lock, flags);
}

/**
 * vvio_queue_serve - have the server serve a chain of our own
 * @queue: the queue, after vvio_queue_begin() and before vvio_queue_live()
 * @pieces: the chain, from the first one on
 *
 * Return: 0, -ENOTCONN or -ETIMEDOUT.
 */
int vvio_queue_serve(struct vvio_queue *queue, const struct vvio_piece *pieces)
{
	unsigned long until = jiffies + SERVE_LIMIT, flags;
	u32 id, length;
	bool is_used;

	spin_lock_irqsave(&queue->lock, flags);
	wire_put(&queue->wire, pieces, 0);
	wire_show(&queue->wire);
	kick(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	for (;;) {
		spin_lock_irqsave(&queue->lock, flags);
		is_used = wire_take(&queue->wire, &id, &length);
		if (!is_used && queue->kick_again)
			kick(queue);
		spin_unlock_irqrestore(&queue->lock, flags);
		if (is_used)
			return 0;
		if (!READ_ONCE(queue->adapter->is_open))
			return -ENOTCONN;
		if (time_after(jiffies, until))
			return -ETIMEDOUT;
		usleep_range(100, 500);
	}
}

/**
 * vvio_queue_live - the server looks at the ring: show it all that no server has finished
 * @queue: the queue, after vvio_queue_begin()
 */
void vvio_queue_live(struct vvio_queue *queue)
{
	unsigned long flags;
	bool some = false;
	u16 head;

	spin_lock_irqsave(&queue->lock, flags);
	queue->is_live = true;
	for (head = queue->oldest; head != NO_CHAIN; head = queue->chains[head].after) {
		wire_put(&queue->wire, queue->pieces, head);
		some = true;
	}
	queue->has_hidden = some;
	forward(queue);		/* what was mapped when the last server was lost may not be settled */
	if (some && !queue->has_hidden)
		kick(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
}

/**
 * vvio_queue_quiet - the server that has the ring is gone, or will look at it no more
 * @queue: the queue
 *
 * What it used before is still handed to the driver (P1.6).
 */
void vvio_queue_quiet(struct vvio_queue *queue)
{
	unsigned long flags;
	bool some;

	spin_lock_irqsave(&queue->lock, flags);
	some = take_used(queue);
	queue->is_live = false;		/* nothing new is put there: also not by what the callback does */
	spin_unlock_irqrestore(&queue->lock, flags);
	if (some)
		tell_driver(queue);
}

/**
 * vvio_queue_forget - the driver takes back what it has made available
 * @queue: the queue, which is quiet
 *
 * No server reaches any of it after the return, and the driver is not called by timer.
 */
void vvio_queue_forget(struct vvio_queue *queue)
{
	unsigned long flags;

	spin_lock_irqsave(&queue->lock, flags);
	while (queue->oldest != NO_CHAIN) {
		unmap(queue, queue->oldest, false);
		forget(queue, queue->oldest);
	}
	queue->seen = available(queue);
	queue->kick_again = false;
	queue->has_unserved = false;
	wait_no_more(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	tce_drain(&queue->adapter->dma.window);
	del_timer_sync(&queue->again);
}

/**
 * vvio_queue_fail - give back all that the driver made available: nobody will serve it
 * @queue: the queue, which is quiet
 */
void vvio_queue_fail(struct vvio_queue *queue)
{
	unsigned long flags;
	bool some;
	u16 head;

	spin_lock_irqsave(&queue->lock, flags);
	for (head = queue->oldest; head != NO_CHAIN; head = queue->chains[head].after)
		unmap(queue, head, false);
	spin_unlock_irqrestore(&queue->lock, flags);
	tce_drain(&queue->adapter->dma.window);	/* before the driver has its memory back */
	spin_lock_irqsave(&queue->lock, flags);
	some = fail_all(queue);
	spin_unlock_irqrestore(&queue->lock, flags);
	if (some)
		tell_driver(queue);
}

/**
 * vvio_queue_make - a virtqueue
 * @adapter: the adapter
 * @index: number of the queue
 * @callback: what the driver wants to be called when something was used, or NULL
 * @name: the driver's name for it
 * @context: whether the driver has a context for each buffer
 *
 * Return: the queue or an ERR_PTR().
 */
struct vvio_queue *vvio_queue_make(struct vvio_adapter *adapter, unsigned int index,
				   void (*callback)(struct virtqueue *vq), const char *name, bool context)
{
	struct vvio_queue *queue;
	int err = -ENOMEM;

	queue = kzalloc(sizeof(*queue), GFP_KERNEL);
	if (!queue)
		return ERR_PTR(-ENOMEM);
	queue->adapter = adapter;
	queue->index = index;
	queue->oldest = queue->newest = NO_CHAIN;
	queue->pause = SOON;
	INIT_LIST_HEAD(&queue->commands);
	spin_lock_init(&queue->lock);
	timer_setup(&queue->again, again, 0);
	queue->vq = vring_create_virtqueue(index, adapter->queue_size, PAGE_SIZE, &adapter->vdev, true,
					   adapter->revision > 0, context, notify, callback, name);
	if (!queue->vq)
		goto no_ring;
	queue->vq->priv = queue;
	queue->vq->num_max = adapter->queue_size;
	queue->vring = virtqueue_get_vring(queue->vq);
	queue->chains = kcalloc(queue->vring->num, sizeof(*queue->chains), GFP_KERNEL);
	queue->pieces = kcalloc(queue->vring->num, sizeof(*queue->pieces), GFP_KERNEL);
	if (!queue->chains || !queue->pieces)
		goto no_wire;
	err = wire_init(&queue->wire, &adapter->dma, &adapter->vdev, queue->vring->num, adapter->is_packed);
	if (err)
		goto no_wire;
	return queue;

no_wire:
	kfree(queue->pieces);
	kfree(queue->chains);
	vring_del_virtqueue(queue->vq);
no_ring:
	kfree(queue);
	return ERR_PTR(err);
}

/**
 * vvio_queue_remake - after the driver's ring has become another, with another size maybe
 * @queue: the queue, which is quiet and forgotten
 *
 * Return: 0 or -ENOMEM.
 */
int vvio_queue_remake(struct vvio_queue *queue)
{
	struct vvio_adapter *adapter = queue->adapter;
	unsigned int size = queue->vring->num;
	struct vvio_piece *pieces;
	struct vvio_chain *chains;
	struct wire_ring wire;
	int err = -ENOMEM;

	chains = kcalloc(size, sizeof(*chains), GFP_KERNEL);
	pieces = kcalloc(size, sizeof(*pieces), GFP_KERNEL);
	if (chains && pieces)
		err = wire_init(&wire, &adapter->dma, &adapter->vdev, size, adapter->is_packed);
	if (err) {
		kfree(pieces);
		kfree(chains);
		return err;
	}
	wire_exit(&queue->wire, &adapter->dma);
	kfree(queue->pieces);
	kfree(queue->chains);
	queue->wire = wire;
	queue->pieces = pieces;
	queue->chains = chains;
	queue->seen = 0;
	queue->used = 0;
	return 0;
}

/**
 * vvio_queue_free - the driver's ring and the server's
 * @queue: the queue, which is quiet, and which no interrupt reaches any more
 */
void vvio_queue_free(struct vvio_queue *queue)
{
	vvio_queue_forget(queue);
	vvio_commands_forget(queue);
	wire_exit(&queue->wire, &queue->adapter->dma);
	vring_del_virtqueue(queue->vq);
	kfree(queue->pieces);
	kfree(queue->chains);
	kfree(queue);
}
