# cython: language_level=3
"""Allocation of runs of pages out of a range: partition memory, and I/O addresses of a window.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from bisect import insort

import cython

from powervio.errors import LocalError


class RangeExhausted(LocalError):
    """No run of free pages is long enough."""


@cython.final
@cython.cclass
class PageRange:
    """First-fit allocator of page runs, with a free list for each run length in front of it.

    Streaming DMA maps and unmaps runs of a few lengths for every request, so a run that comes back is kept whole and
    handed out again; only when nothing fits are the kept runs merged with their neighbours.
    """

    free_pages: cython.longlong
    _what: str
    _total: cython.longlong
    _starts: list[int]
    _lengths: dict[int, int]
    _kept: dict[int, list[int]]

    def __init__(self, first: int, pages: int, what: str) -> None:
        """Manage `pages` pages from page number `first`; `what` names the resource in errors."""
        self._what = what
        self._total = pages
        self._starts = [first] if pages > 0 else []
        self._lengths = {first: pages} if pages > 0 else {}
        self._kept = {}
        self.free_pages = pages

    @cython.ccall
    @cython.exceptval(-1)
    def allocate(self, pages: cython.longlong) -> cython.longlong:
        """The first page number of a run. Raises `RangeExhausted`, and `LocalError` for a run without pages."""
        if pages < 1:
            raise LocalError(f"{self._what}: a run has one page at least, not {pages}")
        kept: list[int] | None = self._kept.get(pages)
        start: int | None
        if kept:
            self.free_pages -= pages
            return kept.pop()
        start = self._first_fit(pages)
        if start is None and self._kept:
            self._merge()
            start = self._first_fit(pages)
        if start is None:
            raise RangeExhausted(
                f"{self._what}: no run of {pages} free pages ({self.free_pages} of {self._total} pages are free)"
            )
        self.free_pages -= pages
        return start

    @cython.ccall
    def free(self, start: cython.longlong, pages: cython.longlong) -> cython.void:
        """Give back a run exactly as it was allocated."""
        kept: list[int] | None = self._kept.get(pages)
        if kept is None:
            kept = self._kept[pages] = []
        kept.append(start)
        self.free_pages += pages

    def _first_fit(self, pages: int) -> int | None:
        for position, start in enumerate(self._starts):
            length = self._lengths[start]
            if length >= pages:
                del self._lengths[start]
                if length == pages:
                    del self._starts[position]
                else:
                    self._starts[position] = start + pages
                    self._lengths[start + pages] = length - pages
                return start
        return None

    def _merge(self) -> None:
        for pages, starts in self._kept.items():
            for start in starts:
                insort(self._starts, start)
                self._lengths[start] = pages
        self._kept.clear()
        merged: list[int] = []
        for start in self._starts:
            if merged and merged[-1] + self._lengths[merged[-1]] == start:
                self._lengths[merged[-1]] += self._lengths.pop(start)
            else:
                merged.append(start)
        self._starts = merged
