# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Media that loops move bytes to and from by themselves, without the interpreter lock.

A piece of memory is {u64 host address, u64 length}. A target does what is usual and says so; whatever is not, it leaves
to the `Backing` that it belongs to, whose methods know what a short read or a refused write means.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from mmap import mmap
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    fetch,
    file_end,
    is_in_memory,
    ld64,
    pointer_to_read,
    preadv,
    preadv_at_once,
    pwritev,
    pwritev_at_once,
    store,
)

_PIECES = cython.declare(cython.uint, 1024)
"""Pieces of one preadv or pwritev (IOV_MAX of Linux)."""


@cython.cclass
class Target:
    """Both methods: `count` pieces of together `length` bytes, at `position` of the medium, in bytes.

    True when all of it is done. False: it has to be done by the backing, all of it; parts may have been moved.
    """

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """Fill the pieces, in order."""
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """Write the pieces, in order."""
        return False


_AT_ONCE = cython.declare(cython.int, 0)
_CACHED = cython.declare(cython.int, 1)
_LATER = cython.declare(cython.int, 2)

_AGAIN = cython.declare(cython.longlong, -errno.EAGAIN)
_UNSUPPORTED = cython.declare(cython.longlong, -errno.EOPNOTSUPP)


@cython.final
@cython.cclass
class FileTarget(Target):
    """An open file or block device.

    Nothing beyond `length` bytes is moved, and nothing is written while the file is shorter: then it has lost something
    that a write must not cover up. With an `alignment` (direct I/O) positions, addresses and lengths are multiples of
    it, or it is the backing's to move them.
    """

    fd: cython.int
    size: cython.ulonglong
    length: cython.ulonglong
    lost: cython.int
    read_only: cython.bint
    alignment: cython.ulonglong
    in_memory: cython.bint
    _reading: cython.int
    _writing: cython.int
    _mapping: Any
    _mapped: cython.p_uchar
    _mapped_bytes: cython.ulonglong

    def __init__(
        self,
        fd: int,
        size: int,
        length: int,
        *,
        read_only: bool = False,
        alignment: int = 0,
        mapping: mmap | None = None,
    ) -> None:
        """`fd` is the owner's, who calls `release` before it is closed. `alignment`: 0 is none.

        With a `mapping` of the file data are copied from and to it: no call of the kernel, but a file that is cut off
        ends the process, and what is not in memory is waited for.
        """
        self.fd = fd
        self.size = size
        self.length = length
        self.lost = 0
        """errno of a flush that failed: what it should have made stable is lost, and no later one succeeds."""
        self.read_only = read_only
        self.alignment = alignment
        self.in_memory = is_in_memory(fd) != 0
        """Whether the file's bytes are in memory and nowhere else."""
        self._reading = self._writing = _AT_ONCE if self.in_memory else _LATER if alignment else _CACHED
        self._mapping = mapping
        self._mapped_bytes = 0
        if mapping is not None:
            self._mapped = pointer_to_read(mapping)
            self._mapped_bytes = len(mapping)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def allows(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.bint:
        """Whether this may be moved by descriptor; what may not is the backing's to move or to refuse."""
        number: cython.uint
        if count > _PIECES or position > self.length or length > self.length - position:
            return False
        if self.alignment:
            if position & (self.alignment - 1):
                return False
            for number in range(count):
                if (ld64(pieces, 16 * number) | ld64(pieces, 16 * number + 8)) & (self.alignment - 1):
                    return False
        return not writes or self.is_whole()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def is_whole(self) -> cython.bint:
        """Whether there may be writes: the file is as long as it was, or longer."""
        end: cython.longlong = -1 if self.read_only else file_end(self.fd)
        return end >= 0 and cython.cast(cython.ulonglong, end) >= self.length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def start(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.longlong:
        """Move what can be moved without waiting for a medium; it is allowed. Bytes, or a negative errno.

        -EAGAIN: nothing at once; to be tried by a call that may wait (io_uring on `fd`, `read`, `write`).
        """
        done: cython.longlong
        way: cython.int = self._writing if writes else self._reading
        if position + length <= self._mapped_bytes:
            return self._copy(writes, pieces, count, position, length)
        if way == _AT_ONCE:
            return pwritev(self.fd, pieces, count, position) if writes else preadv(self.fd, pieces, count, position)
        if way == _LATER:
            return _AGAIN
        if writes:
            done = pwritev_at_once(self.fd, pieces, count, position)
            if done == _UNSUPPORTED:
                self._writing = _LATER
        else:
            done = preadv_at_once(self.fd, pieces, count, position)
            if done == _UNSUPPORTED:
                self._reading = _LATER
        return _AGAIN if done == _UNSUPPORTED else done

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _copy(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.longlong:
        number: cython.uint
        address: cython.ulonglong
        part: cython.ulonglong
        for number in range(count):
            address = ld64(pieces, 16 * number)
            part = ld64(pieces, 16 * number + 8)
            if writes:
                fetch(self._mapped, position, address, part)
            else:
                store(address, self._mapped, position, part)
            position += part
        return cython.cast(cython.longlong, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`."""
        done: cython.longlong
        if not self.allows(False, pieces, count, position, length):
            return False
        if position + length <= self._mapped_bytes:
            done = self._copy(False, pieces, count, position, length)
        else:
            done = preadv(self.fd, pieces, count, position)
        return done >= 0 and cython.cast(cython.ulonglong, done) == length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`."""
        done: cython.longlong
        if not self.allows(True, pieces, count, position, length):
            return False
        if position + length <= self._mapped_bytes:
            done = self._copy(True, pieces, count, position, length)
        else:
            done = pwritev(self.fd, pieces, count, position)
        return done >= 0 and cython.cast(cython.ulonglong, done) == length

    def release(self) -> None:
        """The file is about to be closed."""
        self.fd = -1
        self._mapped_bytes = 0
        self._mapped = cython.NULL
        self._mapping = None  # it has a descriptor of its own, and with it the lock of the image
