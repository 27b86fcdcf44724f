// SPDX-License-Identifier: GPL-2.0
/*
 * The window's table: which pages are given out, and what their entries say.
 */
#include <linux/bitmap.h>
#include <linux/delay.h>
#include <linux/io.h>
#include <linux/mm.h>
#include <linux/pfn.h>
#include <linux/slab.h>

#include "dma.h"

#define PAGES_OF(offset, length) (((offset) + (length) + TCE_PAGE - 1) >> TCE_SHIFT)

static void was_put(void *context, s64 code)
{
	struct tce_list *list = context;

	WRITE_ONCE(list->busy, false);
	if (code && code != PAPR_PARAMETER && code != PAPR_HARDWARE)	/* a window, or a hypervisor, that is gone */
		dev_err_ratelimited(list->window->dev, "pages cannot be mapped: hcall returned %lld\n", code);
}

static void was_stuffed(void *context, s64 code)
{
	struct tce_window *window = context;

	if (code && code != PAPR_PARAMETER && code != PAPR_HARDWARE)
		dev_err_ratelimited(window->dev, "pages cannot be unmapped: hcall returned %lld\n", code);
}

/* Post what is prepared; -EBUSY if the hypervisor does not take it now. */
static int put_prepared(struct tce_window *window)
{
	struct tce_list *list = window->list;
	u64 number, ioba = (u64)window->first << TCE_SHIFT;

	if (!window->prepared)
		return 0;
	if (READ_ONCE(window->hv->dead)) {
		window->prepared = 0;	/* what is asked of nobody cannot fail */
		return 0;
	}
	list->busy = true;
	if (window->prepared == 1)
		number = vvio_post(window->hv, was_put, list, PAPR_PUT_TCE, window->liobn, ioba,
				   be64_to_cpu(list->entries[0]));
	else
		number = vvio_post(window->hv, was_put, list, PAPR_PUT_TCE_INDIRECT, window->liobn, ioba,
				   list->logical, window->prepared);
	if (!number) {
		list->busy = false;
		return -EBUSY;
	}
	window->posted = number;
	window->prepared = 0;
	window->list = list == &window->lists[TCE_LISTS - 1] ? window->lists : list + 1;
	return 0;
}

static int prepare(struct tce_window *window, unsigned long page, u64 tce)
{
	if (window->prepared &&
	    (window->prepared == TCE_LIST_MAX || page != window->first + window->prepared)) {
		int err = put_prepared(window);

		if (err)
			return err;
	}
	if (!window->prepared) {
		if (READ_ONCE(window->list->busy) && window->hv->ops->wait(window->hv, window->posted))
			return -EBUSY;
		window->first = page;
	}
	window->list->entries[window->prepared++] = cpu_to_be64(tce);
	return 0;
}

static void clear_in_place(struct tce_window *window, unsigned long first, unsigned int count)
{
	while (count--)
		WRITE_ONCE(window->table[first++], 0);
}

/* G9.8: whether nobody is at a page whose entry was cleared before this. */
static bool is_idle(struct tce_window *window)
{
	if (!window->table)
		return false;
	virt_mb();
	return !READ_ONCE(*window->use);
}

/* Pages that were unmapped may be given out again as soon as the hcall for it is posted. */
static void stuff_runs(struct tce_window *window)
{
	bool needs_calls = !READ_ONCE(window->hv->dead) && !is_idle(window);
	unsigned int i, kept = 0;

	for (i = 0; i < window->runs; i++) {
		struct tce_run run = window->stale[i];
		u64 number = 0;

		if (needs_calls) {
			number = vvio_post(window->hv, was_stuffed, window, PAPR_STUFF_TCE, window->liobn,
					   (u64)run.first << TCE_SHIFT, 0, run.count);
			if (!number) {
				window->stale[kept++] = run;
				continue;
			}
			window->posted = number;
		}
		bitmap_clear(window->taken, run.first, run.count);
	}
	window->runs = kept;
}

static void add_run(struct tce_window *window, unsigned long first, unsigned int count)
{
	struct tce_run *last = window->runs ? &window->stale[window->runs - 1] : NULL;

	if (last && last->count + count <= TCE_LIST_MAX && last->first + last->count == first) {
		last->count += count;
	} else if (last && last->count + count <= TCE_LIST_MAX && first + count == last->first) {
		last->first = first;
		last->count += count;
	} else {
		if (window->runs == TCE_STALE)
			stuff_runs(window);
		if (window->runs < TCE_STALE)
			window->stale[window->runs++] = (struct tce_run){ first, count };
		/* else the pages stay taken: nobody answers, and they must not be used again */
	}
}

