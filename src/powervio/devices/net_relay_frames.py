# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The frames of one turn of a relay (`net_relay`): taken of a transmit queue, and brought where one can look at them.

All small frames and the beginnings of large ones are brought together, into the staging memory of the server.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import address_of, bytes_at, copy, ld32, ld64, pointer, st32, st64
from cython.cimports.powervio.virtio.device_queue import DeviceQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.staging import Staging

_ROWS = cython.declare(cython.uint, 64)
"""Frames that are taken together."""
_TURN_BYTES = cython.declare(cython.ulonglong, 512 * 1024)
_SEGMENTS = cython.declare(cython.uint, 1024)
"""Segments of their buffers, together, at most; what needs more is not usual."""
_WHOLE = cython.declare(cython.ulonglong, 4096)
"""Bytes of a frame, with its header, up to which all of it is staged: another copy would cost more."""
_FIRST = cython.declare(cython.ulonglong, 268)
"""Bytes of others that are: enough to find all headers in (`net_frame.LOOK`)."""
_GAP = cython.declare(cython.ulonglong, 128)
"""Bytes between two frames that are brought along rather than beginning another copy."""
_MARGIN = cython.declare(cython.ulonglong, 64)
"""Bytes before the first frame, for a tag; those before others are the end of one that has gone on."""
_OVERHEAD = cython.declare(cython.ulonglong, 256)
"""More than a gap, and what is lost to alignment."""
_TAIL = cython.declare(cython.ulonglong, 68 * 1024)
"""Bytes at the end of the staging memory, for the rest of one large frame."""
_ETHERNET = cython.declare(cython.ulonglong, 14)
_LARGEST = cython.declare(cython.ulonglong, 65535 + 14 + 8)

# A row: u32 head, bytes of the frame with its header, number of its first segment, and of segments; u64 where it is
# staged; u32 state.
_ROW = cython.declare(cython.uint, 32)
_TOTAL = cython.declare(cython.uint, 4)
_BEGINS = cython.declare(cython.uint, 8)
_COUNT = cython.declare(cython.uint, 12)
_PLACE = cython.declare(cython.uint, 16)
_STATE = cython.declare(cython.uint, 24)
_STAGED = cython.declare(cython.uint, 0)
_APART = cython.declare(cython.uint, 1)
_UNREACHABLE = cython.declare(cython.uint, 2)


