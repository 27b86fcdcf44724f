"""One request of the block driver, and how it fails (virtio 1.4, 5.2.6)."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeAlias

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


class Slot:
    """Where a request keeps what is neither the caller's data nor the ring's; the slices are made once.

    The headers of all slots lie side by side, and so do their status bytes: a device that reaches them by remote copies
    reads the headers of many requests with one, and writes their status bytes with one.
    """

    __slots__ = ("answer", "base", "header", "id_at", "ranges", "segment_at", "status", "status_at", "view")

    def __init__(self, buffer: Buffer, number: int, count: int) -> None:
        """Number `number` of the `count` slots that are in `buffer`."""
        self.view = buffer.view
        self.base = number * _HEADER
        self.status_at = count * _HEADER + number
        self.segment_at = count * _HEADER + (count + 15 & ~15) + number * _REST
        self.id_at = self.segment_at + 16
        self.header: Place = ((buffer, self.base, _HEADER),)
        self.status: Place = ((buffer, self.status_at, 1),)
        self.ranges: Place = (*self.header, (buffer, self.segment_at, 16))
        self.answer: Place = ((buffer, self.id_at, _ID_BYTES), *self.status)

    def read_id(self) -> bytes:
        """What GET_ID answered."""
        return bytes(self.view[self.id_at : self.id_at + _ID_BYTES])


class BlockRequest:
    """One request to the device: at most what one virtio-blk request can carry.

    `slices` is the data: to be filled by a read, taken by a write. They are lent to the device from `submit` until
    `done`. `callback(request)` is called once, when it is done, in the partition's thread; it may submit others, and
    must not raise. `error` is None then, or what went wrong.
    """

    __slots__ = (
        "answer",
        "callback",
        "context",
        "done",
        "error",
        "flags",
        "kind",
        "length",
        "order",
        "position",
        "slices",
        "slot",
        "status",
        "withdrawn",
    )  # fmt: skip

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
        """`kind` is a T_ constant of `virtio.block`; `position` and `length` are bytes, multiples of 512."""
        self.kind = kind
        self.position = position
        self.length = length
        self.slices = slices
        self.flags = flags
        """Of a discard or write of zeroes: `SEGMENT_UNMAP` or 0."""
        self.callback = callback
        self.context = context
        """The caller's own."""
        self.done = False
        self.status = -1
        """The device's status byte; -1 when it never gave one."""
        self.error: BlockError | None = None
        self.answer = b""
        """What GET_ID returned, 20 bytes."""
        # From here on it is the driver's.
        self.order = -1
        self.slot: Slot | None = None
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
