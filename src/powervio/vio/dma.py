"""DMA mapping over TCE hcalls: from a partition's memory to addresses that its partner may use (papr-vio 10).

The window's I/O addresses are handed out in pages of 4 KiB; page 0 is never used, so that address 0 means nothing.
Streaming mappings last for one request; coherent memory is mapped once and stays.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from powervio.errors import LocalError
from powervio.papr.codes import Hcall, HcallError, ReturnCode
from powervio.papr.nodes import DmaWindow
from powervio.papr.port import HcallPort
from powervio.papr.tce import MULTI_TCE_LIMIT, TCE_ACCESS, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.vio.ranges import PageRange, RangeExhausted

_OFFSET_MASK = TCE_PAGE_SIZE - 1
_SWEEP_PAGES = 8192
"""I/O pages for streaming mappings, if the window has twice as many."""


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


class _Sweep:
    """I/O pages for streaming mappings, handed out in turn around a range.

    What is mapped at one time lies side by side then, and so does most of what is unmapped at one time: each is one
    call of the hypervisor, whatever order the requests of a batch ended in.
    """

    def __init__(self, first: int, pages: int) -> None:
        self.first = first
        self.end = first + pages
        self._busy = bytearray(pages)
        self._next = 0

    def allocate(self, pages: int) -> int:
        """The first page number of a run, or -1."""
        free = bytes(pages)
        place = self._busy.find(free, self._next)
        if place < 0:
            place = self._busy.find(free)
            if place < 0:
                return -1
        self._next = place + pages
        self._busy[place : place + pages] = b"\1" * pages
        return self.first + place

    @property
    def free_pages(self) -> int:
        """Pages that are not given out."""
        return self._busy.count(0)

    def free(self, start: int, pages: int) -> None:
        """Give back a run as it was allocated."""
        place = start - self.first
        self._busy[place : place + pages] = bytes(pages)


class DmaSpace:
    """The first pane of one adapter: maps pieces of the partition's memory into it."""

    def __init__(self, port: HcallPort, pages: PartitionPages, window: DmaWindow) -> None:
        self.liobn = window.liobn
        self._port = port
        self._pages = pages
        self._iobas = PageRange(1, (window.size >> TCE_PAGE_SHIFT) - 1, f"window {window.liobn:#x}")
        self._multi = True
        self._sweep: _Sweep | None = None
        self._planned: dict[int, list[int]] = {}
        """By first I/O page: the TCEs of pieces that `commit` is to map, in the order in which they were planned."""

    def map(self, address: int, length: int, access: int) -> int:
        """Map `length` bytes at a logical address for the partner; returns the I/O address of the first byte.

        Whole pages become visible: what shares a page with the piece is exposed too. Raises `RangeExhausted` when the
        window is full, `HcallError` when the hypervisor refuses.
        """
        first = address & ~_OFFSET_MASK
        pages = (address + length - first + _OFFSET_MASK) >> TCE_PAGE_SHIFT
        try:
            start = self._iobas.allocate(pages)
        except RangeExhausted:
            start = -1 if self._sweep is None else self._sweep.allocate(pages)
            if start < 0:
                raise
        tce = first | access
        try:
            self._put(start, list(range(tce, tce + (pages << TCE_PAGE_SHIFT), TCE_PAGE_SIZE)))
        except HcallError:
            self._free(start, pages)
            raise
        return start << TCE_PAGE_SHIFT | (address & _OFFSET_MASK)

    def plan(self, address: int, length: int, access: int) -> int:
        """As `map`, but the mapping is made by the next `commit`, together with others.

        Raises `RangeExhausted` when the window is full, and `LocalError` for no bytes and for what is not the
        partition's memory: found by `commit`, that would be in the way of all others.
        """
        first = address & ~_OFFSET_MASK
        pages = (address + length - first + _OFFSET_MASK) >> TCE_PAGE_SHIFT
        if pages < 1:
            raise LocalError(f"window {self.liobn:#x}: a run has one page at least, not {pages}")
        if first < 0 or first + (pages << TCE_PAGE_SHIFT) > len(self._pages.memory):
            raise LocalError(
                f"{length} bytes at {address:#x} are not in the partition's memory of {len(self._pages.memory)} bytes"
            )
        if self._sweep is None:
            self._sweep = self._reserve()
        start = self._sweep.allocate(pages)
        if start < 0:
            start = self._iobas.allocate(pages)
        tce = first | access
        self._planned[start] = [tce] if pages == 1 else list(range(tce, tce + (pages << TCE_PAGE_SHIFT), TCE_PAGE_SIZE))
        return start << TCE_PAGE_SHIFT | (address & _OFFSET_MASK)

    def _reserve(self) -> _Sweep:
        """Half of the free I/O pages for streaming mappings, or what there is of it in one run."""
        room = min(_SWEEP_PAGES, self._iobas.free_pages // 2)
        while room:
            try:
                return _Sweep(self._iobas.allocate(room), room)
            except RangeExhausted:
                room //= 2
        return _Sweep(0, 0)

    def commit(self) -> None:
        """Make the mappings that were planned: one call for each run of I/O pages.

        Raises `HcallError`; what is not mapped then is planned as before.
        """
        if not self._planned:
            return
        planned, self._planned = self._planned, {}
        begin = end = -1
        entries: list[int] = []
        try:
            for start, tces in planned.items():
                if start != end:
                    self._put(begin, entries)
                    begin, entries = start, []
                entries += tces
                end = start + len(tces)
            self._put(begin, entries)
        except HcallError:
            starts = list(planned)
            self._planned = {start: planned[start] for start in starts[starts.index(begin) :]}
            raise

    def unmap_all(self, mappings: list[tuple[int, int]]) -> None:
        """Take mappings (I/O address and length of each) away together, also such as were only planned.

        Raises `HcallError`; `mappings` are those then that are still there.
        """
        runs: list[tuple[int, int]] = []
        for ioba, length in mappings:
            start = ioba >> TCE_PAGE_SHIFT
            pages = ((ioba & _OFFSET_MASK) + length + _OFFSET_MASK) >> TCE_PAGE_SHIFT
            if self._planned.pop(start, None) is None:
                runs.append((start, pages))
            else:
                self._free(start, pages)
        if len(runs) > 1:
            runs.sort()
        begin = end = 0
        try:
            for start, pages in runs:
                if start != end:
                    if end:
                        self._clear(begin << TCE_PAGE_SHIFT, end - begin)
                    begin = start
                end = start + pages
            if end:
                self._clear(begin << TCE_PAGE_SHIFT, end - begin)
        except HcallError:
            mappings[:] = [
                (start << TCE_PAGE_SHIFT, pages << TCE_PAGE_SHIFT) for start, pages in runs if start >= begin
            ]
            for start, pages in runs:
                if start < begin:
                    self._free(start, pages)
            raise
        for start, pages in runs:
            self._free(start, pages)

    @property
    def free_pages(self) -> int:
        """I/O pages that nothing is mapped at, nor planned to be."""
        return self._iobas.free_pages + (0 if self._sweep is None else self._sweep.free_pages)

    def _free(self, start: int, pages: int) -> None:
        if self._sweep is not None and self._sweep.first <= start < self._sweep.end:
            self._sweep.free(start, pages)
        else:
            self._iobas.free(start, pages)

    def unmap(self, ioba: int, length: int) -> None:
        """Take a mapping away; the partner reaches nothing there afterwards. Raises `HcallError`."""
        first = ioba & ~_OFFSET_MASK
        pages = (ioba + length - first + _OFFSET_MASK) >> TCE_PAGE_SHIFT
        self._clear(first, pages)
        self._free(first >> TCE_PAGE_SHIFT, pages)

    def wipe(self, size: int) -> None:
        """Clear the whole window of `size` bytes, before anything is mapped: an earlier life may have left mappings."""
        self._clear(0, size >> TCE_PAGE_SHIFT)

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

    @property
    def gone(self) -> bool:
        """Whether the adapter was unplugged: its window ceased to be, with everything that was mapped in it."""
        nodes = list(self._port.nodes.values())
        return not any(window.liobn == self.liobn for node in nodes for window in node.windows)

    def release(self, memory: DmaMemory) -> None:
        """Unmap and free what `allocate` returned."""
        self.unmap(memory.ioba, len(memory.view))
        self._pages.free(memory.address, len(memory.view))

    def _put(self, start: int, tces: list[int]) -> None:
        if not tces:
            return
        ioba = start << TCE_PAGE_SHIFT
        if len(tces) == 1:
            code, call = self._port.put_tce(self.liobn, ioba, tces[0]), Hcall.H_PUT_TCE
        else:
            code, call = self._put_many(ioba, tces), Hcall.H_PUT_TCE_INDIRECT
        if code:
            self._clear(ioba, len(tces))
            raise HcallError(call, code)

    def _put_many(self, ioba: int, tces: Sequence[int]) -> int:
        list_address = self._pages.list_address
        for begin in range(0, len(tces), MULTI_TCE_LIMIT):
            entries = tces[begin : begin + MULTI_TCE_LIMIT]
            count = len(entries)
            code: int = ReturnCode.H_FUNCTION
            if self._multi:
                struct.pack_into(f">{count}Q", self._pages.memory, list_address, *entries)
                code = self._port.put_tce_indirect(self.liobn, ioba, list_address, count)
            if code == ReturnCode.H_FUNCTION:
                # a platform without hcall-multi-tce: one call for each page
                self._multi = False
                for page, tce in enumerate(entries):
                    code = self._port.put_tce(self.liobn, ioba + (page << TCE_PAGE_SHIFT), tce)
                    if code:
                        return code
            elif code:
                return code
            ioba += count << TCE_PAGE_SHIFT
        return ReturnCode.H_SUCCESS

    def _clear(self, ioba: int, pages: int) -> None:
        port = self._port
        if pages == 1:
            code = port.put_tce(self.liobn, ioba, 0)
            if code and not self.gone:
                raise HcallError(Hcall.H_PUT_TCE, code)
            return
        while pages:
            count = min(pages, MULTI_TCE_LIMIT)
            code = port.stuff_tce(self.liobn, ioba, 0, count)
            if code == ReturnCode.H_FUNCTION:
                code = max(port.put_tce(self.liobn, ioba + (page << TCE_PAGE_SHIFT), 0) for page in range(count))
            if code and not self.gone:
                raise HcallError(Hcall.H_STUFF_TCE, code)
            ioba += count << TCE_PAGE_SHIFT
            pages -= count
