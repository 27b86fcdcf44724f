/* SPDX-License-Identifier: GPL-2.0 */
/* One adapter's window on the partition's memory: what of it the server can reach, and where. */
#ifndef VIRTIO_VIO_DMA_H
#define VIRTIO_VIO_DMA_H

#include <linux/atomic.h>
#include <linux/spinlock.h>
#include <linux/timer.h>
#include <linux/types.h>

#include "hypervisor.h"

#define TCE_LISTS	4	/* lists of H_PUT_TCE_INDIRECT that may be under way */
#define TCE_STALE	64	/* runs of entries that are unmapped together */
#define TCE_ENDINGS	64	/* hcalls that unmap, and are under way */

/**
 * struct dma_room - the part of an area that may be taken for what only brings data here
 * @guaranteed: what each queue that does so may have, whatever others have
 * @common: what they may have beyond that, all together
 * @borrowed: what they have of it
 *
 * Drivers make as many such buffers available as they can, and they come back when data comes: maybe
 * never. A queue that has nothing may take one in any case, should it be there.
 */
struct dma_room {
	unsigned long guaranteed, common, borrowed;
};

/* What a queue has for chains that only bring data here; protected as the area that it is of. */
struct dma_received {
	unsigned long chunks;	/* of the pool */
	unsigned long pages;	/* of the window */
};

static inline void room_divide(struct dma_room *room, unsigned long part, unsigned int queues)
{
	room->common = part / 2;
	room->guaranteed = (part - room->common) / queues;
}

static inline unsigned long room_above(const struct dma_room *room, unsigned long held)
{
	return held > room->guaranteed ? held - room->guaranteed : 0;
}

/* Whether a queue may take that much more; then it is counted. */
static inline bool room_take(struct dma_room *room, unsigned long *held, unsigned long count)
{
	unsigned long more = room_above(room, *held + count) - room_above(room, *held);

	if (*held && more && room->borrowed + more > room->common)
		return false;
	room->borrowed += more;
	*held += count;
	return true;
}

static inline void room_give(struct dma_room *room, unsigned long *held, unsigned long count)
{
	room->borrowed -= room_above(room, *held) - room_above(room, *held - count);
	*held -= count;
}

/* TCEs that are prepared for one H_PUT_TCE_INDIRECT. */
struct tce_list {
	struct tce_window *window;
	__be64 *entries;
	u64 logical;		/* of entries */
	bool busy;		/* posted, not answered */
};

struct tce_run {
	unsigned long first;
	unsigned int count;
};

enum tce_ending_state {
	TCE_POSTED,
	TCE_ENDED,
	TCE_REFUSED,
};

/* An H_STUFF_TCE that was posted. */
struct tce_ending {
	struct tce_window *window;
	struct tce_run run;
	u64 number;
	enum tce_ending_state state;	/* which is all that its end changes: that comes under other locks */
};

/**
 * struct tce_window - the entries of the window's table, and who has them
 * @table: the table itself if it may be written in place; else hcalls change it
 * @use: says of such a table whether somebody is at a page of it
 *
 * With hcalls, mapping is prepared in lists and made by tce_settle(). Unmapping is gathered in
 * runs and made by tce_flush(), in place or by hcalls. An address is given out again when it is known
 * that nobody can be at its page: the hypervisor may refuse to unmap it while a DMA engine is.
 */
struct tce_window {
	struct device *dev;
	struct vvio_hv *hv;
	u32 liobn;
	__le64 *table;
	const __le64 *use;

	spinlock_t lock;	/* protects what follows */
	unsigned long pages;
	unsigned long *taken;	/* bit map of pages */
	unsigned long hint;
	unsigned long received;	/* pages from the beginning that @room is of */
	struct dma_room room;

	struct tce_list lists[TCE_LISTS];
	struct tce_list *list;	/* that is being filled */
	unsigned long first;	/* page of the list's first entry */
	unsigned int prepared;	/* entries in it */
	u64 posted;		/* number of the hcall that was posted last to map */

	struct tce_run stale[TCE_STALE];
	unsigned int runs;
	struct tce_ending endings[TCE_ENDINGS];	/* a ring */
	unsigned int begun, ended;
	unsigned long *owed;	/* bit map of pages: to be unmapped, but not now */
	bool owes;
	bool gave_up;		/* it is refused for long */
	bool is_closing;
	struct timer_list again;	/* when that is tried */
};

int tce_init(struct tce_window *window, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size);
void tce_exit(struct tce_window *window);
void tce_share(struct tce_window *window, unsigned int queues);
int tce_map_pages(struct tce_window *window, unsigned int count, u64 access, phys_addr_t (*next)(void *context),
		  void *context, struct dma_received *received, dma_addr_t *ioba);
int tce_map_virtual(struct tce_window *window, void *start, size_t length, u64 access, dma_addr_t *ioba);
void tce_unmap(struct tce_window *window, dma_addr_t ioba, size_t length, struct dma_received *received);
int tce_settle(struct tce_window *window);
void tce_flush(struct tce_window *window);
bool tce_drain(struct tce_window *window);

#define POOL_SHIFT	6	/* buffers in the pool begin at multiples of 64 bytes */
#define POOL_CHUNK	BIT(POOL_SHIFT)

/**
 * struct dma_pool_area - memory that is mapped once, for buffers that are copied into it
 *
 * A small buffer shares its page with memory that is nobody's business, so it is not mapped
 * where it is.
 */
struct dma_pool_area {
	void *memory;
	dma_addr_t ioba;
	size_t size;
	spinlock_t lock;	/* protects what follows */
	unsigned long chunks;
	unsigned long *taken;
	unsigned long hint;
	struct dma_room room;
	void **origin;		/* by its first chunk, the buffer that is there */
};

int pool_init(struct dma_pool_area *pool, struct tce_window *window, size_t size);
void pool_exit(struct dma_pool_area *pool, struct tce_window *window);
void pool_share(struct dma_pool_area *pool, unsigned int queues);
int pool_map(struct dma_pool_area *pool, void *origin, size_t length, struct dma_received *received, bool has_choice,
	     dma_addr_t *ioba);
void pool_unmap(struct dma_pool_area *pool, dma_addr_t ioba, size_t length, struct dma_received *received,
		bool is_wanted);

static inline bool pool_has(const struct dma_pool_area *pool, dma_addr_t ioba)
{
	return ioba >= pool->ioba && ioba - pool->ioba < pool->size;
}

/**
 * struct vvio_dma - all that an adapter has mapped
 * @copied: bytes of the largest buffer that goes to the pool if there is room
 * @open: whether addresses may be given a new use: not while an older server may still use them
 *	(docs/protocol.md, P1.5)
 * @chains: of the driver's that are mapped
 * @waiting: queues that have found no room
 * @longest: bytes of the largest descriptor that the device takes
 */
struct vvio_dma {
	struct tce_window window;
	struct dma_pool_area pool;
	size_t copied;
	bool open;
	atomic_t chains;
	atomic_t waiting;
	u32 longest;
};

int vvio_dma_init(struct vvio_dma *dma, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size);
void vvio_dma_exit(struct vvio_dma *dma);
void vvio_dma_share(struct vvio_dma *dma, unsigned int queues);

/* Memory for the server to see as long as there is the adapter. */
struct vvio_memory {
	void *cpu;
	dma_addr_t ioba;
	size_t size;
	bool is_mapped;
};

int vvio_memory_get(struct vvio_dma *dma, struct vvio_memory *memory, size_t size);
void vvio_memory_put(struct vvio_dma *dma, struct vvio_memory *memory);

#endif
