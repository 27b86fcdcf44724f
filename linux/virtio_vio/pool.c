// SPDX-License-Identifier: GPL-2.0
/*
 * Small buffers: copied into memory that is mapped all the time, and back.
 */
#include <linux/bitmap.h>
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#include "dma.h"

#define CHUNKS_OF(length) (((length) + POOL_CHUNK - 1) >> POOL_SHIFT)

static bool is_in_pool(struct dma_pool_area *pool, dma_addr_t ioba)
{
	return ioba >= pool->ioba && ioba - pool->ioba < pool->size;
}

/*
 * Copies by words where it can. memcpy() is a string instruction on many processors, which an
 * emulated one carries out byte by byte.
 */
static void copy(void *to, const void *from, size_t length)
{
	const u64 *source = from;
	u64 *target = to;
	size_t left;

	if (((uintptr_t)to | (uintptr_t)from) & 7) {
		memcpy(to, from, length);
		return;
	}
	for (left = length; left >= 32; left -= 32, source += 4, target += 4) {
		u64 a = READ_ONCE(source[0]), b = READ_ONCE(source[1]);
		u64 c = READ_ONCE(source[2]), d = READ_ONCE(source[3]);

		WRITE_ONCE(target[0], a);
		WRITE_ONCE(target[1], b);
		WRITE_ONCE(target[2], c);
		WRITE_ONCE(target[3], d);
	}
	for (; left >= 8; left -= 8)
		WRITE_ONCE(*target++, READ_ONCE(*source++));
	if (left)
		memcpy(target, source, left);
}

/* Most buffers are a header or a status: one chunk is found and marked with less. */
static unsigned long find_room(unsigned long *taken, unsigned long end, unsigned long from,
			       unsigned long count)
{
	if (count == 1)
		return find_next_zero_bit(taken, end, from);
	return bitmap_find_next_zero_area(taken, end, from, count, 0);
}

static void mark(unsigned long *map, unsigned long first, unsigned long count)
{
	if (count == 1)
		__set_bit(first, map);
	else
		bitmap_set(map, first, count);
}

/**
 * pool_map - find room for a buffer, and copy it there
 * @pool: the adapter's pool
 * @origin: the buffer
 * @length: bytes
 * @is_open: whether there is a connection. Without one only what no server knows is given out, which
 *	is not much: some drivers have no use for an error (P1.5)
 *
 * It is copied whichever way the data goes: what the server leaves as it was must not become
 * what somebody else's buffer had.
 *
 * Return: its I/O bus address, or DMA_MAPPING_ERROR when the pool is full.
 */
dma_addr_t pool_map(struct dma_pool_area *pool, void *origin, size_t length, bool is_open)
{
	unsigned long end = is_open ? pool->reserve : pool->chunks;
	unsigned long flags, first, i, count = CHUNKS_OF(length);

	spin_lock_irqsave(&pool->lock, flags);
	if (is_open) {
		first = find_room(pool->taken, end, pool->hint, count);
		if (first >= end)
			first = find_room(pool->taken, end, 0, count);
	} else {
		first = find_room(pool->known, end, pool->reserve, count);
	}
	if (first < end) {
		mark(pool->taken, first, count);
		mark(pool->known, first, count);
		if (is_open)
			pool->hint = first + count;
	}
	spin_unlock_irqrestore(&pool->lock, flags);
	if (first >= end)
		return DMA_MAPPING_ERROR;
	for (i = 0; i < count; i++)
		pool->origin[first + i] = origin + (i << POOL_SHIFT);
	copy(pool->memory + (first << POOL_SHIFT), origin, length);
	return pool->ioba + (first << POOL_SHIFT);
}

/**
 * pool_sync - copy a part of a buffer, to where the server or to where the driver sees it
 * @pool: the adapter's pool
 * @ioba: an address in a buffer
 * @length: bytes
 * @for_cpu: the driver is to see it
 *
 * Addresses outside the pool are none of its business.
 */
void pool_sync(struct dma_pool_area *pool, dma_addr_t ioba, size_t length, bool for_cpu)
{
	u64 offset = ioba - pool->ioba;
	void *origin;

	if (!is_in_pool(pool, ioba) || length > pool->size - offset)
		return;
	origin = pool->origin[offset >> POOL_SHIFT];
	if (!origin)
		return;
	origin += offset & (POOL_CHUNK - 1);
	if (for_cpu)
		copy(origin, pool->memory + offset, length);
	else
		copy(pool->memory + offset, origin, length);
}

/**
 * pool_unmap - give back a buffer's room
 * @pool: the adapter's pool
 * @ioba: what pool_map() returned
 * @length: the same bytes
 * @copy: whether what the server wrote is to be seen
 */
void pool_unmap(struct dma_pool_area *pool, dma_addr_t ioba, size_t length, bool copy)
{
	unsigned long flags, first = (ioba - pool->ioba) >> POOL_SHIFT, count = CHUNKS_OF(length), i;

	if (copy)
		pool_sync(pool, ioba, length, true);
	for (i = 0; i < count; i++)
		pool->origin[first + i] = NULL;
	spin_lock_irqsave(&pool->lock, flags);
	if (count == 1)
		__clear_bit(first, pool->taken);
	else
		bitmap_clear(pool->taken, first, count);
	spin_unlock_irqrestore(&pool->lock, flags);
}

/**
 * pool_find - where the server's copy of a buffer is
 * @pool: the adapter's pool
 * @ioba: an I/O bus address
 * @length: bytes from there
 *
 * Return: NULL if they are not in the pool.
 */
void *pool_find(struct dma_pool_area *pool, dma_addr_t ioba, size_t length)
{
	u64 offset = ioba - pool->ioba;

	return is_in_pool(pool, ioba) && length <= pool->size - offset ? pool->memory + offset : NULL;
}

/**
 * pool_opened - there is a new connection: no older server is at the pool any more
 * @pool: the adapter's pool
 */
void pool_opened(struct dma_pool_area *pool)
{
	unsigned long flags;

	spin_lock_irqsave(&pool->lock, flags);
	bitmap_copy(pool->known, pool->taken, pool->chunks);
	spin_unlock_irqrestore(&pool->lock, flags);
}

int pool_init(struct dma_pool_area *pool, struct tce_window *window, size_t size)
{
	spin_lock_init(&pool->lock);
	pool->size = size;
	pool->chunks = size >> POOL_SHIFT;
	pool->reserve = pool->chunks - pool->chunks / 8;
	pool->memory = vzalloc(size);
	pool->taken = bitmap_zalloc(pool->chunks, GFP_KERNEL);
	pool->known = bitmap_zalloc(pool->chunks, GFP_KERNEL);
	pool->origin = kvcalloc(pool->chunks, sizeof(*pool->origin), GFP_KERNEL);
	if (!pool->memory || !pool->taken || !pool->known || !pool->origin)
		goto failed;
	pool->ioba = tce_map_virtual(window, pool->memory, size, TCE_READ | TCE_WRITE);
	if (pool->ioba != DMA_MAPPING_ERROR)
		return 0;
failed:
	kvfree(pool->origin);
	bitmap_free(pool->known);
	bitmap_free(pool->taken);
	vfree(pool->memory);
	memset(pool, 0, sizeof(*pool));
	return -ENOMEM;
}

void pool_exit(struct dma_pool_area *pool, struct tce_window *window)
{
	if (!pool->memory)
		return;
	tce_unmap(window, pool->ioba, pool->size);
	tce_drain(window);
	kvfree(pool->origin);
	bitmap_free(pool->known);
	bitmap_free(pool->taken);
	vfree(pool->memory);
	pool->memory = NULL;
}
