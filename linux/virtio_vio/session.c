// SPDX-License-Identifier: GPL-2.0
/*
 * The session with the server: requests and their replies, and the steps of the configuration
 * handshake (docs/protocol.md, P5).
 *
 * The driver says how far it wants the device to be, and vvio_walk() takes the steps to there.
 * When the server is lost the session is at its beginning again, and a new one is walked to where
 * the old one was; the driver only sees that some requests take longer.
 */
#include <linux/delay.h>
#include <linux/virtio_config.h>

#include "adapter.h"

#define REPLY_LIMIT	(5 * HZ)
#define ROOM_LIMIT	(5 * HZ)	/* for a place in the server's CRQ */
#define REACH_LIMIT	(60 * HZ)	/* for a server that went away to come back */
#define LARGEST_SIZE	32768

static int send(struct vvio_adapter *adapter, u64 high, u64 low)
{
	unsigned long until = jiffies + ROOM_LIMIT;
	s64 code;

	for (;;) {
		code = vvio_call(adapter->hv, PAPR_SEND_CRQ, adapter->unit_address, high, low);
		if (code != PAPR_DROPPED && !papr_is_busy(code))
			break;
		WRITE_ONCE(adapter->waits_for_room, true);
		if (time_after(jiffies, until)) {
			code = PAPR_BUSY;
			break;
		}
		usleep_range(500, 2000);
	}
	WRITE_ONCE(adapter->waits_for_room, false);
	if (code == PAPR_SUCCESS)
		return 0;
	if (code == PAPR_CLOSED)
		return -ENOTCONN;	/* an event says so */
	return code == PAPR_BUSY ? -ETIMEDOUT : -EIO;
}

/**
 * vvio_request - send a message and wait for its reply
 * @adapter: the adapter, with the session's mutex
 * @type: of the message
 * @rest: its bytes 4-7
 * @low: its bytes 8-15
 * @reply: is filled in; may be NULL
 *
 * Return: 0, or -ENOTCONN when the connection is or gets lost, -ETIMEDOUT, -EIO, or -EPROTO when
 * the status of the reply is not OK; then @reply is filled in.
 */
int vvio_request(struct vvio_adapter *adapter, u8 type, u32 rest, u64 low, struct vvio_reply *reply)
{
	struct vvio_reply answer = { };
	bool was_open, has_answer;
	int err;

	spin_lock_irq(&adapter->crq_lock);
	was_open = adapter->is_open;
	reinit_completion(&adapter->answered);
	adapter->awaited = was_open ? type | VVIO_REPLY : 0;
	spin_unlock_irq(&adapter->crq_lock);
	if (!was_open)
		return -ENOTCONN;
	err = send(adapter, vvio_high(type, adapter->session_number, rest), low);
	if (!err && !wait_for_completion_timeout(&adapter->answered, REPLY_LIMIT))
		err = -ETIMEDOUT;
	spin_lock_irq(&adapter->crq_lock);
	was_open = adapter->is_open;
	has_answer = !err && was_open && !adapter->awaited;
	adapter->awaited = 0;
	if (has_answer)
		answer = adapter->reply;
	spin_unlock_irq(&adapter->crq_lock);
	if (reply)
		*reply = answer;
	if (!was_open)
		return -ENOTCONN;
	if (err == -ENOTCONN)
		return err;
	if (err) {
		/* a reply that comes late must not be taken for another (P2.4) */
		dev_err(adapter->dev, "no reply to message %#x\n", type);
		WRITE_ONCE(adapter->broken, "no reply");
		vvio_wake(adapter);
		return err;
	}
	if (answer.status == VVIO_STATUS_OK)
		return 0;
	dev_err(adapter->dev, "the server answered message %#x with status %u\n", type, answer.status);
	return -EPROTO;
}

static u32 length_and(u16 upper, u16 length)
{
	return (u32)upper << 16 | length;
}

/* -- the steps */

