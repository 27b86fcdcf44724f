/* SPDX-License-Identifier: GPL-2.0 */
/* How the driver reaches its hypervisor: one interface, two ways behind it. */
#ifndef VIRTIO_VIO_HYPERVISOR_H
#define VIRTIO_VIO_HYPERVISOR_H

#include <linux/device.h>
#include <linux/kernel.h>
#include <linux/list.h>
#include <linux/types.h>
#include <linux/workqueue.h>

#include "papr.h"

#define VVIO_REGISTERS		9	/* r4 to r12, in and out */
#define VVIO_UNREACHABLE	(~0ULL)	/* memory that cannot be passed to the hypervisor */

struct vvio_hv;

/* An interrupt source that somebody listens to. */
struct vvio_source {
	struct list_head node;
	u32 number;
	/* Called with interrupts off. It may come for nothing. */
	void (*handler)(struct vvio_source *source);
	void *private;		/* of the hypervisor's back end */
};

/* Told of the end of an hcall that was posted; called with interrupts off, maybe under locks. */
typedef void vvio_done_t(void *context, s64 code);

/**
 * struct vvio_hv_ops - what every way to a hypervisor can do
 * @call: make an hcall and wait for its end; results may be NULL. In atomic context it spins,
 *	for a bounded time. PAPR_BUSY: the hypervisor did not take it in time, PAPR_HARDWARE:
 *	it is gone.
 * @post: begin an hcall and do not wait; calls are carried out in the order in which they are
 *	posted. Returns a number for @wait, 0 if it could not be posted. @done may be NULL.
 * @wait: spin until a posted hcall, and so every earlier one, has ended and its @done was
 *	called. 0, or -EBUSY when it takes too long.
 * @request_source: have a source's handler called for each of its interrupts
 * @free_source: the handler is not called any more after the return
 * @synchronize_source: a handler that runs has returned
 * @logical: what the hypervisor calls a run of bytes, or VVIO_UNREACHABLE
 * @table: a TCE table that is written in place, or NULL if hcalls have to do it; @use is set to
 *	a word that is 0 when nobody is at a page of it
 */
struct vvio_hv_ops {
	s64 (*call)(struct vvio_hv *hv, bool may_sleep, u64 token, const u64 *arguments,
		    unsigned int count, u64 *results);
	u64 (*post)(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count,
		    vvio_done_t *done, void *context);
	int (*wait)(struct vvio_hv *hv, u64 number);
	int (*request_source)(struct vvio_hv *hv, struct vvio_source *source);
	void (*free_source)(struct vvio_hv *hv, struct vvio_source *source);
	void (*synchronize_source)(struct vvio_hv *hv, struct vvio_source *source);
	u64 (*logical)(struct vvio_hv *hv, phys_addr_t address, size_t length);
	__le64 *(*table)(struct vvio_hv *hv, u32 liobn, u64 pages, const __le64 **use);
};

/**
 * struct vvio_hv - a hypervisor
 * @ops: the way to it
 * @dev: what messages are about
 * @follow: looks at the device tree again, NULL if nobody has to
 * @dead: it does not answer any more, and never will
 */
struct vvio_hv {
	const struct vvio_hv_ops *ops;
	struct device *dev;
	struct work_struct *follow;
	bool dead;
};

/* An hcall, in a context that may sleep. */
#define vvio_call(hv_, token_, ...) ({						\
	struct vvio_hv *__hv = (hv_);						\
	const u64 __arguments[] = { __VA_ARGS__ };				\
	__hv->ops->call(__hv, true, token_, __arguments, ARRAY_SIZE(__arguments), NULL); \
})

/* An hcall that is made again while the hypervisor is busy, for some seconds; sleeps. */
s64 vvio_repeat(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count);

#define vvio_call_patiently(hv_, token_, ...) ({				\
	const u64 __arguments[] = { __VA_ARGS__ };				\
	vvio_repeat(hv_, token_, __arguments, ARRAY_SIZE(__arguments));		\
})

/* An hcall, in any context. */
#define vvio_call_atomic(hv_, token_, ...) ({					\
	struct vvio_hv *__hv = (hv_);						\
	const u64 __arguments[] = { __VA_ARGS__ };				\
	__hv->ops->call(__hv, false, token_, __arguments, ARRAY_SIZE(__arguments), NULL); \
})

#define vvio_post(hv_, done_, context_, token_, ...) ({				\
	struct vvio_hv *__hv = (hv_);						\
	const u64 __arguments[] = { __VA_ARGS__ };				\
	__hv->ops->post(__hv, token_, __arguments, ARRAY_SIZE(__arguments), done_, context_); \
})

#endif
