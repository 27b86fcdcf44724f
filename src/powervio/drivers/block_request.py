# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""One request of the block driver, and how it fails (virtio 1.4, 5.2.6).

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cython
from cython.cimports.powervio.memory.hw import be32, be64, le32, le64, pointer, st8, st32, st64

from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer, BufferSlice

KINDS = {
    blk.T_IN: "read",
    blk.T_OUT: "write",
    blk.T_FLUSH: "flush",
    blk.T_GET_ID: "get id",
    blk.T_DISCARD: "discard",
    blk.T_WRITE_ZEROES: "write zeroes",
    blk.T_SECURE_ERASE: "secure erase",
}
"""What each kind of request that the driver makes is called in messages."""
NOT_WRITTEN = 0xFF
"""What a status byte holds before the device writes it; no status of the standard."""

_HEADER = 16
_ID_BYTES = 20
_REST = 48
"""Bytes for the range of a discard or write of zeroes (16) and the answer of GET_ID (20), at a multiple of 16."""


def slot_bytes(count: int) -> int:
    """Memory for so many slots, in bytes."""
    return count * (_HEADER + _REST) + (count + 15 & ~15)


class BlockError(OSError):
    """A request that failed; `errno` says how, the text what was asked.

    EIO: the device reports an error. ENOTSUP: it does not know such a request. EROFS: the disk is read-only. EINVAL:
    outside the disk, not in whole sectors, or its memory cannot be given to the device. E2BIG: more slices than an
    empty queue holds. ECANCELED: withdrawn by the caller. ESHUTDOWN: the disk went away.
    """


Place: TypeAlias = tuple[BufferSlice, ...]


@cython.final
@cython.cclass
class Slot:
    """Where a request keeps what is neither the caller's data nor the ring's; the slices are made once.

    The headers of all slots lie side by side, and so do their status bytes: a device that reaches them by remote copies
    reads the headers of many requests with one, and writes their status bytes with one.
    """

    request: BlockRequest | None
    following: Slot | None
    view: memoryview
    header: Place
    status: Place
    ranges: Place
    answer: Place
    bytes_: cython.p_uchar
    base: cython.ulonglong
    status_at: cython.ulonglong
    segment_at: cython.ulonglong
    id_at: cython.ulonglong

    def __init__(self, buffer: Buffer, number: int, count: int) -> None:
        """Number `number` of the `count` slots that are in `buffer`."""
        self.request = None
        """Whose it is; None while it is free."""
        self.following = None
        """The next free one."""
        self.view = buffer.view
        self.bytes_ = pointer(buffer.view)
        self.base = number * _HEADER
        self.status_at = count * _HEADER + number
        self.segment_at = count * _HEADER + (count + 15 & ~15) + number * _REST
        self.id_at = self.segment_at + 16
        self.header = ((buffer, self.base, _HEADER),)
        self.status = ((buffer, self.status_at, 1),)
        self.ranges = (*self.header, (buffer, self.segment_at, 16))
        self.answer = ((buffer, self.id_at, _ID_BYTES), *self.status)

    @cython.cfunc
    def write_header(self, kind: cython.uint, sector: cython.ulonglong, big: cython.bint) -> cython.void:
        """The header of a request for the device (5.2.6), in big-endian order if `big`; its status is not written."""
        st32(self.bytes_, self.base, be32(kind) if big else le32(kind))
        st32(self.bytes_, self.base + 4, 0)
        st64(self.bytes_, self.base + 8, be64(sector) if big else le64(sector))
        st8(self.bytes_, self.status_at, NOT_WRITTEN)

    @cython.cfunc
    def write_range(
        self, sector: cython.ulonglong, sectors: cython.uint, flags: cython.uint, big: cython.bint
    ) -> cython.void:
        """What a discard or write of zeroes is about."""
        st64(self.bytes_, self.segment_at, be64(sector) if big else le64(sector))
        st32(self.bytes_, self.segment_at + 8, be32(sectors) if big else le32(sectors))
        st32(self.bytes_, self.segment_at + 12, be32(flags) if big else le32(flags))

    @cython.cfunc
    def read_id(self) -> bytes:
        """What GET_ID answered."""
        return bytes(self.view[self.id_at : self.id_at + _ID_BYTES])


@cython.freelist(64)
@cython.cclass
class BlockRequest:
    """One request to the device: at most what one virtio-blk request can carry.

    `slices` is the data: to be filled by a read, taken by a write. They are lent to the device from `submit` until
    `done`. `callback(request)` is called once, when it is done, in the partition's thread; it may submit others, and
    must not raise. `error` is None then, or what went wrong.
    """

    kind: cython.longlong
    position: cython.longlong
    length: cython.longlong
    slices: Sequence[BufferSlice]
    flags: cython.uint
    callback: Callable[[BlockRequest], None] | None
    context: Any
    done: cython.bint
    status: cython.int
    error: BlockError | None
    answer: bytes
    order: cython.longlong
    slot: Slot | None
    withdrawn: cython.bint

    def __init__(
        self,
        kind: int,
        position: int = 0,
        length: int = 0,
        slices: Sequence[BufferSlice] = (),
        callback: Callable[[BlockRequest], None] | None = None,
        *,
        flags: int = 0,
        context: object = None,
    ) -> None:
        """`kind` is a T_ constant of `virtio.block`; `position` and `length` are bytes, multiples of 512.

        Raises `BlockError` (EINVAL) for a place that no disk has.
        """
        try:
            self.kind = kind
            self.position = position
            self.length = length
        except OverflowError as error:
            raise BlockError(errno.EINVAL, f"no disk has {length} bytes at {position}") from error
        self.slices = slices
        self.flags = flags
        """Of a discard or write of zeroes: `SEGMENT_UNMAP` or 0."""
        self.callback = callback
        self.context = context
        """The caller's own."""
        self.done = False
        self.status = -1
        """The device's status byte; -1 when it never gave one."""
        self.error = None
        self.answer = b""
        """What GET_ID returned, 20 bytes."""
        # From here on it is the driver's.
        self.order = -1
        self.slot = None
        self.withdrawn = False

    def __str__(self) -> str:
        return f"{KINDS.get(self.kind, self.kind)} of {self.length} bytes at {self.position}"


def failure(request: BlockRequest, code: int, reason: str) -> BlockError:
    """The error of a request, with what was asked in its text."""
    return BlockError(code, f"{request}: {reason}")


def meaning(status: int) -> tuple[int, str]:
    """errno and words for a device's status byte."""
    if status == blk.S_IOERR:
        return errno.EIO, "the device reports an I/O error"
    if status == blk.S_UNSUPP:
        return errno.ENOTSUP, "the device does not support it"
    if status == NOT_WRITTEN:
        return errno.EIO, "the device gave it back without a status"
    return errno.EIO, f"the device gave the unknown status {status}"
