// SPDX-License-Identifier: GPL-2.0
/*
 * An adapter's window, and memory of the driver's own that the server sees.
 */
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/sizes.h>

#include "adapter.h"

static unsigned int pool_kib = 1024;
module_param(pool_kib, uint, 0444);
MODULE_PARM_DESC(pool_kib, "KiB of each adapter's pool of small buffers");

static unsigned int copy_kib = 16;
module_param(copy_kib, uint, 0444);
MODULE_PARM_DESC(copy_kib, "KiB of the largest buffer that is copied rather than mapped where mapping takes hcalls");

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
	memory->is_mapped = !tce_map_virtual(&dma->window, memory->cpu, size, TCE_READ | TCE_WRITE, &memory->ioba);
	if (memory->is_mapped && !tce_settle(&dma->window))
		return 0;
	vvio_memory_put(dma, memory);
	return -ENOMEM;
}

void vvio_memory_put(struct vvio_dma *dma, struct vvio_memory *memory)
{
	if (!memory->cpu)
		return;
	if (memory->is_mapped)
		tce_unmap(&dma->window, memory->ioba, memory->size, NULL);
	if (!memory->is_mapped || tce_drain(&dma->window))
		free_pages_exact(memory->cpu, memory->size);	/* else it is lost */
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
	dma->longest = U32_MAX;
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

/**
 * vvio_dma_share - divide what may be taken for chains that only bring data here
 * @dma: the adapter's window, which no chain is mapped in
 * @queues: how many the device has
 *
 * Devices that bring data by themselves have queues in pairs, one for each direction, and maybe
 * one more that tells the device something.
 */
void vvio_dma_share(struct vvio_dma *dma, unsigned int queues)
{
	unsigned int receiving = max(queues / 2, 1u);

	pool_share(&dma->pool, receiving);
	tce_share(&dma->window, receiving);
}
