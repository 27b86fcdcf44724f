"""TCE tables in the shared region, which the partition writes itself (docs/gateway.md, G9).

Here is who has a table and where; what becomes of an entry is `phyp.tce`'s. The directory is written and never read:
this side keeps its own record of it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from powervio.memory.area import PAGE_SIZE
from powervio.phyp.adapter import VirtualAdapter
from powervio.phyp.partition import Partition

_ENTRY = struct.Struct("<II")
_WORD = struct.Struct("<Q")
USE_WORDS = 0x800
"""Where the use words are, one for each entry of the directory."""
MOST = USE_WORDS // _ENTRY.size - 1
"""Most tables: the directory ends with an entry that is none."""
_ENTRY_SIZE = 8


@dataclass(slots=True)
class _Place:
    """One entry of the directory."""

    adapter: VirtualAdapter | None
    """None when that has gone."""
    page: int
    """Where its table begins in the area, in pages; 0 for none."""
    pages: int


class SharedTables:
    """The tables of one session, in an area of its region. The hypervisor's lock is taken in each method."""

    def __init__(self, partition: Partition, area: memoryview) -> None:
        """Nothing is shared yet; `area` is all zeroes, and may be empty."""
        self._partition = partition
        self._area = area
        self._places: list[_Place] = []
        self._fresh = 1
        """Pages from here on were never used, and are zero."""

    def update(self) -> None:
        """A table for each adapter that has none and finds room; those of adapters that have gone are free."""
        with self._partition.hypervisor.lock:
            there = set(self._partition.adapters.values())
            for number, place in enumerate(self._places):
                if place.adapter is not None and place.adapter not in there:
                    self._drop(number)
            known = {place.adapter for place in self._places}
            for adapter in self._partition.adapters.values():
                if adapter not in known and adapter.table is not None:
                    self._add(adapter)

    def give_back(self) -> None:
        """The hypervisor alone has the tables again, with the entries that they have now."""
        with self._partition.hypervisor.lock:
            for number in range(len(self._places)):
                self._drop(number)

    def close(self) -> None:
        """The session ends, and all mappings with it."""
        with self._partition.hypervisor.lock:
            for number, place in enumerate(self._places):
                table = None if place.adapter is None else place.adapter.table
                self._drop(number)
                if table is not None:
                    table.clear()
        self._area.release()

    # -- under the lock

    def _add(self, adapter: VirtualAdapter) -> None:
        table, liobn = adapter.table, adapter.panes[0].liobn
        assert table is not None
        size = table.count * _ENTRY_SIZE
        pages = -(-size // PAGE_SIZE)
        page = self._find(pages)
        number = next((number for number, place in enumerate(self._places) if not place.page), len(self._places))
        if not page or number >= MOST or not 0 < liobn < 1 << 32:
            return
        start = page * PAGE_SIZE
        if page < self._fresh:
            self._area[start : start + pages * PAGE_SIZE] = bytes(pages * PAGE_SIZE)
        self._fresh = max(self._fresh, page + pages)
        use = USE_WORDS + number * _WORD.size
        table.share(self._area[start : start + size], self._area[use : use + _WORD.size], adapter.ledger)
        self._places[number : number + 1] = [_Place(adapter, page, pages)]
        _ENTRY.pack_into(self._area, number * _ENTRY.size, liobn, page)

    def _drop(self, number: int) -> None:
        """An adapter has no table any more. Its LIOBN stays where it is, for a 0 would end the directory."""
        place = self._places[number]
        if place.adapter is None:
            return
        if place.adapter.table is not None:
            place.adapter.table.unshare()
        _ENTRY.pack_into(self._area, number * _ENTRY.size, place.adapter.panes[0].liobn, 0)
        self._places[number] = _Place(None, 0, 0)

    def _find(self, pages: int) -> int:
        """The first page of so many that no table has; 0 when there are none."""
        page = 1
        for place in sorted(self._places, key=lambda place: place.page):
            if not place.page:
                continue
            if place.page - page >= pages:
                return page
            page = place.page + place.pages
        return page if page + pages <= len(self._area) // PAGE_SIZE else 0
