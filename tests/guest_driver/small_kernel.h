/*
 * As much of a kernel as the parts of linux/virtio_vio need that map memory and keep queues: one processor, a
 * clock that only moves when it is told to, and locks that notice when they are taken twice.
 */
#ifndef SMALL_KERNEL_H
#define SMALL_KERNEL_H

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <linux/types.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;
typedef long long s64;
typedef u64 dma_addr_t;
typedef u64 phys_addr_t;

#define U32_MAX		UINT32_MAX
#define U64_MAX		UINT64_MAX
#define HZ		250
#define PAGE_SIZE	4096UL
#define GFP_KERNEL	0
#define GFP_ATOMIC	0
#define __GFP_ZERO	0
#define NSEC_PER_MSEC	1000000ULL
#define NSEC_PER_SEC	1000000000ULL
#define SZ_1K		1024
#define BITS_PER_LONG	64
#define __packed	__attribute__((packed))

#define BIT(n)			(1UL << (n))
#define BIT_ULL(n)		(1ULL << (n))
#define ALIGN(x, a)		(((x) + (a) - 1) / (a) * (a))
#define PAGE_ALIGN(x)		ALIGN(x, PAGE_SIZE)
#define offset_in_page(p)	((uintptr_t)(p) & (PAGE_SIZE - 1))
#define ARRAY_SIZE(a)		(sizeof(a) / sizeof(*(a)))
#define container_of(p, type, member) ((type *)((char *)(p) - offsetof(type, member)))
#define min(a, b)		((a) < (b) ? (a) : (b))
#define max(a, b)		((a) > (b) ? (a) : (b))
#define min_t(type, a, b)	min((type)(a), (type)(b))
#define clamp(x, low, high)	min(max(x, low), high)
#define READ_ONCE(x)		(*(volatile __typeof__(x) *)&(x))
#define WRITE_ONCE(x, value)	(*(volatile __typeof__(x) *)&(x) = (value))
#define smp_load_acquire(p)	READ_ONCE(*(p))
#define smp_store_release(p, v)	WRITE_ONCE(*(p), v)
#define smp_wmb()		__sync_synchronize()
#define virt_wmb()		__sync_synchronize()
#define virt_rmb()		__sync_synchronize()
#define virt_mb()		__sync_synchronize()

#define cpu_to_be64(x)		htobe64(x)
#define be64_to_cpu(x)		((u64)be64toh(x))
#define cpu_to_le64(x)		htole64(x)
#define le64_to_cpu(x)		((u64)le64toh(x))
#define cpu_to_le32(x)		htole32(x)
#define le32_to_cpu(x)		le32toh(x)
#define cpu_to_le16(x)		htole16(x)
#define le16_to_cpu(x)		le16toh(x)
#define cpu_to_virtio64(d, x)	((void)(d), htole64(x))
#define virtio64_to_cpu(d, x)	((void)(d), le64toh(x))
#define cpu_to_virtio32(d, x)	((void)(d), htole32(x))
#define virtio32_to_cpu(d, x)	((void)(d), le32toh(x))
#define cpu_to_virtio16(d, x)	((void)(d), htole16(x))
#define virtio16_to_cpu(d, x)	((void)(d), le16toh(x))

/* parameters, which a test sets by way of a pointer */
#define module_param(name, type, perm)	__typeof__(name) *parameter_##name = &name
#define MODULE_PARM_DESC(name, text)

/* messages */
struct device {
	void *drvdata;
};
void said(const char *format, ...) __attribute__((format(printf, 1, 2)));
#define dev_err(dev, ...)		((void)(dev), said(__VA_ARGS__))
#define dev_warn(dev, ...)		dev_err(dev, __VA_ARGS__)
#define dev_err_ratelimited(dev, ...)	dev_err(dev, __VA_ARGS__)
static inline void *dev_get_drvdata(struct device *dev) { return dev->drvdata; }

/* memory: what is virtual here is physical there */
#define kzalloc(size, gfp)		get_zeroed(size)
#define kcalloc(n, size, gfp)		get_zeroed((n) * (size))
#define kvcalloc(n, size, gfp)		get_zeroed((n) * (size))
#define vzalloc(size)			get_zeroed(size)
#define alloc_pages_exact(size, gfp)	get_zeroed(size)
#define kmalloc(size, gfp)		malloc(size)
#define kfree(p)			free(p)
#define kvfree(p)			free(p)
#define vfree(p)			free(p)
#define free_pages_exact(p, size)	free(p)
#define is_vmalloc_addr(p)		false
#define vmalloc_to_page(p)		((void *)(p))
#define page_to_pfn(p)			((uintptr_t)(p) / PAGE_SIZE)
#define PFN_PHYS(n)			((phys_addr_t)(n) * PAGE_SIZE)
#define virt_to_phys(p)			((phys_addr_t)(uintptr_t)(p))
#define phys_to_virt(a)			((void *)(uintptr_t)(a))

static inline void *get_zeroed(size_t size)
{
	void *p = aligned_alloc(PAGE_SIZE, PAGE_ALIGN(size));

	memset(p, 0, PAGE_ALIGN(size));
	return p;
}

/* bit maps */
#define DECLARE_BITMAP(name, bits)	unsigned long name[((bits) + 63) / 64]
#define bitmap_zalloc(bits, gfp)	((unsigned long *)get_zeroed(((bits) + 63) / 64 * 8))
#define bitmap_free(map)		free(map)

static inline bool test_bit(unsigned long n, const unsigned long *map) { return map[n / 64] >> n % 64 & 1; }
static inline void __set_bit(unsigned long n, unsigned long *map) { map[n / 64] |= BIT(n % 64); }
static inline void __clear_bit(unsigned long n, unsigned long *map) { map[n / 64] &= ~BIT(n % 64); }

