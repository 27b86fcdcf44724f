/* SPDX-License-Identifier: GPL-2.0 */
/* The ring that the server sees: split or packed, whatever the driver's own ring is. */
#ifndef VIRTIO_VIO_WIRE_H
#define VIRTIO_VIO_WIRE_H

#include <linux/virtio.h>
#include <linux/virtio_ring.h>

#include "dma.h"

/* What the entry of FIND_VQS says of a ring (P3.3). */
struct wire_addresses {
	dma_addr_t descriptors;
	dma_addr_t available;
	dma_addr_t used;
};

/**
 * struct vvio_piece - a part of a chain, one descriptor for the server
 * @ioba: where the server finds it
 * @length: bytes
 * @flags: VRING_DESC_F_WRITE, and VRING_DESC_F_NEXT if there is another one behind it
 * @next: number of that
 *
 * It has the number of the first of the driver's descriptors that are in it.
 */
struct vvio_piece {
	dma_addr_t ioba;
	u32 length;
	u16 flags;
	u16 next;
};

/* chain.c */
int vvio_chain_map(struct vvio_dma *dma, struct virtio_device *vdev, const struct vring *vring, u16 head,
		   struct vvio_piece *pieces, struct dma_received *received);
void vvio_chain_unmap(struct vvio_dma *dma, const struct vvio_piece *pieces, u16 head,
		      struct dma_received *received, bool copy);

/**
 * struct wire_ring - a ring that is filled with the driver's chains
 * @vdev: whose byte order it has
 * @size: entries, as many as the driver's ring has
 * @counts: for each chain that the server has, by its head, how many descriptors
 * @rooms: and how many bytes of it the server may write
 *
 * A chain has the same head here as in the driver's ring.
 */
struct wire_ring {
	struct virtio_device *vdev;
	unsigned int size;
	bool is_packed;
	struct vvio_memory memory;
	u16 *counts;
	u32 *rooms;
	union {
		struct {
			struct vring ring;
			u16 available;
			u16 used;
		} split;
		struct {
			struct vring_packed_desc *ring;
			struct vring_packed_desc_event *driver;
			struct vring_packed_desc_event *device;
			u16 next, used;
			u16 rounds, used_rounds;
			u16 first;		/* flags of the first descriptor that is not shown yet */
			u16 first_at;
			bool hidden;
		} packed;
	};
};

int wire_init(struct wire_ring *wire, struct vvio_dma *dma, struct virtio_device *vdev, unsigned int size,
	      bool is_packed);
void wire_exit(struct wire_ring *wire, struct vvio_dma *dma);
void wire_reset(struct wire_ring *wire);
void wire_addresses(const struct wire_ring *wire, struct wire_addresses *where);
void wire_put(struct wire_ring *wire, const struct vvio_piece *pieces, u16 head);
void wire_show(struct wire_ring *wire);
bool wire_wants_kick(const struct wire_ring *wire);
u32 wire_position(const struct wire_ring *wire);
bool wire_take(struct wire_ring *wire, u32 *id, u32 *length);

#endif
