// SPDX-License-Identifier: GPL-2.0
/*
 * The kernel's DMA API on an adapter's window.
 */
#include <linux/dma-map-ops.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sizes.h>

#include "adapter.h"

static unsigned int pool_kib = 1024;
module_param(pool_kib, uint, 0444);
MODULE_PARM_DESC(pool_kib, "KiB of each adapter's pool of small buffers");

static unsigned int copy_kib = 16;
module_param(copy_kib, uint, 0444);
MODULE_PARM_DESC(copy_kib, "KiB of the largest buffer that is copied rather than mapped where mapping takes hcalls");

/* Handle of memory that is not mapped: no window is so large. */
#define PRIVATE_BIT	BIT_ULL(62)
#define LARGEST		SZ_1M

static u64 access_of(enum dma_data_direction dir)
{
	return dir == DMA_TO_DEVICE ? TCE_READ : TCE_READ | TCE_WRITE;	/* P6.1 */
}

static dma_addr_t map_page(struct device *dev, struct page *page, unsigned long offset, size_t size,
			   enum dma_data_direction dir, unsigned long attrs)
{
	struct vvio_dma *dma = &to_adapter(dev)->dma;

	bool is_open = READ_ONCE(dma->open);

	if (!size)
		return DMA_MAPPING_ERROR;
	if (size < TCE_PAGE)
		return pool_map(&dma->pool, page_address(page) + offset, size, is_open);
	if (!is_open)
		return DMA_MAPPING_ERROR;
	if (size <= dma->copied) {
		dma_addr_t ioba = pool_map(&dma->pool, page_address(page) + offset, size, true);

		if (ioba != DMA_MAPPING_ERROR)
			return ioba;
	}
	return tce_map(&dma->window, page_to_phys(page) + offset, size, access_of(dir));
}

static void unmap_page(struct device *dev, dma_addr_t ioba, size_t size, enum dma_data_direction dir,
		       unsigned long attrs)
{
	struct vvio_dma *dma = &to_adapter(dev)->dma;

	if (pool_find(&dma->pool, ioba, size))
		pool_unmap(&dma->pool, ioba, size,
			   dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC));
	else
		tce_unmap(&dma->window, ioba, size);
}

static void unmap_sg(struct device *dev, struct scatterlist *list, int count, enum dma_data_direction dir,
		     unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		unmap_page(dev, sg->dma_address, sg_dma_len(sg), dir, attrs);
}

static int map_sg(struct device *dev, struct scatterlist *list, int count, enum dma_data_direction dir,
		  unsigned long attrs)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i) {
		sg->dma_address = map_page(dev, sg_page(sg), sg->offset, sg->length, dir, attrs);
		if (sg->dma_address == DMA_MAPPING_ERROR) {
			unmap_sg(dev, list, i, dir, attrs | DMA_ATTR_SKIP_CPU_SYNC);
			return -EIO;
		}
		sg_dma_len(sg) = sg->length;
	}
	return count;
}

static void *alloc(struct device *dev, size_t size, dma_addr_t *ioba, gfp_t gfp, unsigned long attrs)
{
	struct vvio_dma *dma = &to_adapter(dev)->dma;
	void *memory = alloc_pages_exact(PAGE_ALIGN(size), gfp | __GFP_ZERO);

	if (!memory)
		return NULL;
	if (READ_ONCE(dma->ring_maker) == current) {
		*ioba = virt_to_phys(memory) | PRIVATE_BIT;
		return memory;
	}
	*ioba = DMA_MAPPING_ERROR;
	if (READ_ONCE(dma->open))
		*ioba = tce_map_virtual(&dma->window, memory, size, TCE_READ | TCE_WRITE);
	if (*ioba != DMA_MAPPING_ERROR && !tce_settle(&dma->window))
		return memory;
	if (*ioba != DMA_MAPPING_ERROR)
		tce_unmap(&dma->window, *ioba, size);
	free_pages_exact(memory, PAGE_ALIGN(size));
	return NULL;
}

