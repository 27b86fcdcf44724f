// SPDX-License-Identifier: GPL-2.0
/*
 * What virtio drivers ask of a transport.
 */
#include <linux/slab.h>
#include <linux/version.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>

#include "adapter.h"

static void get(struct virtio_device *vdev, unsigned int offset, void *buffer, unsigned int length)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	unsigned long flags;

	memset(buffer, 0, length);
	if (offset >= adapter->config_length || length > adapter->config_length - offset)
		return;
	spin_lock_irqsave(&adapter->config_lock, flags);
	memcpy(buffer, adapter->snapshot + offset, length);
	spin_unlock_irqrestore(&adapter->config_lock, flags);
}

static void set(struct virtio_device *vdev, unsigned int offset, const void *buffer, unsigned int length)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	unsigned int done, some;
	unsigned long flags;

	if (offset >= adapter->config_length || length > adapter->config_length - offset)
		return;
	mutex_lock(&adapter->session);
	spin_lock_irqsave(&adapter->config_lock, flags);
	memcpy(adapter->snapshot + offset, buffer, length);
	bitmap_set(adapter->written, offset, length);
	spin_unlock_irqrestore(&adapter->config_lock, flags);
	/* without a server: the next one is told (P5.8: not before the features are settled) */
	for (done = 0; done < length && adapter->stage >= (adapter->revision ? VVIO_FEATURES_DONE : VVIO_LIVE);
	     done += some) {
		some = length - done >= 4 ? 4 : length - done >= 2 ? 2 : 1;
		if (vvio_write_config(adapter, offset + done, some))
			break;
	}
	mutex_unlock(&adapter->session);
}

static u32 generation(struct virtio_device *vdev)
{
	return READ_ONCE(vdev_to_adapter(vdev)->generation);
}

static u8 get_status(struct virtio_device *vdev)
{
	return vdev_to_adapter(vdev)->status;
}

static void set_status(struct virtio_device *vdev, u8 status)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	u8 added = status & ~adapter->status;
	enum vvio_stage goal = VVIO_NOTHING;

	if (added & VIRTIO_CONFIG_S_FAILED) {
		mutex_lock(&adapter->session);
		if (adapter->stage > VVIO_NOTHING)
			vvio_request(adapter, VVIO_FAILED, 0, 0, NULL);
		adapter->goal = VVIO_PROBED;
		mutex_unlock(&adapter->session);
		adapter->status = status;
		return;
	}
	if (added & VIRTIO_CONFIG_S_ACKNOWLEDGE)
		goal = VVIO_ACKNOWLEDGED;
	if (added & VIRTIO_CONFIG_S_DRIVER)
		goal = VVIO_DRIVER_FOUND;
	if (added & VIRTIO_CONFIG_S_FEATURES_OK)
		goal = VVIO_FEATURES_DONE;
	if (added & VIRTIO_CONFIG_S_DRIVER_OK)
		goal = VVIO_LIVE;
	if (goal && vvio_advance(adapter, goal)) {
		if (!adapter->is_lost)
			dev_err(adapter->dev, "status %#x was not reached\n", status);
		/* the core looks for FEATURES_OK, and nobody for the others */
		status &= ~VIRTIO_CONFIG_S_FEATURES_OK;
	}
	adapter->status = status;
}

static void reset(struct virtio_device *vdev)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	unsigned int i;
	int err = 0;

	mutex_lock(&adapter->session);
	adapter->goal = VVIO_PROBED;
	for (i = 0; i < adapter->queues_found; i++)
		vvio_queue_quiet(adapter->queues[i]);
	if (adapter->stage > VVIO_PROBED || adapter->status & VIRTIO_CONFIG_S_FAILED) {
		err = vvio_request(adapter, VVIO_RESET, 0, 0, NULL);
		if (!err)
			adapter->stage = VVIO_PROBED;
		else if (err != -ENOTCONN)
			vvio_connection_reset(adapter);		/* that ends its work, too */
	}
	for (i = 0; i < adapter->queues_found; i++) {
		vvio_queue_forget(adapter->queues[i]);
		vvio_commands_forget(adapter->queues[i]);
	}
	vvio_channels_close(adapter);
	/* callbacks that an interrupt began have returned */
	spin_lock_irq(&adapter->crq_lock);
	spin_unlock_irq(&adapter->crq_lock);
	bitmap_zero(adapter->written, VVIO_CONFIG_ROOM);
	adapter->driver_features = 0;
	adapter->status = 0;
	mutex_unlock(&adapter->session);
}

