// SPDX-License-Identifier: MIT
/*
 * Random reads, and writes that can be checked, with many in flight: runs in a guest that has nothing but a kernel.
 *
 *     guest_io FILE read DEPTH MILLISECONDS		prints how many blocks were read, and the microseconds
 *     guest_io FILE numbers DEPTH MILLISECONDS		the same; each begins and ends with its number (64 bits)
 *     guest_io FILE write DEPTH FIRST COUNT SEED	blocks whose content follows from seed and number
 *     guest_io FILE check DEPTH FIRST COUNT SEED	the same blocks hold it; prints the first that does not
 *
 * Blocks have 4096 bytes and go past the page cache (O_DIRECT), by io_submit. Without a C library: static ones for other
 * architectures are not on every machine.
 */
#include <stddef.h>

#include <asm/unistd.h>
#include <linux/aio_abi.h>
#include <linux/fcntl.h>
#include <linux/fs.h>

typedef unsigned long u64;

#define BLOCK		4096
#define MOST		256
#define O_READ_WRITE	02

#if defined(__x86_64__)
#define O_PAST_CACHE	040000
static long call(long number, long a, long b, long c, long d, long e)
{
	register long r10 asm("r10") = d, r8 asm("r8") = e;
	long result;

	asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
		     : "rcx", "r11", "memory");
	return result;
}