/* Else it would be mapped after it was unmapped. */
static void forget_prepared(struct tce_window *window, unsigned long first, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < window->prepared; i++)
		if (window->first + i >= first && window->first + i < first + count)
			window->list->entries[i] = 0;
}

static void release(struct tce_window *window, unsigned long first, unsigned int count)
{
	if (window->table)
		clear_in_place(window, first, count);
	forget_prepared(window, first, count);
	while (count) {
		unsigned int some = min_t(unsigned int, count, TCE_LIST_MAX);

		add_run(window, first, some);
		first += some;
		count -= some;
	}
}

static unsigned long find_pages(struct tce_window *window, unsigned long from, unsigned int count)
{
	if (count == 1)		/* most are: it takes less */
		return find_next_zero_bit(window->taken, window->pages, from);
	return bitmap_find_next_zero_area(window->taken, window->pages, from, count, 0);
}

static long take(struct tce_window *window, unsigned int count)
{
	unsigned long found;

	found = find_pages(window, window->hint, count);
	if (found >= window->pages) {
		stuff_runs(window);
		found = find_pages(window, 0, count);
	}
	if (found >= window->pages)
		return -ENOSPC;
	if (count == 1)
		__set_bit(found, window->taken);
	else
		bitmap_set(window->taken, found, count);
	window->hint = found + count;
	return found;
}

static int set_entry(struct tce_window *window, unsigned long page, u64 tce)
{
	if (READ_ONCE(window->hv->dead))
		return 0;	/* nobody looks at it: the request that it is for will fail */
	if (!window->table)
		return prepare(window, page, tce);
	if (window->posted) {
		/* stores overtake hcalls: one that clears this page would clear the new entry */
		if (window->hv->ops->wait(window->hv, window->posted) && !READ_ONCE(window->hv->dead))
			return -EBUSY;
		window->posted = 0;
	}
	WRITE_ONCE(window->table[page], cpu_to_le64(tce));
	return 0;
}

/**
 * tce_map_pages - let the server reach some pages at addresses that follow each other
 * @window: the adapter's window
 * @count: how many, at least one
 * @access: TCE_READ, TCE_WRITE
 * @next: gives the physical addresses of the pages, one after the other
 * @context: for that
 * @ioba: is set to the I/O bus address of the first one
 *
 * They can be reached when tce_settle() has succeeded. For any context.
 *
 * Return: 0; -ENOSPC or -EBUSY for now, -EIO for memory that cannot be reached.
 */
int tce_map_pages(struct tce_window *window, unsigned int count, u64 access, phys_addr_t (*next)(void *context),
		  void *context, dma_addr_t *ioba)
{
	unsigned long flags;
	unsigned int i;
	long first;
	int err = 0;

	spin_lock_irqsave(&window->lock, flags);
	first = take(window, count);
	if (first < 0)
		err = first;
	for (i = 0; !err && i < count; i++) {
		u64 logical = window->hv->ops->logical(window->hv, next(context), TCE_PAGE);

		err = logical == VVIO_UNREACHABLE ? -EIO : set_entry(window, first + i, logical | access);
		if (err)
			release(window, first, count);
	}
	spin_unlock_irqrestore(&window->lock, flags);
	*ioba = (dma_addr_t)first << TCE_SHIFT;
	return err;
}

static phys_addr_t next_virtual(void *context)
{
	const void **at = context, *page = *at;

	*at += TCE_PAGE;
	if (is_vmalloc_addr(page))
		return PFN_PHYS(page_to_pfn(vmalloc_to_page(page))) + offset_in_page(page);
	return virt_to_phys((void *)page);
}

/**
 * tce_map_virtual - let the server reach whole pages of the kernel's memory, also from vmalloc()
 * @window: the adapter's window
 * @start: begins a page
 * @length: bytes
 * @access: TCE_READ, TCE_WRITE
 * @ioba: is set to the I/O bus address of the first byte
 *
 * Return: as tce_map_pages().
 */
int tce_map_virtual(struct tce_window *window, void *start, size_t length, u64 access, dma_addr_t *ioba)
{
	return tce_map_pages(window, PAGES_OF(0, length), access, next_virtual, &start, ioba);
}