/* Descriptors are put together for the server, but not to more than the device takes at once. */
static u32 longest_descriptor(struct virtio_device *vdev)
{
	u32 size = 0;

	if (vdev->id.device == VIRTIO_ID_BLOCK && virtio_has_feature(vdev, VIRTIO_BLK_F_SIZE_MAX))
		virtio_cread(vdev, struct virtio_blk_config, size_max, &size);
	return size ?: U32_MAX;
}

/* Those that are a matter of this transport and its rings, not of the driver. */
#define OUR_FEATURES	(BIT_ULL(VIRTIO_RING_F_INDIRECT_DESC) | BIT_ULL(VIRTIO_RING_F_EVENT_IDX) |	\
			 BIT_ULL(VIRTIO_F_RING_PACKED) | BIT_ULL(VIRTIO_F_IN_ORDER) |			\
			 BIT_ULL(37) | BIT_ULL(38) | BIT_ULL(39) | BIT_ULL(41) | BIT_ULL(43))

static u64 get_features(struct virtio_device *vdev)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);

	return adapter->offered & ~OUR_FEATURES;
}

static int finalize_features(struct virtio_device *vdev)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	bool has_reset = vdev->features & BIT_ULL(VIRTIO_F_RING_RESET);
	u64 needed = BIT_ULL(VIRTIO_F_VERSION_1) | BIT_ULL(VIRTIO_F_ACCESS_PLATFORM);
	u64 features;

	vring_transport_features(vdev);
	if (has_reset)
		__virtio_set_bit(vdev, VIRTIO_F_RING_RESET);
	features = vdev->features | (adapter->offered & BIT_ULL(VIRTIO_F_ACCESS_PLATFORM));	/* see below */
	if (adapter->revision && (features & needed) != needed) {
		dev_err(adapter->dev, "the driver or the device is not one of virtio 1\n");
		return -EINVAL;
	}
	adapter->driver_features = features & adapter->offered & ~OUR_FEATURES;
	adapter->is_packed &= !!(adapter->offered & BIT_ULL(VIRTIO_F_RING_PACKED));
	if (adapter->is_packed)
		adapter->driver_features |= BIT_ULL(VIRTIO_F_RING_PACKED);
	adapter->dma.longest = longest_descriptor(vdev);
	/* the driver's ring has physical addresses, which are mapped when the server is shown them (chain.c) */
	__virtio_clear_bit(vdev, VIRTIO_F_ACCESS_PLATFORM);
	return 0;
}

/* Nothing that was posted for a queue is under way, and no interrupt hands it anything. */
static void part_with_queues(struct vvio_adapter *adapter)
{
	spin_lock_irq(&adapter->crq_lock);
	WRITE_ONCE(adapter->queues_found, 0);
	spin_unlock_irq(&adapter->crq_lock);
	while (vvio_call(adapter->hv, PAPR_VIO_SIGNAL, adapter->unit_address, 1) == PAPR_BUSY)
		;	/* calls are done in order; of a stalled hypervisor the watch gets tired */
}

static void del_vqs(struct virtio_device *vdev)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	unsigned int i, count = adapter->queues_found;

	mutex_lock(&adapter->session);
	if (adapter->goal > VVIO_FEATURES_DONE)
		adapter->goal = VVIO_FEATURES_DONE;	/* for a server that comes meanwhile */
	for (i = 0; i < count; i++)
		vvio_queue_quiet(adapter->queues[i]);
	vvio_channels_release(adapter);
	part_with_queues(adapter);
	for (i = 0; i < count; i++)
		vvio_queue_free(adapter->queues[i]);
	kfree(adapter->queues);
	adapter->queues = NULL;
	mutex_unlock(&adapter->session);
}

struct wanted_queue {
	const char *name;
	vq_callback_t *callback;
	bool context;
};

static int make_queues(struct vvio_adapter *adapter, struct virtqueue *vqs[], const struct wanted_queue *wanted,
		       unsigned int count)
{
	struct vvio_queue *queue;
	unsigned int i, found = 0;

	adapter->queues = kcalloc(count, sizeof(*adapter->queues), GFP_KERNEL);
	if (!adapter->queues)
		return -ENOMEM;
	for (i = 0; i < count; i++) {
		vqs[i] = NULL;
		if (!wanted[i].name)
			continue;
		if (found == min_t(size_t, adapter->queue_count,
				   min_t(size_t, 2047, adapter->block.size / sizeof(struct vvio_queue_entry))))
			return -ENOENT;
		queue = vvio_queue_make(adapter, found, wanted[i].callback, wanted[i].name, wanted[i].context);
		if (IS_ERR(queue))
			return PTR_ERR(queue);
		adapter->queues[found] = queue;
		vqs[i] = queue->vq;
		smp_store_release(&adapter->queues_found, ++found);	/* with its queue, for interrupts */
	}
	vvio_dma_share(&adapter->dma, found);
	return 0;
}

