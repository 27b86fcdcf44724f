// SPDX-License-Identifier: GPL-2.0
/*
 * The driver of an adapter: from the bus device to the virtio device.
 */
#include <linux/module.h>
#include <linux/slab.h>

#include "adapter.h"

int vvio_revision = VVIO_HIGHEST_REVISION;
module_param_named(revision, vvio_revision, int, 0444);
MODULE_PARM_DESC(revision, "Highest revision of the protocol that is proposed: 0 or 1");

bool vvio_packed = true;
module_param_named(packed, vvio_packed, bool, 0444);
MODULE_PARM_DESC(packed, "Packed rings where the server offers them");

/* -- in sysfs */

static ssize_t state_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	static const char * const names[] = { "closed", "waiting", "initializing", "open" };
	struct vvio_adapter *adapter = to_adapter(dev);

	if (adapter->is_lost)
		return sysfs_emit(buffer, "lost\n");
	if (adapter->stage == VVIO_LIVE)
		return sysfs_emit(buffer, "live\n");
	return sysfs_emit(buffer, "%s\n", names[adapter->state]);
}
static DEVICE_ATTR_RO(state);

static ssize_t sessions_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%u\n", to_adapter(dev)->sessions);
}
static DEVICE_ATTR_RO(sessions);

static ssize_t ring_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%s\n", to_adapter(dev)->is_packed ? "packed" : "split");
}
static DEVICE_ATTR_RO(ring);

static ssize_t revision_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%d\n", to_adapter(dev)->revision);
}
static DEVICE_ATTR_RO(revision);

static ssize_t tce_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	return sysfs_emit(buffer, "%s\n", to_adapter(dev)->dma.window.table ? "shared" : "hcalls");
}
static DEVICE_ATTR_RO(tce);

static ssize_t channels_show(struct device *dev, struct device_attribute *attr, char *buffer)
{
	struct vvio_adapter *adapter = to_adapter(dev);
	unsigned int i, carried = 0;

	mutex_lock(&adapter->session);
	for (i = 0; i < adapter->queues_found; i++)
		carried += !!adapter->queues[i]->partner;
	mutex_unlock(&adapter->session);
	return sysfs_emit(buffer, "%u\n", carried);
}
static DEVICE_ATTR_RO(channels);

static struct attribute *adapter_attrs[] = {
	&dev_attr_state.attr,
	&dev_attr_sessions.attr,
	&dev_attr_ring.attr,
	&dev_attr_revision.attr,
	&dev_attr_tce.attr,
	&dev_attr_channels.attr,
	NULL,
};
ATTRIBUTE_GROUPS(adapter);

/* -- the virtio device */

static void release(struct device *dev)
{
	kfree(vdev_to_adapter(dev_to_virtio(dev)));
}

static void attach(struct work_struct *work)
{
	struct vvio_adapter *adapter = container_of(work, struct vvio_adapter, attach);
	int err;

	if (adapter->is_attached || adapter->is_lost)
		return;
	adapter->vdev.id.device = adapter->device_id;
	adapter->vdev.id.vendor = 0x1af4;
	adapter->vdev.config = &vvio_config_ops;
	adapter->vdev.dev.parent = adapter->dev;
	adapter->vdev.dev.release = release;
	adapter->is_attached = true;	/* also when it fails: once is enough */
	err = register_virtio_device(&adapter->vdev);
	adapter->is_registered = !err;
	if (err)
		dev_err(adapter->dev, "the virtio device cannot be registered: %d\n", err);
}

static void fail_work(struct work_struct *work)
{
	struct vvio_adapter *adapter = container_of(work, struct vvio_adapter, fail_work.work);
	unsigned int i;

	mutex_lock(&adapter->session);
	vvio_connection_close(adapter);
	for (i = 0; i < adapter->queues_found; i++) {
		vvio_queue_quiet(adapter->queues[i]);
		if (!adapter->queues[i]->is_reset)	/* else its ring may be gone */
			vvio_queue_fail(adapter->queues[i]);
	}
	mutex_unlock(&adapter->session);
	wake_up_all(&adapter->changed);
}

/**
 * vvio_adapter_lost - nobody serves this adapter any more, or ever will
 * @device: its device on the bus
 * @why: for people
 *
 * What its driver has under way, and what it begins from here on, fails.
 */
