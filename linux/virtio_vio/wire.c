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

/* A piece of a chain: descriptors of the driver's whose addresses follow each other. */
struct piece {
	u64 address;
	u32 length;
	u16 flags;
};

/*
 * The piece of a chain that begins at a descriptor, and the number of the one behind it if the flags say that there is
 * one. The pages of a buffer are mapped one by one, and mostly one after the other: the server need not see that.
 *
 * Returns how many descriptors of the driver's it is, or 0 when they are no chain: `left` is how many there may be.
 */
static unsigned int take_piece(const struct wire_ring *wire, const struct vring *driver, unsigned int *at,
			       unsigned int left, struct piece *piece)
{
	unsigned int count = 0;

	for (;;) {
		const struct vring_desc *desc;
		u64 address;
		u32 length;
		u16 flags;

		if (*at >= wire->size || count == left)
			return 0;
		desc = &driver->desc[*at];
		address = virtio64_to_cpu(wire->vdev, desc->addr);
		length = virtio32_to_cpu(wire->vdev, desc->len);
		flags = virtio16_to_cpu(wire->vdev, desc->flags);
		if (!count) {
			piece->address = address;
			piece->length = length;
			piece->flags = flags;
		} else if (address == piece->address + piece->length &&
			   !((flags ^ piece->flags) & ~VRING_DESC_F_NEXT) && !(flags & VRING_DESC_F_INDIRECT) &&
			   length <= U32_MAX - piece->length) {
			piece->length += length;
			piece->flags = flags;
		} else {
			return count;
		}
		count++;
		if (!(flags & VRING_DESC_F_NEXT))
			return count;
		*at = virtio16_to_cpu(wire->vdev, desc->next);
	}
}

static u32 more_room(u32 room, const struct piece *piece)
{
	if (piece->flags & VRING_DESC_F_INDIRECT)
		return U32_MAX;	/* nobody asks here */
	return piece->flags & VRING_DESC_F_WRITE ? room + piece->length : room;
}

static int put_split(struct wire_ring *wire, const struct vring *driver, u16 head)
{
	struct vring *ring = &wire->split.ring;
	unsigned int at = head, from, some, seen = 0, count = 0;
	struct vring_desc *desc;
	struct piece piece;
	u32 room = 0;

	do {
		from = at;
		some = take_piece(wire, driver, &at, wire->size - seen, &piece);
		if (!some)
			return -EINVAL;
		seen += some;
		count++;
		room = more_room(room, &piece);
		desc = &ring->desc[from];
		desc->addr = cpu_to_virtio64(wire->vdev, piece.address);
		desc->len = cpu_to_virtio32(wire->vdev, piece.length);
		desc->flags = cpu_to_virtio16(wire->vdev, piece.flags);
		desc->next = cpu_to_virtio16(wire->vdev, at);
	} while (piece.flags & VRING_DESC_F_NEXT);
	ring->avail->ring[wire->split.available++ % wire->size] = cpu_to_virtio16(wire->vdev, head);
	wire->rooms[head] = room;
	return count;
}

/* The wrap counter is 1 in even rounds. */
static u16 made_available(u16 round)
{
	return round & 1 ? BIT(VRING_PACKED_DESC_F_USED) : BIT(VRING_PACKED_DESC_F_AVAIL);
}

static int put_packed(struct wire_ring *wire, const struct vring *driver, u16 head)
{
	unsigned int at = head, some, seen = 0, count = 0;
	u16 next = wire->packed.next, rounds = wire->packed.rounds, flags, first = 0;
	struct piece piece;
	u32 room = 0;

	do {
		struct vring_packed_desc *to = &wire->packed.ring[next];

		some = take_piece(wire, driver, &at, wire->size - seen, &piece);
		if (!some)
			return -EINVAL;
		seen += some;
		room = more_room(room, &piece);
		to->addr = cpu_to_le64(piece.address);
		to->len = cpu_to_le32(piece.length);
		to->id = cpu_to_le16(head);
		flags = piece.flags | made_available(rounds);
		if (!count++)
			first = flags;
		else
			to->flags = cpu_to_le16(flags);
		if (++next == wire->size) {
			next = 0;
			rounds++;
		}
	} while (piece.flags & VRING_DESC_F_NEXT);
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
	wire->rooms[head] = room;
	return count;
}

/**
 * wire_put - copy a chain of the driver's ring, which the server does not see before wire_show()
 * @wire: the ring
 * @driver: the driver's ring
 * @head: the chain's first descriptor; the server does not have a chain of this head
 *
 * Return: descriptors, or -EINVAL when they are no chain.
 */
int wire_put(struct wire_ring *wire, const struct vring *driver, u16 head)
{
	int count = wire->is_packed ? put_packed(wire, driver, head) : put_split(wire, driver, head);

	if (count > 0)
		wire->counts[head] = count;
	return count;
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
