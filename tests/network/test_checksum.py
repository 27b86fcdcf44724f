"""The Internet checksum, against the plain algorithm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.network.checksum import checksum, finished
from powervio.network.port import Frame, header_length


def plain(data: bytes) -> int:
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@given(st.one_of(st.binary(max_size=200), st.lists(st.sampled_from([0, 0xFF]), max_size=9).map(bytes)))
def test_checksum_is_the_complement_of_the_ones_complement_sum(data: bytes) -> None:
    assert checksum(data) == plain(data)


def test_checksum_of_a_known_ip_header() -> None:
    header = bytes.fromhex("450000730000400040110000c0a80001c0a800c7")
    assert checksum(header) == 0xB861


@given(st.binary(min_size=2, max_size=99), st.data())
def test_finished_frame_has_the_sum_of_all_from_its_start(data: bytes, more: st.DataObject) -> None:
    start = more.draw(st.integers(0, len(data) - 2))
    offset = more.draw(st.integers(0, len(data) - 2 - start))
    frame = finished(Frame(memoryview(data), (start, offset)))
    field = (plain(data[start:]) or 0xFFFF).to_bytes(2, "big")
    assert frame == Frame(data[: start + offset] + field + data[start + offset + 2 :])


def test_checksum_that_is_zero_is_written_as_ones() -> None:
    assert finished(Frame(b"\xff\xff\0\0", (0, 2))).data == b"\xff\xff\xff\xff"


def test_frame_that_is_whole_stays_as_it_is() -> None:
    frame = Frame(b"x" * 60, None, valid=True)
    assert finished(frame) is frame


@pytest.mark.parametrize(
    ("types", "length"),
    [("0800", 14), ("81000001 0800", 18), ("88a80001 81000001 0800", 22), ("8100" * 6, 22), ("8100", 18)],
)
def test_header_length_counts_up_to_two_tags(types: str, length: int) -> None:
    assert header_length(bytes(12) + bytes.fromhex(types)) == length
