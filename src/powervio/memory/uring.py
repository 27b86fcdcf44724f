"""Interpreted stand-in for `uring.h`: there is no io_uring then, and loops do at once what they would have handed over.

Compiled modules call the inline C functions of `uring.h` through `uring.pxd`.
"""

from __future__ import annotations

import errno

import cython

from powervio.memory.hw import Pointer


def uring_open(entries: int, defers: int) -> Pointer:
    """A ring for so many operations at a time, or NULL where there is none, as here."""
    return cython.NULL


def uring_close(handle: Pointer) -> None:
    """Give it back; nothing is in flight any more. NULL is none."""


def uring_fd(handle: Pointer) -> int:
    """A descriptor that can be read while there are results; not where `uring_defers`."""
    return -1


def uring_defers(handle: Pointer) -> int:
    """Whether results are made in `uring_submit` and `uring_rest` only."""
    return 0


def uring_rest(handle: Pointer) -> int:
    """As `uring_submit`, and sleep until there is a result, or a signal came."""
    return -errno.ENOSYS


def uring_watch(handle: Pointer, fd: int, token: int) -> int:
    """Add a watch that gives a result at once if a descriptor can be read, and then whenever something more comes."""
    return 0


def uring_submit(handle: Pointer) -> int:
    """Hand what was added to the kernel, and have the results made that there are; 0 or the negative errno."""
    return -errno.ENOSYS


def uring_move(handle: Pointer, writes: int, fd: int, table: Pointer, count: int, position: int, token: int) -> int:
    """Add a transfer of a table's pieces; 1, or 0 when there is no room until something was submitted."""
    return 0


def uring_sync(handle: Pointer, fd: int, token: int) -> int:
    """Add a fdatasync; returns as `uring_move`."""
    return 0


def uring_result(handle: Pointer, result: Pointer) -> int:
    """The next result as {u64 token, i64 bytes or negative errno}; 0 when there is none, 2 when its operation (a watch)
    will have more, else 1.
    """
    return 0


def uring_wait(handle: Pointer) -> int:
    """Sleep until there is a result; 0 or the negative errno."""
    return -errno.ENOSYS
