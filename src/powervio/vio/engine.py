"""A physical adapter's window as its owner's software uses it: I/O addresses handed out in pages of 4 KiB."""

from __future__ import annotations

from powervio.papr.engine import DmaEngine
from powervio.papr.tce import TCE_PAGE_SHIFT
from powervio.vio.ranges import PageRange


class EngineWindow:
    """One engine and the free addresses of its window, shared by the adapters of one partition (one thread)."""

    def __init__(self, engine: DmaEngine) -> None:
        self.engine = engine
        window = engine.node.window
        self.liobn = window.liobn
        self._range = PageRange(0, window.size >> TCE_PAGE_SHIFT, f"window of {engine.node.location_code}")

    def allocate(self, pages: int) -> int:
        """The I/O address of so many free pages in a row. Raises `RangeExhausted`."""
        return self._range.allocate(pages) << TCE_PAGE_SHIFT

    def free(self, ioba: int, pages: int) -> None:
        """Give them back; nothing is mapped there any more."""
        self._range.free(ioba >> TCE_PAGE_SHIFT, pages)
