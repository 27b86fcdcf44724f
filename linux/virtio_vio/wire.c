// SPDX-License-Identifier: GPL-2.0
/*
 * The rings that the server sees.
 *
 * The driver's ring stays in memory that nobody else sees, and what is in it is shown to the
 * server here. So a new server gets a new ring, with all that the one before had not finished,
 * and the driver never learns of it.
 */
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <asm/barrier.h>

#include "wire.h"

#define USED_ALIGN	64

static size_t split_size(unsigned int size)
{
	return vring_size(size, USED_ALIGN);
}

static size_t packed_size(unsigned int size)
{
	return size * sizeof(struct vring_packed_desc) + 2 * sizeof(struct vring_packed_desc_event);
}

int wire_init(struct wire_ring *wire, struct vvio_dma *dma, struct virtio_device *vdev, unsigned int size,
	      bool is_packed)
{
	int err;

	wire->vdev = vdev;
	wire->size = size;
	wire->is_packed = is_packed;
	wire->counts = kcalloc(size, sizeof(*wire->counts), GFP_KERNEL);
	wire->rooms = kcalloc(size, sizeof(*wire->rooms), GFP_KERNEL);
	err = -ENOMEM;
	if (wire->counts && wire->rooms)
		err = vvio_memory_get(dma, &wire->memory, is_packed ? packed_size(size) : split_size(size));
	if (err) {
		kfree(wire->rooms);
		kfree(wire->counts);
		wire->rooms = NULL;
		wire->counts = NULL;
		return err;
	}
	wire_reset(wire);
	return 0;
}

void wire_exit(struct wire_ring *wire, struct vvio_dma *dma)
{
	vvio_memory_put(dma, &wire->memory);
	kfree(wire->rooms);
	kfree(wire->counts);
	wire->rooms = NULL;
	wire->counts = NULL;
}

/**
 * wire_reset - an empty ring, as a server finds it that sees it for the first time
 * @wire: the ring; no server uses it
 */
void wire_reset(struct wire_ring *wire)
{
	memset(wire->memory.cpu, 0, wire->memory.size);
	memset(wire->counts, 0, wire->size * sizeof(*wire->counts));
	if (wire->is_packed) {
		memset(&wire->packed, 0, sizeof(wire->packed));
		wire->packed.ring = wire->memory.cpu;
		wire->packed.driver = (void *)(wire->packed.ring + wire->size);
		wire->packed.device = wire->packed.driver + 1;
	} else {
		wire->split.available = 0;
		wire->split.used = 0;
		vring_init(&wire->split.ring, wire->size, wire->memory.cpu, USED_ALIGN);
	}
}

void wire_addresses(const struct wire_ring *wire, struct wire_addresses *where)
{
	dma_addr_t base = wire->memory.ioba;
	const void *start = wire->memory.cpu;

	where->descriptors = base;
	if (wire->is_packed) {
		where->available = base + ((void *)wire->packed.driver - start);
		where->used = base + ((void *)wire->packed.device - start);
	} else {
		where->available = base + ((void *)wire->split.ring.avail - start);
		where->used = base + ((void *)wire->split.ring.used - start);
	}
}

static void put_split(struct wire_ring *wire, const struct vvio_piece *pieces, u16 head)
{
	struct vring *ring = &wire->split.ring;
	const struct vvio_piece *piece;
	unsigned int at = head;

	for (;; at = piece->next) {
		struct vring_desc *to = &ring->desc[at];

		piece = &pieces[at];
		to->addr = cpu_to_virtio64(wire->vdev, piece->ioba);
		to->len = cpu_to_virtio32(wire->vdev, piece->length);
		to->flags = cpu_to_virtio16(wire->vdev, piece->flags);
		to->next = cpu_to_virtio16(wire->vdev, piece->next);
		if (!(piece->flags & VRING_DESC_F_NEXT))
			break;
	}
	ring->avail->ring[wire->split.available++ % wire->size] = cpu_to_virtio16(wire->vdev, head);
}

/* The wrap counter is 1 in even rounds. */
static u16 made_available(u16 round)
{
	return round & 1 ? BIT(VRING_PACKED_DESC_F_USED) : BIT(VRING_PACKED_DESC_F_AVAIL);
}

static void put_packed(struct wire_ring *wire, const struct vvio_piece *pieces, u16 head)
{
	u16 next = wire->packed.next, rounds = wire->packed.rounds, flags, first = 0;
	const struct vvio_piece *piece;
	unsigned int at = head;

	for (;; at = piece->next) {
		struct vring_packed_desc *to = &wire->packed.ring[next];

		piece = &pieces[at];
		to->addr = cpu_to_le64(piece->ioba);
		to->len = cpu_to_le32(piece->length);
		to->id = cpu_to_le16(head);
		flags = piece->flags | made_available(rounds);
		if (at == head)
			first = flags;
		else
			to->flags = cpu_to_le16(flags);
		if (++next == wire->size) {
			next = 0;
			rounds++;
		}
		if (!(piece->flags & VRING_DESC_F_NEXT))
			break;
	}
	if (wire->packed.hidden) {
		/* behind one that is not shown: nobody looks here before that one is */
		wire->packed.ring[wire->packed.next].flags = cpu_to_le16(first);
	} else {
		wire->packed.first = first;
		wire->packed.first_at = wire->packed.next;
		wire->packed.hidden = true;
	}
	wire->packed.next = next;
	wire->packed.rounds = rounds;
}

