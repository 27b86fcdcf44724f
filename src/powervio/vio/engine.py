# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A physical adapter's window as its owner's software uses it: I/O addresses handed out in pages of 4 KiB.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.vio.ranges import PageRange

from powervio.papr.engine import DmaEngine
from powervio.papr.tce import TCE_PAGE_SHIFT

_SHIFT = cython.declare(cython.int, TCE_PAGE_SHIFT)


@cython.final
@cython.cclass
class EngineWindow:
    """One engine and the free addresses of its window, shared by the adapters of one partition (one thread)."""

    engine: Any
    liobn: int
    _range: PageRange

    def __init__(self, engine: DmaEngine) -> None:
        self.engine = engine
        window = engine.node.window
        self.liobn = window.liobn
        self._range = PageRange(0, window.size >> TCE_PAGE_SHIFT, f"window of {engine.node.location_code}")

    @cython.ccall
    @cython.exceptval(-1)
    def allocate(self, pages: cython.longlong) -> cython.longlong:
        """The I/O address of so many free pages in a row. Raises `RangeExhausted`."""
        return self._range.allocate(pages) << _SHIFT

    @cython.ccall
    def free(self, ioba: cython.longlong, pages: cython.longlong) -> cython.void:
        """Give them back; nothing is mapped there any more."""
        self._range.free(ioba >> _SHIFT, pages)
