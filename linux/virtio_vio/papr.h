/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What PAPR defines: hcall tokens, return codes, TCEs and CRQ elements.
 *
 * Kernels for ppc64 have most of this in asm/hvcall.h, others have nothing;
 * names of our own serve both.
 */
#ifndef VIRTIO_VIO_PAPR_H
#define VIRTIO_VIO_PAPR_H

#include <linux/bits.h>
#include <linux/types.h>

/* Tokens of hcalls, r3. */
#define PAPR_PUT_TCE		0x20
#define PAPR_EOI		0x64
#define PAPR_XIRR		0x74
#define PAPR_REG_CRQ		0xfc
#define PAPR_FREE_CRQ		0x100
#define PAPR_VIO_SIGNAL		0x104
#define PAPR_SEND_CRQ		0x108
#define PAPR_STUFF_TCE		0x138
#define PAPR_PUT_TCE_INDIRECT	0x13c
#define PAPR_VIOCTL		0x2a8
#define PAPR_ENABLE_CRQ		0x2b0
#define PAPR_REG_SUB_CRQ	0x2dc
#define PAPR_FREE_SUB_CRQ	0x2e0
#define PAPR_SEND_SUB_CRQ	0x2e4

#define PAPR_VIOCTL_ENABLE_INTERRUPT	0x0c

/* Return codes, r3. */
#define PAPR_SUCCESS		0
#define PAPR_BUSY		1
#define PAPR_CLOSED		2
#define PAPR_IN_PROGRESS	14
#define PAPR_LONG_BUSY_FIRST	9900
#define PAPR_LONG_BUSY_LAST	9905
#define PAPR_HARDWARE		(-1)
#define PAPR_FUNCTION		(-2)
#define PAPR_PARAMETER		(-4)
#define PAPR_DROPPED		(-12)
#define PAPR_RESOURCE		(-16)

/* Translation control entries: one for each page of 4 KiB, whatever PAGE_SIZE. */
#define TCE_SHIFT		12
#define TCE_PAGE		BIT(TCE_SHIFT)
#define TCE_READ		BIT(0)
#define TCE_WRITE		BIT(1)
#define TCE_LIST_MAX		512	/* entries of one H_PUT_TCE_INDIRECT */

/* CRQ elements: 16 bytes, big-endian. */
#define CRQ_FREE		0x00
#define CRQ_MESSAGE		0x80
#define CRQ_INIT		0xc0
#define CRQ_EVENT		0xff

#define CRQ_INITIALIZE		0x01
#define CRQ_INIT_COMPLETE	0x02

#define CRQ_PARTNER_FAILED	0x01
#define CRQ_PARTNER_CLOSED	0x02
#define CRQ_PARTNER_TERMINATED	0x04
#define CRQ_PARTNER_SUSPENDED	0x06

struct crq_element {
	__be64 high;
	__be64 low;
};

/* An element of a Sub-CRQ: 32 bytes, of which virtio over CRQ uses half. */
struct sub_crq_element {
	struct crq_element message;
	__be64 reserved[2];
};

static inline bool papr_is_busy(s64 code)
{
	return code == PAPR_BUSY || code == PAPR_IN_PROGRESS ||
	       (code >= PAPR_LONG_BUSY_FIRST && code <= PAPR_LONG_BUSY_LAST);
}

/* Milliseconds after which a call that was busy is made again. */
static inline unsigned int papr_busy_msec(s64 code)
{
	static const u16 order[] = { 1, 10, 100, 1000, 1000, 1000 };

	if (code >= PAPR_LONG_BUSY_FIRST && code <= PAPR_LONG_BUSY_LAST)
		return order[code - PAPR_LONG_BUSY_FIRST];
	return 10;
}

#endif
