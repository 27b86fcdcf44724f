# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Requests of one queue that are served together, as rows of arrays: no object for any of them that is as usual.

A device fills a table from its queue, has the transport's `Batch` fetch the headers, decides row by row what there is
to do, and lets the batch move the data and store the status bytes; then the rows are completed. A row that is not as
usual becomes a `Request` and is handled by itself, in its place.

Arrays are indexed by row and in host byte order; their memory is the table's own.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import copy, ld8, ld32, ld64, pointer, st8, st32, st64
from cython.cimports.powervio.virtio.device_queue import DeviceQueue, Request
from cython.cimports.powervio.virtio.device_ring import DeviceRing

ROWS = 128
"""Requests of a table, at most."""

_ROWS = cython.declare(cython.uint, ROWS)
_SIZES = (4, 4, 4, 4, 8, 8, 16, 1, 1, 8, 4, 8, 4, 1, 1, 4, 16, 64, 64)
"""Bytes for each row in the arrays, in the order of `RequestTable.__init__`."""
_HEADERS = 6
_SEGMENTS = 17

# Whether the header of a row is there.
TOO_SHORT = cython.declare(cython.uint, 0)
PRESENT = cython.declare(cython.uint, 1)
UNREACHABLE = cython.declare(cython.uint, 2)

# What there is to do for a row; OTHER is for the device to handle by itself.
OTHER = cython.declare(cython.uint, 0)
FILL = cython.declare(cython.uint, 1)
DRAIN = cython.declare(cython.uint, 2)

NO_MEMORY = cython.declare(cython.uint, 0x10000)
"""A result: the driver's memory cannot be reached. Others are 0 and errnos of the backing."""


