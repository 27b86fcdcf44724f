"""The page-run allocator behind partition memory and DMA windows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.vio.ranges import PageRange, RangeExhausted


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 1000)), max_size=200))
def test_allocations_never_overlap_and_all_comes_back(steps: list[tuple[bool, int, int]]) -> None:
    pages = PageRange(1, 64, "test")
    held: list[tuple[int, int]] = []
    for allocate, count, choice in steps:
        if allocate or not held:
            try:
                start = pages.allocate(count)
            except RangeExhausted:
                continue
            taken = {page for first, length in held for page in range(first, first + length)}
            assert taken.isdisjoint(range(start, start + count))
            assert start >= 1
            assert start + count <= 65
            held.append((start, count))
        else:
            pages.free(*held.pop(choice % len(held)))
        assert pages.free_pages == 64 - sum(length for _, length in held)
    for run in held:
        pages.free(*run)
    assert pages.allocate(64) == 1


def test_exhausted_range_names_the_resource_and_what_is_left() -> None:
    pages = PageRange(1, 4, "window 0x10")
    pages.allocate(3)
    with pytest.raises(RangeExhausted, match=r"window 0x10: no run of 2 free pages \(1 of 4"):
        pages.allocate(2)
