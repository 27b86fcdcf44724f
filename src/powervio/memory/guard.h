/* Mappings of files that somebody may cut off: an access to what is not there
 * any more is SIGBUS, which ends a process that is not prepared for it. Here a
 * range is guarded: on SIGBUS in it, its flag is set and private memory put in
 * its place, and the access goes on. Whoever copied looks at the flag after it
 * and, if it is set, does it again in another way; what was copied is void.
 *
 * There is one table and one handler in a process, so one compiled module alone
 * includes this (mapping.py). The interpreted stand-in is guard.py; guard.pxd
 * declares this.
 */
#pragma once

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

typedef unsigned char guard_u8;

#define GUARD_RANGES 1024

/* `version` is odd while a range comes or goes. Nobody accesses one meanwhile,
 * so the handler, which looks for the range of an access, may pass it over. */
static struct {
	uint32_t version;
	uintptr_t start, end;
} guard_table[GUARD_RANGES];
static guard_u8 guard_flags[GUARD_RANGES];
static uint64_t guard_breaks;
static struct sigaction guard_before;
static int guard_installed;

/* A fault that is nobody's here is that of the handler which was there before.
 * The default is no function: with it in force again the fault just returns. */
static inline void guard_pass_on(int number, siginfo_t *info, void *context)
{
	struct sigaction usual = { .sa_handler = SIG_DFL };
	int was_sent = info->si_code <= 0;

	if (guard_before.sa_flags & SA_SIGINFO) {
		guard_before.sa_sigaction(number, info, context);
	} else if (guard_before.sa_handler == SIG_IGN && was_sent) {
		return;
	} else if (guard_before.sa_handler != SIG_DFL && guard_before.sa_handler != SIG_IGN) {
		guard_before.sa_handler(number);
	} else {
		sigaction(number, &usual, NULL);
		if (was_sent)
			raise(number);
	}
}

static inline void guard_handle(int number, siginfo_t *info, void *context)
{
	uintptr_t address = (uintptr_t)info->si_addr;
	int kept = errno;
	int is_access = info->si_code == BUS_ADRERR || info->si_code == BUS_MCEERR_AR;

	for (unsigned int at = 0; is_access && at < GUARD_RANGES; at++) {
		uint32_t version = __atomic_load_n(&guard_table[at].version, __ATOMIC_ACQUIRE);
		uintptr_t start = __atomic_load_n(&guard_table[at].start, __ATOMIC_RELAXED);
		uintptr_t end = __atomic_load_n(&guard_table[at].end, __ATOMIC_RELAXED);

		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (version & 1 || version != __atomic_load_n(&guard_table[at].version, __ATOMIC_RELAXED))
			continue;
		if (address < start || address >= end)
			continue;
		/* The flag comes first: whoever meets the private memory, without a
		 * fault of its own, finds it set. All of the range is replaced, not
		 * one page: it is not used again, a long copy has one fault and not
		 * thousands, and large pages can only be replaced whole. */
		__atomic_store_n(&guard_flags[at], 1, __ATOMIC_SEQ_CST);
		__atomic_fetch_add(&guard_breaks, 1, __ATOMIC_SEQ_CST);
		if (mmap((void *)start, end - start, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) != MAP_FAILED) {
			errno = kept;
			return;
		}
	}
	guard_pass_on(number, info, context);
	errno = kept;
}

static inline int guard_install(void)
{
	struct sigaction ours = { .sa_sigaction = guard_handle, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	if (guard_installed)
		return 1;
	/* what was there is known before ours can run */
	if (sigaction(SIGBUS, NULL, &guard_before) < 0 || sigaction(SIGBUS, &ours, NULL) < 0)
		return 0;
	guard_installed = 1;
	return 1;
}

static inline void guard_set(unsigned int at, uintptr_t start, uintptr_t end)
{
	uint32_t version = guard_table[at].version;

	__atomic_store_n(&guard_table[at].version, version + 1, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&guard_table[at].start, start, __ATOMIC_RELAXED);
	__atomic_store_n(&guard_table[at].end, end, __ATOMIC_RELAXED);
	__atomic_store_n(&guard_flags[at], 0, __ATOMIC_RELAXED);
	__atomic_store_n(&guard_table[at].version, version + 2, __ATOMIC_RELEASE);
}

/* Guard so many bytes of a mapping, whose pages have `grain` bytes, from its
 * first on. Returns a number above 0, or 0 when the table is full. Called with
 * the interpreter lock. */
static inline unsigned int guard_add(const guard_u8 *base, uint64_t length, uint64_t grain)
{
	uintptr_t start = (uintptr_t)base;

	if (!length || !guard_install())
		return 0;
	for (unsigned int at = 0; at < GUARD_RANGES; at++)
		if (!guard_table[at].end) {
			guard_set(at, start, start + (length + grain - 1) / grain * grain);
			return at + 1;
		}
	return 0;
}

/* The range is about to be unmapped, and nobody accesses it any more. */
static inline void guard_remove(unsigned int number)
{
	if (number)
		guard_set(number - 1, 0, 0);
}

/* Where there is a number that grows, as the flags are set, with each range that
 * breaks: one load tells that none of many did. */
static inline guard_u8 *guard_breaks_at(void) { return (guard_u8 *)&guard_breaks; }

/* Whether something of the range was missing before what this thread did last:
 * the fence has its copies done, stores too, before the flag is read. */
static inline int guard_is_broken(unsigned int number)
{
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	return __atomic_load_n(&guard_flags[number - 1], __ATOMIC_RELAXED);
}
