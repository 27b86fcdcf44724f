"""What a guest's driver does with shared TCE tables, written from docs/gateway.md (G9) alone."""

from __future__ import annotations

import struct

from powervio.gateway.layout import Layout

PAGE = 4096


class TceStores:
    """The shared tables in a region, as the partition sees them."""

    def __init__(self, region: memoryview, where: Layout) -> None:
        self.area = region[where.tce_offset : where.tce_offset + where.tce_room]

    def directory(self) -> list[tuple[int, int]]:
        """Entries as {LIOBN, page}, without the last."""
        found: list[tuple[int, int]] = []
        for number in range(256):
            liobn, page = struct.unpack_from("<II", self.area, 8 * number)
            if not liobn:
                return found
            found.append((liobn, page))
        raise AssertionError("the directory does not end")

    def _number(self, liobn: int) -> int:
        return [entry[0] for entry in self.directory()].index(liobn)

    def _place(self, liobn: int, ioba: int) -> int:
        page = self.directory()[self._number(liobn)][1]
        assert page, "it has no table"
        return page * PAGE + ioba // PAGE * 8

    def put(self, liobn: int, ioba: int, tce: int) -> None:
        struct.pack_into("<Q", self.area, self._place(liobn, ioba), tce)

    def get(self, liobn: int, ioba: int) -> int:
        value: int = struct.unpack_from("<Q", self.area, self._place(liobn, ioba))[0]
        return value

    def in_use(self, liobn: int) -> bool:
        return any(self.area[0x800 + 8 * self._number(liobn) :][:8])
