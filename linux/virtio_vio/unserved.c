// SPDX-License-Identifier: GPL-2.0
/*
 * What a driver finds in a chain that nobody served.
 *
 * A buffer of which nothing was used says nothing: some drivers then wait for ever, and some take
 * what was in the memory before for an answer. So the answer is made here that says that it failed.
 */
#include <linux/errno.h>
#include <linux/io.h>
#include <linux/virtio_config.h>
#include <uapi/linux/fuse.h>
#include <uapi/linux/virtio_blk.h>
#include <uapi/linux/virtio_ids.h>
#include <uapi/linux/virtio_scsi.h>

#include "adapter.h"

/* Copy some bytes of it, or into it, as far as there are any; how many it has. */
static u64 copy_part(const struct vvio_part *part, u64 offset, void *out, const void *in, size_t length)
{
	struct virtio_device *vdev = &part->queue->adapter->vdev;
	const struct vring *vring = part->queue->vring;
	unsigned int at = part->head, left;
	u64 total = 0;

	for (left = vring->num; at < vring->num && left; left--) {
		const struct vring_desc *desc = &vring->desc[at];
		u16 flags = virtio16_to_cpu(vdev, desc->flags);
		u32 here = virtio32_to_cpu(vdev, desc->len);

		if ((flags & VRING_DESC_F_WRITE) == part->flag) {
			u64 from = max(offset, total), to = min(offset + length, total + here);
			void *memory = phys_to_virt(virtio64_to_cpu(vdev, desc->addr));

			if (from < to && in)
				memcpy(memory + (from - total), in + (from - offset), to - from);
			else if (from < to)
				memcpy(out + (from - offset), memory + (from - total), to - from);
			total += here;
		}
		if (!(flags & VRING_DESC_F_NEXT))
			break;
		at = virtio16_to_cpu(vdev, desc->next);
	}
	return total;
}

u64 vvio_part_length(const struct vvio_part *part)
{
	return copy_part(part, 0, NULL, NULL, 0);
}

void vvio_part_read(const struct vvio_part *part, u64 offset, void *bytes, size_t length)
{
	copy_part(part, offset, bytes, NULL, length);
}

void vvio_part_write(const struct vvio_part *part, u64 offset, const void *bytes, size_t length)
{
	copy_part(part, offset, NULL, bytes, length);
}

/* Some bytes as the beginning of the answer, if there is room; the used length. */
static u32 answer(const struct vvio_part *part, const void *bytes, size_t length)
{
	if (vvio_part_length(part) < length)
		return 0;
	vvio_part_write(part, 0, bytes, length);
	return length;
}

static u32 end_with(const struct vvio_part *part, u8 status)
{
	u64 total = vvio_part_length(part);

	if (total)
		vvio_part_write(part, total - 1, &status, 1);
	return 0;
}

/* 9P2000.L: size[4] Rlerror tag[2] ecode[4], little-endian. */
static u32 answer_p9(const struct vvio_part *request, const struct vvio_part *reply)
{
	u8 message[11] = { sizeof(message), 0, 0, 0, 7, 0, 0, EIO };

	vvio_part_read(request, 5, message + 5, 2);
	return answer(reply, message, sizeof(message));
}

static u32 answer_fuse(const struct vvio_part *request, const struct vvio_part *reply)
{
	struct fuse_out_header header = { .len = sizeof(header), .error = -EIO };

	vvio_part_read(request, offsetof(struct fuse_in_header, unique), &header.unique, sizeof(header.unique));
	return answer(reply, &header, sizeof(header));
}

static u32 answer_scsi(const struct vvio_part *reply)
{
	struct virtio_scsi_cmd_resp response = { .response = VIRTIO_SCSI_S_FAILURE };
	__virtio32 event = 0;	/* none */

	switch (reply->queue->index) {
	case 0:
		return end_with(reply, VIRTIO_SCSI_S_FAILURE);
	case 1:
		answer(reply, &event, sizeof(event));
		return 0;
	default:
		return answer(reply, &response, offsetof(struct virtio_scsi_cmd_resp, sense));
	}
}

/**
 * vvio_queue_excuse - answer a request in the place of the server
 * @queue: the queue
 * @head: the chain of the request, which no server reaches any more
 *
 * Return: the bytes that the driver is to find in it.
 */
u32 vvio_queue_excuse(const struct vvio_queue *queue, u16 head)
{
	struct vvio_part request = { queue, head, 0 }, reply = { queue, head, VRING_DESC_F_WRITE };

	switch (queue->adapter->vdev.id.device) {
	case VIRTIO_ID_BLOCK:
		return end_with(&reply, VIRTIO_BLK_S_IOERR);
	case VIRTIO_ID_9P:
		return answer_p9(&request, &reply);
	case VIRTIO_ID_FS:
		return answer_fuse(&request, &reply);
	case VIRTIO_ID_SCSI:
		return answer_scsi(&reply);
	default:
		return 0;
	}
}

/**
 * vvio_queue_needs_answer - whether a chain that was used with length 0 is one that was not served
 * @queue: the queue
 */
bool vvio_queue_needs_answer(const struct vvio_queue *queue)
{
	u32 id = queue->adapter->vdev.id.device;

	return id == VIRTIO_ID_9P || id == VIRTIO_ID_FS;
}
