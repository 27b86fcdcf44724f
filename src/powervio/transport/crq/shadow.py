# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The server's copy of a ring in the client's memory, and small buffers of the client that came along with it.

What the client had in a buffer when the newest descriptors were copied is good for them (P6.5): descriptors are only
used when they were available before a copy of them began; so were the buffers that they name.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import address_of, bytes_at, copy, pointer
from cython.cimports.powervio.transport.crq.remote import RemoteWindow

from powervio.errors import RemoteError, Verdict
from powervio.vio.dma import DmaMemory

ANNEX_LIMIT = 12 * 1024
"""Bytes of one copy of descriptors with small buffers behind them."""

_LIMIT = cython.declare(cython.ulonglong, ANNEX_LIMIT)
_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_REGISTER = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
"""What of a sum of addresses arrives at the hypervisor."""


def _lost(error: RemoteError) -> RemoteError:
    """Without its ring a queue cannot even fail a request."""
    return RemoteError(f"virtqueue memory: {error}", Verdict.NEEDS_RESET)


@cython.final
@cython.cclass
class RingShadow:
    """Of one queue: DMA memory of the server, copied piece by piece from and to the client.

    Addresses are the client's, offsets count in the shadow; both and lengths are bytes. Whoever asks stays inside the
    shadow. Raises `RemoteError` with NEEDS_RESET when the client's memory cannot be reached.
    """

    base: cython.p_uchar
    _window: RemoteWindow
    _memory: DmaMemory
    _view: Any
    _ioba: cython.ulonglong
    _shadow: cython.p_uchar
    # From where to where small buffers were asked for: what is worth being brought along.
    _low: cython.ulonglong
    _high: cython.ulonglong
    _forbidden: cython.bint
    # What came along, and where the client has it.
    _book: bytearray
    _at: cython.ulonglong
    _length: cython.ulonglong

    def __init__(self, window: RemoteWindow, memory: DmaMemory) -> None:
        self._window = window
        self._memory = memory
        self._view = memoryview(memory.view)
        self._ioba = memory.ioba
        self._shadow = pointer(memory.view)
        self._low = _LAST
        self._high = 0
        self._forbidden = False
        self._book = bytearray(8)
        self.base = pointer(self._book)
        """The bytes that came along; see `find`."""
        self._at = 0
        self._length = 0

    def release(self) -> None:
        """The shadow is not used afterwards."""
        self._view.release()
        self._view = bytearray(8)
        self._shadow = pointer(self._view)

    @cython.ccall
    @cython.exceptval(-1)
    def fetch(self, address: cython.ulonglong, length: cython.ulonglong, offset: cython.ulonglong) -> cython.int:
        """Copy from the client."""
        try:
            self._window.copy_in(address & _REGISTER, length, self._ioba + offset)
        except RemoteError as error:
            raise _lost(error) from None
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def store(self, address: cython.ulonglong, length: cython.ulonglong, offset: cython.ulonglong) -> cython.int:
        """Copy to the client."""
        try:
            self._window.copy_out(address & _REGISTER, length, self._ioba + offset)
        except RemoteError as error:
            raise _lost(error) from None
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def write(self, address: cython.ulonglong, length: cython.ulonglong, offset: cython.ulonglong) -> cython.int:
        """Write a few bytes, up to 48, to the client; 8 of them at a multiple of 8 at once."""
        try:
            self._window.put(address & _REGISTER, bytes_at(address_of(self._shadow, offset), length))
        except RemoteError as error:
            raise _lost(error) from None
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def fetch_along(self, address: cython.ulonglong, length: cython.ulonglong, offset: cython.ulonglong) -> cython.int:
        """As `fetch`, of descriptors, and what lies behind them up to the small buffers that were asked for before, if
        that is near: a client with a few slots for headers uses the same ones again, and one copy brings them."""
        start: cython.ulonglong = address & _REGISTER
        end: cython.ulonglong = start + length
        self._length = 0
        if start > _LAST - _LIMIT or not end <= self._low < self._high <= start + _LIMIT:
            return self.fetch(address, length, offset)
        window: RemoteWindow = self._window
        try:
            window.copy_in(start, self._high - start, window.bounce.ioba)
        except RemoteError:  # what is between is not mapped: never try again
            self._forbidden = True
            self._low = _LAST
            self._high = 0
            return self.fetch(address, length, offset)
        copy(self._shadow, offset, window.base, 0, length)
        return self._keep(self._low, start, self._high - self._low)

    @cython.cfunc
    @cython.exceptval(-1)
    def _keep(self, low: cython.ulonglong, start: cython.ulonglong, length: cython.ulonglong) -> cython.int:
        """Take the buffers from `low` on out of the bounce area, which begins with the client's `start`."""
        if length > len(self._book):
            self._book = bytearray(length)
            self.base = pointer(self._book)
        copy(self.base, 0, self._window.base, low - start, length)
        self._at = low
        self._length = length
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def find(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.longlong:
        """Where in `base` a small buffer of the client's is, or -1; it is noted in either case."""
        if self._forbidden or length > _LAST - address:
            return -1
        if address < self._low:
            self._low = address
        if address + length > self._high:
            self._high = address + length
        if address < self._at or address - self._at > self._length or length > self._length - (address - self._at):
            return -1
        return cython.cast(cython.longlong, address - self._at)
