// SPDX-License-Identifier: GPL-2.0
/*
 * The bus of virtual adapters: one device for each adapter that a partition's device tree names.
 */
#include <linux/dma-mapping.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/version.h>

#include "bus.h"

static ssize_t unit_address_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%#x\n", to_vvio_device(dev)->node.unit_address);
}
static DEVICE_ATTR_RO(unit_address);

static ssize_t location_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%s\n", to_vvio_device(dev)->node.location);
}
static DEVICE_ATTR_RO(location);

static struct attribute *vvio_attrs[] = {
	&dev_attr_unit_address.attr,
	&dev_attr_location.attr,
	NULL,
};
ATTRIBUTE_GROUPS(vvio);

struct bus_type vvio_bus = {
	.name = "virtio_vio",
	.dev_groups = vvio_groups,
};

static void release(struct device *dev)
{
	kfree(to_vvio_device(dev));
}

static int add(struct vvio_hv *hv, const struct vvio_node *node)
{
	struct vvio_device *vdev;
	int err;

	vdev = kzalloc(sizeof(*vdev), GFP_KERNEL);
	if (!vdev)
		return -ENOMEM;
	vdev->hv = hv;
	vdev->node = *node;
	vdev->dev.bus = &vvio_bus;
	vdev->dev.parent = hv->dev;
	vdev->dev.release = release;
	vdev->dma_mask = DMA_BIT_MASK(64);
	vdev->dev.dma_mask = &vdev->dma_mask;
	vdev->dev.dma_parms = &vdev->dma_parameters;
	vdev->dev.coherent_dma_mask = DMA_BIT_MASK(64);
	dev_set_name(&vdev->dev, "%x.%x", node->unit_address, node->liobn);
	err = device_register(&vdev->dev);
	if (err)
		put_device(&vdev->dev);
	return err;
}

struct looking_for {
	struct vvio_hv *hv;
	const struct vvio_node *nodes;
	unsigned int count;
	struct device *found;
};

static bool is_same(const struct vvio_node *one, const struct vvio_node *other)
{
	/* another adapter in the same slot has another LIOBN */
	return one->unit_address == other->unit_address && one->liobn == other->liobn &&
	       one->interrupt == other->interrupt && one->window == other->window;
}

static const struct vvio_node *named(struct vvio_device *vdev, const struct looking_for *wanted)
{
	unsigned int i;

	for (i = 0; i < wanted->count; i++)
		if (is_same(&vdev->node, &wanted->nodes[i]))
			return &wanted->nodes[i];
	return NULL;
}

static int has_to_go(struct device *dev, void *data)
{
	struct vvio_device *vdev = to_vvio_device(dev);
	struct looking_for *wanted = data;
	const struct vvio_node *node;

	if (vdev->hv != wanted->hv || vdev->unplugged)
		return 0;
	node = named(vdev, wanted);
	if (node && !node->release)
		return 0;
	wanted->found = get_device(dev);
	return 1;
}

static int is_this(struct device *dev, void *data)
{
	struct vvio_device *vdev = to_vvio_device(dev);
	struct looking_for *wanted = data;

	return vdev->hv == wanted->hv && is_same(&vdev->node, wanted->nodes);
}

/**
 * vvio_bus_follow - have those adapters of a hypervisor that are named, and no others
 * @hv: the hypervisor
 * @nodes: the adapters that its device tree names
 * @count: how many they are
 *
 * One caller at a time for each hypervisor; may sleep for long, since drivers come and go in it.
 */
void vvio_bus_follow(struct vvio_hv *hv, const struct vvio_node *nodes, unsigned int count)
{
	struct looking_for wanted = { hv, nodes, count };
	unsigned int i;
	int err;

	while (wanted.found = NULL, bus_for_each_dev(&vvio_bus, NULL, &wanted, has_to_go)) {
		/* one that is to be let go of still works: its driver writes what is cached */
		if (!named(to_vvio_device(wanted.found), &wanted)) {
			to_vvio_device(wanted.found)->unplugged = true;
			vvio_adapter_lost(to_vvio_device(wanted.found), "it was unplugged");
		}
		device_unregister(wanted.found);
		put_device(wanted.found);
	}
	for (i = 0; i < count; i++) {
		struct looking_for one = { hv, &nodes[i], 1 };

		if (nodes[i].release || bus_for_each_dev(&vvio_bus, NULL, &one, is_this))
			continue;
		err = add(hv, &nodes[i]);
		if (err)
			dev_err(hv->dev, "adapter %#x: %d\n", nodes[i].unit_address, err);
	}
}

static int lost(struct device *dev, void *data)
{
	if (to_vvio_device(dev)->hv == data)
		vvio_adapter_lost(to_vvio_device(dev), "the hypervisor is gone");
	return 0;
}

/**
 * vvio_bus_dead - tell every adapter that its hypervisor is gone
 * @hv: the hypervisor, whose hcalls fail by now
 */
void vvio_bus_dead(struct vvio_hv *hv)
{
	bus_for_each_dev(&vvio_bus, NULL, hv, lost);
}
