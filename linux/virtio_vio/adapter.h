/* SPDX-License-Identifier: GPL-2.0 */
/* One client adapter: its connection, its session with the server, its virtio device. */
#ifndef VIRTIO_VIO_ADAPTER_H
#define VIRTIO_VIO_ADAPTER_H

#include <linux/completion.h>
#include <linux/mutex.h>
#include <linux/timer.h>
#include <linux/virtio.h>
#include <linux/virtio_ring.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "bus.h"
#include "dma.h"
#include "protocol.h"
#include "wire.h"

#define VVIO_CONFIG_ROOM	4096
#define VVIO_EVENTS		16

/* Where a connection stands (docs/protocol.md, P1). */
enum vvio_state {
	VVIO_CLOSED,		/* no queue is registered */
	VVIO_WAITING,		/* for the server */
	VVIO_INITIALIZING,	/* INITIALIZE was delivered and not answered */
	VVIO_OPEN,
};

/* How far a session has come, and how far the driver wants it to be (P5). */
enum vvio_stage {
	VVIO_NOTHING,
	VVIO_PROBED,
	VVIO_ACKNOWLEDGED,
	VVIO_DRIVER_FOUND,
	VVIO_FEATURES_DONE,
	VVIO_QUEUES_FOUND,
	VVIO_LIVE,
};

/* What came in by the CRQ and changes the connection. */
struct vvio_event {
	u8 header;
	u8 format;
	u64 number;
};

struct vvio_reply {
	u8 status;
	u8 device_status;
	u16 value;
	u64 data;
};

/* A chain that the driver made available and did not get back, in the list of all of them. */
struct vvio_chain {
	u16 before, after;
	bool is_pending, is_mapped;
};

#define NO_CHAIN	0xffff

/**
 * struct vvio_queue - one virtqueue
 * @again: looks once more, when the hypervisor or the server's CRQ had no room
 * @chains: by head; what the server has not given back is a list, oldest first
 * @pieces: of these
 * @has_hidden: something is in the wire ring that the server was not shown yet
 * @has_unserved: something was given back that the driver was not told of yet
 * @waits: something found no room
 * @pause: jiffies until it is looked for again
 * @is_live: whether the server looks at the wire ring
 */
struct vvio_queue {
	struct vvio_adapter *adapter;
	struct virtqueue *vq;
	u16 index;
	bool is_reset;

	spinlock_t lock;	/* protects what follows */
	const struct vring *vring;
	struct wire_ring wire;
	u16 seen;
	u16 used;
	struct vvio_chain *chains;
	struct vvio_piece *pieces;
	u16 oldest, newest;
	bool is_live;
	bool has_hidden, has_unserved;
	bool kick_again;
	bool waits;
	unsigned long pause;
	struct dma_received received;
	struct timer_list again;
	struct list_head commands;	/* of a network's control queue (commands.c) */

	/* the Sub-CRQ that carries its notifications, if one does */
	struct vvio_channel *channel;
	u16 generation;
	u64 partner;
};

/**
 * struct vvio_channel - a Sub-CRQ of this end (P5.13)
 * @cookie: what the server sends to
 */
struct vvio_channel {
	struct vvio_queue *queue;
	struct vvio_memory memory;
	struct vvio_source source;
	u64 cookie;
	unsigned int position;
	bool is_registered;
};

struct vvio_adapter {
	struct virtio_device vdev;
	struct vvio_device *device;
	struct vvio_hv *hv;
	struct device *dev;
	u32 unit_address;
	struct vvio_dma dma;

	/* the connection */
	struct workqueue_struct *wq;
	struct work_struct work;
	struct delayed_work retry;
	struct vvio_memory crq;
	struct vvio_source source;
	enum vvio_state state;
	u64 number, partner_number;
	bool is_suspended;
	unsigned long enable_until;
	unsigned int failures;
	unsigned long last_failure;

	spinlock_t crq_lock;	/* protects what follows: what interrupts change */
	unsigned int position;
	bool is_open;
	struct vvio_event events[VVIO_EVENTS];
	unsigned int first_event, event_count;
	bool events_lost;
	u8 awaited;		/* type of the reply that somebody waits for, 0 for none */
	struct vvio_reply reply;
	bool config_stale;
	u8 device_status;
	const char *broken;

