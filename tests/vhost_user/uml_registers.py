"""User-Mode Linux on processors whose registers outgrow what its kernel has room for.

Linux hands over the extended registers of a traced process whole or not at all (PTRACE_SETREGSET, NT_X86_XSTATE), and
with AMX they are 11 KiB, for which the kernel of Debian 12's User-Mode Linux has no room: its first process dies. Where
the host does not know NT_X86_XSTATE, User-Mode Linux asks for the registers of FXSAVE, which are SSE's. So a seccomp
filter says so, and the C library of the guest's programs is told not to use what is not kept then.

    python uml_registers.py PROGRAM ARGUMENTS ...      runs the program behind that filter
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2
_LOAD, _AND, _EQUAL, _RETURN = 0x20, 0x54, 0x15, 0x06  # BPF: ld [k], and #k, jeq #k, ret #k
_ALLOW, _ERRNO = 0x7FFF_0000, 0x0005_0000
_NUMBER_AT, _REQUEST_AT, _KIND_AT = 0, 16, 32  # in struct seccomp_data: nr, args[0], args[2]
_PTRACE, _GETREGSET, _XSTATE = 101, 0x4204, 0x202

_FILTER = b"".join(
    struct.pack("=HBBI", *instruction)
    for instruction in (
        (_LOAD, 0, 0, _NUMBER_AT),
        (_EQUAL, 0, 5, _PTRACE),
        (_LOAD, 0, 0, _REQUEST_AT),
        (_AND, 0, 0, 0xFFFF_FFFE),  # SETREGSET is one more
        (_EQUAL, 0, 2, _GETREGSET),
        (_LOAD, 0, 0, _KIND_AT),
        (_EQUAL, 1, 0, _XSTATE),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EINVAL),
    )
)

KERNEL_ARGUMENTS = ("GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX512BW,-XSAVE,-XSAVEC",)
"""What the kernel does not know becomes the environment of its first process."""


def keep_to_sse() -> None:
    """Filter the calls of this process and of those it makes."""
    if platform.machine() != "x86_64":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    code = ctypes.create_string_buffer(_FILTER, len(_FILTER))
    program = struct.pack("HxxxxxxQ", len(_FILTER) // 8, ctypes.addressof(code))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, program, 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


if __name__ == "__main__":
    keep_to_sse()
    os.execvp(sys.argv[1], sys.argv[1:])