asm(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n\thlt\n");
#elif defined(__powerpc64__)
#define O_PAST_CACHE	0400000
static long call(long number, long a, long b, long c, long d, long e)
{
	register long r0 asm("r0") = number, r3 asm("r3") = a, r4 asm("r4") = b, r5 asm("r5") = c;
	register long r6 asm("r6") = d, r7 asm("r7") = e;

	asm volatile("sc\n\tbns+ 1f\n\tneg %1, %1\n1:"
		     : "+r"(r0), "+r"(r3), "+r"(r4), "+r"(r5), "+r"(r6), "+r"(r7)
		     : : "cr0", "ctr", "memory", "r8", "r9", "r10", "r11", "r12");
	return r3;
}

/* r2, the table of contents, is set by whoever calls through an entry point; nobody did. */
asm(".globl _start\n_start:\n\tbcl 20, 31, 1f\n1:\tmflr 2\n\taddis 2, 2, (.TOC. - 1b)@ha\n\taddi 2, 2, (.TOC. - 1b)@l\n"
    "\tmr 3, 1\n\tclrrdi 1, 1, 4\n\tli 0, 0\n\tstdu 0, -64(1)\n\tbl begin\n\tnop\n");
#else
#error "an architecture without system calls here"
#endif

static char buffers[MOST][BLOCK] __attribute__((aligned(65536)));
static u64 numbers[MOST];
static struct iocb blocks[MOST];
static struct io_event events[MOST];
static aio_context_t context;
static int file;

/* A compiler may make calls of these by itself. */
void *memset(void *to, int value, u64 length)
{
	volatile char *at = to;

	while (length--)
		*at++ = value;
	return to;
}

void *memcpy(void *to, const void *from, u64 length)
{
	volatile char *at = to;
	const char *source = from;

	while (length--)
		*at++ = *source++;
	return to;
}

static void say(const char *text)
{
	u64 length = 0;

	while (text[length])
		length++;
	call(__NR_write, 1, (long)text, length, 0, 0);
}

static void say_number(u64 value)
{
	char text[24];
	int at = sizeof(text) - 1;

	text[at] = 0;
	do {
		text[--at] = '0' + value % 10;
		value /= 10;
	} while (value);
	say(text + at);
}

__attribute__((noreturn)) static void end(int status)
{
	call(__NR_exit_group, status, 0, 0, 0, 0);
	__builtin_unreachable();
}

__attribute__((noreturn)) static void fail(const char *what, long code)
{
	say(what);
	say(": ");
	say_number(code < 0 ? -code : code);
	say("\n");
	end(1);
}

static u64 number_of(const char *text)
{
	u64 value = 0;

	while (*text >= '0' && *text <= '9')
		value = value * 10 + (*text++ - '0');
	return value;
}

static u64 microseconds(void)
{
	long now[2];

	call(__NR_clock_gettime, 1, (long)now, 0, 0, 0);
	return now[0] * 1000000ul + now[1] / 1000;
}

static u64 next_random(u64 *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static void fill(int slot, u64 number, u64 seed)
{
	u64 state = (seed + 1) * 0x9e3779b97f4a7c15ul ^ (number + 1) * 0xbf58476d1ce4e5b9ul, i;

	for (i = 0; i < BLOCK / 8; i++)
		((u64 *)buffers[slot])[i] = next_random(&state);
}

static int is_filled(int slot, u64 number, u64 seed)
{
	u64 state = (seed + 1) * 0x9e3779b97f4a7c15ul ^ (number + 1) * 0xbf58476d1ce4e5b9ul, i;

	for (i = 0; i < BLOCK / 8; i++)
		if (((u64 *)buffers[slot])[i] != next_random(&state))
			return 0;
	return 1;
}

static void prepare(int slot, int code, u64 number)
{
	numbers[slot] = number;
	blocks[slot] = (struct iocb){
		.aio_data = slot,
		.aio_lio_opcode = code,
		.aio_fildes = file,
		.aio_buf = (u64)buffers[slot],
		.aio_nbytes = BLOCK,
		.aio_offset = number * BLOCK,
	};
}

static void submit(struct iocb **list, long count)
{
	long done = call(__NR_io_submit, context, count, (long)list, 0, 0);

	if (done != count)
		fail("io_submit", done);
}

static long wait_for(long most)
{
	long found = call(__NR_io_getevents, context, 1, most, (long)events, 0), i;

	if (found < 1)
		fail("io_getevents", found);
	for (i = 0; i < found; i++)
		if (events[i].res != BLOCK)
			fail("a block failed", events[i].res);
	return found;
}

static void read_at_random(int depth, u64 milliseconds, int numbered)
{
	u64 size, state = 88172645463325252ul, done = 0, began, until;
	struct iocb *list[MOST];
	long i, found;

	if (call(__NR_ioctl, file, BLKGETSIZE64, (long)&size, 0, 0))
		fail("no block device", 0);
	size /= BLOCK;
	for (i = 0; i < depth; i++) {
		prepare(i, IOCB_CMD_PREAD, next_random(&state) % size);
		list[i] = &blocks[i];
	}
	began = microseconds();
	until = began + milliseconds * 1000;
	submit(list, depth);
	while (microseconds() < until) {
		found = wait_for(depth);
		for (i = 0; i < found; i++) {
			int slot = events[i].data;
			u64 *words = (u64 *)buffers[slot];

			if (numbered && (words[0] != numbers[slot] || words[BLOCK / 8 - 1] != numbers[slot]))
				fail("another content in block", numbers[slot]);
			words[0] = words[BLOCK / 8 - 1] = ~0ul;
			prepare(slot, IOCB_CMD_PREAD, next_random(&state) % size);
			list[i] = &blocks[slot];
		}
		done += found;
		submit(list, found);
	}
	say_number(done);
	say(" ");
	say_number(microseconds() - began);
	say("\n");
}

static void go_through(int is_write, int depth, u64 first, u64 count, u64 seed)
{
	int code = is_write ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD, slot;
	u64 next = first, left = count;
	struct iocb *one;
	long i, found;

	for (slot = 0; slot < depth && next < first + count; slot++) {
		if (is_write)
			fill(slot, next, seed);
		prepare(slot, code, next++);
		one = &blocks[slot];
		submit(&one, 1);
	}
	while (left) {
		found = wait_for(depth);
		left -= found;
		for (i = 0; i < found; i++) {
			slot = events[i].data;
			if (!is_write && !is_filled(slot, numbers[slot], seed))
				fail("another content in block", numbers[slot]);
			if (next == first + count)
				continue;
			if (is_write)
				fill(slot, next, seed);
			prepare(slot, code, next++);
			one = &blocks[slot];
			submit(&one, 1);
		}
	}
	if (is_write && call(__NR_fsync, file, 0, 0, 0, 0))
		fail("fsync", 0);
	say_number(count);
	say("\n");
}

__attribute__((used, noreturn)) void begin(long *stack)
{
	char **words = (char **)(stack + 1);
	long depth;

	if (stack[0] < 5)
		fail("usage: FILE read|numbers|write|check DEPTH ...", 0);
	depth = number_of(words[3]);
	if (depth < 1 || depth > MOST)
		fail("depth", depth);
	file = call(__NR_openat, AT_FDCWD, (long)words[1], O_READ_WRITE | O_PAST_CACHE, 0, 0);
	if (file < 0)
		file = call(__NR_openat, AT_FDCWD, (long)words[1], O_PAST_CACHE, 0, 0);
	if (file < 0)
		fail("the file cannot be opened", file);
	if (call(__NR_io_setup, MOST, (long)&context, 0, 0, 0))
		fail("io_setup", 0);
	if (words[2][0] == 'r' || words[2][0] == 'n')
		read_at_random(depth, number_of(words[4]), words[2][0] == 'n');
	else if (stack[0] == 7)
		go_through(words[2][0] == 'w', depth, number_of(words[4]), number_of(words[5]), number_of(words[6]));
	else
		fail("usage: FILE write|check DEPTH FIRST COUNT SEED", 0);
	end(0);
}
