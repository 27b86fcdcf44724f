// SPDX-License-Identifier: GPL-2.0
/*
 * The connection of an adapter with its server: registration of the CRQ, the initialization
 * handshake, transport events, and what to do when they come (docs/protocol.md, P1).
 *
 * The interrupt takes elements out of the CRQ. What is used goes to the driver at once, a reply
 * to whoever waits for it; what changes the connection is noted, and done in a work, in order.
 */
#include <linux/delay.h>
#include <linux/random.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>

#include "adapter.h"

#define ANSWER_LIMIT	(10 * HZ)	/* for INITIALIZATION COMPLETE */
#define ENABLE_LIMIT	(60 * HZ)	/* of a platform that is busy with H_ENABLE_CRQ */
#define FREE_ATTEMPTS	100
#define QUIET		(5 * HZ)	/* without trouble: earlier failures are forgotten */
#define FAILURE_LIMIT	8
#define OVERLAID	0x20		/* byte 3 of an event that overwrote a message */

#define PLACES		(TCE_PAGE / sizeof(struct crq_element))

/* -- what comes in, in the interrupt */

void vvio_wake(struct vvio_adapter *adapter)
{
	queue_work(adapter->wq, &adapter->work);
}

/* The connection is over; who waits for a reply has waited long enough. */
static void shut(struct vvio_adapter *adapter)
{
	adapter->is_open = false;
	adapter->awaited = 0;
	WRITE_ONCE(adapter->dma.open, false);
	complete_all(&adapter->answered);
}

static void note(struct vvio_adapter *adapter, u8 header, u8 format, u64 number)
{
	struct vvio_event *event;

	if (adapter->event_count == VVIO_EVENTS) {
		adapter->events_lost = true;
	} else {
		event = &adapter->events[(adapter->first_event + adapter->event_count++) % VVIO_EVENTS];
		*event = (struct vvio_event){ header, format, number };
	}
	vvio_wake(adapter);
}

static void take_reply(struct vvio_adapter *adapter, u8 type, u64 high, u64 low)
{
	if (type != adapter->awaited)
		return;
	adapter->awaited = 0;
	adapter->reply = (struct vvio_reply){ high >> 24, high >> 16, high, low };
	complete_all(&adapter->answered);
}

/* Queues that the server says it has used something of, as a mask of the first 64. */
static void take_message(struct vvio_adapter *adapter, u64 high, u64 low, unsigned long *used)
{
	u8 type = high >> 48;
	u16 session = high >> 32, queue = high >> 16;

	if (!adapter->is_open)
		return;
	/* the reply to PROBE has the number of the session that was settled, or of the PROBE */
	if (session != adapter->session_number && !(type == (VVIO_PROBE | VVIO_REPLY) && !session))
		return;
	if (type == VVIO_USED) {
		__set_bit(min_t(u16, queue, BITS_PER_LONG - 1), used);
	} else if (type == VVIO_CONFIG_CHANGED) {
		adapter->device_status = high >> 16;
		adapter->config_stale = true;
		vvio_wake(adapter);
	} else if ((type & VVIO_EVENT) == VVIO_REPLY) {
		take_reply(adapter, type, high, low);
	}
}

static void take_element(struct vvio_adapter *adapter, u64 high, u64 low, unsigned long *used)
{
	u8 header = high >> 56, format = high >> 48;

	switch (header) {
	case CRQ_MESSAGE:
		take_message(adapter, high, low, used);
		break;
	case CRQ_INIT:
		if (format == CRQ_INITIALIZE)
			shut(adapter);
		if (format == CRQ_INITIALIZE || format == CRQ_INIT_COMPLETE)
			note(adapter, header, format, low);
		break;
	case CRQ_EVENT:
		if (format == CRQ_PARTNER_FAILED || format == CRQ_PARTNER_CLOSED ||
		    format == CRQ_PARTNER_TERMINATED || format == CRQ_PARTNER_SUSPENDED) {
			shut(adapter);
			note(adapter, header, format, 0);
		} else if ((high >> 32 & 0xff) == OVERLAID) {
			WRITE_ONCE(adapter->broken, "a message was lost");	/* P1.8 */
			vvio_wake(adapter);
		}
		break;
	}
}