@cython.final
@cython.cclass
class RelayFrames:
    """Frames that were taken together, by their number (row)."""

    count: cython.uint
    base: cython.p_uchar
    _rows: cython.p_uchar
    _segments: cython.p_uchar
    _segment_count: cython.uint
    _requests: dict[int, Any]
    _queue: DeviceQueue
    _staging: Staging
    # The copy that is being made up.
    _open: cython.bint
    _from: cython.ulonglong
    _until: cython.ulonglong
    _to: cython.ulonglong
    _place: cython.ulonglong
    _failed: cython.bint
    _source: cython.uint
    _offset: cython.ulonglong
    _books: Any

    def __init__(self) -> None:
        """`base` is the staging memory, `count` says how many there are."""
        books = bytearray(32 * 64), bytearray(16 * 1024)
        self._rows = pointer(books[0])
        self._segments = pointer(books[1])
        self.base = self._rows
        self._books = books
        self.count = self._segment_count = 0
        self._requests = {}
        self._open = self._failed = False
        self._from = self._until = self._to = self._place = self._offset = 0
        self._source = 0

    def clear(self) -> None:
        """The turn is over."""
        self._requests.clear()

    @cython.cfunc
    @cython.exceptval(-1)
    def collect(self, queue: DeviceQueue, header_bytes: cython.ulonglong, link_up: cython.bint) -> cython.int:
        """Take what is there, up to a bound, of a transmit queue with `staging`; 0 when that was all.

        Raises `RemoteError` when the driver broke the ring; what was taken before is there.
        """
        ring: DeviceRing = queue.ring
        staged: cython.ulonglong = _MARGIN
        moved: cython.ulonglong = 0
        total: cython.ulonglong
        row: cython.ulonglong
        count: cython.uint
        self.count = self._segment_count = 0
        self._queue = queue
        self._staging = cython.cast(Staging, queue.staging)
        self.base = self._staging.base
        while self.count < _ROWS:
            if not queue.take_allowed():
                return 0
            row = _ROW * self.count
            total = ring.readable_bytes
            count = ring.segment_count
            st32(self._rows, row, ring.head)
            if (
                ring.writable_bytes
                or total < header_bytes + _ETHERNET
                or total > header_bytes + _LARGEST
                or not link_up
                or self._segment_count + count > _SEGMENTS
            ):
                st32(self._rows, row + _STATE, _APART)
                self._requests[self.count] = queue.request()
            else:
                st32(self._rows, row + _TOTAL, total)
                st32(self._rows, row + _BEGINS, self._segment_count)
                st32(self._rows, row + _COUNT, count)
                st32(self._rows, row + _STATE, _STAGED)
                copy(self._segments, 16 * self._segment_count, ring.chain, 0, 16 * count)
                self._segment_count += count
                staged += self._part_of(total) + _OVERHEAD
                moved += total
            self.count += 1
            if staged + _WHOLE + _OVERHEAD + _TAIL > self._staging.size or moved >= _TURN_BYTES:
                return 1
        return 1

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _part_of(self, total: cython.ulonglong) -> cython.ulonglong:
        """Bytes of a frame that are staged."""
        return total if total <= _WHOLE else _FIRST

    @cython.cfunc
    def request(self, row: cython.uint) -> Any:
        """A row as an object."""
        begins: cython.uint
        request: Any = self._requests.pop(row, None)
        if request is not None:
            return request
        begins = ld32(self._rows, _ROW * row + _BEGINS)
        readable = [
            (ld64(self._segments, 16 * number), ld64(self._segments, 16 * number + 8))
            for number in range(begins, begins + ld32(self._rows, _ROW * row + _COUNT))
        ]
        return self._queue.request_of(ld32(self._rows, _ROW * row), readable, [])

    @cython.cfunc
    @cython.exceptval(check=False)
    def state(self, row: cython.uint) -> cython.uint:
        """STAGED; APART: not as usual; UNREACHABLE: it is not where the driver says."""
        return ld32(self._rows, _ROW * row + _STATE)

    @cython.cfunc
    @cython.exceptval(check=False)
    def set_apart(self, row: cython.uint) -> cython.void:
        """A row that is staged is not as usual."""
        st32(self._rows, _ROW * row + _STATE, _APART)

    @cython.cfunc
    @cython.exceptval(check=False)
    def head(self, row: cython.uint) -> cython.uint:
        """The buffer of a row."""
        return ld32(self._rows, _ROW * row)

    @cython.cfunc
    @cython.exceptval(check=False)
    def total(self, row: cython.uint) -> cython.ulonglong:
        """Bytes of a frame with its header."""
        return ld32(self._rows, _ROW * row + _TOTAL)

    @cython.cfunc
    @cython.exceptval(check=False)
    def place(self, row: cython.uint) -> cython.ulonglong:
        """Where in the staging memory a frame with its header begins."""
        return ld64(self._rows, _ROW * row + _PLACE)

    @cython.cfunc
    @cython.exceptval(check=False)
    def staged(self, row: cython.uint) -> cython.ulonglong:
        """Bytes of it that are there."""
        return self._part_of(ld32(self._rows, _ROW * row + _TOTAL))

    @cython.cfunc
    def whole(self, row: cython.uint, begins: cython.ulonglong, have: cython.ulonglong) -> Any:
        """A frame of which `have` bytes begin at `begins` now; None when the driver's memory is not there any more."""
        total: cython.ulonglong = ld32(self._rows, _ROW * row + _TOTAL)
        staged: cython.ulonglong = self._part_of(total)
        place: cython.ulonglong = self._staging.size - _TAIL
        data: bytes = bytes_at(address_of(self.base, begins), have)
        if total != staged:
            if not self._bring_bytes(row, staged, total - staged, place):
                return None
            data += bytes_at(address_of(self.base, place), total - staged)
        return data

    # -- to the staging memory

    @cython.cfunc
    @cython.exceptval(-1)
    def bring(self, first: cython.uint) -> cython.int:
        """Stage rows from `first` on: those that lie near each other in one copy, gaps included."""
        row: cython.uint
        self._open = self._failed = False
        self._place = _MARGIN
        for row in range(first, self.count):
            if ld32(self._rows, _ROW * row + _STATE) == _STAGED:
                self._bring_row(row)
        self._close()
        if self._failed:
            for row in range(first, self.count):
                if ld32(self._rows, _ROW * row + _STATE) == _STAGED:
                    self._bring_alone(row)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_row(self, row: cython.uint) -> cython.int:
        """Have a row be part of the next copies."""
        left: cython.ulonglong = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))
        number: cython.uint = ld32(self._rows, _ROW * row + _BEGINS)
        address: cython.ulonglong
        part: cython.ulonglong
        gap: cython.ulonglong = _GAP
        begins: cython.bint = True
        while left:
            address = ld64(self._segments, 16 * number)
            part = ld64(self._segments, 16 * number + 8)
            if part > left:
                part = left
            if not self._open or address < self._until or address - self._until > gap:
                self._close()
                if begins:
                    self._place = (self._place + 63) & ~cython.cast(cython.ulonglong, 63)
                self._open = True
                self._from = address
                self._to = self._place
            else:
                self._place += address - self._until
            if begins:
                begins = False
                gap = 0  # all of a row is in one piece
                st64(self._rows, _ROW * row + _PLACE, self._place)
            self._until = address + part
            self._place += part
            left -= part
            number += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _close(self) -> cython.int:
        """Make the copy."""
        if self._open:
            self._open = False
            if not self._staging.bring(self._from, self._until - self._from, self._to):
                self._failed = True
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_alone(self, row: cython.uint) -> cython.int:
        """Stage a row where it has its place, after a copy of several had failed."""
        left: cython.ulonglong = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))
        if not self._bring_bytes(row, 0, left, ld64(self._rows, _ROW * row + _PLACE)):
            st32(self._rows, _ROW * row + _STATE, _UNREACHABLE)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_bytes(
        self, row: cython.uint, offset: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong
    ) -> cython.int:
        """Copy bytes of a row to a place; 0 when they are not there."""
        number: cython.uint = ld32(self._rows, _ROW * row + _BEGINS)
        size: cython.ulonglong
        while length:
            size = ld64(self._segments, 16 * number + 8)
            if offset >= size:
                offset -= size
            else:
                size -= offset
                if size > length:
                    size = length
                if not self._staging.bring(ld64(self._segments, 16 * number) + offset, size, place):
                    return 0
                place += size
                length -= size
                offset = 0
            number += 1
        return 1

    # -- from client to client

    @cython.cfunc
    @cython.exceptval(check=False)
    def begin_rest(self, row: cython.uint) -> cython.void:
        """What of a frame is not staged is `pass_rest`'s next."""
        self._source = ld32(self._rows, _ROW * row + _BEGINS)
        self._offset = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))

    @cython.cfunc
    @cython.exceptval(-1)
    def pass_rest(self, there: Staging, address: cython.ulonglong, length: cython.ulonglong) -> cython.int:
        """Copy the next bytes to another client's memory; 0 when either is not there."""
        size: cython.ulonglong
        while length:
            size = ld64(self._segments, 16 * self._source + 8)
            while self._offset >= size:
                self._offset -= size
                self._source += 1
                size = ld64(self._segments, 16 * self._source + 8)
            size -= self._offset
            if size > length:
                size = length
            if not self._staging.pass_on(ld64(self._segments, 16 * self._source) + self._offset, size, there, address):
                return 0
            self._offset += size
            address += size
            length -= size
        return 1
