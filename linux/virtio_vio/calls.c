// SPDX-License-Identifier: GPL-2.0
/*
 * The ring of hcalls in the shared region (docs/gateway.md, G5).
 *
 * hcalls have numbers; number n is in slot (n - 1) modulo the slots. The hypervisor takes them
 * strictly in order, so what is posted needs no waiting: a later hcall that is done says that the
 * earlier ones are.
 */
#include <linux/delay.h>
#include <linux/jiffies.h>
#include <linux/ktime.h>
#include <linux/sched.h>
#include <linux/slab.h>

#include "gateway.h"

#define SPIN_NS		(50 * NSEC_PER_USEC)	/* before a caller that may sleep does */
#define LIMIT_NS	NSEC_PER_SEC		/* of a caller that may sleep */
#define ATOMIC_NS	(100 * NSEC_PER_MSEC)	/* of one that may not */
#define STALLED_NS	NSEC_PER_MSEC		/* of one that may not, while nothing is answered */
#define LOOK_AGAIN	msecs_to_jiffies(10)	/* G5.9 */

#define DOORBELL	12	/* register of BAR0 */

static struct gate_slot *slot_of(struct gateway *gate, u64 number)
{
	return &gate->slots[(number - 1) & (gate->count - 1)];
}

static struct gate_posted *posted_of(struct gateway *gate, u64 number)
{
	return &gate->posted[(number - 1) & (gate->count - 1)];
}

static bool is_done(struct gateway *gate, u64 number)
{
	return le64_to_cpu(virt_load_acquire(&slot_of(gate, number)->done)) == number;
}

static void ring(struct gateway *gate)
{
	writel((u32)0 << 16 | GATE_CALL_VECTOR, gate->registers + DOORBELL);
}

static void reap(struct gateway *gate)
{
	while (gate->reaped < gate->number && is_done(gate, gate->reaped + 1)) {
		u64 number = ++gate->reaped;
		struct gate_posted *posted = posted_of(gate, number);
		vvio_done_t *done = posted->done;

		posted->done = NULL;
		gate->progress = jiffies;
		if (done)
			done(posted->context, (s64)le64_to_cpu(slot_of(gate, number)->code));
	}
}

/**
 * gate_reap - tell those who posted hcalls that these are done
 * @gate: the gateway
 *
 * Takes the lock; the callbacks run under it.
 */
void gate_reap(struct gateway *gate)
{
	unsigned long flags;

	spin_lock_irqsave(&gate->lock, flags);
	reap(gate);
	spin_unlock_irqrestore(&gate->lock, flags);
}

/* What nobody else meets: an hcall that was posted, and after which nothing else happened. */
static void reap_later(struct timer_list *timer)
{
	struct gateway *gate = from_timer(gate, timer, reaper);
	unsigned long flags;

	spin_lock_irqsave(&gate->lock, flags);
	reap(gate);
	if (gate->reaped < gate->number && !READ_ONCE(gate->hv.dead)) {
		ring(gate);
		mod_timer(&gate->reaper, jiffies + LOOK_AGAIN);
	}
	spin_unlock_irqrestore(&gate->lock, flags);
}

/* G5.2: the slot is free when what was in it is done, and its results have been read. */
static bool has_room(struct gateway *gate)
{
	u64 number = gate->number + 1;

	if (number <= gate->count)
		return true;
	reap(gate);
	return gate->reaped >= number - gate->count && !posted_of(gate, number)->held;
}

