// SPDX-License-Identifier: GPL-2.0
/*
 * The bus of virtual adapters: one device for each adapter that a partition's device tree names.
 */
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

static LIST_HEAD(all);
static DEFINE_MUTEX(all_lock);

struct bus_type vvio_bus = {
	.name = "virtio_vio",
	.dev_groups = vvio_groups,
};

static void release(struct device *dev)
{
	kfree(to_vvio_device(dev));
}

static void unregister(struct vvio_device *vdev)
{
	device_unregister(&vdev->dev);
	mutex_lock(&all_lock);
	list_del(&vdev->all);
	mutex_unlock(&all_lock);
	put_device(&vdev->dev);		/* of the list */
}

/* In a work of its own: a server that goes away meanwhile does not keep the tree's news from anybody. */
static void let_go(struct work_struct *work)
{
	struct vvio_device *vdev = container_of(work, struct vvio_device, release);
	struct vvio_hv *hv = vdev->hv;

	unregister(vdev);
	put_device(&vdev->dev);
	if (hv->follow)
		schedule_work(hv->follow);	/* the hypervisor may have thought better of it */
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
	INIT_WORK(&vdev->release, let_go);
	dev_set_name(&vdev->dev, "%x.%x", node->unit_address, node->liobn);
	mutex_init(&vdev->lock);
	device_initialize(&vdev->dev);
	get_device(&vdev->dev);		/* of the list */
	mutex_lock(&all_lock);
	list_add_tail(&vdev->all, &all);
	mutex_unlock(&all_lock);
	err = device_add(&vdev->dev);
	if (!err)
		return 0;
	mutex_lock(&all_lock);
	list_del(&vdev->all);
	mutex_unlock(&all_lock);
	put_device(&vdev->dev);
	put_device(&vdev->dev);
	return err;
}

static bool is_same(const struct vvio_node *one, const struct vvio_node *other)
{
	/* another adapter in the same slot has another LIOBN */
	return one->unit_address == other->unit_address && one->liobn == other->liobn &&
	       one->interrupt == other->interrupt && one->window == other->window;
}

static const struct vvio_node *named(struct vvio_device *vdev, const struct vvio_node *nodes, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++)
		if (is_same(&vdev->node, &nodes[i]))
			return &nodes[i];
	return NULL;
}

/* The next adapter that has to go, with a reference; NULL when there is none. */
static struct vvio_device *next_to_go(struct vvio_hv *hv, const struct vvio_node *nodes, unsigned int count)
{
	struct vvio_device *vdev, *found = NULL;

	mutex_lock(&all_lock);
	list_for_each_entry(vdev, &all, all) {
		const struct vvio_node *node = named(vdev, nodes, count);

		if (vdev->hv != hv || vdev->unplugged || (node && (!node->release || vdev->is_leaving)))
			continue;
		found = vdev;
		get_device(&found->dev);
		break;
	}
	mutex_unlock(&all_lock);
	return found;
}

static bool is_there(struct vvio_hv *hv, const struct vvio_node *node)
{
	struct vvio_device *vdev;
	bool found = false;

	mutex_lock(&all_lock);
	list_for_each_entry(vdev, &all, all)
		found |= vdev->hv == hv && is_same(&vdev->node, node);
	mutex_unlock(&all_lock);
	return found;
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
	struct vvio_device *vdev;
	unsigned int i;
	int err;

	while ((vdev = next_to_go(hv, nodes, count))) {
		if (named(vdev, nodes, count)) {
			/* it still works: its driver writes what is cached */
			vdev->is_leaving = true;
			queue_work(vvio_release_wq, &vdev->release);	/* which has the reference */
			continue;
		}
		vdev->unplugged = true;
		vvio_adapter_lost(vdev, "it was unplugged");	/* so that one that is leaving gets on with it */
		if (vdev->is_leaving)
			flush_work(&vdev->release);
		else
			unregister(vdev);
		put_device(&vdev->dev);
	}
	for (i = 0; i < count; i++) {
		if (nodes[i].release || is_there(hv, &nodes[i]))
			continue;
		err = add(hv, &nodes[i]);
		if (err)
			dev_err(hv->dev, "adapter %#x: %d\n", nodes[i].unit_address, err);
	}
}

/**
 * vvio_bus_leave - let go of all adapters of a hypervisor, in an orderly way
 * @hv: the hypervisor
 */
void vvio_bus_leave(struct vvio_hv *hv)
{
	struct vvio_device *vdev;

	while ((vdev = next_to_go(hv, NULL, 0))) {
		vdev->unplugged = true;
		if (vdev->is_leaving)
			flush_work(&vdev->release);
		else
			unregister(vdev);
		put_device(&vdev->dev);
	}
	flush_workqueue(vvio_release_wq);	/* those that are out of the list may still speak of the hypervisor */
}

/**
 * vvio_bus_dead - tell every adapter that its hypervisor is gone
 * @hv: the hypervisor, whose hcalls fail by now
 */
void vvio_bus_dead(struct vvio_hv *hv)
{
	struct vvio_device *vdev;

	mutex_lock(&all_lock);
	list_for_each_entry(vdev, &all, all)
		if (vdev->hv == hv)
			vvio_adapter_lost(vdev, "the hypervisor is gone");
	mutex_unlock(&all_lock);
}
