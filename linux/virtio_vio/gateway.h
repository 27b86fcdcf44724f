/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The region that a partition shares with its hypervisor, behind an
 * ivshmem-doorbell device. The normative text is docs/gateway.md.
 */
#ifndef VIRTIO_VIO_GATEWAY_H
#define VIRTIO_VIO_GATEWAY_H

#include <linux/interrupt.h>
#include <linux/pci.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/types.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "hypervisor.h"

#define GATE_MAGIC		0x455441474f495650ULL	/* "PVIOGATE" */
#define GATE_VERSION		1

#define GATE_CALL_VECTOR	0
#define GATE_LINE_VECTOR	1
#define GATE_FIRST_SOURCE	2

#define GATE_ENDED		1	/* STATE */

/* hcalls of the gateway (G7) and the features that it may offer (G8). */
#define GATE_FEATURES		0xfb00
#define GATE_TREE		0xfb04
#define GATE_DIRECT		0xfb08

#define GATE_SHARED_TCE		BIT_ULL(0)
#define GATE_FEATURE_DIRECT	BIT_ULL(1)

/* G2.3 */
struct gate_header {
	__le64 magic;
	__le32 version;
	__le32 header_size;
	__le64 region_size;
	__le64 offered;
	__le32 slots_offset;
	__le32 slot_size;
	__le32 slots;
	__le32 vectors;
	__le32 tree_offset;
	__le32 tree_room;
	__le64 memory_size;
	__le32 map_offset;
	__le32 map_count;
	__le32 partition_id;
	__le32 hypervisor_peer;
	__le32 tce_offset;
	__le32 tce_room;
	u8 reserved[0x80 - 0x58];
	__le64 tree_generation;
	__le32 tree_length;
	__le32 awake;
	__le32 state;
	__le32 reserved2;
	__le64 accepted;
};

/* G3.2 */
struct gate_map_entry {
	__le64 guest;
	__le64 length;
	__le64 logical;
};

/* G5.1 */
struct gate_slot {
	__le64 posted;
	__le64 token;
	__le64 arguments[VVIO_REGISTERS];
	__le64 waiting;
	__le64 withdrawn;
	u8 reserved[0x80 - 0x68];
	__le64 taken;
	__le64 done;
	__le64 code;
	__le64 results[VVIO_REGISTERS];
	u8 reserved2[0x100 - 0xe0];
};

/* One hcall that is posted: what this side keeps of it. */
struct gate_posted {
	vvio_done_t *done;
	void *context;
	bool held;		/* somebody will read its results */
};

/* One vector, and the interrupt sources that are directed to it. */
struct gate_vector {
	struct gateway *gate;
	spinlock_t lock;	/* protects sources */
	struct list_head sources;
	unsigned int count;
	int irq;
};

struct gateway {
	struct vvio_hv hv;
	struct pci_dev *pdev;
	void __iomem *registers;
	void *region;
	struct gate_header *header;
	struct gate_slot *slots;
	struct gate_map_entry *map;
	unsigned int map_count;
	u64 accepted;

	spinlock_t lock;	/* protects what follows: the ring of hcalls */
	unsigned int count;	/* of slots */
	u64 number;		/* of the hcall that was posted last */
	u64 reaped;		/* of the one whose end was looked at last */
	unsigned long progress;	/* when something was done, in jiffies */
	struct gate_posted *posted;
	struct timer_list reaper;
	wait_queue_head_t wait;

	unsigned int vectors;
	struct gate_vector *vector;
	struct timer_list line;	/* asks again for what the line had to tell */
	spinlock_t line_lock;	/* one asks at a time; protects owed */
	u64 owed;		/* an H_EOI that was not taken in time, 0 for none */

	struct delayed_work watchdog;
	struct work_struct tree_work;
	struct mutex tree_lock;	/* one reads the tree at a time */
	struct vvio_source tree_source;
};

#define to_gateway(hv_) container_of(hv_, struct gateway, hv)

/* calls.c */
extern const struct vvio_hv_ops gate_ops;
int gate_calls_init(struct gateway *gate);
void gate_calls_exit(struct gateway *gate);
void gate_reap(struct gateway *gate);
void gate_bury(struct gateway *gate);

/* interrupts.c */
int gate_interrupts_init(struct gateway *gate);
void gate_interrupts_exit(struct gateway *gate);
int gate_request_source(struct vvio_hv *hv, struct vvio_source *source);
void gate_free_source(struct vvio_hv *hv, struct vvio_source *source);
void gate_synchronize_source(struct vvio_hv *hv, struct vvio_source *source);

/* gateway.c */
u64 gate_logical(struct vvio_hv *hv, phys_addr_t address, size_t length);
__le64 *gate_table(struct vvio_hv *hv, u32 liobn, u64 pages, const __le64 **use);

#endif