/**
 * tce_unmap - end what one of these began
 * @window: the adapter's window
 * @ioba: the address of the first byte
 * @length: bytes, all of them
 *
 * The server may be at it until tce_flush() was called; a table that is written in place lets it
 * begin nothing there from here on.
 */
void tce_unmap(struct tce_window *window, dma_addr_t ioba, size_t length)
{
	unsigned long flags;

	spin_lock_irqsave(&window->lock, flags);
	release(window, ioba >> TCE_SHIFT, PAGES_OF(ioba & (TCE_PAGE - 1), length));
	spin_unlock_irqrestore(&window->lock, flags);
}

/**
 * tce_settle - make every mapping that was asked for
 * @window: the adapter's window
 *
 * Return: 0, or -EBUSY when the hypervisor does not answer in time; then call it again.
 */
int tce_settle(struct tce_window *window)
{
	unsigned long flags;
	u64 posted;
	int err;

	if (!READ_ONCE(window->prepared) && !READ_ONCE(window->posted))
		return 0;
	spin_lock_irqsave(&window->lock, flags);
	err = put_prepared(window);
	posted = window->posted;
	spin_unlock_irqrestore(&window->lock, flags);
	if (!err && posted)
		err = window->hv->ops->wait(window->hv, posted);
	return err;
}

/**
 * tce_flush - have every unmapping carried out that was asked for
 * @window: the adapter's window
 *
 * They are posted; an hcall that is posted later finds them done, and tce_settle() waits for them.
 */
void tce_flush(struct tce_window *window)
{
	unsigned long flags;

	if (!READ_ONCE(window->runs))
		return;
	spin_lock_irqsave(&window->lock, flags);
	stuff_runs(window);
	spin_unlock_irqrestore(&window->lock, flags);
}

/**
 * tce_drain - wait until everything that was posted is done, before memory is freed
 * @window: the adapter's window
 *
 * May sleep; ends at the latest when the hypervisor is given up.
 */
void tce_drain(struct tce_window *window)
{
	do {
		tce_flush(window);
		if (!tce_settle(window) && !READ_ONCE(window->runs))
			return;
		msleep(1);
	} while (!READ_ONCE(window->hv->dead));
}

/* An earlier kernel, or driver, may have left entries; nobody may use what they name now. */
static int wipe(struct tce_window *window)
{
	unsigned long first, count;

	for (first = 0; first < window->pages; first += count) {
		s64 code;

		count = min_t(unsigned long, window->pages - first, TCE_LIST_MAX);
		code = vvio_call_patiently(window->hv, PAPR_STUFF_TCE, window->liobn, (u64)first << TCE_SHIFT,
					   0, count);
		if (code) {
			dev_err(window->dev, "H_STUFF_TCE returned %lld\n", code);
			return -EIO;
		}
	}
	return 0;
}

int tce_init(struct tce_window *window, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size)
{
	unsigned int i;

	spin_lock_init(&window->lock);
	window->dev = dev;
	window->hv = hv;
	window->liobn = liobn;
	window->pages = min_t(u64, size >> TCE_SHIFT, INT_MAX);
	window->table = hv->ops->table(hv, liobn, window->pages, &window->use);
	window->taken = bitmap_zalloc(window->pages, GFP_KERNEL);
	if (!window->taken)
		return -ENOMEM;
	if (wipe(window)) {
		bitmap_free(window->taken);
		return -EIO;
	}
	__set_bit(0, window->taken);	/* so that address 0 means nothing */
	window->list = window->lists;
	for (i = 0; i < TCE_LISTS && !window->table; i++) {
		struct tce_list *list = &window->lists[i];

		list->window = window;
		list->entries = kzalloc(TCE_LIST_MAX * sizeof(__be64), GFP_KERNEL);	/* aligned to its size */
		if (!list->entries)
			goto out_of_memory;
		list->logical = hv->ops->logical(hv, virt_to_phys(list->entries), TCE_PAGE);
		if (list->logical == VVIO_UNREACHABLE)
			goto out_of_memory;
	}
	return 0;

out_of_memory:
	tce_exit(window);
	return -ENOMEM;
}

void tce_exit(struct tce_window *window)
{
	unsigned int i;

	tce_drain(window);
	for (i = 0; i < TCE_LISTS; i++)
		kfree(window->lists[i].entries);
	bitmap_free(window->taken);
}
