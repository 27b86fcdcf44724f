/*
 * One adapter of linux/virtio_vio's with its queues, and around it a driver, a server and a hypervisor that do what a
 * test says, one after the other. The hypervisor carries out an hcall that was posted when somebody waits for it.
 */
#include <stdarg.h>
#include <stdio.h>

#include "adapter.h"

#define HCALLS	64
#define PAGES	65536
#define QUEUES	64

struct made_queue {
	struct virtqueue vq;
	struct vring vring;
	bool (*notify)(struct virtqueue *vq);
	u16 at, available;	/* next descriptor and ring index of the driver */
	u16 shown, used;	/* ring indexes of the server */
	unsigned int told;
};

struct hcall {
	u64 token, arguments[VVIO_REGISTERS];
	vvio_done_t *done;
	void *context;
};

unsigned long jiffies;
u64 relaxed;
extern unsigned int *parameter_pool_kib, *parameter_copy_kib;

static struct timer_list *timers;
static char messages[4096];
__le64 rig_use_word;	/* not 0: somebody is at a page of the table */
static struct vvio_adapter *adapter;
static struct {
	u64 after;		/* so many looks; 0: not at all */
	unsigned int queue, head;
	u32 length;
} answer;
static struct made_queue *made[QUEUES];
static struct {
	struct vvio_hv hv;
	struct device dev;
	struct hcall ring[HCALLS];
	u64 posted, done;
	bool is_stalled, is_shared;
	bool is_told;			/* the server, by a KICK */
	__le64 table[PAGES];
	unsigned int refused;		/* H_STUFF_TCEs that are still to be refused */
	unsigned int dropped;		/* messages for which there is still no room */
	unsigned int stuffed, put, kicked;
	unsigned int reused;		/* entries that were made while there was one */
} phyp;

void said(const char *format, ...)
{
	size_t length = strlen(messages);
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(messages + length, sizeof(messages) - length, format, arguments);
	va_end(arguments);
}

const char *rig_messages(void)
{
	return messages;
}

/* -- time */

void timer_setup(struct timer_list *timer, void (*function)(struct timer_list *), unsigned int flags)
{
	*timer = (struct timer_list){ .function = function, .next = timers };
	timers = timer;
}

void mod_timer(struct timer_list *timer, unsigned long expires)
{
	timer->expires = expires;
	timer->pending = true;
}

void timer_reduce(struct timer_list *timer, unsigned long expires)
{
	if (!timer->pending || time_after(timer->expires, expires))
		mod_timer(timer, expires);
}

void del_timer_sync(struct timer_list *timer)
{
	timer->pending = false;
}

static int wait_posted(struct vvio_hv *hv, u64 number);

/* Let some jiffies pass, in each of which the hypervisor goes on; how many timers ran. */
unsigned int rig_pass(unsigned int count)
{
	struct timer_list *timer;
	unsigned int ran = 0;

	while (count--) {
		jiffies++;
		wait_posted(&phyp.hv, phyp.posted);
		for (timer = timers; timer; timer = timer->next) {
			if (!timer->pending || time_after(timer->expires, jiffies))
				continue;
			timer->pending = false;
			timer->function(timer);
			ran++;
		}
	}
	return ran;
}

static void serve_between(void);

void usleep_range(unsigned long least, unsigned long most)
{
	serve_between();
	rig_pass(1);
}

void msleep(unsigned int ms)
{
	rig_pass(msecs_to_jiffies(ms));
}

/* -- the hypervisor */

static void put_entry(u64 page, u64 tce)
{
	assert(page < PAGES);
	phyp.reused += phyp.table[page] && tce;
	phyp.table[page] = cpu_to_le64(tce);
}