/**
 * wire_put - put a chain where the server does not see it before wire_show()
 * @wire: the ring
 * @pieces: what vvio_chain_map() made of it
 * @head: the chain's first descriptor; the server does not have a chain of this head
 */
void wire_put(struct wire_ring *wire, const struct vvio_piece *pieces, u16 head)
{
	const struct vvio_piece *piece = &pieces[head];
	unsigned int count = 1;
	u32 room = 0;

	if (wire->is_packed)
		put_packed(wire, pieces, head);
	else
		put_split(wire, pieces, head);
	for (;; piece = &pieces[piece->next], count++) {
		if (piece->flags & VRING_DESC_F_WRITE)
			room += piece->length;
		if (!(piece->flags & VRING_DESC_F_NEXT))
			break;
	}
	wire->counts[head] = count;
	wire->rooms[head] = room;
}

/**
 * wire_show - let the server see what was put
 * @wire: the ring
 */
void wire_show(struct wire_ring *wire)
{
	virt_wmb();	/* all of the chains before the word that says that they are there */
	if (!wire->is_packed) {
		WRITE_ONCE(wire->split.ring.avail->idx, cpu_to_virtio16(wire->vdev, wire->split.available));
	} else if (wire->packed.hidden) {
		WRITE_ONCE(wire->packed.ring[wire->packed.first_at].flags, cpu_to_le16(wire->packed.first));
		wire->packed.hidden = false;
	}
	virt_mb();	/* before the look whether the server wants to be told */
}

bool wire_wants_kick(const struct wire_ring *wire)
{
	if (wire->is_packed)
		return (le16_to_cpu(READ_ONCE(wire->packed.device->flags)) & 3) != VRING_PACKED_EVENT_FLAG_DISABLE;
	return !(virtio16_to_cpu(wire->vdev, READ_ONCE(wire->split.ring.used->flags)) & VRING_USED_F_NO_NOTIFY);
}

/**
 * wire_position - how far the ring is filled, as a KICK says it (P6.2)
 * @wire: the ring
 *
 * Return: bytes 6-7 of the message in the low half, the round in the high half.
 */
u32 wire_position(const struct wire_ring *wire)
{
	if (!wire->is_packed)
		return wire->split.available;
	return (u32)wire->packed.rounds << 16 | (wire->packed.rounds & 1 ? 0 : BIT(15)) | wire->packed.next;
}

static bool take_split(struct wire_ring *wire, u32 *id, u32 *length)
{
	struct vring *ring = &wire->split.ring;
	struct vring_used_elem *used;

	if (virtio16_to_cpu(wire->vdev, READ_ONCE(ring->used->idx)) == wire->split.used)
		return false;
	virt_rmb();	/* the index before what it says is there */
	used = &ring->used->ring[wire->split.used++ % wire->size];
	*id = virtio32_to_cpu(wire->vdev, READ_ONCE(used->id));
	*length = virtio32_to_cpu(wire->vdev, READ_ONCE(used->len));
	return true;
}

static bool take_packed(struct wire_ring *wire, u32 *id, u32 *length)
{
	struct vring_packed_desc *at = &wire->packed.ring[wire->packed.used];
	u16 flags = le16_to_cpu(READ_ONCE(at->flags)), both, wanted;

	both = BIT(VRING_PACKED_DESC_F_AVAIL) | BIT(VRING_PACKED_DESC_F_USED);
	wanted = wire->packed.used_rounds & 1 ? 0 : both;
	if ((flags & both) != wanted)
		return false;
	virt_rmb();	/* the flags before what they say is there */
	*id = le16_to_cpu(READ_ONCE(at->id));
	*length = le32_to_cpu(READ_ONCE(at->len));
	if (*id < wire->size)
		wire->packed.used += wire->counts[*id];
	if (wire->packed.used >= wire->size) {
		wire->packed.used -= wire->size;
		wire->packed.used_rounds++;
	}
	return true;
}

/**
 * wire_take - the next chain that the server gives back
 * @wire: the ring
 * @id: is set to the chain's head as the server says it: anything
 * @length: is set to the bytes that it wrote, as it says
 *
 * Return: whether there was one.
 */
bool wire_take(struct wire_ring *wire, u32 *id, u32 *length)
{
	return wire->is_packed ? take_packed(wire, id, length) : take_split(wire, id, length);
}