static u64 features_of(const __be64 words[2])
{
	return be64_to_cpu(words[1]);	/* bits 63-0; nobody has more yet */
}

/* What a server says of its device, or says again after it came back. */
static int take_header(struct vvio_adapter *adapter, int revision)
{
	unsigned int id, queues, size, config;
	u64 offered;

	if (revision) {
		const struct vvio_header1 *header = adapter->header.cpu;

		id = be16_to_cpu(header->type);
		queues = be16_to_cpu(header->num_vqs);
		size = be16_to_cpu(header->vqs_size);
		config = be16_to_cpu(header->config_len);
		offered = features_of(header->device_features);
	} else {
		const struct vvio_header0 *header = adapter->header.cpu;

		id = header->type;
		queues = header->num_vqs;
		size = header->vqs_size;
		config = header->config_len;
		offered = be32_to_cpu(header->device_features);
	}
	if (!id || !queues || !size || size & (size - 1) || size > LARGEST_SIZE || config > VVIO_CONFIG_ROOM) {
		dev_err(adapter->dev, "the device makes no sense: type %u, %u queues of %u, config of %u bytes\n",
			id, queues, size, config);
		return -EINVAL;
	}
	if (adapter->device_id &&
	    (id != adapter->device_id || revision != adapter->revision || queues < adapter->queues_found ||
	     config != adapter->config_length || size < adapter->queue_size ||
	     adapter->driver_features & ~offered)) {
		dev_err(adapter->dev, "the server came back with another device\n");
		return -EINVAL;
	}
	if (!adapter->device_id) {
		adapter->device_id = id;
		adapter->revision = revision;
		adapter->queue_count = queues;
		adapter->queue_size = size;	/* a request of the device's may need all of it */
		adapter->config_length = config;
		adapter->is_packed = revision && vvio_packed && offered & BIT_ULL(VIRTIO_F_RING_PACKED);
	}
	adapter->offered = offered;
	return 0;
}

static int probe(struct vvio_adapter *adapter)
{
	int highest = min(vvio_revision, VVIO_HIGHEST_REVISION), err;
	u32 flags = IS_ENABLED(CONFIG_CPU_BIG_ENDIAN) && !highest ? VVIO_FLAG_BIG_ENDIAN : 0;
	struct vvio_reply reply;

	memset(adapter->header.cpu, 0, TCE_PAGE);
	spin_lock_irq(&adapter->crq_lock);
	adapter->session_number = highest ? adapter->session_number % 0xffff + 1 : 0;
	spin_unlock_irq(&adapter->crq_lock);
	err = vvio_request(adapter, VVIO_PROBE, (u32)highest << 24 | flags << 16 | TCE_PAGE,
			   adapter->header.ioba, &reply);
	if (err)
		return err;
	if (reply.value > highest) {
		dev_err(adapter->dev, "the server settled revision %u; %d is the highest here\n",
			reply.value, highest);
		return -EINVAL;
	}
	if (!reply.value) {
		spin_lock_irq(&adapter->crq_lock);
		adapter->session_number = 0;
		spin_unlock_irq(&adapter->crq_lock);
	}
	virt_rmb();
	return take_header(adapter, reply.value);
}

/* Whether it is another now than what the driver knows. */
static bool take_config(struct vvio_adapter *adapter)
{
	const u8 *config = adapter->config.cpu;
	unsigned long flags;
	bool is_new = false;
	unsigned int i;

	spin_lock_irqsave(&adapter->config_lock, flags);
	for (i = 0; i < adapter->config_length; i++) {
		u8 now = READ_ONCE(config[i]);

		/* what the driver wrote a new server is still to be told */
		if ((adapter->stage < VVIO_LIVE && test_bit(i, adapter->written)) || adapter->snapshot[i] == now)
			continue;
		adapter->snapshot[i] = now;
		is_new = true;
	}
	adapter->generation += is_new;
	spin_unlock_irqrestore(&adapter->config_lock, flags);
	return is_new;
}

