/* io_uring: operations on files that the kernel carries out while a loop goes
 * on. As much of it as loops here need, over the kernel's own header, which
 * every C compiler's libc brings along; liburing would be one more package to
 * build with. The interpreted stand-in is uring.py; uring.pxd declares this.
 *
 * One thread has a ring, which is the one that made it: where the kernel can (Linux 6.1) results are made when that
 * thread asks for them, which saves an interruption for each. Memory that an operation names stays where it is
 * until the operation is over; a table of pieces only until it is submitted.
 */
#pragma once

#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef unsigned char uring_u8;

/* Headers may be older than the kernel. */
#ifndef IORING_SETUP_TASKRUN_FLAG
#define IORING_SETUP_TASKRUN_FLAG (1U << 9)
#endif
#ifndef IORING_SETUP_SINGLE_ISSUER
#define IORING_SETUP_SINGLE_ISSUER (1U << 12)
#endif
#ifndef IORING_SETUP_DEFER_TASKRUN
#define IORING_SETUP_DEFER_TASKRUN (1U << 13)
#endif
#ifndef IORING_SQ_TASKRUN
#define IORING_SQ_TASKRUN (1U << 2)
#endif

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define URING_POLLIN (POLLIN << 16) /* the kernel swaps the halves */
#else
#define URING_POLLIN POLLIN
#endif

struct uring {
	int fd;
	unsigned int entries, waiting; /* added and not submitted */
	int defers;		       /* results are made when they are asked for */
	unsigned int *sq_head, *sq_tail, *sq_mask, *sq_flags, *sq_array;
	unsigned int *cq_head, *cq_tail, *cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
	void *ring;
	size_t ring_bytes, sqe_bytes;
};

static inline void uring_close(uring_u8 *handle)
{
	struct uring *u = (struct uring *)handle;

	if (!u)
		return;
	if (u->sqes)
		munmap(u->sqes, u->sqe_bytes);
	if (u->ring)
		munmap(u->ring, u->ring_bytes);
	close(u->fd);
	free(u);
}

/* A ring for so many operations at a time, or NULL where the kernel has none
 * or does not give one. With `defers` it is one whose results are made when
 * they are asked for, where the kernel has such. */
static inline uring_u8 *uring_open(unsigned int entries, int defers)
{
	struct io_uring_params p;
	struct uring *u = calloc(1, sizeof(*u));
	char *base;

	if (!u)
		return NULL;
	memset(&p, 0, sizeof(p));
	if (defers)
		p.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
	u->fd = (int)syscall(__NR_io_uring_setup, entries, &p);
	u->defers = defers && u->fd >= 0;
	if (defers && u->fd < 0) {
		memset(&p, 0, sizeof(p));
		u->fd = (int)syscall(__NR_io_uring_setup, entries, &p);
	}
	if (u->fd < 0) {
		free(u);
		return NULL;
	}
	u->entries = p.sq_entries;
	u->ring_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned int);
	if (p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe) > u->ring_bytes)
		u->ring_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	u->sqe_bytes = p.sq_entries * sizeof(struct io_uring_sqe);
	u->ring = mmap(NULL, u->ring_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd,
		       IORING_OFF_SQ_RING);
	u->sqes = mmap(NULL, u->sqe_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, u->fd,
		       IORING_OFF_SQES);
	if (u->ring == MAP_FAILED)
		u->ring = NULL;
	if (u->sqes == MAP_FAILED)
		u->sqes = NULL;
	if (!u->ring || !u->sqes || !(p.features & IORING_FEAT_SINGLE_MMAP) ||
	    !(p.features & IORING_FEAT_NODROP) || !(p.features & IORING_FEAT_SUBMIT_STABLE)) {
		uring_close((uring_u8 *)u);
		return NULL;
	}
	base = u->ring;
	u->sq_head = (unsigned int *)(base + p.sq_off.head);
	u->sq_tail = (unsigned int *)(base + p.sq_off.tail);
	u->sq_mask = (unsigned int *)(base + p.sq_off.ring_mask);
	u->sq_flags = (unsigned int *)(base + p.sq_off.flags);
	u->sq_array = (unsigned int *)(base + p.sq_off.array);
	u->cq_head = (unsigned int *)(base + p.cq_off.head);
	u->cq_tail = (unsigned int *)(base + p.cq_off.tail);
	u->cq_mask = (unsigned int *)(base + p.cq_off.ring_mask);
	u->cqes = (struct io_uring_cqe *)(base + p.cq_off.cqes);
	return (uring_u8 *)u;
}

/* Readable while there are results; not where `uring_defers`. */
static inline int uring_fd(const uring_u8 *handle) { return ((const struct uring *)handle)->fd; }

/* Whether results are made in `uring_submit` and `uring_rest` only. */
static inline int uring_defers(const uring_u8 *handle) { return ((const struct uring *)handle)->defers; }

/* Hand what was added to the kernel, and have the results made that there are.
 * Returns 0 or the negative errno; then it is still there, to be submitted
 * later. */
