/* SPDX-License-Identifier: GPL-2.0 */
/* One adapter's window on the partition's memory: what of it the server can reach, and where. */
#ifndef VIRTIO_VIO_DMA_H
#define VIRTIO_VIO_DMA_H

#include <linux/atomic.h>
#include <linux/spinlock.h>
#include <linux/types.h>

#include "hypervisor.h"

#define TCE_LISTS	4	/* lists of H_PUT_TCE_INDIRECT that may be under way */
#define TCE_STALE	64	/* runs of entries that are unmapped together */

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

/**
 * struct tce_window - the entries of the window's table, and who has them
 * @table: the table itself if it may be written in place; else hcalls change it
 * @use: says of such a table whether somebody is at a page of it
 *
 * With hcalls, mapping is prepared in lists and made by tce_settle(). Unmapping is gathered in
 * runs and made by tce_flush(), in place or by hcalls. hcalls are carried out in order, so an
 * address that is unmapped by one that was posted may be given out again at once.
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

	struct tce_list lists[TCE_LISTS];
	struct tce_list *list;	/* that is being filled */
	unsigned long first;	/* page of the list's first entry */
	unsigned int prepared;	/* entries in it */
	u64 posted;		/* number of the hcall that was posted last */

	struct tce_run stale[TCE_STALE];
	unsigned int runs;
};

int tce_init(struct tce_window *window, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size);
void tce_exit(struct tce_window *window);
int tce_map_pages(struct tce_window *window, unsigned int count, u64 access, phys_addr_t (*next)(void *context),
		  void *context, dma_addr_t *ioba);
int tce_map_virtual(struct tce_window *window, void *start, size_t length, u64 access, dma_addr_t *ioba);
void tce_unmap(struct tce_window *window, dma_addr_t ioba, size_t length);
int tce_settle(struct tce_window *window);
void tce_flush(struct tce_window *window);
void tce_drain(struct tce_window *window);

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
	void **origin;		/* by its first chunk, the buffer that is there */
};

int pool_init(struct dma_pool_area *pool, struct tce_window *window, size_t size);
void pool_exit(struct dma_pool_area *pool, struct tce_window *window);
int pool_map(struct dma_pool_area *pool, void *origin, size_t length, bool only_received, dma_addr_t *ioba);
void pool_unmap(struct dma_pool_area *pool, dma_addr_t ioba, size_t length, bool is_wanted);

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
 */
struct vvio_dma {
	struct tce_window window;
	struct dma_pool_area pool;
	size_t copied;
	bool open;
	atomic_t chains;
};

int vvio_dma_init(struct vvio_dma *dma, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size);
void vvio_dma_exit(struct vvio_dma *dma);

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
