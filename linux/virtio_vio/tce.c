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

#define AGAIN		msecs_to_jiffies(20)	/* until what was refused is tried again */
#define DRAIN_LIMIT	(10 * HZ)		/* for what is refused again and again */
#define DRAIN_AGAIN	(HZ / 10)		/* after that */

#define PAGES_OF(offset, length) (((offset) + (length) + TCE_PAGE - 1) >> TCE_SHIFT)

static void was_put(void *context, s64 code)
{
	struct tce_list *list = context;

	WRITE_ONCE(list->busy, false);
	if (code && code != PAPR_PARAMETER && code != PAPR_HARDWARE)	/* a window, or a hypervisor, that is gone */
		dev_err_ratelimited(list->window->dev, "pages cannot be mapped: hcall returned %lld\n", code);
}

/* Refused while a DMA engine is at a page. Maybe under the window's lock, maybe under others. */
static void was_stuffed(void *context, s64 code)
{
	struct tce_ending *ending = context;
	struct tce_window *window = ending->window;
	bool is_refused = code && code != PAPR_PARAMETER && code != PAPR_HARDWARE;

	if (is_refused && code != PAPR_RESOURCE && !papr_is_busy(code))
		dev_err_ratelimited(window->dev, "pages cannot be unmapped: hcall returned %lld\n", code);
	smp_store_release(&ending->state, is_refused ? TCE_REFUSED : TCE_ENDED);
	if (is_refused)
		mod_timer(&window->again, jiffies + AGAIN);
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

/* Not to be asked for at once. */
static void owe(struct tce_window *window, unsigned long first, unsigned int count)
{
	bitmap_set(window->owed, first, count);
	window->owes = true;
}

static struct tce_ending *ending_of(struct tce_window *window, unsigned int number)
{
	return &window->endings[number % TCE_ENDINGS];
}

/* What hcalls that are done have unmapped may be given out again. */
static void collect(struct tce_window *window)
{
	for (; window->ended != window->begun; window->ended++) {
		struct tce_ending *ending = ending_of(window, window->ended);
		enum tce_ending_state state = smp_load_acquire(&ending->state);

		if (state == TCE_POSTED)
			return;
		if (state == TCE_ENDED)
			bitmap_clear(window->taken, ending->run.first, ending->run.count);
		else
			owe(window, ending->run.first, ending->run.count);
	}
}

/* Wait for the oldest such hcall, or for all. */
static void await_endings(struct tce_window *window, bool all)
{
	if (window->ended != window->begun)
		window->hv->ops->wait(window->hv,
				      ending_of(window, all ? window->begun - 1 : window->ended)->number);
	collect(window);
}

static bool post_ending(struct tce_window *window, struct tce_run run)
{
	struct tce_ending *ending = ending_of(window, window->begun);

	if (window->begun - window->ended == TCE_ENDINGS) {
		await_endings(window, false);
		if (window->begun - window->ended == TCE_ENDINGS)
			return false;
	}
	ending->run = run;
	ending->state = TCE_POSTED;
	ending->number = vvio_post(window->hv, was_stuffed, ending, PAPR_STUFF_TCE, window->liobn,
				   (u64)run.first << TCE_SHIFT, 0, run.count);
	if (!ending->number)
		return false;
	window->begun++;
	return true;
}

static void stuff_runs(struct tce_window *window)
{
	bool needs_calls = !READ_ONCE(window->hv->dead) && !is_idle(window);
	unsigned int i, kept = 0;

	collect(window);
	for (i = 0; i < window->runs; i++) {
		struct tce_run run = window->stale[i];

		if (!needs_calls)
			bitmap_clear(window->taken, run.first, run.count);
		else if (!post_ending(window, run))
			window->stale[kept++] = run;
	}
	window->runs = kept;
}

/* What was owed is to be unmapped now, as far as there is room to ask for it. */
static void take_owed(struct tce_window *window)
{
	unsigned long first, end;

	if (!window->owes)
		return;
	for (first = find_first_bit(window->owed, window->pages);
	     first < window->pages && window->runs < TCE_STALE;
	     first = find_next_bit(window->owed, window->pages, end)) {
		end = find_next_zero_bit(window->owed, min(window->pages, first + TCE_LIST_MAX), first);
		bitmap_clear(window->owed, first, end - first);
		window->stale[window->runs++] = (struct tce_run){ first, end - first };
	}
	window->owes = first < window->pages;
}

/* All that is to be unmapped, also what was refused. */
static void flush_all(struct tce_window *window)
{
	unsigned long flags;

	spin_lock_irqsave(&window->lock, flags);
	collect(window);
	take_owed(window);
	stuff_runs(window);
	spin_unlock_irqrestore(&window->lock, flags);
}

static void try_again(struct timer_list *timer)
{
	struct tce_window *window = from_timer(window, timer, again);

	if (READ_ONCE(window->is_closing))
		return;
	flush_all(window);
	if (READ_ONCE(window->owes))
		mod_timer(&window->again, jiffies + AGAIN);
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
		if (window->runs < TCE_STALE) {
			window->stale[window->runs++] = (struct tce_run){ first, count };
		} else {
			owe(window, first, count);	/* nobody answers */
			mod_timer(&window->again, jiffies + AGAIN);
		}
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

static void release(struct tce_window *window, unsigned long first, unsigned int count,
		    struct dma_received *received)
{
	if (received)
		room_give(&window->room, &received->pages, count);
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

static unsigned long find_pages(struct tce_window *window, unsigned long end, unsigned long from, unsigned int count)
{
	if (count == 1)		/* most are: it takes less */
		return find_next_zero_bit(window->taken, end, from);
	return bitmap_find_next_zero_area(window->taken, end, from, count, 0);
}

static long take(struct tce_window *window, unsigned int count, struct dma_received *received)
{
	unsigned long end = received ? window->received : window->pages, found;

	found = find_pages(window, end, min(window->hint, end), count);
	if (found >= end) {
		collect(window);
		found = find_pages(window, end, 0, count);
	}
	if (found >= end) {
		stuff_runs(window);
		await_endings(window, true);
		found = find_pages(window, end, 0, count);
	}
	if (found >= end)
		return window->runs || window->owes || window->ended != window->begun ? -EBUSY : -ENOSPC;
	if (received && !room_take(&window->room, &received->pages, count))
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
 * @received: what the queue has for chains that only bring data here, if these are of one; else NULL.
 *	Such find no room in the last part of the window
 * @ioba: is set to the I/O bus address of the first one
 *
 * They can be reached when tce_settle() has succeeded. For any context.
 *
 * Return: 0; -ENOSPC or -EBUSY for now, -EIO for memory that cannot be reached.
 */
int tce_map_pages(struct tce_window *window, unsigned int count, u64 access, phys_addr_t (*next)(void *context),
		  void *context, struct dma_received *received, dma_addr_t *ioba)
{
	unsigned long flags;
	unsigned int i;
	long first;
	int err = 0;

	spin_lock_irqsave(&window->lock, flags);
	first = take(window, count, received);
	if (first < 0)
		err = first;
	for (i = 0; !err && i < count; i++) {
		u64 logical = window->hv->ops->logical(window->hv, next(context), TCE_PAGE);

		err = logical == VVIO_UNREACHABLE ? -EIO : set_entry(window, first + i, logical | access);
		if (err)
			release(window, first, count, received);
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
	return tce_map_pages(window, PAGES_OF(0, length), access, next_virtual, &start, NULL, ioba);
}

/**
 * tce_unmap - end what one of these began
 * @window: the adapter's window
 * @ioba: the address of the first byte
 * @length: bytes, all of them
 * @received: as for tce_map_pages()
 *
 * The server may be at it until tce_flush() was called; a table that is written in place lets it
 * begin nothing there from here on.
 */
void tce_unmap(struct tce_window *window, dma_addr_t ioba, size_t length, struct dma_received *received)
{
	unsigned long flags;

	spin_lock_irqsave(&window->lock, flags);
	release(window, ioba >> TCE_SHIFT, PAGES_OF(ioba & (TCE_PAGE - 1), length), received);
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
 * They are posted, and an hcall that is posted later finds them done, unless they are refused: then
 * they are posted again later.
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

/* Whether there is no hcall under way whose end is to be told. */
static bool are_ended(struct tce_window *window)
{
	unsigned long flags;
	u64 number = 0;
	bool ended;

	spin_lock_irqsave(&window->lock, flags);
	if (window->ended != window->begun)
		number = ending_of(window, window->begun - 1)->number;
	spin_unlock_irqrestore(&window->lock, flags);
	if (number && window->hv->ops->wait(window->hv, number))
		return false;
	spin_lock_irqsave(&window->lock, flags);
	collect(window);
	ended = window->ended == window->begun;
	spin_unlock_irqrestore(&window->lock, flags);
	return ended;
}

/**
 * tce_drain - wait until everything that was asked for is done, before memory is freed
 * @window: the adapter's window
 *
 * May sleep; ends at the latest when the hypervisor is given up, or has refused for long to unmap.
 *
 * Return: whether nobody reaches any more what was unmapped.
 */
bool tce_drain(struct tce_window *window)
{
	unsigned long until = jiffies + (window->gave_up ? DRAIN_AGAIN : DRAIN_LIMIT);

	for (;;) {
		flush_all(window);
		if (!tce_settle(window) && are_ended(window) && !READ_ONCE(window->runs)) {
			if (!READ_ONCE(window->owes))
				break;
			if (time_after(jiffies, until)) {
				if (!window->gave_up)
					dev_err(window->dev, "pages cannot be unmapped: the server is still at them\n");
				window->gave_up = true;
				return false;
			}
		}
		msleep(1);
	}
	window->gave_up = false;
	return true;
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

/**
 * tce_share - divide what may be taken for chains that only bring data here
 * @window: the adapter's window, in which there is only what stays
 * @queues: how many have such chains, at least one
 */
void tce_share(struct tce_window *window, unsigned int queues)
{
	unsigned long end = window->pages - window->pages / 4, flags;

	spin_lock_irqsave(&window->lock, flags);
	window->received = end;
	room_divide(&window->room, end - bitmap_weight(window->taken, end), queues);
	spin_unlock_irqrestore(&window->lock, flags);
}

int tce_init(struct tce_window *window, struct device *dev, struct vvio_hv *hv, u32 liobn, u64 size)
{
	unsigned int i;
	int err;

	spin_lock_init(&window->lock);
	window->dev = dev;
	window->hv = hv;
	window->liobn = liobn;
	window->pages = min_t(u64, size >> TCE_SHIFT, INT_MAX);
	window->table = hv->ops->table(hv, liobn, window->pages, &window->use);
	timer_setup(&window->again, try_again, 0);
	for (i = 0; i < TCE_ENDINGS; i++)
		window->endings[i].window = window;
	window->taken = bitmap_zalloc(window->pages, GFP_KERNEL);
	window->owed = bitmap_zalloc(window->pages, GFP_KERNEL);
	err = window->taken && window->owed ? wipe(window) : -ENOMEM;
	if (err) {
		bitmap_free(window->owed);
		bitmap_free(window->taken);
		return err;
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
	WRITE_ONCE(window->is_closing, true);
	del_timer_sync(&window->again);
	while (!are_ended(window))
		msleep(1);
	del_timer_sync(&window->again);		/* whose last one saw that it was closing */
	for (i = 0; i < TCE_LISTS; i++)
		kfree(window->lists[i].entries);
	bitmap_free(window->owed);
	bitmap_free(window->taken);
}
