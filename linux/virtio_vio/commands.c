// SPDX-License-Identifier: GPL-2.0
/*
 * What a network driver has said on its control queue, for a server that has not heard it.
 *
 * A driver says such things once: which tags pass, how many pairs of queues there are. So commands that
 * succeeded are kept, of each kind the last one, of tags that were added each, and repeated in their order.
 */
#include <linux/list.h>
#include <linux/slab.h>
#include <linux/virtio_config.h>
#include <uapi/linux/virtio_ids.h>
#include <uapi/linux/virtio_net.h>

#include "adapter.h"

struct command {
	struct list_head node;
	u16 length;		/* of the bytes */
	u8 bytes[];		/* class, command, what belongs to it */
};

#define STATUS_AT	(TCE_PAGE - 1)	/* of the block that commands are repeated in; they are in front of it */
#define LONGEST		STATUS_AT

/**
 * vvio_queue_has_commands - whether it is the control queue of a network device
 * @queue: the queue
 */
bool vvio_queue_has_commands(const struct vvio_queue *queue)
{
	struct virtio_device *vdev = &queue->adapter->vdev;

	return vdev->id.device == VIRTIO_ID_NET && virtio_has_feature(vdev, VIRTIO_NET_F_CTRL_VQ) &&
	       queue->index == queue->adapter->queues_found - 1;
}

/* Whether nobody has to know the one if he knows the other, which came later. */
static bool replaces(const struct command *later, const struct command *earlier)
{
	if (later->bytes[0] != earlier->bytes[0])
		return false;
	if (later->bytes[0] == VIRTIO_NET_CTRL_VLAN)	/* added or taken away: it is about the same tag */
		return later->length == earlier->length && !memcmp(later->bytes + 2, earlier->bytes + 2, later->length - 2);
	return later->bytes[1] == earlier->bytes[1];
}

static bool is_of_no_use(const struct command *command)
{
	return command->bytes[0] == VIRTIO_NET_CTRL_ANNOUNCE ||
	       (command->bytes[0] == VIRTIO_NET_CTRL_VLAN && command->bytes[1] == VIRTIO_NET_CTRL_VLAN_DEL);
}

/**
 * vvio_command_served - keep a command that the server has given back, if it succeeded
 * @queue: the control queue, with its lock
 * @head: the chain's first descriptor
 */
void vvio_command_served(struct vvio_queue *queue, u16 head)
{
	struct vvio_part request = { queue, head, 0 }, reply = { queue, head, VRING_DESC_F_WRITE };
	u64 length = vvio_part_length(&request), answered = vvio_part_length(&reply);
	struct command *command, *other, *next;
	u8 status = VIRTIO_NET_ERR;

	if (answered)
		vvio_part_read(&reply, answered - 1, &status, 1);
	if (status != VIRTIO_NET_OK || length < 2)
		return;
	command = length <= LONGEST ? kmalloc(sizeof(*command) + length, GFP_ATOMIC) : NULL;
	if (!command) {
		dev_warn(queue->adapter->dev, "a command of %llu bytes will not be repeated to another server\n", length);
		return;
	}
	command->length = length;
	vvio_part_read(&request, 0, command->bytes, length);
	list_for_each_entry_safe(other, next, &queue->commands, node)
		if (replaces(command, other)) {
			list_del(&other->node);
			kfree(other);
		}
	if (is_of_no_use(command))
		kfree(command);
	else
		list_add_tail(&command->node, &queue->commands);
}

/**
 * vvio_commands_repeat - tell a new server what the one before was told
 * @queue: the control queue, with the session's mutex, before vvio_queue_live()
 *
 * Return: 0, also when it is refused, or -ENOTCONN or -ETIMEDOUT.
 */
int vvio_commands_repeat(struct vvio_queue *queue)
{
	struct vvio_memory *block = &queue->adapter->block;
	struct command *command;
	u8 *bytes = block->cpu;
	int err;

	list_for_each_entry(command, &queue->commands, node) {
		struct vvio_piece pieces[2] = {
			{ block->ioba, command->length, VRING_DESC_F_NEXT, 1 },
			{ block->ioba + STATUS_AT, 1, VRING_DESC_F_WRITE, 0 },
		};

		memcpy(bytes, command->bytes, command->length);
		bytes[STATUS_AT] = VIRTIO_NET_ERR;
		err = vvio_queue_serve(queue, pieces);
		if (err)
			return err;
		if (READ_ONCE(bytes[STATUS_AT]) != VIRTIO_NET_OK)
			dev_warn(queue->adapter->dev, "the new server refuses command %u of class %u\n",
				 command->bytes[1], command->bytes[0]);
	}
	return 0;
}

/**
 * vvio_commands_forget - nothing of it is to be repeated
 * @queue: a queue that is not live
 */
void vvio_commands_forget(struct vvio_queue *queue)
{
	struct command *command, *next;

	list_for_each_entry_safe(command, next, &queue->commands, node) {
		list_del(&command->node);
		kfree(command);
	}
}
