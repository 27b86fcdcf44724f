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
 * @received: what its queue has for chains that only bring data here, if it belongs to one; else NULL.
 *	A driver makes as much of that available as it can, for later
 * @has_choice: whether it could be mapped as well. Others could not: neither these nor what only brings
 *	data here finds room in the last part of the pool
 * @ioba: is set to the I/O bus address of the copy
 *
 * It is copied whichever way the data goes: what the server leaves as it was must not become
 * what somebody else's buffer had.
 *
 * Return: 0, or -ENOSPC when the pool is full.
 */
int pool_map(struct dma_pool_area *pool, void *origin, size_t length, struct dma_received *received, bool has_choice,
	     dma_addr_t *ioba)
{
	unsigned long end = pool->chunks - pool->chunks / 4 * (!!received + has_choice);
	unsigned long flags, first, count = CHUNKS_OF(length);

	spin_lock_irqsave(&pool->lock, flags);
	first = find_room(pool->taken, end, min(pool->hint, end), count);
	if (first >= end)
		first = find_room(pool->taken, end, 0, count);
	if (first < end && received && !room_take(&pool->room, &received->chunks, count))
		first = end;
	if (first < end) {
		mark(pool->taken, first, count);
		pool->hint = first + count;
	}
	spin_unlock_irqrestore(&pool->lock, flags);
	if (first >= end)
		return -ENOSPC;
	pool->origin[first] = origin;
	copy(pool->memory + (first << POOL_SHIFT), origin, length);
	*ioba = pool->ioba + (first << POOL_SHIFT);
	return 0;
}

/**
 * pool_unmap - give back a buffer's room
 * @pool: the adapter's pool
 * @ioba: as pool_map() set it
 * @length: the same bytes
 * @received: as pool_map() was given it
 * @is_wanted: whether what the server wrote is to be seen in the buffer
 */
void pool_unmap(struct dma_pool_area *pool, dma_addr_t ioba, size_t length, struct dma_received *received,
		bool is_wanted)
{
	unsigned long flags, first = (ioba - pool->ioba) >> POOL_SHIFT, count = CHUNKS_OF(length);

	if (is_wanted)
		copy(pool->origin[first], pool->memory + (first << POOL_SHIFT), length);
	spin_lock_irqsave(&pool->lock, flags);
	if (count == 1)
		__clear_bit(first, pool->taken);
	else
		bitmap_clear(pool->taken, first, count);
	if (received)
		room_give(&pool->room, &received->chunks, count);
	spin_unlock_irqrestore(&pool->lock, flags);
}

/**
 * pool_share - divide what may be taken for chains that only bring data here
 * @pool: the adapter's pool
 * @queues: how many have such chains, at least one
 */
void pool_share(struct dma_pool_area *pool, unsigned int queues)
{
	room_divide(&pool->room, pool->chunks - pool->chunks / 4, queues);
}

int pool_init(struct dma_pool_area *pool, struct tce_window *window, size_t size)
{
	spin_lock_init(&pool->lock);
	pool->size = size;
	pool->chunks = size >> POOL_SHIFT;
	pool->memory = vzalloc(size);
	pool->taken = bitmap_zalloc(pool->chunks, GFP_KERNEL);
	pool->origin = kvcalloc(pool->chunks, sizeof(*pool->origin), GFP_KERNEL);
	if (!pool->memory || !pool->taken || !pool->origin)
		goto failed;
	if (!tce_map_virtual(window, pool->memory, size, TCE_READ | TCE_WRITE, &pool->ioba))
		return 0;
failed:
	kvfree(pool->origin);
	bitmap_free(pool->taken);
	vfree(pool->memory);
	memset(pool, 0, sizeof(*pool));
	return -ENOMEM;
}

void pool_exit(struct dma_pool_area *pool, struct tce_window *window)
{
	if (!pool->memory)
		return;
	tce_unmap(window, pool->ioba, pool->size, NULL);
	if (tce_drain(window))
		vfree(pool->memory);	/* else it is lost */
	kvfree(pool->origin);
	bitmap_free(pool->taken);
	pool->memory = NULL;
}
