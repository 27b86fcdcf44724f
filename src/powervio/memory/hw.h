/* Accessors to memory that somebody else may be writing at the same moment.
 *
 * Compiled modules reach memory through these functions only, so that every
 * shared word is loaded or stored once, whole and in the stated order. The
 * interpreted stand-in with the same names is hw.py; hw.pxd declares them.
 * Offsets and lengths are bytes. Nothing here checks bounds: callers do.
 */
#pragma once

#include <Python.h>
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <time.h>
#include <unistd.h>

typedef unsigned char hw_u8;

/* The address of an object's buffer. The caller keeps a memoryview of the same
 * object for as long as it uses the address, so that it cannot be unmapped. */
static inline hw_u8 *pointer(PyObject *object)
{
	Py_buffer view;
	hw_u8 *address;

	if (PyObject_GetBuffer(object, &view, PyBUF_WRITABLE) < 0)
		return NULL;
	address = (hw_u8 *)view.buf;
	PyBuffer_Release(&view);
	return address;
}

/* The same of a buffer that may be read-only, to read from. */
static inline hw_u8 *pointer_to_read(PyObject *object)
{
	Py_buffer view;
	hw_u8 *address;

	if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE) < 0)
		return NULL;
	address = (hw_u8 *)view.buf;
	PyBuffer_Release(&view);
	return address;
}

static inline hw_u8 *at(hw_u8 *base, uint64_t offset) { return base + offset; }

/* The same as a number, for tables of {u64 host address, u64 length}. */
static inline uint64_t address_of(const hw_u8 *base, uint64_t offset)
{ return (uint64_t)(uintptr_t)(base + offset); }

#define HW_LOAD(name, type, order) \
	static inline type name(const hw_u8 *base, uint64_t offset) \
	{ return __atomic_load_n((const type *)(base + offset), order); }
#define HW_STORE(name, type, order) \
	static inline void name(hw_u8 *base, uint64_t offset, type value) \
	{ __atomic_store_n((type *)(base + offset), value, order); }

HW_LOAD(ld8, uint8_t, __ATOMIC_RELAXED)
HW_LOAD(ld8_acquire, uint8_t, __ATOMIC_ACQUIRE)
HW_LOAD(ld16, uint16_t, __ATOMIC_RELAXED)
HW_LOAD(ld16_acquire, uint16_t, __ATOMIC_ACQUIRE)
HW_LOAD(ld32, uint32_t, __ATOMIC_RELAXED)
HW_LOAD(ld64, uint64_t, __ATOMIC_RELAXED)
HW_LOAD(ld64_acquire, uint64_t, __ATOMIC_ACQUIRE)

/* A word at an address of this process. */
static inline uint64_t word_at(uint64_t address)
{ return __atomic_load_n((const uint64_t *)(uintptr_t)address, __ATOMIC_ACQUIRE); }

HW_STORE(st8, uint8_t, __ATOMIC_RELAXED)
HW_STORE(st8_release, uint8_t, __ATOMIC_RELEASE)
HW_STORE(st16, uint16_t, __ATOMIC_RELAXED)
HW_STORE(st16_release, uint16_t, __ATOMIC_RELEASE)
HW_STORE(st32, uint32_t, __ATOMIC_RELAXED)
HW_STORE(st64, uint64_t, __ATOMIC_RELAXED)
HW_STORE(st64_release, uint64_t, __ATOMIC_RELEASE)

/* Set bits that others may set and clear at the same moment. */
static inline void or8(hw_u8 *base, uint64_t offset, uint8_t bits)
{ __atomic_fetch_or(base + offset, bits, __ATOMIC_SEQ_CST); }

/* Unaligned loads of memory that is private by now (a snapshot). */
static inline uint16_t get16(const hw_u8 *base, uint64_t offset)
{ uint16_t value; memcpy(&value, base + offset, sizeof(value)); return value; }
static inline uint32_t get32(const hw_u8 *base, uint64_t offset)
{ uint32_t value; memcpy(&value, base + offset, sizeof(value)); return value; }
static inline uint64_t get64(const hw_u8 *base, uint64_t offset)
{ uint64_t value; memcpy(&value, base + offset, sizeof(value)); return value; }

static inline void fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Loads before this are done before those after it. */
static inline void fence_loads(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }

static inline void copy(hw_u8 *to, uint64_t to_offset, const hw_u8 *from,
			uint64_t from_offset, uint64_t length)
{ memmove(to + to_offset, from + from_offset, length); }

/* The same with memory that is named by its address in this process (a piece
 * of `space.py`); whoever made the piece has checked it. */
static inline void fetch(hw_u8 *to, uint64_t to_offset, uint64_t address,
			 uint64_t length)
{ memcpy(to + to_offset, (const void *)(uintptr_t)address, length); }
static inline void store(uint64_t address, const hw_u8 *from,
			 uint64_t from_offset, uint64_t length)
{ memcpy((void *)(uintptr_t)address, from + from_offset, length); }