static s64 carry_out(const struct hcall *hcall)
{
	u64 page = hcall->arguments[1] >> TCE_SHIFT, i;

	switch (hcall->token) {
	case PAPR_PUT_TCE:
		phyp.put++;
		put_entry(page, hcall->arguments[2]);
		return PAPR_SUCCESS;
	case PAPR_PUT_TCE_INDIRECT:
		phyp.put++;
		for (i = 0; i < hcall->arguments[3]; i++)
			put_entry(page + i, be64_to_cpu(((const __be64 *)phys_to_virt(hcall->arguments[2]))[i]));
		return PAPR_SUCCESS;
	case PAPR_STUFF_TCE:
		phyp.stuffed++;
		if (phyp.refused) {
			phyp.refused--;
			return PAPR_RESOURCE;
		}
		for (i = 0; i < hcall->arguments[3]; i++)
			put_entry(page + i, 0);
		return PAPR_SUCCESS;
	case PAPR_SEND_CRQ:
		phyp.kicked++;
		phyp.is_told = !phyp.dropped;
		if (phyp.is_told)
			return PAPR_SUCCESS;
		phyp.dropped--;
		return PAPR_DROPPED;
	default:
		return PAPR_FUNCTION;
	}
}

static int wait_posted(struct vvio_hv *hv, u64 number)
{
	if (phyp.is_stalled && phyp.done < number)
		return -EBUSY;
	while (phyp.done < number) {
		struct hcall *hcall = &phyp.ring[phyp.done++ % HCALLS];
		s64 code = carry_out(hcall);

		if (hcall->done)
			hcall->done(hcall->context, code);
	}
	return 0;
}

static u64 post(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count, vvio_done_t *done, void *context)
{
	struct hcall *hcall;

	if (phyp.posted - phyp.done == HCALLS && wait_posted(hv, phyp.done + 1))
		return 0;
	hcall = &phyp.ring[phyp.posted++ % HCALLS];
	*hcall = (struct hcall){ .token = token, .done = done, .context = context };
	memcpy(hcall->arguments, arguments, count * sizeof(*arguments));
	return phyp.posted;
}

static s64 call(struct vvio_hv *hv, bool may_sleep, u64 token, const u64 *arguments, unsigned int count, u64 *results)
{
	struct hcall hcall = { .token = token };

	memcpy(hcall.arguments, arguments, count * sizeof(*arguments));
	wait_posted(hv, phyp.posted);
	return carry_out(&hcall);
}

static u64 logical(struct vvio_hv *hv, phys_addr_t address, size_t length)
{
	return address;
}

static __le64 *table(struct vvio_hv *hv, u32 liobn, u64 pages, const __le64 **use)
{
	*use = &rig_use_word;
	return phyp.is_shared ? phyp.table : NULL;
}

static const struct vvio_hv_ops operations = {
	.call = call, .post = post, .wait = wait_posted, .logical = logical, .table = table,
};

s64 vvio_repeat(struct vvio_hv *hv, u64 token, const u64 *arguments, unsigned int count)
{
	return call(hv, true, token, arguments, count, NULL);
}

void vvio_wake(struct vvio_adapter *adapter)
{
}

void rig_refuse(unsigned int count)
{
	phyp.refused = count;
}

void rig_drop(unsigned int count)
{
	phyp.dropped = count;
}

void rig_stall(bool is_stalled)
{
	phyp.is_stalled = is_stalled;
}

void rig_carry_out(void)
{
	wait_posted(&phyp.hv, phyp.posted);
}

unsigned int rig_count(unsigned int what)
{
	unsigned int mapped = 0, page;

	for (page = 0; page < PAGES; page++)
		mapped += !!phyp.table[page];
	return (unsigned int[]){ phyp.stuffed, phyp.put, phyp.kicked, phyp.reused, mapped }[what];
}

/* -- the driver */

struct virtqueue *vring_create_virtqueue(unsigned int index, unsigned int size, unsigned int align,
					 struct virtio_device *vdev, bool weak, bool may_reduce, bool context,
					 bool (*notify)(struct virtqueue *vq), void (*callback)(struct virtqueue *vq),
					 const char *name)
{
	struct made_queue *queue = get_zeroed(sizeof(*queue));

	queue->vq = (struct virtqueue){ .vdev = vdev, .index = index };
	vring_init(&queue->vring, size, get_zeroed(vring_size(size, PAGE_SIZE)), PAGE_SIZE);
	queue->notify = notify;
	made[index] = queue;
	return &queue->vq;
}

const struct vring *virtqueue_get_vring(const struct virtqueue *vq)
{
	return &container_of(vq, struct made_queue, vq)->vring;
}