static int find_wanted(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		       const struct wanted_queue *wanted)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	int err;

	mutex_lock(&adapter->session);
	err = make_queues(adapter, vqs, wanted, count);
	mutex_unlock(&adapter->session);
	if (!err)
		err = vvio_advance(adapter, VVIO_QUEUES_FOUND);
	if (err)
		del_vqs(vdev);
	return err;
}

#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 11, 0)
static int find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		    struct virtqueue_info info[], struct irq_affinity *affinity)
{
	struct wanted_queue *wanted = kcalloc(count, sizeof(*wanted), GFP_KERNEL);
	unsigned int i;
	int err;

	if (!wanted)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		wanted[i] = (struct wanted_queue){ info[i].name, info[i].callback, info[i].ctx };
	err = find_wanted(vdev, count, vqs, wanted);
	kfree(wanted);
	return err;
}
#else
static int find_vqs(struct virtio_device *vdev, unsigned int count, struct virtqueue *vqs[],
		    vq_callback_t *callbacks[], const char * const names[], const bool *contexts,
		    struct irq_affinity *affinity)
{
	struct wanted_queue *wanted = kcalloc(count, sizeof(*wanted), GFP_KERNEL);
	unsigned int i;
	int err;

	if (!wanted)
		return -ENOMEM;
	for (i = 0; i < count; i++)
		wanted[i] = (struct wanted_queue){ names[i], callbacks[i], contexts && contexts[i] };
	err = find_wanted(vdev, count, vqs, wanted);
	kfree(wanted);
	return err;
}
#endif

static void synchronize_cbs(struct virtio_device *vdev)
{
	struct vvio_adapter *adapter = vdev_to_adapter(vdev);
	unsigned int i;

	adapter->hv->ops->synchronize_source(adapter->hv, &adapter->source);
	mutex_lock(&adapter->session);
	for (i = 0; i < adapter->queues_found; i++)
		if (adapter->queues[i]->channel)
			adapter->hv->ops->synchronize_source(adapter->hv, &adapter->queues[i]->channel->source);
	mutex_unlock(&adapter->session);
}

static const char *bus_name(struct virtio_device *vdev)
{
	return dev_name(vdev_to_adapter(vdev)->dev);
}

static int disable_vq_and_reset(struct virtqueue *vq)
{
	struct vvio_queue *queue = vq->priv;
	struct vvio_adapter *adapter = queue->adapter;
	int err = 0;

	if (!virtio_has_feature(vq->vdev, VIRTIO_F_RING_RESET))
		return -ENOENT;
	mutex_lock(&adapter->session);
	vvio_queue_quiet(queue);
	if (adapter->stage == VVIO_LIVE)
		err = vvio_request(adapter, VVIO_QUEUE_RESET, (u32)queue->index << 16, 0, NULL);
	if (err && err != -ENOTCONN)
		vvio_failed(adapter, "a queue cannot be reset");	/* which ends its work, too */
	queue->generation++;
	queue->is_reset = true;
	vvio_queue_forget(queue);
	mutex_unlock(&adapter->session);
	synchronize_cbs(vq->vdev);
	vq->reset = true;
	return 0;
}

static int enable_vq_after_reset(struct virtqueue *vq)
{
	struct vvio_queue *queue = vq->priv;
	struct vvio_adapter *adapter = queue->adapter;
	int err;

	if (!vq->reset)
		return -EBUSY;
	mutex_lock(&adapter->session);
	err = vvio_queue_remake(queue);
	if (!err && adapter->stage == VVIO_LIVE) {
		err = vvio_find_queues(adapter, &queue, 1);
		if (err == -ENOTCONN)
			err = 0;	/* the next server finds it with the others */
		else if (!err)
			vvio_queue_live(queue);
	}
	if (!err)
		queue->is_reset = false;
	mutex_unlock(&adapter->session);
	vq->reset = !!err;
	return err;
}

const struct virtio_config_ops vvio_config_ops = {
	.get = get,
	.set = set,
	.generation = generation,
	.get_status = get_status,
	.set_status = set_status,
	.reset = reset,
	.find_vqs = find_vqs,
	.del_vqs = del_vqs,
	.synchronize_cbs = synchronize_cbs,
	.get_features = get_features,
	.finalize_features = finalize_features,
	.bus_name = bus_name,
	.disable_vq_and_reset = disable_vq_and_reset,
	.enable_vq_after_reset = enable_vq_after_reset,
};