/* Between two places that are both named by their address, and may overlap. */
static inline void transfer(uint64_t to, uint64_t from, uint64_t length)
{ memmove((void *)(uintptr_t)to, (const void *)(uintptr_t)from, length); }

static inline void zero(hw_u8 *base, uint64_t offset, uint64_t length)
{ memset(base + offset, 0, length); }

static inline void fill(hw_u8 *base, uint64_t offset, uint64_t length, uint8_t value)
{ memset(base + offset, value, length); }

/* Whether no byte of a range is 0. */
static inline int all_set(const hw_u8 *base, uint64_t offset, uint64_t length)
{ return !memchr(base + offset, 0, length); }

/* Whether any byte at an address of this process is not 0. */
static inline int holds_data(uint64_t address, uint64_t length)
{
	const hw_u8 *first = (const hw_u8 *)(uintptr_t)address;

	return length && (*first || memcmp(first, first + 1, length - 1));
}

/* Move bytes between a file and the memory that `count` (at most 1024) entries
 * {u64 host address, u64 length} of a table name. Returns the bytes moved,
 * which may be fewer than asked for, or the negative errno. */
#if UINTPTR_MAX == UINT64_MAX
_Static_assert(sizeof(struct iovec) == 16 && sizeof(size_t) == 8, "entries of tables are those of preadv");
/* Most requests have one piece, which costs the kernel less as a plain buffer.
 * The calls go by their numbers because the library's functions are points of
 * cancellation, which no thread here needs and each call would pay for. */
#define HW_VECTOR(name, one, many) \
	static inline int64_t name(int fd, const hw_u8 *table, uint32_t count, uint64_t position) \
	{ \
		long done; \
		do { \
			if (count == 1) \
				done = syscall(one, (long)fd, get64(table, 0), get64(table, 8), position); \
			else \
				done = syscall(many, (long)fd, table, (long)count, position, 0L); \
		} while (done < 0 && errno == EINTR); \
		return done < 0 ? -errno : done; \
	}
#else
#error "tables of host addresses want a 64-bit machine"
#endif
HW_VECTOR(hw_preadv, SYS_pread64, SYS_preadv)
HW_VECTOR(hw_pwritev, SYS_pwrite64, SYS_pwritev)

/* Wake whoever sleeps on an eventfd. Returns 0 or the negative errno; a
 * counter that is full wakes as well. */
static inline int event_signal(int fd)
{
	const uint64_t one = 1;
	ssize_t done;

	do {
		done = write(fd, &one, sizeof(one));
	} while (done < 0 && errno == EINTR);
	return done < 0 && errno != EAGAIN ? -errno : 0;
}

/* Take what was signalled on a non-blocking eventfd. Returns 1, 0 when there
 * was nothing, or the negative errno. */
static inline int event_take(int fd)
{
	uint64_t count;
	ssize_t done;

	do {
		done = read(fd, &count, sizeof(count));
	} while (done < 0 && errno == EINTR);
	if (done < 0)
		return errno == EAGAIN ? 0 : -errno;
	return 1;
}

/* Sleep until a descriptor can be read, at most so many milliseconds. Returns
 * 1, 0 when the time is up or a signal came, or the negative errno. */
static inline int wait_readable(int fd, int milliseconds)
{
	struct pollfd one = { .fd = fd, .events = POLLIN };
	int ready = poll(&one, 1, milliseconds);

	if (ready < 0)
		return errno == EINTR ? 0 : -errno;
	return ready;
}

/* Sleep until one of three descriptors (-1: none) can be read, at most so many
 * milliseconds (-1: for ever). Returns a bit for each that can, 0 when the time
 * is up or a signal came, or the negative errno. */
static inline int wait_any(int first, int second, int third, int milliseconds)
{
	struct pollfd all[3] = {
		{ .fd = first, .events = POLLIN }, { .fd = second, .events = POLLIN }, { .fd = third, .events = POLLIN },
	};
	int ready = poll(all, 3, milliseconds);

	if (ready < 0)
		return errno == EINTR ? 0 : -errno;
	return !!all[0].revents | !!all[1].revents << 1 | !!all[2].revents << 2;
}

/* Monotonic time in nanoseconds. */
static inline uint64_t clock_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* In a loop that waits for another processor: leave it the core's resources. */
static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ __volatile__("yield" ::: "memory");
#elif defined(__powerpc__)
	__asm__ __volatile__("or 27,27,27" ::: "memory");
#else
	__asm__ __volatile__("" ::: "memory");
#endif
}

/* Bring a cache line near; an address that is not there does no harm. */
static inline void prefetch(const hw_u8 *base, uint64_t offset) { __builtin_prefetch(base + offset); }

