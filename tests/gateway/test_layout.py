"""The shared region and the server protocol as values: golden bytes, and what is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError
from powervio.gateway import ivshmem, layout
from powervio.gateway.layout import Layout, MapEntry

MIB = 1 << 20
GIB = 1 << 30
HEADER = bytes.fromhex(
    "5056494f47415445 01000000 00010000 0000800000000000 0300000000000000"  # MAGIC to OFFERED
    "00100000 00010000 40000000 04000000 00500000 00b00f00 0000004000000000"  # SLOTS_OFFSET to MEMORY_SIZE
    "00020000 02000000 05000000 00000000 00001000 00007000"  # MAP_OFFSET to TCE_ROOM
)
MAP = bytes.fromhex(
    "0000000000000000 0000003000000000 0000000000000000 0000000001000000 0000001000000000 0000003000000000"
)


def golden() -> Layout:
    return layout.plan(GIB, 5, memory_map=layout.split_map(GIB, 768 * MIB), vectors=4)


def test_header_and_map_are_the_golden_bytes() -> None:
    """G2.3, G3.2"""
    region = memoryview(bytearray(layout.DEFAULT_REGION))
    golden().write(region)
    assert bytes(region[: len(HEADER)]) == HEADER
    assert bytes(region[0x200 : 0x200 + len(MAP)]) == MAP
    assert not any(region[len(HEADER) : 0x200])
    assert layout.decode(region) == golden()


def test_places_of_the_document() -> None:
    """G2.3, G5.1"""
    assert (layout.TREE_GENERATION, layout.TREE_LENGTH, layout.AWAKE) == (0x80, 0x88, 0x8C)
    assert (layout.STATE, layout.ACCEPTED) == (0x90, 0x98)
    assert (layout.POSTED, layout.TOKEN, layout.ARGUMENTS, layout.WAITING, layout.WITHDRAWN) == (0, 8, 0x10, 0x58, 0x60)
    assert (layout.TAKEN, layout.DONE, layout.CODE, layout.RESULTS) == (0x80, 0x88, 0x90, 0x98)
    assert (layout.G_FEATURES, layout.G_TREE, layout.G_DIRECT) == (0xFB00, 0xFB04, 0xFB08)


def test_directed_sources_are_offered_only_where_there_are_vectors_for_them() -> None:
    """G8"""
    assert layout.plan(MIB, 1).features == layout.FEATURE_SHARED_TCE
    assert layout.plan(MIB, 1, vectors=3).features == layout.FEATURE_SHARED_TCE | layout.FEATURE_DIRECT


def test_shared_tables_are_offered_only_where_there_is_room_for_them() -> None:
    """G8, G2.3"""
    small = layout.plan(MIB, 1, region_size=MIB)
    assert (small.features, small.tce_offset, small.tce_room) == (0, 0, 0)
    assert small.tree_offset + small.tree_room == MIB
    large = layout.plan(MIB, 1)
    assert large.tree_offset + large.tree_room == large.tce_offset
    assert large.tce_offset + large.tce_room == layout.DEFAULT_REGION


def test_split_map_of_a_large_machine() -> None:
    """G3.2: the machine of the document."""
    assert layout.split_map(6 * GIB, 2 * GIB) == (
        MapEntry(0, 2 * GIB, 0),
        MapEntry(4 * GIB, 4 * GIB, 2 * GIB),
    )
    assert layout.split_map(GIB, 2 * GIB) == (MapEntry(0, GIB, 0),)


@pytest.mark.parametrize("arch", ["x86_64", "ppc64le"])
def test_map_of_a_small_machine_is_one_entry(arch: str) -> None:
    assert layout.machine_map(arch, 512 * MIB) == (MapEntry(0, 512 * MIB, 0),)


def test_machine_that_is_not_known_is_refused() -> None:
    with pytest.raises(LocalError, match="architecture vax"):
        layout.machine_map("vax", MIB)


@pytest.mark.parametrize(
    "entries",
    [
        [MapEntry(0, 8192, 0)],
        [MapEntry(0, 100, 0)],
        [MapEntry(0, 0, 0)],
        [MapEntry(4096, 4096, -4096)],
        [MapEntry(0, 4096, 0), MapEntry(8192, 4096, 0)],
        [MapEntry((1 << 64) - 4096, 8192, 0)],
        [MapEntry(0, 4096, 0)] * (layout.MAP_ROOM + 1),
    ],
)
def test_map_that_is_none_is_refused(entries: list[MapEntry]) -> None:
    with pytest.raises(LocalError):
        layout.plan(4096, 1, memory_map=entries)


@pytest.mark.parametrize(
    "options", [{"region_size": 3 << 16}, {"region_size": 4096}, {"slots": 48}, {"vectors": 1}, {"slots": 0}]
)
def test_region_that_cannot_be_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(LocalError):
        layout.plan(
            MIB,
            1,
            region_size=options.get("region_size", layout.DEFAULT_REGION),
            slots=options.get("slots", 64),
            vectors=options.get("vectors", 2),
        )


@given(st.binary(max_size=128), st.integers(0, 127))
def test_any_header_is_read_or_refused(junk: bytes, place: int) -> None:
    region = memoryview(bytearray(layout.MIN_REGION))
    layout.plan(MIB, 1, region_size=layout.MIN_REGION).write(region)
    junk = junk[: 128 - place]
    region[place : place + len(junk)] = junk
    try:
        found = layout.decode(region)
    except RemoteError:
        return
    assert found.slots_offset + found.slots * layout.SLOT_SIZE <= len(region)
    assert found.tree_offset + found.tree_room <= len(region)


# -- ivshmem


def test_greeting_is_what_qemu_expects() -> None:
    """G1.2"""
    said = ivshmem.greeting(1, 40, [(0, [50]), (1, [60, 61])])
    assert said == [(0, None), (1, None), (-1, 40), (0, 50), (1, 60), (1, 61)]
    assert b"".join(ivshmem.MESSAGE.pack(value) for value, _ in said[:3]) == bytes.fromhex(
        "0000000000000000 0100000000000000 ffffffffffffffff"
    )


def test_handshake_takes_the_greeting() -> None:
    shake = ivshmem.Handshake(vectors=2)
    for value, fd in ivshmem.greeting(1, 40, [(0, [50]), (1, [60, 61])]):
        assert not shake.done
        shake.take(value, fd)
    assert shake.done
    assert (shake.own, shake.memory, shake.eventfds) == (1, 40, {0: [50], 1: [60, 61]})
    assert shake.descriptors() == [40, 50, 60, 61]


@given(st.lists(st.tuples(st.integers(-3, 3) | st.integers(-(1 << 63), (1 << 63) - 1), st.none() | st.just(7))))
def test_any_messages_are_a_handshake_or_refused(messages: list[tuple[int, int | None]]) -> None:
    shake = ivshmem.Handshake(vectors=2)
    try:
        for value, fd in messages:
            shake.take(value, fd)
    except RemoteError:
        return
    assert len(messages) < 6 or shake.own >= 0


def test_numbers_of_messages_are_signed_and_little_endian() -> None:
    assert ivshmem.MESSAGE.pack(ivshmem.ASK_MEMORY) == struct.pack("<q", -2)