/* Take everything out of the CRQ. */
static void drain(struct vvio_adapter *adapter, unsigned long *used)
{
	struct crq_element *queue = adapter->crq.cpu, *element;
	unsigned int left;
	u64 high;

	for (left = PLACES; left; left--) {
		element = &queue[adapter->position];
		high = be64_to_cpu(READ_ONCE(element->high));
		if (high >> 56 == CRQ_FREE)
			break;
		virt_rmb();	/* the header before what it says is there */
		high = be64_to_cpu(READ_ONCE(element->high));
		take_element(adapter, high, be64_to_cpu(READ_ONCE(element->low)), used);
		virt_mb();	/* nothing of it is read after it is free */
		WRITE_ONCE(element->high, 0);
		adapter->position = (adapter->position + 1) % PLACES;
	}
}

static void interrupt(struct vvio_source *source)
{
	struct vvio_adapter *adapter = container_of(source, struct vvio_adapter, source);
	unsigned long flags, used = 0;
	unsigned int i, count;

	spin_lock_irqsave(&adapter->crq_lock, flags);
	drain(adapter, &used);
	count = smp_load_acquire(&adapter->queues_found);
	for (i = 0; used && i < count; i++)
		if (used & BIT(min_t(unsigned int, i, BITS_PER_LONG - 1)))
			vvio_queue_complete(adapter->queues[i]);
	spin_unlock_irqrestore(&adapter->crq_lock, flags);
	if (used)
		tce_flush(&adapter->dma.window);
}

static void look(struct vvio_adapter *adapter)
{
	unsigned long flags;

	local_bh_disable();	/* what a callback raises is run at the end of this */
	local_irq_save(flags);
	interrupt(&adapter->source);
	local_irq_restore(flags);
	local_bh_enable();
}

/* -- what is done about it, in the work, with the session's mutex */

static void offer(struct vvio_adapter *adapter)
{
	s64 code = vvio_call(adapter->hv, PAPR_SEND_CRQ, adapter->unit_address,
			     (u64)CRQ_INIT << 56 | (u64)CRQ_INITIALIZE << 48, ++adapter->number);

	if (code == PAPR_SUCCESS) {
		adapter->state = VVIO_INITIALIZING;
		mod_delayed_work(adapter->wq, &adapter->retry, ANSWER_LIMIT);
	} else if (code == PAPR_DROPPED || papr_is_busy(code)) {
		mod_delayed_work(adapter->wq, &adapter->retry, HZ / 20);
	}
}

static void end_session(struct vvio_adapter *adapter)
{
	unsigned long flags;
	unsigned int i;

	spin_lock_irqsave(&adapter->crq_lock, flags);
	shut(adapter);
	spin_unlock_irqrestore(&adapter->crq_lock, flags);
	for (i = 0; i < adapter->queues_found; i++)
		vvio_queue_quiet(adapter->queues[i]);
	vvio_channels_close(adapter);
	tce_flush(&adapter->dma.window);
	adapter->stage = VVIO_NOTHING;
}

/* Whether something is noted that ends the connection; with the CRQ's lock. */
static bool is_over(struct vvio_adapter *adapter)
{
	unsigned int i;

	for (i = 0; i < adapter->event_count; i++) {
		struct vvio_event *event = &adapter->events[(adapter->first_event + i) % VVIO_EVENTS];

		if (event->header == CRQ_EVENT || event->format == CRQ_INITIALIZE)
			return true;
	}
	return adapter->events_lost;
}