static u64 try_post(struct gateway *gate, u64 token, const u64 *arguments, unsigned int count,
		    vvio_done_t *done, void *context, bool held)
{
	struct gate_posted *posted;
	struct gate_slot *slot;
	unsigned long flags;
	unsigned int i;
	u64 number = 0;

	spin_lock_irqsave(&gate->lock, flags);
	if (!READ_ONCE(gate->hv.dead) && has_room(gate)) {
		if (gate->reaped == gate->number)
			gate->progress = jiffies;	/* nothing was waited for */
		number = ++gate->number;
		posted = posted_of(gate, number);
		posted->done = done;
		posted->context = context;
		posted->held = held;
		slot = slot_of(gate, number);
		slot->token = cpu_to_le64(token);
		for (i = 0; i < VVIO_REGISTERS; i++)
			slot->arguments[i] = cpu_to_le64(i < count ? arguments[i] : 0);
		virt_wmb();
		WRITE_ONCE(slot->posted, cpu_to_le64(number));
		if (done && !timer_pending(&gate->reaper))
			mod_timer(&gate->reaper, jiffies + LOOK_AGAIN);
	}
	spin_unlock_irqrestore(&gate->lock, flags);
	/* the hypervisor looks for long enough after AWAKE for a fence that orders nothing, too (G5.7) */
	virt_mb();
	if (number && !READ_ONCE(gate->header->awake))
		ring(gate);
	return number;
}

/**
 * gate_bury - nobody answers any more: so it is told to all who posted hcalls
 * @gate: the gateway
 */
void gate_bury(struct gateway *gate)
{
	unsigned long flags;

	spin_lock_irqsave(&gate->lock, flags);
	WRITE_ONCE(gate->hv.dead, true);
	while (gate->reaped < gate->number) {
		struct gate_posted *posted = posted_of(gate, ++gate->reaped);
		vvio_done_t *done = posted->done;

		posted->done = NULL;
		if (done)
			done(posted->context, PAPR_HARDWARE);
	}
	spin_unlock_irqrestore(&gate->lock, flags);
	wake_up_all(&gate->wait);
}

static u64 limit_of(struct gateway *gate, bool may_sleep)
{
	if (may_sleep)
		return LIMIT_NS;
	if (time_after(jiffies, READ_ONCE(gate->progress) + HZ / 4))
		return STALLED_NS;
	return ATOMIC_NS;
}

/* Whether an hcall is done within a time. */
static bool wait_done(struct gateway *gate, u64 number, bool may_sleep, u64 limit)
{
	struct gate_slot *slot = slot_of(gate, number);
	u64 start = ktime_get_ns();

	while (!is_done(gate, number)) {
		u64 spent = ktime_get_ns() - start;

		if (spent > limit || READ_ONCE(gate->hv.dead))
			return is_done(gate, number);
		if (may_sleep && spent > SPIN_NS) {
			WRITE_ONCE(slot->waiting, cpu_to_le64(number));
			virt_mb();
			wait_event_timeout(gate->wait, is_done(gate, number), LOOK_AGAIN);
		} else {
			cpu_relax();
		}
	}
	return true;
}

/* G5.10: PAPR_BUSY, or PAPR_SUCCESS when it was done in the end, or PAPR_HARDWARE. */
static s64 give_up(struct gateway *gate, u64 number, bool may_sleep)
{
	struct gate_slot *slot = slot_of(gate, number);

	WRITE_ONCE(slot->withdrawn, cpu_to_le64(number));
	ring(gate);	/* a fence, too */
	if (le64_to_cpu(READ_ONCE(slot->taken)) != number)
		return PAPR_BUSY;
	/*
	 * It is at it, so it is done when the hypervisor goes on; that may be a while when its process was
	 * stopped in the middle. The watch says when it is given up.
	 */
	if (wait_done(gate, number, may_sleep, may_sleep ? U64_MAX : LIMIT_NS))
		return PAPR_SUCCESS;
	return PAPR_HARDWARE;
}

