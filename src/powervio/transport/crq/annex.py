# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Small buffers of a client that were copied together with descriptors, because they lie behind them (P6.5).

What the client had there when the newest descriptors were copied is good for them: descriptors are only used when they
were available before a copy of them began; so were the buffers that they name.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import copy, pointer

ANNEX_LIMIT = 12 * 1024
"""Bytes of one copy of descriptors with small buffers behind them."""

_LIMIT = cython.declare(cython.ulonglong, ANNEX_LIMIT)
_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)


@cython.final
@cython.cclass
class Annex:
    """Of one queue: where small buffers are that were asked for, and the bytes of those that came along."""

    low: cython.ulonglong
    high: cython.ulonglong
    base: cython.p_uchar
    _at: cython.ulonglong
    _length: cython.ulonglong
    _book: bytearray
    _forbidden: cython.bint

    def __init__(self) -> None:
        self.low = _LAST
        self.high = 0
        """From where to where small buffers were asked for: what is worth being brought along."""
        self._book = bytearray(8)
        self.base = pointer(self._book)
        self._at = 0
        self._length = 0
        self._forbidden = False

    @cython.ccall
    @cython.exceptval(check=False)
    def find(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.longlong:
        """Where in `base` a buffer of the client's is, or -1; it is noted in either case."""
        if self._forbidden or length > _LAST - address:
            return -1
        if address < self.low:
            self.low = address
        if address + length > self.high:
            self.high = address + length
        if address < self._at or address - self._at > self._length or length > self._length - (address - self._at):
            return -1
        return cython.cast(cython.longlong, address - self._at)

    def drop(self) -> None:
        """Descriptors are copied anew: what came with others is of no use."""
        self._length = 0

    def keep(self, address: cython.ulonglong, content: memoryview) -> None:
        """This came with them, from the client's `address` on; at most `ANNEX_LIMIT` bytes."""
        length: cython.ulonglong = len(content)
        if length > _LIMIT:
            return
        if length > len(self._book):
            self._book = bytearray(length)
            self.base = pointer(self._book)
        copy(self.base, 0, pointer(content), 0, length)
        self._at = address
        self._length = length

    def forbid(self) -> None:
        """It cannot be copied along with descriptors: never try again."""
        self._forbidden = True
        self._length = 0
        self.low = _LAST
        self.high = 0
