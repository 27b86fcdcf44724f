/* SPDX-License-Identifier: GPL-2.0 */
/* The bus of virtual adapters, and the ways by which hypervisors put adapters on it. */
#ifndef VIRTIO_VIO_BUS_H
#define VIRTIO_VIO_BUS_H

#include <linux/device.h>
#include <linux/mutex.h>
#include <linux/workqueue.h>

#include "hypervisor.h"
#include "tree.h"

struct vvio_adapter;

/**
 * struct vvio_device - an adapter on the bus
 * @dev: its device
 * @all: in the list of all, which it is in until its driver has let go of it
 * @lock: protects @adapter
 * @adapter: what its driver keeps of it, NULL without a driver
 * @hv: the hypervisor that it belongs to
 * @node: what the device tree says of it
 * @unplugged: whether the tree does not name it any more, or nobody follows it any more
 * @release: lets go of it in an orderly way, which may take as long as its server does
 * @is_leaving: whether that has begun
 */
struct vvio_device {
	struct device dev;
	struct list_head all;
	struct mutex lock;
	struct vvio_adapter *adapter;
	struct vvio_hv *hv;
	struct vvio_node node;
	bool unplugged;
	struct work_struct release;
	bool is_leaving;
};

#define to_vvio_device(dev_) container_of(dev_, struct vvio_device, dev)

extern struct workqueue_struct *vvio_release_wq;
extern struct bus_type vvio_bus;
extern struct device_driver vvio_driver;

void vvio_bus_follow(struct vvio_hv *hv, const struct vvio_node *nodes, unsigned int count);
void vvio_bus_leave(struct vvio_hv *hv);
void vvio_bus_dead(struct vvio_hv *hv);

/* adapter.c */
void vvio_adapter_lost(struct vvio_device *vdev, const char *why);

int vvio_gateway_init(void);
void vvio_gateway_exit(void);

#ifdef CONFIG_PPC_PSERIES
int vvio_phyp_init(void);
void vvio_phyp_exit(void);
#else
static inline int vvio_phyp_init(void) { return 0; }
static inline void vvio_phyp_exit(void) { }
#endif

#endif
