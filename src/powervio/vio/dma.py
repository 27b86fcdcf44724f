# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""DMA mapping over TCE hcalls: from a partition's memory to addresses that its partner may use (papr-vio 10).

The window's I/O addresses are handed out in pages of 4 KiB; page 0 is never used, so that address 0 means nothing.
Coherent memory is mapped once and stays. Streaming mappings last for one request: they are planned one by one, and made
and taken away many together.

Streaming mappings have a range of I/O pages of their own, the *sweep*, which are handed out in turn. So what is mapped
at one time lies side by side, and so does most of what is unmapped at one time: each is one call of the hypervisor,
whatever order the requests of a batch ended in.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import at, be64, copy, ld8, ld64, pointer, st8, st64

from powervio.errors import LocalError
from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.papr.nodes import DmaWindow
from powervio.papr.port import HcallPort
from powervio.papr.tce import MULTI_TCE_LIMIT, TCE_ACCESS, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.vio.ranges import PageRange, RangeExhausted

_SHIFT = cython.declare(cython.int, TCE_PAGE_SHIFT)
_PAGE = cython.declare(cython.ulonglong, TCE_PAGE_SIZE)
_OFFSET = cython.declare(cython.ulonglong, TCE_PAGE_SIZE - 1)
_LIST_LIMIT = cython.declare(cython.ulonglong, MULTI_TCE_LIMIT)
_H_FUNCTION = cython.declare(cython.int, int(ReturnCode.H_FUNCTION))
_SWEEP_PAGES = 8192
"""I/O pages for streaming mappings, if the window has twice as many."""

# Whose an I/O page of the sweep is: nobody's, that of a piece that is to be mapped, that of one that is mapped.
_FREE = cython.declare(cython.uint, 0)
_PLANNED = cython.declare(cython.uint, 1)
_MAPPED = cython.declare(cython.uint, 2)