static void release(struct device *dev, size_t size, void *memory, dma_addr_t ioba, unsigned long attrs)
{
	struct vvio_dma *dma = &to_adapter(dev)->dma;

	if (!(ioba & PRIVATE_BIT)) {
		tce_unmap(&dma->window, ioba, size);
		tce_flush(&dma->window);
		tce_settle(&dma->window);	/* not tce_drain(): this may be atomic */
	}
	free_pages_exact(memory, PAGE_ALIGN(size));
}

static void sync_for_cpu(struct device *dev, dma_addr_t ioba, size_t size, enum dma_data_direction dir)
{
	if (dir != DMA_TO_DEVICE)
		pool_sync(&to_adapter(dev)->dma.pool, ioba, size, true);
}

static void sync_for_device(struct device *dev, dma_addr_t ioba, size_t size, enum dma_data_direction dir)
{
	if (dir != DMA_FROM_DEVICE)
		pool_sync(&to_adapter(dev)->dma.pool, ioba, size, false);
}

static void sync_sg_for_cpu(struct device *dev, struct scatterlist *list, int count,
			    enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		sync_for_cpu(dev, sg->dma_address, sg_dma_len(sg), dir);
}

static void sync_sg_for_device(struct device *dev, struct scatterlist *list, int count,
			       enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int i;

	for_each_sg(list, sg, count, i)
		sync_for_device(dev, sg->dma_address, sg_dma_len(sg), dir);
}

static int supported(struct device *dev, u64 mask)
{
	return 1;
}

static size_t largest(struct device *dev)
{
	return LARGEST;
}

const struct dma_map_ops vvio_dma_ops = {
	.alloc = alloc,
	.free = release,
	.map_page = map_page,
	.unmap_page = unmap_page,
	.map_sg = map_sg,
	.unmap_sg = unmap_sg,
	.sync_single_for_cpu = sync_for_cpu,
	.sync_single_for_device = sync_for_device,
	.sync_sg_for_cpu = sync_sg_for_cpu,
	.sync_sg_for_device = sync_sg_for_device,
	.dma_supported = supported,
	.max_mapping_size = largest,
};

/**
 * vvio_memory_get - memory that the server sees, whatever becomes of connections
 * @dma: the adapter's window
 * @memory: is filled in
 * @size: bytes
 *
 * Return: 0 or -ENOMEM.
 */
int vvio_memory_get(struct vvio_dma *dma, struct vvio_memory *memory, size_t size)
{
	size = PAGE_ALIGN(size);
	memory->cpu = alloc_pages_exact(size, GFP_KERNEL | __GFP_ZERO);
	if (!memory->cpu)
		return -ENOMEM;
	memory->size = size;
	memory->ioba = tce_map_virtual(&dma->window, memory->cpu, size, TCE_READ | TCE_WRITE);
	if (memory->ioba != DMA_MAPPING_ERROR && !tce_settle(&dma->window))
		return 0;
	vvio_memory_put(dma, memory);
	return -ENOMEM;
}

void vvio_memory_put(struct vvio_dma *dma, struct vvio_memory *memory)
{
	if (!memory->cpu)
		return;
	if (memory->ioba != DMA_MAPPING_ERROR)
		tce_unmap(&dma->window, memory->ioba, memory->size);
	tce_drain(&dma->window);
	free_pages_exact(memory->cpu, memory->size);
	memory->cpu = NULL;
}

int vvio_dma_init(struct vvio_dma *dma, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size)
{
	size_t pool = ALIGN(clamp(pool_kib, 64u, 65536u) * (size_t)SZ_1K, PAGE_SIZE);
	int err;

	err = tce_init(&dma->window, dev, hv, liobn, size);
	if (err)
		return err;
	dma->copied = dma->window.table ? 0 : copy_kib * SZ_1K;
	err = pool_init(&dma->pool, &dma->window, min_t(size_t, pool, size / 4));
	if (err)
		tce_exit(&dma->window);
	return err;
}

void vvio_dma_exit(struct vvio_dma *dma)
{
	pool_exit(&dma->pool, &dma->window);
	tce_exit(&dma->window);
}
