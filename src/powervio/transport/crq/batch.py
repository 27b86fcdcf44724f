# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Many requests of one queue served with few calls of the hypervisor (`virtio/batch.py`).

* Headers that lie near each other at the client come in one copy, gaps included; those that came with the descriptors
  (`RingShadow`) cost nothing more.
* Data of several requests goes by redirected DMA together: one H_PUT_RTCE for all pages that follow one another, or one
  H_PUT_RTCE_INDIRECT, an engine operation for all requests, one H_REMOVE_RTCE. A page that two requests share, backings
  that look at bytes, and few pages are copied instead, and so is everything when anything stands in the way.
* Status bytes that lie side by side go in one copy.
* Whole requests, which frames are, are read and written through the bounce area: those that lie near each other in one
  copy. What is between two that are read comes along. Between two that are written may be only what is the device's to
  write, the unused end of a buffer that the next one follows at once: zeros go there.

A client that wants this lays its small buffers out side by side and maps its data in turn, as `drivers/block_core.py`
and `vio/dma.py` do; it is not obliged to.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Any

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
from powervio.memory.abstract import Backing, Payload
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

    # -- whole requests

    def read(self, payloads: Sequence[Payload]) -> list[bytes | None]:
        """See `Batch`."""
        wanted: list[tuple[int, int, int, int]] = []
        whole: list[bytes | None] = [b""] * len(payloads)
        several: dict[int, list[bytes | None]] = {}
        for number, payload in enumerate(payloads):
            try:
                pieces = payload.pieces(0, payload.length)  # type: ignore[attr-defined]
            except RemoteError:
                whole[number] = None
                continue
            if payload.length > BOUNCE_SIZE:
                whole[number] = self._read_alone(payload)
            elif len(pieces) == 1:
                wanted.append((pieces[0][0], pieces[0][1], number, -1))
            else:
                several[number] = [None] * len(pieces)
                wanted += [(address, length, number, place) for place, (address, length) in enumerate(pieces)]
        wanted.sort()
        begin = 0
        for end in range(1, len(wanted) + 1):
            if end < len(wanted):
                last = wanted[end - 1][0] + wanted[end - 1][1]
                if wanted[end][0] - last <= _GAP and _span(wanted, begin, end + 1) <= BOUNCE_SIZE:
                    continue
            self._read_span(wanted, begin, end, whole, several)
            begin = end
        for number, found in several.items():
            parts = [part for part in found if part is not None]
            whole[number] = b"".join(parts) if len(parts) == len(found) else None
        return whole

    @cython.cfunc
    def _read_alone(self, payload: Any) -> Any:
        try:
            return payload.read(0, payload.length)
        except RemoteError:
            return None

    @cython.cfunc
    def _read_span(self, wanted: list[Any], begin: int, end: int, whole: list[Any], several: dict[int, Any]) -> object:
        window: RemoteWindow = self._window
        start: int = wanted[begin][0]
        try:
            window.copy_in(start, _span(wanted, begin, end), window.bounce.ioba)
        except RemoteError:
            if end - begin > 1:  # one of them, or what is between, is not mapped
                for number in range(begin, end):
                    self._read_span(wanted, number, number + 1, whole, several)
            elif wanted[begin][3] < 0:
                whole[wanted[begin][2]] = None
            return None
        view = window.bounce.view
        for address, length, number, place in wanted[begin:end]:
            data = bytes(view[address - start : address - start + length])
            if place < 0:
                whole[number] = data
            else:
                several[number][place] = data
        return None

    def write(self, parts: Sequence[tuple[Payload, int, bytes | memoryview]]) -> list[bool]:
        """See `Batch`."""
        written = [True] * len(parts)
        pieces: list[tuple[int, int, int, int, int]] = []
        for number, (payload, offset, data) in enumerate(parts):
            length = len(data)
            try:
                found = payload.pieces(offset, length)  # type: ignore[attr-defined]
            except RemoteError:
                written[number] = False
                continue
            if length > BOUNCE_SIZE:
                written[number] = self._write_alone(payload, offset, data)
                continue
            at = 0
            for address, size in found:
                pieces.append((address, size, number, at, _room(payload, address, size)))
                at += size
        pieces.sort()
        begin = 0
        for end in range(1, len(pieces) + 1):
            if end < len(pieces):
                last, size, _, _, room = pieces[end - 1]
                # nothing overlaps, else the driver is to blame; it is written in some order
                follows = last + size <= pieces[end][0] <= last + room and pieces[end][0] - last - size <= _GAP
                if follows and _span(pieces, begin, end + 1) <= BOUNCE_SIZE:
                    continue
            self._write_span(pieces, begin, end, parts, written)
            begin = end
        return written

    @cython.cfunc
    def _write_alone(self, payload: Any, offset: int, data: Any) -> cython.bint:
        try:
            payload.write(offset, bytes(data))
        except RemoteError:
            return False
        return True

    @cython.cfunc
    def _write_span(self, pieces: list[Any], begin: int, end: int, parts: Any, written: list[bool]) -> object:
        window: RemoteWindow = self._window
        start: int = pieces[begin][0]
        view = window.bounce.view
        reached: int = start
        for address, size, number, at, _ in pieces[begin:end]:
            if address > reached:
                view[reached - start : address - start] = bytes(address - reached)
            reached = address + size
            data = parts[number][2]
            view[address - start : reached - start] = data if len(data) == size else memoryview(data)[at : at + size]
        try:
            window.copy_out(start, reached - start, window.bounce.ioba)
        except RemoteError:
            if end - begin == 1:
                written[pieces[begin][2]] = False
                return None
            for number in range(begin, end):
                self._write_span(pieces, number, number + 1, parts, written)
        return None

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
def _span(pieces: list[Any], begin: int, end: int) -> Any:
    """Bytes from the first byte of a piece to the last of another; they are in the order of their addresses."""
    return pieces[end - 1][0] + pieces[end - 1][1] - pieces[begin][0]


@cython.cfunc
def _room(payload: Any, address: int, size: int) -> Any:
    """Bytes that are the device's to write from `address` on, up to the end of the segment that it is in."""
    for start, length in payload.segments:
        if start <= address < start + length:
            return start + length - address
    return size


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
