// SPDX-License-Identifier: GPL-2.0
/*
 * What the server can reach of the driver's chains, and where.
 *
 * The driver's ring has physical addresses. A chain is mapped as a whole when it is shown to the
 * server, and unmapped as a whole when it comes back: the pages of a large buffer get addresses
 * that follow each other, and are one descriptor for the server.
 */
#include <linux/io.h>
#include <linux/virtio_config.h>

#include "wire.h"

#define IN_PAGE(address) ((address) & (TCE_PAGE - 1))

/* The descriptors of a chain, one after the other. */
struct walk {
	struct virtio_device *vdev;
	const struct vring *vring;
	unsigned int at, left;	/* number of this one, and how many there may be behind it */
	u64 address;
	u32 length;
	u16 flags;
	struct dma_received *received;	/* of the queue, if all of the chain is the server's to write */
};

static int read_descriptor(struct walk *walk)
{
	const struct vring_desc *desc;

	if (walk->at >= walk->vring->num || !walk->left--)
		return -EINVAL;
	desc = &walk->vring->desc[walk->at];
	walk->address = virtio64_to_cpu(walk->vdev, desc->addr);
	walk->length = virtio32_to_cpu(walk->vdev, desc->len);
	walk->flags = virtio16_to_cpu(walk->vdev, desc->flags);
	return walk->length && !(walk->flags & VRING_DESC_F_INDIRECT) ? 0 : -EINVAL;
}

static int next_descriptor(struct walk *walk)
{
	walk->at = virtio16_to_cpu(walk->vdev, walk->vring->desc[walk->at].next);
	return read_descriptor(walk);
}

/* Pages of some descriptors, for tce_map_pages(): `walk` is at the first of them. */
struct pages {
	struct walk walk;
	phys_addr_t page;
	unsigned int left;
};

static void begin_pages(struct pages *pages)
{
	u64 offset = IN_PAGE(pages->walk.address);

	pages->page = pages->walk.address - offset;
	pages->left = (offset + pages->walk.length + TCE_PAGE - 1) >> TCE_SHIFT;
}

static phys_addr_t next_page(void *context)
{
	struct pages *pages = context;
	phys_addr_t page;

	if (!pages->left) {
		next_descriptor(&pages->walk);	/* which was looked at before */
		begin_pages(pages);
	}
	page = pages->page;
	pages->page += TCE_PAGE;
	pages->left--;
	return page;
}

/* A buffer that shares its page with something else, or that mapping would take longer for. */
static bool goes_to_pool(const struct vvio_dma *dma, u32 length)
{
	return length < TCE_PAGE || length <= dma->copied;
}

/* Whether the descriptor behind this one can follow it in the server's addresses, too. */
static bool is_followed(const struct vvio_dma *dma, const struct walk *walk, u64 total)
{
	struct walk next = *walk;

	return walk->flags & VRING_DESC_F_NEXT && !IN_PAGE(walk->address + walk->length) &&
	       !next_descriptor(&next) && !goes_to_pool(dma, next.length) && !IN_PAGE(next.address) &&
	       !((next.flags ^ walk->flags) & VRING_DESC_F_WRITE) && total + next.length <= dma->longest;
}

static int map_pages(struct vvio_dma *dma, struct walk *walk, struct vvio_piece *piece)
{
	u64 access = walk->flags & VRING_DESC_F_WRITE ? TCE_READ | TCE_WRITE : TCE_READ;	/* P6.1 */
	struct pages pages = { .walk = *walk };
	u64 offset = IN_PAGE(walk->address), total = walk->length;
	unsigned long count;
	int err;

	begin_pages(&pages);
	while (is_followed(dma, walk, total)) {
		next_descriptor(walk);
		total += walk->length;
	}
	count = (offset + total + TCE_PAGE - 1) >> TCE_SHIFT;
	if (count > dma->window.pages / 2)
		return -E2BIG;
	err = tce_map_pages(&dma->window, count, access, next_page, &pages, walk->received, &piece->ioba);
	piece->ioba += offset;
	piece->length = total;
	return err;
}

static int map_piece(struct vvio_dma *dma, struct walk *walk, struct vvio_piece *piece)
{
	int err = -ENOSPC;

	if (goes_to_pool(dma, walk->length)) {
		err = pool_map(&dma->pool, phys_to_virt(walk->address), walk->length, walk->received,
			       walk->length >= TCE_PAGE, &piece->ioba);
		piece->length = walk->length;
	}
	if (err && walk->length >= TCE_PAGE)
		err = map_pages(dma, walk, piece);
	piece->flags = walk->flags & (VRING_DESC_F_WRITE | VRING_DESC_F_NEXT);
	return err;
}

/**
 * vvio_chain_map - let the server reach a chain
 * @dma: the adapter's window
 * @vdev: the device, whose byte order the driver's ring has
 * @vring: the driver's ring
 * @head: the chain's first descriptor
 * @pieces: as many as the ring has descriptors; those of the chain are filled in
 * @received: what the queue has for chains that only bring data here
 *
 * It can be reached when tce_settle() has succeeded. For any context.
 *
 * Return: 0; -ENOSPC when there is no room now, -EBUSY when the hypervisor does not answer in time:
 * then later; another error when there is no such chain, or none that can be mapped.
 */
int vvio_chain_map(struct vvio_dma *dma, struct virtio_device *vdev, const struct vring *vring, u16 head,
		   struct vvio_piece *pieces, struct dma_received *received)
{
	struct walk walk = { .vdev = vdev, .vring = vring, .at = head, .left = vring->num };
	struct vvio_piece *piece = NULL;
	int err = read_descriptor(&walk);

	walk.received = walk.flags & VRING_DESC_F_WRITE ? received : NULL;	/* what is to be read comes first */
	while (!err) {
		if (piece)
			piece->next = walk.at;
		piece = &pieces[walk.at];
		err = map_piece(dma, &walk, piece);
		if (err) {
			piece->length = 0;	/* the end of what there is to be undone */
			break;
		}
		if (!(walk.flags & VRING_DESC_F_NEXT))
			return 0;
		err = next_descriptor(&walk);
		if (err)
			piece->flags &= ~VRING_DESC_F_NEXT;
	}
	if (piece)
		vvio_chain_unmap(dma, pieces, head, received, false);
	return err;
}

/**
 * vvio_chain_unmap - end that
 * @dma: the adapter's window
 * @pieces: the pieces
 * @head: the chain's first descriptor
 * @received: as vvio_chain_map() was given it
 * @copy: whether what the server wrote is to be seen
 *
 * The server may be at it until tce_flush() was called.
 */
void vvio_chain_unmap(struct vvio_dma *dma, const struct vvio_piece *pieces, u16 head,
		      struct dma_received *received, bool copy)
{
	const struct vvio_piece *piece = &pieces[head];

	if (!(piece->flags & VRING_DESC_F_WRITE))
		received = NULL;
	while (piece->length) {
		if (pool_has(&dma->pool, piece->ioba))
			pool_unmap(&dma->pool, piece->ioba, piece->length, received,
				   copy && piece->flags & VRING_DESC_F_WRITE);
		else
			tce_unmap(&dma->window, piece->ioba, piece->length, received);
		if (!(piece->flags & VRING_DESC_F_NEXT))
			return;
		piece = &pieces[piece->next];
	}
}