static int acknowledge(struct vvio_adapter *adapter)
{
	int err;

	err = vvio_request(adapter, VVIO_ACKNOWLEDGE, length_and(0, adapter->config_length),
			   adapter->config.ioba, NULL);
	if (err)
		return err;
	if (take_config(adapter))
		adapter->config_is_new = adapter->sessions;	/* the driver of an earlier one is to hear of it */
	return 0;
}

static int driver_found(struct vvio_adapter *adapter)
{
	return vvio_request(adapter, VVIO_DRIVER, 0, 0, NULL);
}

static int settle_features(struct vvio_adapter *adapter)
{
	struct vvio_reply reply;
	int err;

	if (!adapter->revision) {
		struct vvio_header0 *header = adapter->header.cpu;

		header->guest_features = cpu_to_be32(adapter->driver_features);
		return 0;	/* the server looks at DRIVER_OK */
	} else {
		struct vvio_header1 *header = adapter->header.cpu;

		header->driver_features[0] = 0;
		header->driver_features[1] = cpu_to_be64(adapter->driver_features);
	}
	virt_wmb();
	err = vvio_request(adapter, VVIO_FEATURES_OK, 0, 0, &reply);
	return err == -EPROTO && reply.status == VVIO_STATUS_BAD_FEATURES ? -ENODEV : err;
}

/**
 * vvio_find_queues - tell the server where the rings of some queues are
 * @adapter: the adapter, with the session's mutex
 * @queues: the queues, which are quiet
 * @count: how many
 *
 * Return: 0 or as vvio_request().
 */
int vvio_find_queues(struct vvio_adapter *adapter, struct vvio_queue **queues, unsigned int count)
{
	struct vvio_queue_entry *entry = adapter->block.cpu;
	struct wire_addresses where;
	unsigned int i;

	if (!count)
		return 0;	/* a device without queues (P5.5) */
	for (i = 0; i < count; i++, entry++) {
		vvio_queue_begin(queues[i]);
		wire_addresses(&queues[i]->wire, &where);
		*entry = (struct vvio_queue_entry){
			.index = cpu_to_be16(queues[i]->index),
			.size = cpu_to_be16(queues[i]->wire.size),
			.descriptors = cpu_to_be64(where.descriptors),
			.available = cpu_to_be64(where.available),
			.used = cpu_to_be64(where.used),
		};
	}
	virt_wmb();
	return vvio_request(adapter, VVIO_FIND_VQS, length_and(count, count * sizeof(*entry)),
			    adapter->block.ioba, NULL);
}

static int find_queues(struct vvio_adapter *adapter)
{
	int err = vvio_find_queues(adapter, adapter->queues, adapter->queues_found);

	if (!err && adapter->revision && adapter->queues_found > 1)
		err = vvio_channels_open(adapter);
	return err;
}

static bool are_written(struct vvio_adapter *adapter, unsigned int first, unsigned int count)
{
	return first + count <= adapter->config_length &&
	       find_next_zero_bit(adapter->written, first + count, first) == first + count;
}

/* What the driver wrote into the config space is what it expects there, also of a new server. */
static int write_config_again(struct vvio_adapter *adapter)
{
	unsigned int first, length;
	int err;

	for (first = 0; first < adapter->config_length; first += length) {
		length = 1;
		if (!test_bit(first, adapter->written))
			continue;
		if (!(first & 3) && are_written(adapter, first, 4))
			length = 4;
		else if (!(first & 1) && are_written(adapter, first, 2))
			length = 2;
		err = vvio_write_config(adapter, first, length);
		if (err && err != -EPROTO)
			return err;
	}
	return 0;
}