static inline void bitmap_set(unsigned long *map, unsigned long first, unsigned long count)
{
	while (count--)
		__set_bit(first++, map);
}

static inline void bitmap_clear(unsigned long *map, unsigned long first, unsigned long count)
{
	while (count--)
		__clear_bit(first++, map);
}

static inline unsigned long find_bit(const unsigned long *map, unsigned long size, unsigned long from, bool value)
{
	while (from < size && test_bit(from, map) != value)
		from++;
	return min(from, size);
}

#define find_next_bit(map, size, from)		find_bit(map, size, from, true)
#define find_next_zero_bit(map, size, from)	find_bit(map, size, from, false)
#define find_first_bit(map, size)		find_bit(map, size, 0, true)

static inline unsigned long bitmap_weight(const unsigned long *map, unsigned long size)
{
	unsigned long n, weight = 0;

	for (n = 0; n < size; n++)
		weight += test_bit(n, map);
	return weight;
}

static inline unsigned long bitmap_find_next_zero_area(const unsigned long *map, unsigned long size, unsigned long from,
						       unsigned int count, unsigned long mask)
{
	unsigned long end;

	for (;; from = end + 1) {
		from = find_next_zero_bit(map, size, from);
		if (from + count > size)
			return from + count;
		end = find_next_bit(map, from + count, from);
		if (end == from + count)
			return from;
	}
}

/* locks and atomic values */
typedef struct {
	bool is_held;
} spinlock_t;
typedef struct {
	int value;
} atomic_t;

static inline void spin_lock(spinlock_t *lock)
{
	assert(!lock->is_held);
	lock->is_held = true;
}

static inline void spin_unlock(spinlock_t *lock)
{
	assert(lock->is_held);
	lock->is_held = false;
}

#define spin_lock_init(lock)			((lock)->is_held = false)
#define spin_lock_irqsave(lock, flags)		((flags) = 0, spin_lock(lock))
#define spin_unlock_irqrestore(lock, flags)	((void)(flags), spin_unlock(lock))
#define local_irq_save(flags)			((flags) = 0)
#define local_irq_restore(flags)		((void)(flags))
#define local_bh_disable()			((void)0)
#define local_bh_enable()			((void)0)
#define irqs_disabled()				false
#define atomic_read(a)				((a)->value)
#define atomic_inc(a)				((void)(a)->value++)
#define atomic_dec(a)				((void)(a)->value--)

/* time */
struct timer_list {
	void (*function)(struct timer_list *timer);
	unsigned long expires;
	bool pending;
	struct timer_list *next;	/* of all that were set up */
};

extern unsigned long jiffies;
#define msecs_to_jiffies(ms)		(((ms) * HZ + 999) / 1000)
#define time_after(a, b)		((long)((b) - (a)) < 0)
#define timer_pending(timer)		((timer)->pending)
#define from_timer(var, timer, field)	container_of(timer, __typeof__(*var), field)
#define ktime_get_ns()			((u64)jiffies * (NSEC_PER_SEC / HZ) + relaxed * 1000)
extern u64 relaxed;
void cpu_relax(void);
void timer_setup(struct timer_list *timer, void (*function)(struct timer_list *), unsigned int flags);
void mod_timer(struct timer_list *timer, unsigned long expires);
void timer_reduce(struct timer_list *timer, unsigned long expires);
void del_timer_sync(struct timer_list *timer);
void msleep(unsigned int ms);
void usleep_range(unsigned long least, unsigned long most);

/* lists */
struct list_head {
	struct list_head *next, *prev;
};

#define INIT_LIST_HEAD(list)	((list)->next = (list)->prev = (list))
#define list_entry(p, pos, member)	container_of(p, __typeof__(*pos), member)
#define list_for_each_entry(pos, list, member)						\
	for (pos = list_entry((list)->next, pos, member); &pos->member != (list);	\
	     pos = list_entry(pos->member.next, pos, member))
#define list_for_each_entry_safe(pos, n, list, member)					\
	for (pos = list_entry((list)->next, pos, member), n = list_entry(pos->member.next, pos, member); \
	     &pos->member != (list); pos = n, n = list_entry(n->member.next, n, member))

static inline void list_add_tail(struct list_head *node, struct list_head *list)
{
	node->prev = list->prev;
	node->next = list;
	list->prev->next = node;
	list->prev = node;
}

static inline void list_del(struct list_head *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
}

/* what is in the structures, and nothing is done with here */
struct mutex { int unused; };
struct completion { int unused; };
struct work_struct { int unused; };
struct delayed_work { struct work_struct work; };
struct bus_type { int unused; };
struct device_driver { int unused; };
struct workqueue_struct;
typedef struct { int unused; } wait_queue_head_t;
#define schedule_delayed_work(work, jiffies)	((void)(work))

/* virtio */
struct virtio_device_id {
	u32 device, vendor;
};
struct virtio_device {
	struct virtio_device_id id;
	struct device dev;
	u64 features;
};
#define virtio_has_feature(vdev, bit)	((vdev)->features >> (bit) & 1)
struct virtqueue {
	struct virtio_device *vdev;
	void *priv;
	unsigned int index, num_max;
};

struct vring;
struct virtqueue *vring_create_virtqueue(unsigned int index, unsigned int size, unsigned int align,
					 struct virtio_device *vdev, bool weak, bool may_reduce, bool context,
					 bool (*notify)(struct virtqueue *vq), void (*callback)(struct virtqueue *vq),
					 const char *name);
const struct vring *virtqueue_get_vring(const struct virtqueue *vq);
void vring_del_virtqueue(struct virtqueue *vq);
int vring_interrupt(int irq, void *vq);

#define ERR_PTR(err)	((void *)(intptr_t)(err))

#endif
