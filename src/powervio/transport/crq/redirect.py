# cython: language_level=3
"""Payloads moved by redirected DMA: the engine of a physical adapter, straight between medium and client memory.

For one piece of a request: H_PUT_RTCE (or its INDIRECT form) puts the client's pages into the adapter's table, the
engine moves the bytes, H_REMOVE_RTCE takes the pages out again, all before the request's used entry. Whatever stands
in the way, nothing has been moved by then, and `RdmaPayload` copies instead.

When it pays. Copying costs one hypervisor call for each segment and each 256 KiB of it; redirecting costs two calls and
an engine operation for the whole piece, and saves one pass of the bytes through the server's memory. Page-cached image,
medians of one request by itself, copied and redirected, client and server in one thread: reads of 64 KiB 60 and 69 us,
128 KiB 78 and 80, 256 KiB 117 and 112, 512 KiB 213 and 194; writes of 256 KiB 121 and 115, 512 KiB 236 and 203. So
`REDIRECT_MIN` is 64 pages.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from typing import Any

import cython
from cython.cimports.powervio.transport.crq.page_list import MoveList, consecutive_from, write_list
from cython.cimports.powervio.vio.engine import EngineWindow

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing
from powervio.papr.engine import DmaFault, DmaSegment
from powervio.papr.nodes import VdeviceNode
from powervio.papr.port import HcallPort
from powervio.papr.tce import MULTI_TCE_LIMIT, TCE_PAGE_SHIFT, TCE_PAGE_SIZE
from powervio.transport.crq.remote import RdmaPayload, RemoteWindow
from powervio.vio.dma import PartitionPages
from powervio.vio.ranges import RangeExhausted
from powervio.virtio.queue import DeviceQueue

REDIRECT_MIN = 64 * TCE_PAGE_SIZE
"""Bytes from which on a transfer is redirected (see the module's text)."""
_LARGEST = MULTI_TCE_LIMIT * TCE_PAGE_SIZE // 2
"""Bytes of one piece: with any alignment its pages are one list of H_PUT_RTCE_INDIRECT."""
_OFFSET = TCE_PAGE_SIZE - 1
_LIST = cython.declare(cython.longlong, MULTI_TCE_LIMIT)
_SHIFT = cython.declare(cython.int, TCE_PAGE_SHIFT)

_log = logging.getLogger(__name__)


@cython.final
@cython.cclass
class Redirector:
    """Redirected DMA between the partner's window and backings, for one server adapter."""

    least: cython.ulonglong
    copied: cython.ulonglong
    _port: Any
    _remote: Any
    _engine: EngineWindow
    _pages: Any

    def __init__(
        self,
        port: HcallPort,
        node: VdeviceNode,
        engine: EngineWindow,
        pages: PartitionPages,
        least: int = REDIRECT_MIN,
    ) -> None:
        """`least` is the smallest transfer that is redirected, in bytes."""
        self.least = least
        self.copied = 0
        """Transfers that were large enough and had to be copied all the same."""
        self._port = port
        self._remote = node.windows[1].liobn
        self._engine = engine
        self._pages = pages

    def move(self, pieces: Sequence[DmaSegment], backing: Backing, position: int, *, to_memory: bool) -> bool:
        """Move between `backing` at `position` and these pieces of the partner's window, in order.

        False when nothing was moved and the bytes have to be copied. Raises `RemoteError` when the partner took its
        memory away, `OSError` from the backing.
        """
        if len(pieces) == 1:
            address, length = pieces[0]
            lead = address & _OFFSET
            count = (lead + length + _OFFSET) >> TCE_PAGE_SHIFT
            if (address + length) >> 64:  # no address at all
                return self._copy()
            return self._move(address >> TCE_PAGE_SHIFT, None, count, [(lead, length)], backing, position, to_memory)
        numbers: list[int] = []
        places: list[DmaSegment] = []
        end = -1
        for address, length in pieces:
            if address == end:  # the same page may not be mapped twice, so neighbours are one
                first = numbers[-1] + 1
                places[-1] = places[-1][0], places[-1][1] + length
            else:
                first = address >> TCE_PAGE_SHIFT
                places.append(((len(numbers) << TCE_PAGE_SHIFT) | (address & _OFFSET), length))
            end = address + length
            numbers.extend(range(first, (end + _OFFSET) >> TCE_PAGE_SHIFT))
        if max(numbers) >> 52:
            return self._copy()
        pages = bytearray(array("Q", numbers))
        first = consecutive_from(pages, len(numbers))
        return self._move(first, pages, len(numbers), places, backing, position, to_memory)

    @cython.cfunc
    @cython.exceptval(-1)
    def _move(
        self,
        first: cython.longlong,
        pages: bytearray | None,
        count: cython.longlong,
        places: list[DmaSegment],
        backing: Backing,
        position: object,
        to_memory: cython.bint,
    ) -> cython.bint:
        """Pages of the partner's window from `first` on, or those in `pages` if that is -1; `places` are offsets and
        lengths in them."""
        start: cython.longlong
        mapped: cython.longlong
        free: cython.bint = False
        try:
            start = self._engine.allocate(count)
        except RangeExhausted:
            return self._copy()
        try:
            mapped = self._map(first, pages, count, start)
            if mapped < count:
                free = self._unmap(start, mapped)
                return self._copy()
            segments = [(start + at, length) for at, length in places]
            try:
                move = self._engine.engine.read if to_memory else self._engine.engine.write
                move(backing, position, segments)
            except DmaFault as fault:
                raise RemoteError(f"redirected DMA: {fault}") from None
            finally:
                free = self._unmap(start, count)
        finally:
            if free:
                self._engine.free(start, count)
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def carry_out(self, group: MoveList, backing: Backing) -> cython.bint:
        """Carry out several requests together; their results are in the list.

        False when nothing was moved and all of it has to be copied.
        """
        count: cython.longlong = group.count
        free: cython.bint = False
        start: cython.longlong
        mapped: cython.longlong
        try:
            start = self._engine.allocate(count)
        except RangeExhausted:
            return self._copy()
        try:
            mapped = self._map(consecutive_from(group.pages, count), group.pages, count, start)
            if mapped < count:
                free = self._unmap(start, mapped)
                return self._copy()
            group.shift(start)
            try:
                self._engine.engine.move_all(backing, group.moves, group.move_count)
            except DmaFault:
                return False  # one of them names what it must not touch: each by itself will tell which
            finally:
                free = self._unmap(start, count)
        finally:
            if free:
                self._engine.free(start, count)
        return True

    @cython.cfunc
    @cython.exceptval(-1)
    def _copy(self) -> cython.bint:
        self.copied += 1
        return False

    @cython.cfunc
    @cython.exceptval(-1)
    def _map(
        self, first: cython.longlong, pages: bytearray | None, count: cython.longlong, start: cython.longlong
    ) -> cython.longlong:
        """Put these pages of the partner's window into the engine's, see `_move`; how many are mapped."""
        address: cython.ulonglong
        if first >= 0:
            address = cython.cast(cython.ulonglong, first) << _SHIFT
            code, done = self._port.put_rtce(self._remote, address, self._engine.liobn, start, count)
        elif pages is None or count > _LIST:  # more than a list holds
            return 0
        else:
            list_address = self._pages.list_address
            write_list(self._pages.memory, list_address, pages, count)
            code, done = self._port.put_rtce_indirect(list_address, self._remote, self._engine.liobn, start, count)
        return done if code else count

    @cython.cfunc
    @cython.exceptval(-1)
    def _unmap(self, start: cython.longlong, count: cython.longlong) -> cython.bint:
        """Take pages out of the engine's window, whatever they were mapped to; True when they are free again."""
        code: cython.longlong
        if not count:
            return True
        code = self._port.remove_rtce(self._remote, 0, self._engine.liobn, start, count)
        if code != 0:
            _log.error("H_REMOVE_RTCE of %d pages at %#x returned %d: they stay out of use", count, start, code)
        return code == 0


class RedirectedPayload(RdmaPayload):
    """The readable or writable part of a request: large transfers by the engine, all else copied."""

    __slots__ = ("_redirector",)

    def __init__(
        self, window: RemoteWindow, queue: DeviceQueue, segments: list[tuple[int, int]], redirector: Redirector
    ) -> None:
        super().__init__(window, queue, segments)
        self._redirector = redirector

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`."""
        if length < self._redirector.least or not backing.vectored:
            super().fill_from(backing, position, offset, length)
            return
        while length:
            part = min(length, _LARGEST)
            if not self._redirector.move(self.pieces(offset, part), backing, position, to_memory=True):
                super().fill_from(backing, position, offset, part)
            position += part
            offset += part
            length -= part

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`."""
        if length < self._redirector.least or not backing.vectored:
            super().drain_to(backing, position, offset, length)
            return
        while length:
            part = min(length, _LARGEST)
            if not self._redirector.move(self.pieces(offset, part), backing, position, to_memory=False):
                super().drain_to(backing, position, offset, part)
            position += part
            offset += part
            length -= part