static int driver_ok(struct vvio_adapter *adapter)
{
	unsigned int i;
	int err;

	err = vvio_request(adapter, VVIO_DRIVER_OK, 0, 0, NULL);
	if (err)
		return err;
	adapter->sessions++;
	err = write_config_again(adapter);
	if (err)
		return err;
	for (i = 0; i < adapter->queues_found; i++) {
		struct vvio_queue *queue = adapter->queues[i];

		if (!queue->is_reset) {
			err = vvio_commands_repeat(queue);
			if (err)
				return err;
			vvio_queue_live(queue);
			continue;
		}
		/* FIND_VQS had to name it; its driver is to set it up again */
		err = vvio_request(adapter, VVIO_QUEUE_RESET, (u32)queue->index << 16, 0, NULL);
		if (err)
			return err;
		queue->generation++;
	}
	vvio_wake(adapter);	/* the config space may be another already */
	return 0;
}

static int (*const steps[])(struct vvio_adapter *adapter) = {
	[VVIO_PROBED] = probe,
	[VVIO_ACKNOWLEDGED] = acknowledge,
	[VVIO_DRIVER_FOUND] = driver_found,
	[VVIO_FEATURES_DONE] = settle_features,
	[VVIO_QUEUES_FOUND] = find_queues,
	[VVIO_LIVE] = driver_ok,
};

/**
 * vvio_walk - take the session to where the driver wants it
 * @adapter: the adapter, with the session's mutex and an open connection
 *
 * Return: 0, -ENOTCONN when the connection was lost on the way, -ENODEV when the server refused
 * the features, other values when it cannot be lived with.
 */
int vvio_walk(struct vvio_adapter *adapter)
{
	int err;

	while (adapter->stage < adapter->goal) {
		err = steps[adapter->stage + 1](adapter);
		if (err)
			return err;
		adapter->stage++;
	}
	return 0;
}

/**
 * vvio_advance - have the session go as far as the driver wants it
 * @adapter: the adapter
 * @goal: how far
 *
 * A server that goes away meanwhile is waited for.
 *
 * Return: 0, -ENODEV when the server refuses the features, -ENXIO when the adapter is lost,
 * -ETIMEDOUT when there is no server for long.
 */
int vvio_advance(struct vvio_adapter *adapter, enum vvio_stage goal)
{
	int err = -ENOTCONN;

	mutex_lock(&adapter->session);
	adapter->goal = goal;
	if (adapter->state == VVIO_OPEN && adapter->is_open)
		err = vvio_walk(adapter);
	if (err == -ENODEV)
		adapter->goal = adapter->stage;
	else if (err && err != -ENOTCONN)
		vvio_failed(adapter, "the server does not answer as it should");
	mutex_unlock(&adapter->session);
	if (!err || err == -ENODEV)
		return err;
	if (!wait_event_timeout(adapter->changed,
				READ_ONCE(adapter->stage) >= goal || READ_ONCE(adapter->is_lost), REACH_LIMIT))
		return -ETIMEDOUT;
	return READ_ONCE(adapter->is_lost) ? -ENXIO : 0;
}

/**
 * vvio_read_config - have the server write the config space again
 * @adapter: the adapter, with the session's mutex
 *
 * Return: as vvio_request().
 */
int vvio_read_config(struct vvio_adapter *adapter)
{
	int err = vvio_request(adapter, VVIO_CONFIG_READ, 0, 0, NULL);

	if (!err && take_config(adapter))
		adapter->config_is_new = true;
	return err;
}

/**
 * vvio_write_config - tell the server what the driver wrote into the config space
 * @adapter: the adapter, with the session's mutex
 * @offset: where
 * @length: 1, 2 or 4 bytes
 *
 * Return: as vvio_request().
 */
int vvio_write_config(struct vvio_adapter *adapter, unsigned int offset, unsigned int length)
{
	u8 bytes[8] = { };
	__be64 low;

	spin_lock_irq(&adapter->config_lock);
	memcpy(bytes, adapter->snapshot + offset, length);
	spin_unlock_irq(&adapter->config_lock);
	memcpy(&low, bytes, sizeof(low));
	return vvio_request(adapter, VVIO_CONFIG_WRITE, length_and(offset, length), be64_to_cpu(low), NULL);
}
