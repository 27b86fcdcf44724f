# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Media that loops move bytes to and from by themselves, without the interpreter lock.

A piece of memory is {u64 host address, u64 length}. A target does what is usual and says so; whatever is not, it leaves
to the `Backing` that it belongs to, whose methods know what a short read or a refused write means.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import file_end, preadv, pwritev

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


@cython.final
@cython.cclass
class FileTarget(Target):
    """An open file or block device, through the page cache.

    Nothing beyond `size` bytes is moved, and nothing is written that would make the file longer than `length`, or while
    it is shorter: then it has lost something that a write must not cover up.
    """

    fd: cython.int
    size: cython.ulonglong
    length: cython.ulonglong

    def __init__(self, fd: int, size: int, length: int) -> None:
        """`fd` is the owner's, who sets it to -1 before it is closed."""
        self.fd = fd
        self.size = size
        self.length = length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`."""
        done: cython.longlong
        if count > _PIECES or position > self.size or length > self.size - position:
            return False
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
        if count > _PIECES or position > self.length or length > self.length - position:
            return False
        done = file_end(self.fd)
        if done < 0 or cython.cast(cython.ulonglong, done) < self.length:
            return False
        done = pwritev(self.fd, pieces, count, position)
        return done >= 0 and cython.cast(cython.ulonglong, done) == length
