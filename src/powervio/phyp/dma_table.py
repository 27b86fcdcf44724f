# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The TCE table of a physical adapter: pages of its owner's memory, and redirected copies of its clients' entries.

An engine operation resolves and pins all its pages when it begins (`DmaOperation.take`) and unpins them when it ends;
between the two it owns the addresses that it was given, whatever happens to the entries. Everything here runs under the
hypervisor's lock.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.phyp.redirect import CopySet, Link, RedirectedCopy
from cython.cimports.powervio.phyp.tce import TceTable

H_REMOTE_PARM = cython.declare(cython.int, -15)

PAGE = cython.declare(cython.ulonglong, 4096)
PAGE_SHIFT = cython.declare(cython.int, 12)
ACCESS = cython.declare(cython.ulonglong, 3)


@cython.final
@cython.cclass
class DmaTable:
    """`own` has the entries that the owner put itself; `places[i]`, where it is not None, hides entry i of it."""

    own: TceTable
    partition: Any
    places: list[Any]
    count: cython.ulonglong

    def __init__(self, own: TceTable, partition: Any) -> None:
        self.own = own
        self.partition = partition
        self.count = own.count
        self.places = [None] * own.count

    def redirect(
        self,
        index: cython.ulonglong,
        link: Link,
        table: TceTable,
        entries: list[int] | None,
        first: cython.ulonglong,
        count: cython.ulonglong,
        limit: cython.int,
    ) -> tuple[int, int]:
        """Copy `count` entries of the client's `table` to places in the bounds of this one, with their access bits.

        Those of `entries`, or consecutive ones from `first`. Ends with the first that cannot be copied: H_REMOTE_PARM
        for one that maps nothing, H_RESOURCE and H_IN_USE as `CopySet.check`, in this order; and how many were.
        """
        i: cython.ulonglong
        entry: cython.ulonglong
        tce: cython.ulonglong
        code: cython.int
        copies: CopySet = table.copies
        for i in range(count):
            entry = first + i if entries is None else entries[i]
            tce = table.get(entry << PAGE_SHIFT)
            if link.closing or (tce & ACCESS) == 0 or (tce >> PAGE_SHIFT) >= table.memory_pages:
                return H_REMOTE_PARM, i
            code = copies.check(entry, self.places, index + i, limit)
            if code != 0:
                return code, i
            self.store(index + i, 0)
            copies.add(link, entry, tce, self.places, index + i)
        return 0, count

    @cython.ccall
    def store(self, index: cython.ulonglong, tce: cython.ulonglong) -> cython.void:
        """Overwrite one entry in bounds: what was copied there before is a copy no more."""
        self.forget(index, 1)
        self.own.put(index << PAGE_SHIFT, tce)

    @cython.ccall
    def forget(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.void:
        """End the copies in a range of places in bounds."""
        i: cython.ulonglong
        copy: RedirectedCopy | None
        for i in range(index, index + count):
            copy = self.places[i]
            if copy is not None:
                copy.link.copies.invalidate(copy)

    @cython.ccall
    def redirected(self, index: cython.ulonglong) -> cython.ulonglong:
        """The client's entry that was copied to a place in bounds; 0 where none was."""
        copy: RedirectedCopy | None = self.places[index]
        return 0 if copy is None else copy.tce


@cython.final
@cython.cclass
class DmaOperation:
    """What an engine moves: runs of bytes in partitions' memories, in order, pinned until `release`."""

    pinned: list[Any]
    runs: list[Any]
    partitions: list[Any]
    moved: dict[Any, Any]
    length: cython.ulonglong
    _memory: Any
    _start: cython.ulonglong
    _end: cython.ulonglong

    def __init__(self) -> None:
        self.pinned = []
        self.runs = []
        """`(memory, start, end)` in logical bytes; neighbours are one run."""
        self.partitions = []
        """Whose memories these are, each once."""
        self.moved = {}
        """Bytes by `Link`."""
        self.length = 0
        self._memory = None
        self._start = 0
        self._end = 0

    @cython.ccall
    def take(
        self, table: DmaTable, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong
    ) -> cython.bint:
        """Resolve and pin a range; False when a page of it is not mapped with all access bits of `need`.

        Then the caller releases what was taken so far.
        """
        size: cython.ulonglong = table.count << PAGE_SHIFT
        if ioba > size or length > size - ioba:
            return False
        link: Link | None = None
        copy: RedirectedCopy | None
        bytes_of_link: cython.ulonglong = 0
        part: cython.ulonglong
        address: cython.ulonglong
        self.length += length
        while length > 0:
            part = PAGE - (ioba & (PAGE - 1))
            if length < part:
                part = length
            copy = table.places[ioba >> PAGE_SHIFT]
            if copy is None:
                if table.own.translate(ioba, need) < 0:
                    return False
                address = cython.cast(cython.ulonglong, table.own.translate(ioba, need))
                self._extend(table.partition.memory, address, part)
                self._add_partition(table.partition)
            else:
                if (copy.tce & need) != need:
                    return False
                if copy.link is not link:
                    if link is not None:
                        self.moved[link] = self.moved.get(link, 0) + bytes_of_link
                    link = copy.link
                    bytes_of_link = 0
                    self._add_partition(link.partition)
                bytes_of_link += part
                copy.link.copies.pin(copy)
                self.pinned.append(copy)
                self._extend(link.memory, ((copy.tce >> PAGE_SHIFT) << PAGE_SHIFT) + (ioba & (PAGE - 1)), part)
            ioba += part
            length -= part
        if link is not None:
            self.moved[link] = self.moved.get(link, 0) + bytes_of_link
        return True

    @cython.cfunc
    def _add_partition(self, partition: Any) -> cython.void:
        if partition not in self.partitions:
            self.partitions.append(partition)

    @cython.cfunc
    def _extend(self, memory: Any, start: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        if memory is self._memory and start == self._end:
            self._end += length
            return
        self.finish()
        self._memory = memory
        self._start = start
        self._end = start + length

    @cython.ccall
    def finish(self) -> cython.void:
        """Close the last run."""
        if self._memory is not None:
            self.runs.append((self._memory, self._start, self._end))
            self._memory = None

    @cython.ccall
    def release(self) -> cython.void:
        """Unpin every page; once."""
        copy: RedirectedCopy
        for copy in self.pinned:
            copy.link.copies.unpin(copy)
        self.pinned = []