	/* the session */
	struct mutex session;	/* one at a time talks to the server */
	struct completion answered;
	wait_queue_head_t changed;
	enum vvio_stage stage, goal;
	u16 session_number;
	unsigned int sessions;
	int revision;
	struct vvio_memory header, block;
	struct vvio_memory config;
	u32 device_id;
	unsigned int queue_count, queue_size, config_length;
	u64 offered;
	u64 driver_features;	/* as the server was told, or is to be */
	bool is_packed;
	bool config_is_new;	/* and the driver was not told */
	bool waits_for_room;	/* a message does, in front of kicks by Sub-CRQ (P5.16) */
	u16 channel_generation;

	spinlock_t config_lock;	/* protects the three below */
	u8 snapshot[VVIO_CONFIG_ROOM];
	DECLARE_BITMAP(written, VVIO_CONFIG_ROOM);	/* bytes that the driver wrote */
	u32 generation;

	/* the device */
	struct work_struct attach;
	struct delayed_work fail_work;
	bool is_attached, is_registered;
	bool is_leaving;
	bool is_lost;
	u8 status;
	struct vvio_queue **queues;
	unsigned int queues_found;
};

extern int vvio_revision;
extern bool vvio_packed;

#define vdev_to_adapter(vdev_) container_of(vdev_, struct vvio_adapter, vdev)

static inline struct vvio_adapter *to_adapter(struct device *dev)
{
	return dev_get_drvdata(dev);
}

/* connection.c: all but vvio_interrupt() and vvio_kick_work() with the session's mutex */
int vvio_connection_init(struct vvio_adapter *adapter);
void vvio_connection_exit(struct vvio_adapter *adapter);
void vvio_connection_start(struct vvio_adapter *adapter);
void vvio_connection_reset(struct vvio_adapter *adapter);
void vvio_connection_close(struct vvio_adapter *adapter);
void vvio_failed(struct vvio_adapter *adapter, const char *why);
void vvio_wake(struct vvio_adapter *adapter);

/* session.c: with the session's mutex */
int vvio_request(struct vvio_adapter *adapter, u8 type, u32 rest, u64 low, struct vvio_reply *reply);
int vvio_walk(struct vvio_adapter *adapter);
int vvio_read_config(struct vvio_adapter *adapter);
int vvio_write_config(struct vvio_adapter *adapter, unsigned int offset, unsigned int length);
int vvio_find_queues(struct vvio_adapter *adapter, struct vvio_queue **queues, unsigned int count);
/* without it */
int vvio_advance(struct vvio_adapter *adapter, enum vvio_stage goal);

/* config.c */
extern const struct virtio_config_ops vvio_config_ops;

/* queue.c */
struct vvio_queue *vvio_queue_make(struct vvio_adapter *adapter, unsigned int index,
				   void (*callback)(struct virtqueue *vq), const char *name, bool context);
void vvio_queue_free(struct vvio_queue *queue);
void vvio_queue_begin(struct vvio_queue *queue);
void vvio_queue_live(struct vvio_queue *queue);
void vvio_queue_quiet(struct vvio_queue *queue);
void vvio_queue_forget(struct vvio_queue *queue);
void vvio_queue_complete(struct vvio_queue *queue);
void vvio_queue_fail(struct vvio_queue *queue);
int vvio_queue_remake(struct vvio_queue *queue);
int vvio_queue_serve(struct vvio_queue *queue, const struct vvio_piece *pieces);

/**
 * struct vvio_part - either what the device may read of a driver's chain or what it may write, as bytes from 0 on
 * @head: the chain's first descriptor
 * @flag: VRING_DESC_F_WRITE or 0
 */
struct vvio_part {
	const struct vvio_queue *queue;
	u16 head;
	u16 flag;
};

/* unserved.c */
u64 vvio_part_length(const struct vvio_part *part);
void vvio_part_read(const struct vvio_part *part, u64 offset, void *bytes, size_t length);
void vvio_part_write(const struct vvio_part *part, u64 offset, const void *bytes, size_t length);
u32 vvio_queue_excuse(const struct vvio_queue *queue, u16 head);
bool vvio_queue_needs_answer(const struct vvio_queue *queue);

/* commands.c */
bool vvio_queue_has_commands(const struct vvio_queue *queue);
void vvio_command_served(struct vvio_queue *queue, u16 head);
int vvio_commands_repeat(struct vvio_queue *queue);
void vvio_commands_forget(struct vvio_queue *queue);

/* channels.c */
int vvio_channels_open(struct vvio_adapter *adapter);
void vvio_channels_close(struct vvio_adapter *adapter);
void vvio_channels_release(struct vvio_adapter *adapter);

#endif
