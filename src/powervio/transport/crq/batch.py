# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Many requests of one queue served with few calls of the hypervisor (`virtio/batch.py`).

* Headers that lie near each other at the client come in one copy, gaps included; those that came with the descriptors
  (`RingShadow`) cost nothing more.
* Data of several requests goes by redirected DMA together: one H_PUT_RTCE for all pages that follow one another, or one
  H_PUT_RTCE_INDIRECT, an engine operation for all requests, one H_REMOVE_RTCE. A page that two requests share, backings
  that look at bytes, and few pages are copied instead, and so is everything when anything stands in the way.
* Status bytes that lie side by side go in one copy.

A client that wants this lays its small buffers out side by side and maps its data in turn, as `drivers/block_core.py`
and `vio/dma.py` do; it is not obliged to.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno

import cython
from cython.cimports.powervio.memory.hw import address_of, copy, ld8, ld32, ld64, pointer, st8, st32, st64
from cython.cimports.powervio.memory.target import Target
from cython.cimports.powervio.transport.crq.page_list import MoveList
from cython.cimports.powervio.transport.crq.redirect import Redirector
from cython.cimports.powervio.transport.crq.remote import RemoteWindow
from cython.cimports.powervio.transport.crq.shadow import RingShadow
from cython.cimports.powervio.virtio.request_table import (
    FILL,
    NO_MEMORY,
    PRESENT,
    UNREACHABLE,
    RequestTable,
)

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing
from powervio.transport.crq.remote import BOUNCE_SIZE

REDIRECT_PAGES = 8
"""Pages from which on a group of transfers is redirected: three calls for all of it instead of one for each."""

_REDIRECT_PAGES = cython.declare(cython.uint, REDIRECT_PAGES)
_BOUNCE = cython.declare(cython.ulonglong, BOUNCE_SIZE)
_HEADER = cython.declare(cython.ulonglong, 16)
_GAP = 1024
"""Bytes between two pieces that are copied along rather than beginning another copy."""
_SPAN = 16 * 1024
"""Bytes of one copy of small pieces, at most."""
_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)

_spare: list[MoveList] = []
"""Lists are in use within one call only."""