void vring_del_virtqueue(struct virtqueue *vq)
{
	struct made_queue *queue = container_of(vq, struct made_queue, vq);

	made[vq->index] = NULL;
	free(queue->vring.desc);
	free(queue);
}

int vring_interrupt(int irq, void *vq)
{
	container_of((struct virtqueue *)vq, struct made_queue, vq)->told++;
	return 0;
}

/* Make a chain available; its head. */
unsigned int rig_add(unsigned int index, unsigned int count, const u64 *addresses, const u32 *lengths,
		     const bool *written)
{
	struct made_queue *queue = made[index];
	unsigned int i, head = queue->at, size = queue->vring.num;

	for (i = 0; i < count; i++) {
		struct vring_desc *desc = &queue->vring.desc[queue->at];

		queue->at = (queue->at + 1) % size;
		desc->addr = htole64(addresses[i]);
		desc->len = htole32(lengths[i]);
		desc->flags = htole16((written[i] ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0));
		desc->next = htole16(queue->at);
	}
	queue->vring.avail->ring[queue->available % size] = htole16(head);
	queue->vring.avail->idx = htole16(++queue->available);
	return head;
}

void rig_notify(unsigned int index)
{
	made[index]->notify(&made[index]->vq);
}

/* How many chains have been given back to the driver; the length of the last one. */
unsigned int rig_used(unsigned int index, u32 *length)
{
	const struct vring *vring = &made[index]->vring;
	u16 used = le16toh(vring->used->idx);

	if (used)
		*length = le32toh(vring->used->ring[(used - 1) % vring->num].len);
	return used;
}

unsigned int rig_told(unsigned int index)
{
	return made[index]->told;
}

/* -- the server */

/* How many chains it was shown. */
unsigned int rig_shown(unsigned int index)
{
	return le16toh(adapter->queues[index]->wire.split.ring.avail->idx);
}

/* A descriptor as the server sees it: address and length; the number of the one behind it, or -1. */
int rig_descriptor(unsigned int index, unsigned int at, u64 *address, u32 *length)
{
	const struct vring_desc *desc = &adapter->queues[index]->wire.split.ring.desc[at];

	*address = le64toh(desc->addr);
	*length = le32toh(desc->len);
	return le16toh(desc->flags) & VRING_DESC_F_NEXT ? le16toh(desc->next) : -1;
}

void rig_use(unsigned int index, unsigned int id, u32 length)
{
	struct vring *ring = &adapter->queues[index]->wire.split.ring;
	struct vring_used_elem *used = &ring->used->ring[made[index]->used++ % ring->num];

	used->id = htole32(id);
	used->len = htole32(length);
	ring->used->idx = htole16(made[index]->used);
}

/* A driver looks at its ring: the server uses a chain when it has done so often enough. */
void rig_answer(u64 after, unsigned int queue, unsigned int head, u32 length)
{
	answer.after = relaxed + after;
	answer.queue = queue;
	answer.head = head;
	answer.length = length;
}

void cpu_relax(void)
{
	if (++relaxed == answer.after)
		rig_use(answer.queue, answer.head, answer.length);
}

/* A server that comes: what it is asked before it has the ring, and how it answers. */
static struct {
	unsigned int queue, count, served, seen;
	const u8 *statuses;
	char (*asked)[64];
	u32 *lengths;
} coming;

static void *at_ioba(u64 ioba)
{
	u64 tce = le64toh(phyp.table[ioba >> TCE_SHIFT]);

	assert(tce & TCE_READ);
	return phys_to_virt((tce & ~(u64)(TCE_PAGE - 1)) + (ioba & (TCE_PAGE - 1)));
}

static void serve_between(void)
{
	struct vring *ring = &adapter->queues[coming.queue]->wire.split.ring;
	struct vring_desc *request, *reply;
	unsigned int head;

	wait_posted(&phyp.hv, phyp.posted);
	if (!phyp.is_told || coming.served == coming.count || le16toh(ring->avail->idx) == coming.seen)
		return;
	phyp.is_told = false;
	head = le16toh(ring->avail->ring[coming.seen++ % ring->num]);
	request = &ring->desc[head];
	reply = &ring->desc[le16toh(request->next)];
	coming.lengths[coming.served] = le32toh(request->len);
	memcpy(coming.asked[coming.served], at_ioba(le64toh(request->addr)), le32toh(request->len));
	*(u8 *)at_ioba(le64toh(reply->addr)) = coming.statuses[coming.served++];
	rig_use(coming.queue, head, 1);
}