/* The same of two lines at an address of this process, to be read or to be written. */
static inline void prefetch_at(uint64_t address)
{
	__builtin_prefetch((const void *)(uintptr_t)address);
	__builtin_prefetch((const void *)(uintptr_t)(address + 64));
}
static inline void prefetch_to_write(uint64_t address)
{
	__builtin_prefetch((const void *)(uintptr_t)address, 1);
	__builtin_prefetch((const void *)(uintptr_t)(address + 64), 1);
}

/* Let others run on this processor. */
static inline void yield_cpu(void) { sched_yield(); }

/* As `hw_preadv` and `hw_pwritev`, but only what can be done without waiting
 * for a medium: -EAGAIN for what cannot, -EOPNOTSUPP where a file system has
 * no way to tell. */
static inline int64_t preadv_at_once(int fd, const hw_u8 *table, uint32_t count, uint64_t position)
{
	ssize_t done = preadv2(fd, (const struct iovec *)table, (int)count, (off_t)position, RWF_NOWAIT);

	return done < 0 ? -errno : done;
}

static inline int64_t pwritev_at_once(int fd, const hw_u8 *table, uint32_t count, uint64_t position)
{
	ssize_t done = pwritev2(fd, (const struct iovec *)table, (int)count, (off_t)position, RWF_NOWAIT);

	return done < 0 ? -errno : done;
}

/* Whether a file's bytes are in memory and nowhere else (tmpfs, ramfs,
 * hugetlbfs): then no access to it waits for a medium. */
static inline int is_in_memory(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 &&
	       ((uint32_t)fs.f_type == 0x01021994u || (uint32_t)fs.f_type == 0x858458f6u ||
		(uint32_t)fs.f_type == 0x958458f6u);
}

/* Whether these are in huge pages (hugetlbfs). */
static inline int is_in_huge_pages(int fd)
{
	struct statfs fs;

	return fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type == 0x958458f6u;
}

/* Bytes at an address of this process, as an object. */
static inline PyObject *bytes_at(uint64_t address, uint64_t length)
{ return PyBytes_FromStringAndSize((const char *)(uintptr_t)address, (Py_ssize_t)length); }

/* One byte at an address of this process. */
static inline void put8(uint64_t address, uint8_t value)
{ __atomic_store_n((uint8_t *)(uintptr_t)address, value, __ATOMIC_RELAXED); }

/* Bytes of a file or block device, or the negative errno. */
static inline int64_t file_end(int fd)
{
	off_t end = lseek(fd, 0, SEEK_END);

	return end < 0 ? -errno : end;
}

/* A lock in a word: 0 free, 1 held, 2 held and perhaps waited for. Whoever
 * waits must not hold the interpreter lock, which the holder may want. */
static inline int mutex_try(hw_u8 *word)
{
	uint32_t free = 0;

	return __atomic_compare_exchange_n((uint32_t *)word, &free, 1, 0, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

/* Take it after a wait. Returns 0, or -EINTR without the lock when a signal
 * came; a wake-up is never lost that way, for the kernel reports one as such. */
static inline int mutex_wait(hw_u8 *word)
{
	while (__atomic_exchange_n((uint32_t *)word, 2, __ATOMIC_ACQUIRE) != 0)
		if (syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 2L, NULL) < 0 && errno == EINTR)
			return -EINTR;
	return 0;
}

static inline void mutex_give(hw_u8 *word)
{
	if (__atomic_exchange_n((uint32_t *)word, 0, __ATOMIC_RELEASE) == 2)
		syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1L);
}

/* The low 64 bits of an integer of any size and sign, as a register has them. */
static inline uint64_t low64(PyObject *value)
{ return PyLong_AsUnsignedLongLongMask(value); }

/* Run the handlers of signals that came; raises what one of them raises. */
static inline int check_signals(void) { return PyErr_CheckSignals(); }

/* Where in a file there are data from a position on, or the negative errno. */
static inline int64_t next_data(int fd, uint64_t position)
{
	off_t data = lseek(fd, (off_t)position, SEEK_DATA);

	return data < 0 ? -errno : data;
}

/* Between host order and a stated order; each is its own inverse. */
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
static inline uint16_t le16(uint16_t value) { return value; }
static inline uint32_t le32(uint32_t value) { return value; }
static inline uint64_t le64(uint64_t value) { return value; }
static inline uint16_t be16(uint16_t value) { return __builtin_bswap16(value); }
static inline uint32_t be32(uint32_t value) { return __builtin_bswap32(value); }
static inline uint64_t be64(uint64_t value) { return __builtin_bswap64(value); }
#else
static inline uint16_t le16(uint16_t value) { return __builtin_bswap16(value); }
static inline uint32_t le32(uint32_t value) { return __builtin_bswap32(value); }
static inline uint64_t le64(uint64_t value) { return __builtin_bswap64(value); }
static inline uint16_t be16(uint16_t value) { return value; }
static inline uint32_t be32(uint32_t value) { return value; }
static inline uint64_t be64(uint64_t value) { return value; }
#endif