@cython.final
@cython.cclass
class RequestTable:
    """Up to 128 requests of one queue."""

    count: cython.uint
    queue: DeviceQueue | None
    heads: cython.p_uchar
    first_segments: cython.p_uchar
    readable_counts: cython.p_uchar
    segment_counts: cython.p_uchar
    readable_bytes: cython.p_uchar
    writable_bytes: cython.p_uchar
    headers: cython.p_uchar
    presence: cython.p_uchar
    kinds: cython.p_uchar
    positions: cython.p_uchar
    offsets: cython.p_uchar
    lengths: cython.p_uchar
    results: cython.p_uchar
    statuses: cython.p_uchar
    stored: cython.p_uchar
    moves: cython.p_uchar
    order: cython.p_uchar
    segments: cython.p_uchar
    pieces: cython.p_uchar
    _books: list[bytearray]
    _segment_count: cython.uint
    _segment_room: cython.uint

    def __init__(self) -> None:
        self.count = 0
        self.queue = None
        self._books = [bytearray(128 * size) for size in _SIZES]
        book = iter(self._books)
        self.heads = pointer(next(book))
        """u32: what the ring calls the buffer."""
        self.first_segments = pointer(next(book))
        """u32: the number of the first of the row's segments in `segments`."""
        self.readable_counts = pointer(next(book))
        """u32: how many of the segments the device may read; they come first."""
        self.segment_counts = pointer(next(book))
        """u32."""
        self.readable_bytes = pointer(next(book))
        """u64."""
        self.writable_bytes = pointer(next(book))
        """u64."""
        self.headers = pointer(next(book))
        """16 bytes: the first readable ones, where `presence` says PRESENT."""
        self.presence = pointer(next(book))
        """u8."""
        self.kinds = pointer(next(book))
        """u8: OTHER; FILL: the backing is read and the driver's memory written; DRAIN: the other way round."""
        self.positions = pointer(next(book))
        """u64: of the data in the backing, bytes."""
        self.offsets = pointer(next(book))
        """u32: of the data in the writable (FILL) or readable (DRAIN) part, bytes."""
        self.lengths = pointer(next(book))
        """u64: of the data, bytes."""
        self.results = pointer(next(book))
        """u32: 0, an errno of the backing, or NO_MEMORY."""
        self.statuses = pointer(next(book))
        """u8: what is stored in the last writable byte."""
        self.stored = pointer(next(book))
        """u8: whether it was."""
        self.moves = pointer(next(book))
        """u32: the batch's own."""
        self.order = pointer(next(book))
        """16 bytes: the batch's own, not by row."""
        self.segments = pointer(next(book))
        """16 bytes: {u64 device address, u64 length}."""
        self.pieces = pointer(next(book))
        """The same, of one row's data, after `cut`."""
        self._segment_count = 0
        self._segment_room = 128 * 64 // 16

    # -- in and out

    @cython.ccall
    @cython.exceptval(-1)
    def fill(self, queue: DeviceQueue) -> cython.int:
        """Take what the queue has, as many as there is room for; how many there are.

        Raises `RemoteError` when the driver broke the ring; the rows before that are good.
        """
        self.queue = queue
        self.count = 0
        self._segment_count = 0
        while self.count < _ROWS and queue.take_allowed():
            self._append(queue.ring)
        return self.count

    @cython.cfunc
    @cython.exceptval(-1)
    def _append(self, ring: DeviceRing) -> cython.int:
        row: cython.ulonglong = self.count
        wanted: cython.uint = self._segment_count + ring.segment_count
        grown: bytearray
        if wanted > self._segment_room:
            self._segment_room = 2 * wanted
            grown = bytearray(16 * self._segment_room)
            copy(pointer(grown), 0, self.segments, 0, 16 * self._segment_count)
            self._books[_SEGMENTS] = grown
            self.segments = pointer(grown)
            grown = bytearray(16 * self._segment_room)
            self._books[_SEGMENTS + 1] = grown
            self.pieces = pointer(grown)
        copy(self.segments, 16 * self._segment_count, ring.chain, 0, 16 * ring.segment_count)
        st32(self.heads, 4 * row, ring.head)
        st32(self.first_segments, 4 * row, self._segment_count)
        st32(self.readable_counts, 4 * row, ring.readable_count)
        st32(self.segment_counts, 4 * row, ring.segment_count)
        st64(self.readable_bytes, 8 * row, ring.readable_bytes)
        st64(self.writable_bytes, 8 * row, ring.writable_bytes)
        st8(self.presence, row, TOO_SHORT)
        st8(self.kinds, row, OTHER)
        st8(self.stored, row, 0)
        st32(self.results, 4 * row, 0)
        self._segment_count = wanted
        self.count += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def give(self, row: cython.ulonglong, written: cython.uint) -> cython.int:
        """Complete a row, with `written` bytes from the first writable one on."""
        if self.queue is not None and self.queue.live:
            self.queue.ring.give(ld32(self.heads, 4 * row), written)
        return 0

    # -- where it is

    @cython.cfunc
    @cython.exceptval(check=False)
    def cut(self, row: cython.ulonglong) -> cython.uint:
        """Put the parts of segments that make up the data of a row into `pieces`; how many there are."""
        number: cython.ulonglong = ld32(self.first_segments, 4 * row)
        end: cython.ulonglong = number + ld32(self.segment_counts, 4 * row)
        middle: cython.ulonglong = number + ld32(self.readable_counts, 4 * row)
        offset: cython.ulonglong = ld32(self.offsets, 4 * row)
        left: cython.ulonglong = ld64(self.lengths, 8 * row)
        room: cython.ulonglong
        count: cython.uint = 0
        if ld8(self.kinds, row) == FILL:
            number = middle
        else:
            end = middle
        while number < end and left:
            room = ld64(self.segments, 16 * number + 8)
            if offset >= room:
                offset -= room
            else:
                room -= offset
                if left < room:
                    room = left
                st64(self.pieces, 16 * count, ld64(self.segments, 16 * number) + offset)
                st64(self.pieces, 16 * count + 8, room)
                offset = 0
                left -= room
                count += 1
            number += 1
        return count

    @cython.cfunc
    @cython.exceptval(check=False)
    def status_address(self, row: cython.ulonglong) -> cython.ulonglong:
        """The address of the last writable byte of a row that has one."""
        last: cython.ulonglong = ld32(self.first_segments, 4 * row) + ld32(self.segment_counts, 4 * row) - 1
        return ld64(self.segments, 16 * last) + ld64(self.segments, 16 * last + 8) - 1

    # -- as objects

    @cython.ccall
    def request(self, row: cython.ulonglong) -> Request:
        """A row as a request, to be completed by whoever handles it."""
        readable = self._segments_of(row, False)
        writable = self._segments_of(row, True)
        assert self.queue is not None
        return self.queue.request_of(ld32(self.heads, 4 * row), readable, writable)

    @cython.ccall
    def header(self, row: cython.ulonglong) -> Any:
        """What was fetched of a row's header as bytes; none if it is too short, None if it could not be reached."""
        if ld8(self.presence, row) == TOO_SHORT:
            return b""
        if ld8(self.presence, row) == UNREACHABLE:
            return None
        at = 16 * row
        return bytes(self._books[_HEADERS][at : at + 16])

    def keep_header(self, row: cython.ulonglong, header: bytes) -> None:
        """The 16 bytes of a row's header are these."""
        at = 16 * int(row)
        self._books[_HEADERS][at : at + 16] = header
        st8(self.presence, row, PRESENT)

    def charge(self, cost: int) -> None:
        """As `Request.charge`."""
        queue = self.queue
        if queue is not None and queue.allowance is not None:
            queue.allowance -= cost

    @cython.ccall
    def payload(self, row: cython.ulonglong, writable: cython.bint) -> Any:
        """The readable or the writable part of a row as a `Payload`."""
        assert self.queue is not None
        return self.queue.payload_of(self._segments_of(row, writable))

    @cython.cfunc
    def _segments_of(self, row: cython.ulonglong, writable: cython.bint) -> list[Any]:
        number: cython.ulonglong = ld32(self.first_segments, 4 * row)
        middle: cython.ulonglong = number + ld32(self.readable_counts, 4 * row)
        end: cython.ulonglong = number + ld32(self.segment_counts, 4 * row)
        if writable:
            number = middle
        else:
            end = middle
        found: list[Any] = []
        while number < end:
            found.append((ld64(self.segments, 16 * number), ld64(self.segments, 16 * number + 8)))
            number += 1
        return found


_spare: list[RequestTable] = []


def borrow() -> RequestTable:
    """A table for the length of one call; to be given back."""
    return _spare.pop() if _spare else RequestTable()


def give_back(table: RequestTable) -> None:
    """It is not used any more."""
    table.queue = None
    _spare.append(table)
