# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Media that loops move bytes to and from by themselves, without the interpreter lock.

A piece of memory is {u64 host address, u64 length}. A target does what is usual and says so; whatever is not, it leaves
to the `Backing` that it belongs to, whose methods know what a short read or a refused write means.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno

import cython
from cython.cimports.powervio.memory.hw import (
    file_end,
    is_in_memory,
    ld64,
    preadv,
    preadv_at_once,
    pwritev,
    pwritev_at_once,
)
from cython.cimports.powervio.memory.mapping import FileMapping

_PIECES = cython.declare(cython.uint, 1024)
"""Pieces of one preadv or pwritev (IOV_MAX of Linux)."""


@cython.cclass
class Target:
    """`read`, `write` and `move`: `count` pieces of together `length` bytes, at `position` of the medium, in bytes.

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

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def is_whole(self) -> cython.bint:
        """Whether the medium is as long as it was, or longer."""
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def move(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.bint:
        """As `read` or `write`, of one of many; they are done if `is_whole` was true before the first and after all."""
        return self.write(pieces, count, position, length) if writes else self.read(pieces, count, position, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def expect(self, position: cython.ulonglong) -> cython.void:
        """What is at this position will be read soon."""


_AT_ONCE = cython.declare(cython.int, 0)
_CACHED = cython.declare(cython.int, 1)
_LATER = cython.declare(cython.int, 2)

_AGAIN = cython.declare(cython.longlong, -errno.EAGAIN)
_UNSUPPORTED = cython.declare(cython.longlong, -errno.EOPNOTSUPP)
_LOST = cython.declare(cython.longlong, -errno.EIO)


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
    mapping: FileMapping
    mapped: cython.bint

    def __init__(
        self,
        fd: int,
        size: int,
        length: int,
        *,
        read_only: bool = False,
        alignment: int = 0,
        mapping: FileMapping | None = None,
    ) -> None:
        """`fd` is the owner's, who calls `release` before it is closed. `alignment`: 0 is none.

        With a `mapping` of the file data are copied from and to it: no call of the kernel, but what is not in memory is
        waited for. It is not used any more once something of the file was missing (`FileMapping`).
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
        self.mapping = mapping  # type: ignore[assignment]  # not looked at unless `mapped`
        self.mapped = mapping is not None
        """Whether the mapping is used."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def allows(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """Whether this may be moved here; what may not is the backing's to move or to refuse."""
        number: cython.uint
        if count > _PIECES or position > self.length or length > self.length - position:
            return False
        if self.alignment:
            if position & (self.alignment - 1):
                return False
            for number in range(count):
                if (ld64(pieces, 16 * number) | ld64(pieces, 16 * number + 8)) & (self.alignment - 1):
                    return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def is_whole(self) -> cython.bint:
        """See `Target`; if not, there may be no writes."""
        end: cython.longlong = file_end(self.fd)
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
        whole: cython.bint,
    ) -> cython.longlong:
        """Move what can be moved without waiting for a medium; it is allowed. Bytes, or a negative errno.

        `whole`: `is_whole` said so just now. If not, there are no writes, and nothing is moved through the mapping, in
        which the rest of a page behind the file's end reads as zeroes and takes what is written there.
        -EAGAIN: nothing at once; to be tried by a call that may wait (io_uring on `fd`, `read`, `write`).
        """
        done: cython.longlong
        way: cython.int = self._writing if writes else self._reading
        if whole and self.mapped and self.mapping.has(position, length):
            if self.mapping.move(writes, pieces, count, position):
                return cython.cast(cython.longlong, length)
            self.mapped = False
            if writes and not self.is_whole():
                return _LOST
        if way == _AT_ONCE:
            done = pwritev(self.fd, pieces, count, position) if writes else preadv(self.fd, pieces, count, position)
            if self.mapped and done == cython.cast(cython.longlong, length):
                self.mapping.learn(writes, self.fd, pieces, count, position, length)
            return done
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
    def read(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`."""
        if not self.allows(pieces, count, position, length):
            return False
        if self.mapped and self.mapping.has(position, length) and self._copy(False, pieces, count, position):
            return True
        return self._call(False, pieces, count, position, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`."""
        if self.read_only or not self.allows(pieces, count, position, length) or not self.is_whole():
            return False
        if self.mapped and self.mapping.has(position, length):
            if self._copy(True, pieces, count, position):
                return True
            if not self.is_whole():
                return False
        return self._call(True, pieces, count, position, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def move(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.bint:
        """See `Target`: the file's length, a call of the kernel, is asked for once for many."""
        if not self.allows(pieces, count, position, length) or (writes and self.read_only):
            return False
        if self.mapped and self.mapping.has(position, length):
            if self.mapping.move(writes, pieces, count, position):
                return True
            self.mapped = False
            if writes and not self.is_whole():
                return False
        return self._call(writes, pieces, count, position, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def expect(self, position: cython.ulonglong) -> cython.void:
        """See `Target`."""
        if self.mapped:
            self.mapping.expect(position)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _copy(
        self, writes: cython.bint, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong
    ) -> cython.bint:
        """Move through the mapping what it has, and look whether the file still had all of it then."""
        if self.mapping.move(writes, pieces, count, position):
            return self.is_whole()  # a write behind the end of the file does not make it longer
        self.mapped = False
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _call(
        self,
        writes: cython.bint,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.bint:
        """Move by descriptor."""
        done: cython.longlong = (
            pwritev(self.fd, pieces, count, position) if writes else preadv(self.fd, pieces, count, position)
        )
        if done < 0 or cython.cast(cython.ulonglong, done) != length:
            return False
        if self.mapped:
            self.mapping.learn(writes, self.fd, pieces, count, position, length)
        return True

    def forget(self, position: int, length: int) -> None:
        """There may be holes in this range from now on; called when they have been punched."""
        if self.mapping is not None:
            self.mapping.forget(position, length)

    def release(self) -> None:
        """The file is about to be closed."""
        self.fd = -1
        self.mapped = False
        self.mapping = None  # type: ignore[assignment]  # it has a descriptor of its own, and with it the image's lock