/* P1.2, P1.5: nothing of an older session is under way any more. */
static void opened(struct vvio_adapter *adapter)
{
	bool is_open;
	int err;

	adapter->state = VVIO_OPEN;
	adapter->is_suspended = false;
	cancel_delayed_work(&adapter->retry);
	spin_lock_irq(&adapter->crq_lock);
	is_open = !is_over(adapter);
	adapter->is_open = is_open;	/* else it is over already */
	adapter->config_stale = false;
	adapter->device_status = 0;
	spin_unlock_irq(&adapter->crq_lock);
	if (!is_open || adapter->is_lost)
		return;
	WRITE_ONCE(adapter->dma.open, true);
	if (adapter->goal < VVIO_PROBED)
		adapter->goal = VVIO_PROBED;
	err = vvio_walk(adapter);
	if (err && err != -ENOTCONN)
		vvio_failed(adapter, "the server does not answer as it should");
	if (!err && !adapter->is_attached && !adapter->is_leaving)
		schedule_work(&adapter->attach);
}

static void free_crq(struct vvio_adapter *adapter)
{
	unsigned int left;

	for (left = FREE_ATTEMPTS; left; left--) {
		s64 code = vvio_call(adapter->hv, PAPR_FREE_CRQ, adapter->unit_address);

		if (!papr_is_busy(code) && code != PAPR_RESOURCE)	/* that: pages are being moved */
			break;
		msleep(papr_busy_msec(code));
	}
}

static s64 reg_crq(struct vvio_adapter *adapter)
{
	memset(adapter->crq.cpu, 0, adapter->crq.size);
	spin_lock_irq(&adapter->crq_lock);
	adapter->position = 0;
	adapter->event_count = 0;
	adapter->events_lost = false;
	adapter->broken = NULL;
	spin_unlock_irq(&adapter->crq_lock);
	return vvio_call(adapter->hv, PAPR_REG_CRQ, adapter->unit_address, adapter->crq.ioba, TCE_PAGE);
}

static void register_crq(struct vvio_adapter *adapter, bool is_to_offer)
{
	s64 code = reg_crq(adapter);

	if (code == PAPR_RESOURCE) {
		free_crq(adapter);	/* an earlier life of this partition left it */
		code = reg_crq(adapter);
	}
	if (code != PAPR_SUCCESS && code != PAPR_CLOSED) {
		if (papr_is_busy(code))
			mod_delayed_work(adapter->wq, &adapter->retry, HZ / 4);
		else if (!adapter->device->unplugged)
			dev_err(adapter->dev, "H_REG_CRQ returned %lld\n", code);
		return;
	}
	adapter->state = VVIO_WAITING;
	adapter->is_suspended = false;
	vvio_call_patiently(adapter->hv, PAPR_VIO_SIGNAL, adapter->unit_address, 1);
	if (code == PAPR_SUCCESS && is_to_offer)
		offer(adapter);
	look(adapter);	/* no interrupt is raised for what came before it was enabled */
}

/**
 * vvio_connection_close - end the connection from this side
 * @adapter: the adapter
 */
void vvio_connection_close(struct vvio_adapter *adapter)
{
	unsigned long flags;

	cancel_delayed_work(&adapter->retry);
	if (adapter->state == VVIO_CLOSED)
		return;
	spin_lock_irqsave(&adapter->crq_lock, flags);
	shut(adapter);		/* nothing new is put where it may still be looked at */
	spin_unlock_irqrestore(&adapter->crq_lock, flags);
	free_crq(adapter);
	adapter->state = VVIO_CLOSED;
	end_session(adapter);
}

/**
 * vvio_connection_reset - end the connection from this side and offer a new one
 * @adapter: the adapter
 */
void vvio_connection_reset(struct vvio_adapter *adapter)
{
	vvio_connection_close(adapter);
	if (!adapter->is_lost)
		register_crq(adapter, true);
}

void vvio_connection_start(struct vvio_adapter *adapter)
{
	register_crq(adapter, true);
}