static u64 post_within(struct gateway *gate, bool may_sleep, u64 token, const u64 *arguments,
		       unsigned int count, vvio_done_t *done, void *context, bool held)
{
	u64 number = try_post(gate, token, arguments, count, done, context, held);
	u64 start, limit;

	if (number)
		return number;
	start = ktime_get_ns();
	limit = limit_of(gate, may_sleep);
	while (!READ_ONCE(gate->hv.dead)) {
		number = try_post(gate, token, arguments, count, done, context, held);
		if (number)
			return number;
		if (ktime_get_ns() - start > limit)
			break;
		if (may_sleep)
			usleep_range(50, 200);
		else
			cpu_relax();
	}
	return 0;
}

static void drop(struct gateway *gate, u64 number)
{
	unsigned long flags;

	spin_lock_irqsave(&gate->lock, flags);
	reap(gate);
	posted_of(gate, number)->held = false;
	spin_unlock_irqrestore(&gate->lock, flags);
}

static s64 gate_call(struct vvio_hv *hv, bool may_sleep, u64 token, const u64 *arguments,
		     unsigned int count, u64 *results)
{
	struct gateway *gate = to_gateway(hv);
	struct gate_slot *slot;
	s64 code = PAPR_SUCCESS;
	unsigned int i;
	u64 number;

	if (READ_ONCE(hv->dead))
		return PAPR_HARDWARE;
	number = post_within(gate, may_sleep, token, arguments, count, NULL, NULL, true);
	if (!number)
		return READ_ONCE(hv->dead) ? PAPR_HARDWARE : PAPR_BUSY;
	if (!wait_done(gate, number, may_sleep, limit_of(gate, may_sleep)))
		code = give_up(gate, number, may_sleep);
	if (code == PAPR_SUCCESS) {
		slot = slot_of(gate, number);
		code = (s64)le64_to_cpu(READ_ONCE(slot->code));
		for (i = 0; results && i < VVIO_REGISTERS; i++)
			results[i] = le64_to_cpu(READ_ONCE(slot->results[i]));
	}
	drop(gate, number);
	return code;
}

static u64 gate_post(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count,
		     vvio_done_t *done, void *context)
{
	return post_within(to_gateway(hv), false, token, arguments, count, done, context, false);
}

static int gate_wait(struct vvio_hv *hv, u64 number)
{
	struct gateway *gate = to_gateway(hv);
	u64 start = ktime_get_ns(), limit = limit_of(gate, false);

	while (READ_ONCE(gate->reaped) < number) {
		gate_reap(gate);
		if (READ_ONCE(gate->reaped) >= number)
			break;
		if (READ_ONCE(hv->dead) || ktime_get_ns() - start > limit)
			return -EBUSY;
		cpu_relax();
	}
	return 0;
}

const struct vvio_hv_ops gate_ops = {
	.call = gate_call,
	.post = gate_post,
	.wait = gate_wait,
	.request_source = gate_request_source,
	.free_source = gate_free_source,
	.synchronize_source = gate_synchronize_source,
	.logical = gate_logical,
	.table = gate_table,
};

/* The session is QEMU's: an earlier driver, or kernel, may have posted hcalls in it (G5.2). */
static void find_place(struct gateway *gate)
{
	unsigned int i;

	for (i = 0; i < gate->count; i++)
		gate->number = max(gate->number, le64_to_cpu(READ_ONCE(gate->slots[i].posted)));
	gate->reaped = gate->number;
	if (gate->number && !wait_done(gate, gate->number, true, LIMIT_NS))
		dev_warn(&gate->pdev->dev, "hcalls of an earlier driver are not answered\n");
}

int gate_calls_init(struct gateway *gate)
{
	spin_lock_init(&gate->lock);
	init_waitqueue_head(&gate->wait);
	timer_setup(&gate->reaper, reap_later, 0);
	gate->progress = jiffies;
	gate->posted = kcalloc(gate->count, sizeof(*gate->posted), GFP_KERNEL);
	if (!gate->posted)
		return -ENOMEM;
	find_place(gate);
	return 0;
}

void gate_calls_exit(struct gateway *gate)
{
	gate_bury(gate);
	del_timer_sync(&gate->reaper);
	kfree(gate->posted);
}