@dataclass(slots=True)
class DmaMemory:
    """Memory of the partition that stays mapped for reading and writing by the partner."""

    address: int
    """Logical address."""
    ioba: int
    """I/O bus address in the adapter's first pane."""
    view: memoryview
    """The bytes."""

    @property
    def pages(self) -> int:
        """Pages of 4 KiB that it takes."""
        return -(-len(self.view) // TCE_PAGE_SIZE)


class PartitionPages:
    """The free memory of a partition, in pages of 4 KiB; logical page 0 stays unused.

    What only lives for the length of a call is there once for all adapters of the partition, whose one thread makes one
    call at a time: the page for lists that the hypervisor is given, and pieces to `share`.
    """

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self.list_address = TCE_PAGE_SIZE
        """Logical address of the page for lists."""
        self._range = PageRange(2, len(memory) // TCE_PAGE_SIZE - 2, "partition memory")
        self._shared: dict[int, tuple[int, int]] = {}
        """By length: logical address, and how many share it."""

    def allocate(self, length: int) -> int:
        """The logical address of a page-aligned piece of zeroed memory. Raises `RangeExhausted`."""
        pages = -(-length // TCE_PAGE_SIZE)
        address = self._range.allocate(pages) << TCE_PAGE_SHIFT
        self.memory[address : address + pages * TCE_PAGE_SIZE] = bytes(pages * TCE_PAGE_SIZE)
        return address

    def free(self, address: int, length: int) -> None:
        """Give back what `allocate` returned for the same length."""
        self._range.free(address >> TCE_PAGE_SHIFT, -(-length // TCE_PAGE_SIZE))

    def share(self, length: int) -> int:
        """The logical address of the one piece of this length that whoever asks for it shares with all others.

        Raises `RangeExhausted`.
        """
        address, users = self._shared.get(length) or (self.allocate(length), 0)
        self._shared[length] = address, users + 1
        return address

    def unshare(self, length: int) -> None:
        """Give back what `share` returned for the same length; the last one to do so frees it."""
        address, users = self._shared.pop(length)
        if users > 1:
            self._shared[length] = address, users - 1
        else:
            self.free(address, length)

    @property
    def free_bytes(self) -> int:
        """Memory that is not allocated."""
        return self._range.free_pages * TCE_PAGE_SIZE


@cython.cclass
class DmaSpace:
    """The first pane of one adapter: maps pieces of the partition's memory into it."""

    liobn: cython.ulonglong
    left: cython.uint
    _port: HcallPort
    _pages: PartitionPages
    _iobas: PageRange
    _multi: cython.bint
    _ready: cython.bint
    _window_pages: cython.ulonglong
    _memory_pages: cython.longlong
    # The sweep: its pages, how many of them are free, where the next run is looked for, and the state of each.
    _first: cython.longlong
    _size: cython.longlong
    _unused: cython.longlong
    _next: cython.longlong
    _states: cython.p_uchar
    # What `commit` is to map, as it was planned: 16 bytes a page, its number and its TCE.
    _plan: cython.p_uchar
    _planned: cython.ulonglong
    _plan_room: cython.ulonglong
    # A bit for each page of the window, 0 but while pages are unmapped.
    _marks: cython.p_uchar
    _begin: cython.ulonglong
    _list: cython.p_uchar
    _views: dict[str, Any]

    def __init__(self, port: HcallPort, pages: PartitionPages, window: DmaWindow) -> None:
        nothing = bytearray(8)
        self.liobn = window.liobn
        self.left = 0
        """Of the runs that `unmap_runs` got, after it raised: how many are still mapped."""
        self._port = port
        self._pages = pages
        self._iobas = PageRange(1, (window.size >> TCE_PAGE_SHIFT) - 1, f"window {window.liobn:#x}")
        self._multi = True
        self._ready = False
        self._window_pages = window.size >> TCE_PAGE_SHIFT
        self._memory_pages = len(pages.memory) >> TCE_PAGE_SHIFT
        self._first = self._size = self._unused = self._next = 0
        self._planned = self._plan_room = self._begin = 0
        self._states = pointer(nothing)
        self._plan = pointer(nothing)
        self._marks = pointer(nothing)
        self._list = at(pointer(pages.memory), pages.list_address)
        self._views = {"memory": memoryview(pages.memory), "nothing": nothing}

    def map(self, address: int, length: int, access: int) -> int:
        """Map `length` bytes at a logical address for the partner; returns the I/O address of the first byte.

        Whole pages become visible: what shares a page with the piece is exposed too. Raises `RangeExhausted` when the
        window is full, `HcallError` when the hypervisor refuses.
        """
        offset: cython.ulonglong = address % TCE_PAGE_SIZE
        pages: cython.ulonglong = (offset + length + _OFFSET) >> _SHIFT
        tce: cython.ulonglong = address - offset | access
        start: cython.longlong
        try:
            start = self._iobas.allocate(pages)
        except RangeExhausted:
            start = self._take(pages, _MAPPED)
            if start < 0:
                raise
        entries = bytearray(16 * pages)
        plan: cython.p_uchar = pointer(entries)
        number: cython.ulonglong
        for number in range(pages):
            st64(plan, 16 * number + 8, tce + (number << _SHIFT))
        try:
            self._put(start << _SHIFT, plan, 0, pages)
        except HcallError:
            self._free(start, pages)
            raise
        return start << _SHIFT | offset

    @cython.ccall
    @cython.exceptval(-1)
    def plan(self, address: cython.longlong, length: cython.longlong, access: cython.uint) -> cython.longlong:
        """As `map`, but the mapping is made by the next `commit`, together with others.

        Raises `RangeExhausted` when the window is full, and `LocalError` for no bytes and for what is not the
        partition's memory: found by `commit`, that would be in the way of all others.
        """
        ioba: cython.longlong = self.plan_now(address, length, access)
        first: cython.longlong = address >> _SHIFT
        offset: cython.longlong = address & cython.cast(cython.longlong, _OFFSET)
        pages: cython.longlong = (offset + length + cython.cast(cython.longlong, _OFFSET)) >> _SHIFT
        if ioba >= 0:
            return ioba
        if pages < 1:
            raise LocalError(f"window {self.liobn:#x}: a run has one page at least, not {pages}")
        if first < 0 or first > self._memory_pages or pages > self._memory_pages - first:
            raise LocalError(
                f"{length} bytes at {address:#x} are not in the partition's memory of {len(self._pages.memory)} bytes"
            )
        if not self._ready:
            self._prepare()
        if self._planned + pages > self._plan_room:
            self._make_room(pages)
        ioba = self.plan_now(address, length, access)
        if ioba >= 0:
            return ioba
        return self._note(self._iobas.allocate(pages), pages, first, access) | offset

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def plan_now(self, address: cython.longlong, length: cython.longlong, access: cython.uint) -> cython.longlong:
        """As `plan`, for pieces that the sweep has pages for; -1, and nothing done, for all others."""
        first: cython.longlong = address >> _SHIFT
        offset: cython.longlong = address & cython.cast(cython.longlong, _OFFSET)
        pages: cython.longlong = (offset + length + cython.cast(cython.longlong, _OFFSET)) >> _SHIFT
        start: cython.longlong
        if pages < 1 or first < 0 or first > self._memory_pages or pages > self._memory_pages - first:
            return -1
        if self._planned + pages > self._plan_room:
            return -1
        start = self._take(pages, _PLANNED)
        if start < 0:
            return -1
        return self._note(start, pages, first, access) | offset

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _note(
        self, start: cython.longlong, pages: cython.longlong, first: cython.longlong, access: cython.uint
    ) -> cython.longlong:
        """The I/O pages from `start` on are to be mapped to those from `first` on; the I/O address of the first."""
        number: cython.longlong
        place: cython.ulonglong
        for number in range(pages):
            place = 16 * self._planned
            st64(self._plan, place, start + number)
            st64(self._plan, place + 8, (first + number) << _SHIFT | access)
            self._planned += 1
        return start << _SHIFT

    @cython.ccall
    def commit(self) -> cython.void:
        """Make the mappings that were planned: one call for each run of I/O pages.

        Raises `HcallError`; what is not mapped then is planned as before.
        """
        begin: cython.ulonglong = 0
        end: cython.ulonglong = 0
        page: cython.ulonglong
        try:
            while begin < self._planned:
                page = ld64(self._plan, 16 * begin)
                while end < self._planned and ld64(self._plan, 16 * end) == page + (end - begin):
                    end += 1
                self._put(page << _SHIFT, self._plan, begin, end - begin)
                self._set(page, end - begin, _MAPPED)
                begin = end
        finally:
            self._planned -= begin
            if self._planned != 0:
                copy(self._plan, 0, self._plan, 16 * begin, 16 * self._planned)

    def unmap_all(self, mappings: list[tuple[int, int]]) -> None:
        """Take mappings (I/O address and length of each) away together, also such as were only planned.

        Raises `HcallError`; `mappings` are those then that are still there.
        """
        count: cython.uint = len(mappings)
        number: cython.uint = 0
        array = bytearray(16 * count + 16)
        runs: cython.p_uchar = pointer(array)
        for ioba, length in mappings:
            st64(runs, 16 * number, ioba)
            st64(runs, 16 * number + 8, length)
            number += 1
        try:
            self.unmap_runs(runs, count)
        except HcallError:
            mappings.clear()
            for number in range(self.left):
                mappings.append((ld64(runs, 16 * number), ld64(runs, 16 * number + 8)))
            raise

    @cython.cfunc
    def unmap_runs(self, runs: cython.p_uchar, count: cython.uint) -> cython.void:
        """As `unmap_all`, for an array of 16-byte entries {u64 I/O address, u64 length}, which is changed.

        Raises `HcallError`; the first `left` entries are those then that are still mapped.
        """
        number: cython.uint
        kept: cython.uint = 0
        start: cython.ulonglong
        pages: cython.ulonglong
        low: cython.ulonglong = self._window_pages
        high: cython.ulonglong = 0
        if not self._ready:
            self._prepare()
        for number in range(count):
            start = _page_of(runs, number)
            pages = _pages_of(runs, number)
            if self._planned != 0 and self._unplan(start, pages):
                self._free(start, pages)
                continue
            self._mark(start, pages, True)
            if start < low:
                low = start
            if start + pages > high:
                high = start + pages
            copy(runs, 16 * kept, runs, 16 * number, 16)
            kept += 1
        try:
            self._clear_marked(low, high)
        except BaseException:
            self._settle(runs, kept, self._begin)
            raise
        self._settle(runs, kept, high)

    def unmap(self, ioba: int, length: int) -> None:
        """Take a mapping away; the partner reaches nothing there afterwards. Raises `HcallError`."""
        start: cython.ulonglong = ioba >> TCE_PAGE_SHIFT
        pages: cython.ulonglong = (ioba % TCE_PAGE_SIZE + length + TCE_PAGE_SIZE - 1) >> TCE_PAGE_SHIFT
        self._clear(start << _SHIFT, pages)
        self._free(start, pages)

    def wipe(self, size: int) -> None:
        """Clear the whole window of `size` bytes, before anything is mapped: an earlier life may have left mappings."""
        self._clear(0, size >> TCE_PAGE_SHIFT)

    @property
    def free_pages(self) -> int:
        """I/O pages that nothing is mapped at, nor planned to be."""
        free: int = self._iobas.free_pages
        return free + self._unused

    def allocate(self, length: int) -> DmaMemory:
        """Zeroed memory that stays mapped for reading and writing (coherent memory)."""
        address = self._pages.allocate(length)
        try:
            ioba = self.map(address, length, TCE_ACCESS)
        except Exception:
            self._pages.free(address, length)
            raise
        return DmaMemory(address, ioba, self._pages.memory[address : address + length])

    def share(self, length: int) -> DmaMemory:
        """As `allocate`, but of memory that all adapters of the partition share: see `PartitionPages`."""
        address = self._pages.share(length)
        try:
            ioba = self.map(address, length, TCE_ACCESS)
        except Exception:
            self._pages.unshare(length)
            raise
        return DmaMemory(address, ioba, self._pages.memory[address : address + length])

    def unshare(self, memory: DmaMemory) -> None:
        """Unmap and give back what `share` returned."""
        self.unmap(memory.ioba, len(memory.view))
        self._pages.unshare(len(memory.view))

    def release(self, memory: DmaMemory) -> None:
        """Unmap and free what `allocate` returned."""
        self.unmap(memory.ioba, len(memory.view))
        self._pages.free(memory.address, len(memory.view))

    @property
    def gone(self) -> bool:
        """Whether the adapter was unplugged: its window ceased to be, with everything that was mapped in it."""
        for node in list(self._port.nodes.values()):
            for window in node.windows:
                if window.liobn == self.liobn:
                    return False
        return True

    # -- the sweep

    @cython.cfunc
    def _prepare(self) -> cython.void:
        """Streaming begins: half of the free I/O pages are for it, or what there is of it in one run."""
        room: int = min(_SWEEP_PAGES, self._iobas.free_pages // 2)
        self._ready = True
        marks = bytearray((self._window_pages + 63) // 64 * 8)
        self._views["marks"] = marks
        self._marks = pointer(marks)
        while room:
            try:
                self._first = self._iobas.allocate(room)
            except RangeExhausted:
                room //= 2
                continue
            states = bytearray(room)
            self._views["states"] = states
            self._states = pointer(states)
            self._size = self._unused = room
            break

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self, pages: cython.longlong, state: cython.uint) -> cython.longlong:
        """The first page of a run of the sweep, or -1 when it has none."""
        place: cython.longlong = -1
        if pages <= self._unused:
            place = self._search(self._next, pages)
            if place < 0:
                place = self._search(0, pages)
        if place < 0:
            return -1
        self._next = place + pages
        self._unused -= pages
        self._set(self._first + place, pages, state)
        return self._first + place

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _search(self, place: cython.longlong, pages: cython.longlong) -> cython.longlong:
        found: cython.longlong = 0
        while place < self._size:
            if ld8(self._states, place) != _FREE:
                found = 0
            else:
                found += 1
                if found == pages:
                    return place + 1 - pages
            place += 1
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _set(self, start: cython.longlong, pages: cython.longlong, state: cython.uint) -> cython.void:
        """Say whose pages are; those outside the sweep have no state."""
        number: cython.longlong
        for number in range(start - self._first, start - self._first + pages):
            if 0 <= number < self._size:
                st8(self._states, number, state)

    @cython.cfunc
    def _free(self, start: cython.longlong, pages: cython.longlong) -> cython.void:
        if self._first <= start < self._first + self._size:
            self._set(start, pages, _FREE)
            self._unused += pages
        else:
            self._iobas.free(start, pages)

    # -- what is planned

    @cython.cfunc
    def _make_room(self, pages: cython.ulonglong) -> cython.void:
        room: cython.ulonglong = self._planned + pages + max(64, self._plan_room)
        array = bytearray(16 * room)
        plan: cython.p_uchar = pointer(array)
        copy(plan, 0, self._plan, 0, 16 * self._planned)
        self._views["plan"] = array
        self._plan = plan
        self._plan_room = room

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unplan(self, start: cython.longlong, pages: cython.ulonglong) -> cython.bint:
        """Do not map what was planned at these pages; False when nothing was."""
        place: cython.longlong = start - self._first
        number: cython.ulonglong = self._planned
        if 0 <= place < self._size and ld8(self._states, place) != _PLANNED:
            return False
        while number != 0:
            number -= 1
            if ld64(self._plan, 16 * number) == start:
                self._planned -= pages
                copy(self._plan, 16 * number, self._plan, 16 * (number + pages), 16 * (self._planned - number))
                return True
        return False

    # -- what is unmapped together

    @cython.cfunc
    @cython.exceptval(check=False)
    def _mark(self, start: cython.ulonglong, pages: cython.ulonglong, on: cython.bint) -> cython.void:
        page: cython.ulonglong
        word: cython.ulonglong
        place: cython.ulonglong
        bit: cython.ulonglong = 1
        for page in range(start, start + pages):
            place = page >> 6 << 3
            word = ld64(self._marks, place)
            st64(self._marks, place, word | bit << (page & 63) if on else word & ~(bit << (page & 63)))

    @cython.cfunc
    def _clear_marked(self, low: cython.ulonglong, high: cython.ulonglong) -> cython.void:
        """Unmap the pages that are marked from `low` to before `high`; `_begin` is the run where that failed."""
        page: cython.ulonglong = low
        end: cython.ulonglong = 0
        word: cython.ulonglong
        while page < high:
            word = ld64(self._marks, page >> 6 << 3) >> (page & 63)
            if word & 1 != 0:
                if page != end:
                    if end != 0:
                        self._clear(self._begin << _SHIFT, end - self._begin)
                    self._begin = page
                page += 1
                end = page
            elif word == 0:
                page = (page | 63) + 1
            else:
                page += 1
        if end != 0:
            self._clear(self._begin << _SHIFT, end - self._begin)

    @cython.cfunc
    def _settle(self, runs: cython.p_uchar, count: cython.uint, below: cython.ulonglong) -> cython.void:
        """Pages of runs before `below` are free; the others are `left`, in front of the array."""
        number: cython.uint
        start: cython.ulonglong
        pages: cython.ulonglong
        self.left = 0
        for number in range(count):
            start = _page_of(runs, number)
            pages = _pages_of(runs, number)
            self._mark(start, pages, False)
            if start < below:
                self._free(start, pages)
            else:
                copy(runs, 16 * self.left, runs, 16 * number, 16)
                self.left += 1

    # -- calls of the hypervisor

    @cython.cfunc
    def _put(
        self, ioba: cython.ulonglong, plan: cython.p_uchar, begin: cython.ulonglong, count: cython.ulonglong
    ) -> cython.void:
        """Map pages from `ioba` on, by `count` entries of `plan` from number `begin` on: all of them, or none."""
        code: cython.longlong
        if count == 1:
            code = self._port.put_tce(self.liobn, ioba, ld64(plan, 16 * begin + 8))
        else:
            code = self._put_many(ioba, plan, begin, count)
        if code != 0:
            self._clear(ioba, count)
            raise HcallError(Hcall.H_PUT_TCE if count == 1 else Hcall.H_PUT_TCE_INDIRECT, code)

    @cython.cfunc
    @cython.exceptval(-1)
    def _put_many(
        self, ioba: cython.ulonglong, plan: cython.p_uchar, begin: cython.ulonglong, count: cython.ulonglong
    ) -> cython.longlong:
        end: cython.ulonglong = begin + count
        number: cython.ulonglong
        code: cython.longlong
        while begin < end:
            count = min(end - begin, _LIST_LIMIT)
            code = _H_FUNCTION
            if self._multi:
                for number in range(count):
                    st64(self._list, 8 * number, be64(ld64(plan, 16 * (begin + number) + 8)))
                code = self._port.put_tce_indirect(self.liobn, ioba, self._pages.list_address, count)
            if code == _H_FUNCTION:
                # a platform without hcall-multi-tce: one call for each page
                self._multi = False
                for number in range(count):
                    code = self._port.put_tce(
                        self.liobn, ioba + (number << _SHIFT), ld64(plan, 16 * (begin + number) + 8)
                    )
                    if code != 0:
                        return code
            elif code != 0:
                return code
            ioba += count << _SHIFT
            begin += count
        return 0

    @cython.cfunc
    def _clear(self, ioba: cython.ulonglong, pages: cython.ulonglong) -> cython.void:
        count: cython.ulonglong
        number: cython.ulonglong
        code: cython.longlong
        other: cython.longlong
        if pages == 1:
            code = self._port.put_tce(self.liobn, ioba, 0)
            if code != 0 and not self.gone:
                raise HcallError(Hcall.H_PUT_TCE, code)
            return
        while pages != 0:
            count = min(pages, _LIST_LIMIT)
            code = self._port.stuff_tce(self.liobn, ioba, 0, count)
            if code == _H_FUNCTION:
                code = 0
                for number in range(count):
                    other = self._port.put_tce(self.liobn, ioba + (number << _SHIFT), 0)
                    code = other if other != 0 else code
            if code != 0 and not self.gone:
                raise HcallError(Hcall.H_STUFF_TCE, code)
            ioba += count << _SHIFT
            pages -= count


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _page_of(runs: cython.p_uchar, number: cython.uint) -> cython.ulonglong:
    """The first I/O page of an entry of `unmap_runs`."""
    return ld64(runs, 16 * number) >> _SHIFT


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _pages_of(runs: cython.p_uchar, number: cython.uint) -> cython.ulonglong:
    """How many I/O pages it is in."""
    return ((ld64(runs, 16 * number) & _OFFSET) + ld64(runs, 16 * number + 8) + _OFFSET) >> _SHIFT