/**
 * vvio_failed - something of the server's was wrong: try again, after a pause that grows
 * @adapter: the adapter
 * @why: for people
 *
 * After many failures this end only waits for another server.
 */
void vvio_failed(struct vvio_adapter *adapter, const char *why)
{
	adapter->failures = time_before(jiffies, adapter->last_failure + QUIET) ? adapter->failures + 1 : 1;
	adapter->last_failure = jiffies;
	dev_warn(adapter->dev, "%s\n", why);
	vvio_connection_close(adapter);
	if (adapter->is_lost)
		return;
	if (adapter->failures > FAILURE_LIMIT)
		register_crq(adapter, false);
	else
		mod_delayed_work(adapter->wq, &adapter->retry, msecs_to_jiffies(10 << adapter->failures));
}

static void send_complete(struct vvio_adapter *adapter)
{
	unsigned int left;
	s64 code = PAPR_DROPPED;

	for (left = 100; left && (code == PAPR_DROPPED || papr_is_busy(code)); left--) {
		code = vvio_call(adapter->hv, PAPR_SEND_CRQ, adapter->unit_address,
				 (u64)CRQ_INIT << 56 | (u64)CRQ_INIT_COMPLETE << 48, adapter->partner_number);
		if (code)
			msleep(10);
		if (code == PAPR_CLOSED)
			return;		/* it went away again; an event says so */
	}
}

static void do_events(struct vvio_adapter *adapter);

static void enable_crq(struct vvio_adapter *adapter)
{
	s64 code = vvio_call(adapter->hv, PAPR_ENABLE_CRQ, adapter->unit_address);

	if (papr_is_busy(code) && time_before(jiffies, adapter->enable_until)) {
		mod_delayed_work(adapter->wq, &adapter->retry, msecs_to_jiffies(papr_busy_msec(code)));
	} else if (code) {
		dev_warn(adapter->dev, "H_ENABLE_CRQ returned %lld\n", code);
		vvio_connection_reset(adapter);
	} else {
		adapter->is_suspended = false;
		look(adapter);	/* P1.7: first everything out of the queue */
		do_events(adapter);
		if (adapter->state == VVIO_WAITING && !adapter->is_suspended)
			offer(adapter);
	}
}

static void do_event(struct vvio_adapter *adapter, const struct vvio_event *event)
{
	if (event->header == CRQ_EVENT) {
		if (adapter->state == VVIO_OPEN) {
			dev_info(adapter->dev, "the server has %s\n",
				 event->format == CRQ_PARTNER_SUSPENDED ? "been suspended" : "gone");
			end_session(adapter);
		}
		adapter->state = VVIO_WAITING;
		if (event->format == CRQ_PARTNER_SUSPENDED) {
			adapter->is_suspended = true;
			adapter->enable_until = jiffies + ENABLE_LIMIT;
			mod_delayed_work(adapter->wq, &adapter->retry, 0);
		}
	} else if (event->format == CRQ_INITIALIZE) {
		bool was_initializing = adapter->state == VVIO_INITIALIZING;

		if (adapter->state == VVIO_OPEN)
			end_session(adapter);
		adapter->partner_number = event->number;
		send_complete(adapter);
		if (!was_initializing)
			opened(adapter);
	} else if (event->format == CRQ_INIT_COMPLETE && adapter->state == VVIO_INITIALIZING &&
		   event->number == adapter->number) {
		opened(adapter);
	}
}

static bool next_event(struct vvio_adapter *adapter, struct vvio_event *event)
{
	bool found;

	spin_lock_irq(&adapter->crq_lock);
	found = adapter->event_count;
	if (found) {
		*event = adapter->events[adapter->first_event];
		adapter->first_event = (adapter->first_event + 1) % VVIO_EVENTS;
		adapter->event_count--;
	}
	spin_unlock_irq(&adapter->crq_lock);
	return found;
}

static void do_events(struct vvio_adapter *adapter)
{
	struct vvio_event event;

	while (adapter->state != VVIO_CLOSED && next_event(adapter, &event))
		do_event(adapter, &event);
}