void vvio_adapter_lost(struct vvio_device *device, const char *why)
{
	struct vvio_adapter *adapter;
	unsigned long flags;

	mutex_lock(&device->lock);
	adapter = device->adapter;
	if (adapter && !adapter->is_lost) {
		dev_err(adapter->dev, "lost: %s\n", why);
		spin_lock_irqsave(&adapter->crq_lock, flags);
		WRITE_ONCE(adapter->is_lost, true);
		adapter->is_open = false;
		adapter->awaited = 0;
		complete_all(&adapter->answered);
		spin_unlock_irqrestore(&adapter->crq_lock, flags);
		wake_up_all(&adapter->changed);
		mod_delayed_work(system_wq, &adapter->fail_work, 0);
	}
	mutex_unlock(&device->lock);
}

/* -- the bus device */

static int get_memory(struct vvio_adapter *adapter)
{
	int err;

	err = vvio_memory_get(&adapter->dma, &adapter->header, TCE_PAGE);
	if (!err)
		err = vvio_memory_get(&adapter->dma, &adapter->block, TCE_PAGE);
	if (!err)
		err = vvio_memory_get(&adapter->dma, &adapter->config, VVIO_CONFIG_ROOM);
	return err;
}

static void put_memory(struct vvio_adapter *adapter)
{
	vvio_memory_put(&adapter->dma, &adapter->config);
	vvio_memory_put(&adapter->dma, &adapter->block);
	vvio_memory_put(&adapter->dma, &adapter->header);
}

static int probe(struct device *dev)
{
	struct vvio_device *device = to_vvio_device(dev);
	struct vvio_adapter *adapter;
	int err;

	adapter = kzalloc(sizeof(*adapter), GFP_KERNEL);
	if (!adapter)
		return -ENOMEM;
	adapter->device = device;
	adapter->hv = device->hv;
	adapter->dev = dev;
	adapter->unit_address = device->node.unit_address;
	mutex_init(&adapter->session);
	spin_lock_init(&adapter->config_lock);
	init_waitqueue_head(&adapter->changed);
	INIT_WORK(&adapter->attach, attach);
	INIT_DELAYED_WORK(&adapter->fail_work, fail_work);
	vvio_call(adapter->hv, PAPR_FREE_CRQ, adapter->unit_address);	/* of an earlier life: it is harmless else */
	err = vvio_dma_init(&adapter->dma, dev, adapter->hv, device->node.liobn, device->node.window);
	if (err)
		goto no_window;
	err = get_memory(adapter);
	if (err)
		goto no_memory;
	err = vvio_connection_init(adapter);
	if (err)
		goto no_memory;
	dev_set_drvdata(dev, adapter);
	mutex_lock(&device->lock);
	device->adapter = adapter;
	mutex_unlock(&device->lock);
	mutex_lock(&adapter->session);
	vvio_connection_start(adapter);
	mutex_unlock(&adapter->session);
	return 0;

no_memory:
	put_memory(adapter);
	vvio_dma_exit(&adapter->dma);
no_window:
	kfree(adapter);
	return err;
}

static int remove(struct device *dev)
{
	struct vvio_adapter *adapter = to_adapter(dev);

	mutex_lock(&adapter->session);
	adapter->is_leaving = true;	/* nobody attaches it from here on */
	mutex_unlock(&adapter->session);
	cancel_work_sync(&adapter->attach);
	if (adapter->is_registered) {
		get_device(&adapter->vdev.dev);
		unregister_virtio_device(&adapter->vdev);
	}
	mutex_lock(&adapter->session);
	WRITE_ONCE(adapter->is_lost, true);
	vvio_connection_close(adapter);
	mutex_unlock(&adapter->session);
	mutex_lock(&adapter->device->lock);
	adapter->device->adapter = NULL;
	mutex_unlock(&adapter->device->lock);
	vvio_connection_exit(adapter);
	cancel_delayed_work_sync(&adapter->fail_work);
	put_memory(adapter);
	vvio_dma_exit(&adapter->dma);
	dev_set_drvdata(dev, NULL);
	if (adapter->is_attached)
		put_device(&adapter->vdev.dev);
	else
		kfree(adapter);
	return 0;
}

/* Before another kernel has this memory: the server reaches nothing of it any more. */
static void shut_down(struct device *dev)
{
	struct vvio_adapter *adapter = to_adapter(dev);

	if (!adapter)
		return;
	mutex_lock(&adapter->session);
	adapter->is_leaving = true;
	vvio_connection_close(adapter);
	mutex_unlock(&adapter->session);
}

struct device_driver vvio_driver = {
	.name = "virtio_vio",
	.owner = THIS_MODULE,
	.probe = probe,
	.remove = remove,
	.shutdown = shut_down,
	.dev_groups = adapter_groups,
};