@cython.final
@cython.cclass
class RdmaBatch:
    """For one queue of a client."""

    _window: RemoteWindow
    _shadow: RingShadow
    _redirector: Redirector | None
    _least: cython.ulonglong
    _piece: cython.p_uchar
    _book: bytearray

    def __init__(self, window: RemoteWindow, shadow: RingShadow, redirector: Redirector | None) -> None:
        self._window = window
        self._shadow = shadow
        self._redirector = redirector
        self._least = _LAST if redirector is None else redirector.least
        self._book = bytearray(16)
        self._piece = pointer(self._book)

    # -- small things in

    def fetch(self, table: RequestTable) -> None:
        """See `Batch`."""
        row: cython.ulonglong
        segment: cython.ulonglong
        address: cython.ulonglong
        place: cython.longlong
        wanted: list[tuple[int, int]] = []
        shadow: RingShadow = self._shadow
        live: cython.bint = table.queue is not None and table.queue.live
        for row in range(table.count):
            if ld64(table.readable_bytes, 8 * row) < _HEADER:
                continue
            if not live:
                st8(table.presence, row, UNREACHABLE)
                continue
            segment = 16 * cython.cast(cython.ulonglong, ld32(table.first_segments, 4 * row))
            if ld64(table.segments, segment + 8) < _HEADER:
                self._fetch_in_pieces(table, row)
                continue
            address = ld64(table.segments, segment)
            place = shadow.find(address, _HEADER)
            if place < 0:
                wanted.append((int(address), int(row)))
            else:
                copy(table.headers, _HEADER * row, shadow.base, place, _HEADER)
                st8(table.presence, row, PRESENT)
        if wanted:
            self._fetch_wanted(table, wanted)

    @cython.cfunc
    def _fetch_in_pieces(self, table: RequestTable, row: cython.ulonglong) -> cython.void:
        try:
            table.keep_header(row, table.payload(row, False).read(0, 16))
        except RemoteError:
            st8(table.presence, row, UNREACHABLE)

    @cython.cfunc
    def _fetch_wanted(self, table: RequestTable, wanted: list[tuple[int, int]]) -> cython.void:
        """Headers by address and row, in as few copies as it takes."""
        wanted.sort()
        begin = 0
        for number in range(1, len(wanted) + 1):
            if number < len(wanted):
                last, address = wanted[number - 1][0] + 16, wanted[number][0]
                if address - last <= _GAP and address + 16 - wanted[begin][0] <= _SPAN:
                    continue
            self._fetch_span(table, wanted[begin:number])
            begin = number

    @cython.cfunc
    def _fetch_span(self, table: RequestTable, wanted: list[tuple[int, int]]) -> cython.void:
        window: RemoteWindow = self._window
        start: cython.ulonglong = wanted[0][0]
        address: cython.ulonglong
        row: cython.ulonglong
        try:
            if len(wanted) == 1:
                table.keep_header(wanted[0][1], window.read(wanted[0][0], 16))
                return
            window.copy_in(start, wanted[len(wanted) - 1][0] + 16 - wanted[0][0], window.bounce.ioba)
        except RemoteError:
            if len(wanted) == 1:
                st8(table.presence, wanted[0][1], UNREACHABLE)
            else:  # one of them, or what is between, is not mapped
                for one in wanted:
                    self._fetch_span(table, [one])
            return
        for address, row in wanted:
            copy(table.headers, _HEADER * row, window.base, address - start, _HEADER)
            st8(table.presence, row, PRESENT)

    # -- data

    def move(self, table: RequestTable, first: cython.ulonglong, end: cython.ulonglong, backing: Backing) -> None:
        """See `Batch`."""
        row: cython.ulonglong
        group: MoveList
        added: cython.int
        begin: cython.ulonglong = first
        if self._redirector is None or not backing.vectored or end - first < 2:
            for row in range(first, end):
                self._alone(table, row, backing)
            return
        group = _spare.pop() if _spare else MoveList()
        group.clear()
        for row in range(first, end):
            st32(table.moves, 4 * row, 0)
            if table.queue is None or not table.queue.live or ld64(table.lengths, 8 * row) >= self._least:
                self._alone(table, row, backing)
                continue
            added = self._add(table, row, group)
            if added < 0:
                self._redirect(table, begin, row, group, backing)
                group.clear()
                begin = row
                added = self._add(table, row, group)
            if added == 0:
                self._alone(table, row, backing)
        self._redirect(table, begin, end, group, backing)
        _spare.append(group)

    @cython.cfunc
    @cython.exceptval(-2)
    def _add(self, table: RequestTable, row: cython.ulonglong, group: MoveList) -> cython.int:
        """Let a row be redirected with others; it is noted which move is its first, counted from 1."""
        number: cython.uint = group.move_count + 1
        added: cython.int = group.add(
            table.pieces, table.cut(row), ld64(table.positions, 8 * row), ld8(table.kinds, row) == FILL
        )
        if added > 0:
            st32(table.moves, 4 * row, number)
        return added

    @cython.cfunc
    def _redirect(
        self,
        table: RequestTable,
        first: cython.ulonglong,
        end: cython.ulonglong,
        group: MoveList,
        backing: Backing,
    ) -> cython.void:
        """Carry out the rows that are in a group."""
        row: cython.ulonglong
        number: cython.uint
        together: cython.bint = (
            self._redirector is not None
            and group.count >= _REDIRECT_PAGES
            and self._redirector.carry_out(group, backing)
        )
        for row in range(first, end):
            number = ld32(table.moves, 4 * row)
            if number == 0:
                continue
            if together:
                st32(table.results, 4 * row, group.result(number - 1))
            else:
                self._alone(table, row, backing)

    @cython.cfunc
    def _alone(self, table: RequestTable, row: cython.ulonglong, backing: Backing) -> cython.void:
        """Carry out one row by itself."""
        fills: cython.bint = ld8(table.kinds, row) == FILL
        length: cython.ulonglong = ld64(table.lengths, 8 * row)
        position: cython.ulonglong = ld64(table.positions, 8 * row)
        result: cython.uint = 0
        try:
            if length < self._least and length <= _BOUNCE and table.queue is not None and table.queue.live:
                self._copy(table, row, backing, position, length, fills)
            elif fills:
                table.payload(row, True).fill_from(backing, position, ld32(table.offsets, 4 * row), length)
            else:
                table.payload(row, False).drain_to(backing, position, ld32(table.offsets, 4 * row), length)
        except OSError as error:
            result = error.errno or errno.EIO
        except RemoteError:
            result = NO_MEMORY
        st32(table.results, 4 * row, result)

    @cython.cfunc
    def _copy(
        self,
        table: RequestTable,
        row: cython.ulonglong,
        backing: Backing,
        position: cython.ulonglong,
        length: cython.ulonglong,
        fills: cython.bint,
    ) -> cython.void:
        """By way of the bounce area, which is large enough."""
        window: RemoteWindow = self._window
        count: cython.uint = table.cut(row)
        number: cython.ulonglong
        local: cython.ulonglong = window.bounce.ioba
        part: cython.ulonglong
        if fills and not self._by_target(backing, position, length, True):
            backing.read_into(position, window.bounce.view[:length])
        for number in range(count):
            part = ld64(table.pieces, 16 * number + 8)
            if fills:
                window.copy_out(ld64(table.pieces, 16 * number), part, local)
            else:
                window.copy_in(ld64(table.pieces, 16 * number), part, local)
            local += part
        if not fills and not self._by_target(backing, position, length, False):
            backing.write_from(position, window.bounce.view[:length])

    @cython.cfunc
    @cython.exceptval(-1)
    def _by_target(
        self, backing: Backing, position: cython.ulonglong, length: cython.ulonglong, fills: cython.bint
    ) -> cython.int:
        """Between the bounce area and the backing, without the interpreter lock; 0 when the backing has to do it."""
        target: Target | None = backing.target
        done: cython.bint
        if target is None:
            return 0
        st64(self._piece, 0, address_of(self._window.base, 0))
        st64(self._piece, 8, length)
        with cython.nogil:
            if fills:
                done = target.read(self._piece, 1, position, length)
            else:
                done = target.write(self._piece, 1, position, length)
        return 1 if done else 0

    # -- small things out

    def store(self, table: RequestTable, first: cython.ulonglong, end: cython.ulonglong) -> None:
        """See `Batch`."""
        row: cython.ulonglong
        count: cython.uint = 0
        number: cython.uint
        begin: cython.uint = 0
        if table.queue is None or not table.queue.live:
            return
        for row in range(first, end):
            _insert(table.order, table.status_address(row), row, count)
            count += 1
        for number in range(1, count + 1):
            if number < count and ld64(table.order, 16 * number) == ld64(table.order, 16 * number - 16) + 1:
                continue
            self._store_run(table, begin, number)
            begin = number

    @cython.cfunc
    def _store_run(self, table: RequestTable, begin: cython.uint, end: cython.uint) -> cython.void:
        """These are side by side."""
        number: cython.uint
        data = bytearray(end - begin)
        place: cython.p_uchar = pointer(data)
        for number in range(begin, end):
            st8(place, number - begin, ld8(table.statuses, ld64(table.order, 16 * number + 8)))
        try:
            self._window.write(int(ld64(table.order, 16 * begin)), bytes(data))
        except RemoteError:
            if end - begin > 1:
                for number in range(begin, end):
                    self._store_run(table, number, number + 1)
            return
        for number in range(begin, end):
            st8(table.stored, ld64(table.order, 16 * number + 8), 1)


@cython.cfunc
@cython.exceptval(check=False)
def _insert(order: cython.p_uchar, address: cython.ulonglong, row: cython.ulonglong, count: cython.uint) -> cython.void:
    """Keep `count` entries {u64 address, u64 row} in the order of their addresses; they mostly come so."""
    place: cython.uint = count
    while place > 0 and ld64(order, 16 * place - 16) > address:
        copy(order, 16 * place, order, 16 * place - 16, 16)
        place -= 1
    st64(order, 16 * place, address)
    st64(order, 16 * place + 8, row)