#define NEEDS_RESET	0x40

static void follow_config(struct vvio_adapter *adapter)
{
	bool stale;
	u8 status;

	if (adapter->stage != VVIO_LIVE)
		return;
	spin_lock_irq(&adapter->crq_lock);
	stale = adapter->config_stale;
	status = adapter->device_status;
	adapter->config_stale = false;
	spin_unlock_irq(&adapter->crq_lock);
	if (stale && status & NEEDS_RESET)
		vvio_failed(adapter, "the device needs a reset");
	else if (stale)
		vvio_read_config(adapter);
	if (adapter->config_is_new && adapter->stage == VVIO_LIVE) {
		adapter->config_is_new = false;
		virtio_config_changed(&adapter->vdev);
	}
}

static void connection_work(struct work_struct *work)
{
	struct vvio_adapter *adapter = container_of(work, struct vvio_adapter, work);
	unsigned int noio = memalloc_noio_save();	/* it may be the disk that memory is paged out to */
	const char *broken;

	mutex_lock(&adapter->session);
	do_events(adapter);
	broken = xchg(&adapter->broken, NULL);
	if (broken)
		vvio_failed(adapter, broken);
	if (adapter->events_lost)
		vvio_connection_reset(adapter);
	follow_config(adapter);
	mutex_unlock(&adapter->session);
	memalloc_noio_restore(noio);
	wake_up_all(&adapter->changed);
}

/* By timer: what had to wait, or what took too long. */
static void retry_work(struct work_struct *work)
{
	struct vvio_adapter *adapter = container_of(work, struct vvio_adapter, retry.work);
	unsigned int noio = memalloc_noio_save();

	mutex_lock(&adapter->session);
	if (adapter->is_lost) {
		/* nothing is tried any more */
	} else if (adapter->state == VVIO_CLOSED) {
		register_crq(adapter, true);
	} else if (adapter->is_suspended) {
		enable_crq(adapter);
	} else if (adapter->state == VVIO_INITIALIZING) {
		dev_warn(adapter->dev, "the server does not answer INITIALIZE\n");
		vvio_connection_reset(adapter);
	} else if (adapter->state == VVIO_WAITING) {
		offer(adapter);
	}
	mutex_unlock(&adapter->session);
	memalloc_noio_restore(noio);
	wake_up_all(&adapter->changed);
}

int vvio_connection_init(struct vvio_adapter *adapter)
{
	int err;

	spin_lock_init(&adapter->crq_lock);
	init_completion(&adapter->answered);
	INIT_WORK(&adapter->work, connection_work);
	INIT_DELAYED_WORK(&adapter->retry, retry_work);
	adapter->number = get_random_u32();	/* no answer to an earlier life is one to this */
	adapter->wq = alloc_ordered_workqueue("virtio_vio-%s", WQ_MEM_RECLAIM, dev_name(adapter->dev));
	if (!adapter->wq)
		return -ENOMEM;
	err = vvio_memory_get(&adapter->dma, &adapter->crq, TCE_PAGE);
	if (err)
		goto no_memory;
	adapter->source.number = adapter->device->node.interrupt;
	adapter->source.handler = interrupt;
	err = adapter->hv->ops->request_source(adapter->hv, &adapter->source);
	if (!err)
		return 0;
	vvio_memory_put(&adapter->dma, &adapter->crq);
no_memory:
	destroy_workqueue(adapter->wq);
	return err;
}

/* Without the session's mutex, and with the connection closed. */
void vvio_connection_exit(struct vvio_adapter *adapter)
{
	adapter->hv->ops->free_source(adapter->hv, &adapter->source);
	cancel_work_sync(&adapter->work);
	cancel_delayed_work_sync(&adapter->retry);
	destroy_workqueue(adapter->wq);
	vvio_memory_put(&adapter->dma, &adapter->crq);
}
