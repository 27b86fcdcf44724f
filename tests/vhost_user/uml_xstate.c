/*
 * Preloaded into User-Mode Linux of Debian 12, which has room for a processor state of 2696 bytes: Linux wants to have
 * all of it set or nothing (EFAULT), and processors with AMX have more. What User-Mode Linux does not know of stays as it is.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/types.h>
#include <sys/uio.h>

typedef long ptrace_call(enum __ptrace_request request, ...);

long ptrace(enum __ptrace_request request, ...)
{
	static ptrace_call *next;
	static char state[1 << 16] __attribute__((aligned(64)));
	va_list arguments;

	va_start(arguments, request);
	pid_t pid = va_arg(arguments, pid_t);
	void *address = va_arg(arguments, void *);
	void *data = va_arg(arguments, void *);
	va_end(arguments);
	if (!next)
		next = (ptrace_call *)dlsym(RTLD_NEXT, "ptrace");
	if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE) {
		struct iovec *given = data, whole = {state, sizeof state};

		if (next(PTRACE_GETREGSET, pid, address, &whole) < 0)
			return -1;
		if (given->iov_len < whole.iov_len) {
			memcpy(state, given->iov_base, given->iov_len);
			return next(request, pid, address, &whole);
		}
	}
	return next(request, pid, address, data);
}