int rig_restart(unsigned int queue, unsigned int count, const u8 *statuses, char (*asked)[64], u32 *lengths)
{
	int err;

	phyp.is_told = false;
	vvio_queue_quiet(adapter->queues[queue]);
	vvio_queue_begin(adapter->queues[queue]);
	made[queue]->used = 0;
	coming.queue = queue;
	coming.count = count;
	coming.served = coming.seen = 0;
	coming.statuses = statuses;
	coming.asked = asked;
	coming.lengths = lengths;
	err = vvio_commands_repeat(adapter->queues[queue]);
	if (!err)
		vvio_queue_live(adapter->queues[queue]);
	return err;
}

void rig_reset(unsigned int queue)
{
	vvio_queue_quiet(adapter->queues[queue]);
	vvio_queue_forget(adapter->queues[queue]);
	vvio_commands_forget(adapter->queues[queue]);
}

u64 rig_relaxed(void)
{
	return relaxed;
}

const char *rig_broken(void)
{
	return adapter->broken ? adapter->broken : "";
}

/* As interrupts do. */
void rig_complete(unsigned int index)
{
	vvio_queue_complete(adapter->queues[index]);
	tce_flush(&adapter->dma.window);
}

/* -- the adapter */

void rig_quiet(unsigned int index)
{
	vvio_queue_quiet(adapter->queues[index]);
}

void rig_forget(unsigned int index)
{
	vvio_queue_forget(adapter->queues[index]);
}

void rig_fail(unsigned int index)
{
	vvio_queue_fail(adapter->queues[index]);
}

void rig_longest(u32 length)
{
	adapter->dma.longest = length;
}

void rig_lose(void)
{
	adapter->is_open = false;
	adapter->dma.open = false;
}

int rig_begin(u32 device, u64 features, unsigned int queues, unsigned int size, u64 window, bool is_shared, unsigned int pool_kib)
{
	unsigned int i;
	int err;

	memset(&phyp, 0, sizeof(phyp));
	memset(messages, 0, sizeof(messages));
	timers = NULL;
	rig_use_word = 0;
	phyp.hv.ops = &operations;
	phyp.is_shared = is_shared;
	*parameter_pool_kib = pool_kib;
	adapter = get_zeroed(sizeof(*adapter));
	adapter->hv = &phyp.hv;
	adapter->dev = &phyp.dev;
	adapter->queue_size = size;
	adapter->revision = 1;
	adapter->vdev.id.device = device;
	adapter->vdev.features = features;
	answer.after = 0;
	err = vvio_dma_init(&adapter->dma, &phyp.dev, &phyp.hv, 1, window);
	if (err)
		return err;
	if (vvio_memory_get(&adapter->dma, &adapter->block, TCE_PAGE))
		return -ENOMEM;
	adapter->is_open = true;
	adapter->queues = get_zeroed(queues * sizeof(*adapter->queues));
	for (i = 0; i < queues; i++)
		adapter->queues[i] = vvio_queue_make(adapter, i, NULL, "queue", false);
	adapter->queues_found = queues;
	vvio_dma_share(&adapter->dma, queues);
	adapter->dma.open = true;
	for (i = 0; i < queues; i++) {
		vvio_queue_begin(adapter->queues[i]);
		vvio_queue_live(adapter->queues[i]);
	}
	return 0;
}

/* Ends it; how many pages the server could still reach. */
unsigned int rig_end(void)
{
	unsigned int i, count = adapter->queues_found;

	for (i = 0; i < count; i++)
		vvio_queue_quiet(adapter->queues[i]);
	adapter->queues_found = 0;
	for (i = 0; i < count; i++)
		vvio_queue_free(adapter->queues[i]);
	free(adapter->queues);
	vvio_memory_put(&adapter->dma, &adapter->block);
	vvio_dma_exit(&adapter->dma);
	free(adapter);
	return rig_count(4);
}
