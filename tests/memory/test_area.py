"""Mapped areas."""

from __future__ import annotations

import os

from powervio.memory.area import PAGE_SIZE, MappedArea


def resident(area: MappedArea) -> int:
    """Pages of the area's memory file that are there."""
    return os.fstat(area.fd).st_blocks * 512 // PAGE_SIZE


def test_populate_makes_all_pages_and_keeps_what_is_there() -> None:
    area = MappedArea.create("test", 8 * PAGE_SIZE)
    try:
        area.view[PAGE_SIZE] = 7
        assert resident(area) == 1
        area.populate()
        assert resident(area) == 8
        assert area.view[PAGE_SIZE] == 7
    finally:
        area.close()