static inline int uring_submit(uring_u8 *handle)
{
	struct uring *u = (struct uring *)handle;
	unsigned int flags = u->defers ? IORING_ENTER_GETEVENTS : 0;
	int done;

	while (u->waiting || (u->defers && __atomic_load_n(u->sq_flags, __ATOMIC_RELAXED) & IORING_SQ_TASKRUN)) {
		done = (int)syscall(__NR_io_uring_enter, u->fd, u->waiting, 0, flags, NULL, 0);
		if (done < 0 && errno != EINTR)
			return -errno;
		if (!u->waiting)
			return 0;
		if (!done)
			return -EAGAIN;
		if (done > 0)
			u->waiting -= (unsigned int)done;
	}
	return 0;
}

/* The same, and sleep until there is a result. Returns 0, also when a signal
 * came, or the negative errno. */
static inline int uring_rest(uring_u8 *handle)
{
	struct uring *u = (struct uring *)handle;
	int done = (int)syscall(__NR_io_uring_enter, u->fd, u->waiting, 1, IORING_ENTER_GETEVENTS, NULL, 0);

	if (done < 0)
		return errno == EINTR ? 0 : -errno;
	u->waiting -= (unsigned int)done;
	return 0;
}

static inline struct io_uring_sqe *uring_entry(struct uring *u)
{
	unsigned int tail = *u->sq_tail;
	struct io_uring_sqe *sqe;

	if (tail - __atomic_load_n(u->sq_head, __ATOMIC_ACQUIRE) == u->entries)
		return NULL;
	sqe = &u->sqes[tail & *u->sq_mask];
	memset(sqe, 0, sizeof(*sqe));
	u->sq_array[tail & *u->sq_mask] = tail & *u->sq_mask;
	return sqe;
}

static inline void uring_added(struct uring *u)
{
	__atomic_store_n(u->sq_tail, *u->sq_tail + 1, __ATOMIC_RELEASE);
	u->waiting++;
}

/* Add a transfer of a table's pieces. Returns 1, or 0 when there is no room
 * until something was submitted. */
static inline int uring_move(uring_u8 *handle, int writes, int fd, const uring_u8 *table, uint32_t count,
			     uint64_t position, uint64_t token)
{
	struct uring *u = (struct uring *)handle;
	struct io_uring_sqe *sqe = uring_entry(u);

	if (!sqe)
		return 0;
	sqe->fd = fd;
	sqe->off = position;
	sqe->user_data = token;
	if (count == 1) {
		uint64_t address, length;

		memcpy(&address, table, 8);
		memcpy(&length, table + 8, 8);
		sqe->opcode = writes ? IORING_OP_WRITE : IORING_OP_READ;
		sqe->addr = address;
		sqe->len = length > 0x7ffff000 ? 0x7ffff000 : (uint32_t)length;
	} else {
		sqe->opcode = writes ? IORING_OP_WRITEV : IORING_OP_READV;
		sqe->addr = (uint64_t)(uintptr_t)table;
		sqe->len = count;
	}
	uring_added(u);
	return 1;
}

/* Add a fdatasync. Returns as `uring_move`. */
static inline int uring_sync(uring_u8 *handle, int fd, uint64_t token)
{
	struct uring *u = (struct uring *)handle;
	struct io_uring_sqe *sqe = uring_entry(u);

	if (!sqe)
		return 0;
	sqe->opcode = IORING_OP_FSYNC;
	sqe->fd = fd;
	sqe->fsync_flags = IORING_FSYNC_DATASYNC;
	sqe->user_data = token;
	uring_added(u);
	return 1;
}

/* Add a watch that gives a result at once if a descriptor can be read, and then
 * whenever something more comes; it need not be read. Returns as `uring_move`. */
static inline int uring_watch(uring_u8 *handle, int fd, uint64_t token)
{
	struct uring *u = (struct uring *)handle;
	struct io_uring_sqe *sqe = uring_entry(u);

	if (!sqe)
		return 0;
	sqe->opcode = IORING_OP_POLL_ADD;
	sqe->fd = fd;
	sqe->len = IORING_POLL_ADD_MULTI;
	sqe->poll32_events = URING_POLLIN;
	sqe->user_data = token;
	uring_added(u);
	return 1;
}

/* The next result as {u64 token, i64 bytes or negative errno}. Returns 0
 * when there is none, 2 when there will be more of the same operation (a
 * watch), else 1. */
static inline int uring_result(uring_u8 *handle, uring_u8 *result)
{
	struct uring *u = (struct uring *)handle;
	unsigned int head = *u->cq_head;
	const struct io_uring_cqe *cqe;
	int64_t outcome;
	int more;

	if (head == __atomic_load_n(u->cq_tail, __ATOMIC_ACQUIRE))
		return 0;
	cqe = &u->cqes[head & *u->cq_mask];
	outcome = cqe->res;
	more = !!(cqe->flags & IORING_CQE_F_MORE);
	memcpy(result, &cqe->user_data, 8);
	memcpy(result + 8, &outcome, 8);
	__atomic_store_n(u->cq_head, head + 1, __ATOMIC_RELEASE);
	return 1 + more;
}

/* Sleep until there is a result. Returns 0 or the negative errno. */
static inline int uring_wait(uring_u8 *handle)
{
	struct uring *u = (struct uring *)handle;
	int done = (int)syscall(__NR_io_uring_enter, u->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);

	return done < 0 && errno != EINTR ? -errno : 0;
}
