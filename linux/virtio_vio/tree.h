/* SPDX-License-Identifier: GPL-2.0 */
/* What a partition's device tree says of its virtual adapters. */
#ifndef VIRTIO_VIO_TREE_H
#define VIRTIO_VIO_TREE_H

#include <linux/types.h>

#define VVIO_LOCATION	48

/**
 * struct vvio_node - one child of /vdevice that speaks virtio over CRQ
 * @unit_address: its `reg`
 * @interrupt: source of its CRQ
 * @liobn: of its first window pane
 * @window: bytes of that pane
 * @location: its location code, for people
 * @release: whether it is to be let go of: its node goes when its CRQ is free (docs/gateway.md, G3.5)
 */
struct vvio_node {
	u32 unit_address;
	u32 interrupt;
	u32 liobn;
	u64 window;
	char location[VVIO_LOCATION];
	bool release;
};

/* What is told of a tree, node by node. */
struct vvio_tree {
	struct vvio_node *nodes;
	unsigned int count;
	u32 hot_plug_source;	/* 0: there is none */
};

int vvio_tree_read(const void *blob, size_t length, struct vvio_tree *tree);
void vvio_tree_free(struct vvio_tree *tree);

#endif
