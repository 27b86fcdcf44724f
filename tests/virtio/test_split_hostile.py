"""Rings full of nonsense: each side gives an answer or raises `RemoteError`, in bounded steps, inside its memory.

Reading over the end of an area is a fault here: MappedRing puts an inaccessible page behind each.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.virtio.model import MappedRing

from powervio.errors import RemoteError, Verdict
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing

pytestmark = pytest.mark.dual

sizes = st.sampled_from([1, 2, 8, 64])
words = st.sampled_from([0, 1, 2, 3, 7, 8, 15, 16, 17, 63, 64, 255, 256, 0x7FFF, 0x8000, 0xFFFF])


class NonsenseTables(MappedRing):
    """Tables of nonsense, or none."""

    def __init__(self, size: int, choice: random.Random) -> None:
        super().__init__(size)
        self.choice = choice
        self.asked = 0

    def fetch_table(self, address: int, length: int) -> memoryview:
        self.asked += 1
        assert 16 <= length <= 16 * self.size
        assert length % 16 == 0
        verdict = self.choice.choice([None, None, None, None, *Verdict])
        if verdict is not None:
            raise RemoteError("no such table", verdict)
        table = self.guarded(length)
        scribble(table, length // 16, self.choice)
        return table


def scribble(descriptors: memoryview, count: int, choice: random.Random) -> None:
    """Descriptors that are mostly plausible: random ones would never get far."""
    for index in range(count):
        struct.pack_into(
            "<QIHH",
            descriptors,
            16 * index,
            choice.choice([0, 0x1000, 2**64 - 1, choice.getrandbits(64)]),
            choice.choice([0, 1, 16, 32, 0x1000, 2**32 - 1, choice.getrandbits(32)]),
            choice.choice([0, 1, 1, 1, 2, 3, 4, 6, choice.getrandbits(16)]),
            choice.choice([index + 1, index + 1, choice.randrange(count), choice.getrandbits(16)]) & 0xFFFF,
        )


@settings(max_examples=300)
@given(size=sizes, indirect=st.booleans(), big_endian=st.booleans(), seed=st.integers(0, 2**32), index=words)
def test_device_hostile_driver_gets_an_answer_or_breaks_its_own_ring(
    size: int, indirect: bool, big_endian: bool, seed: int, index: int
) -> None:
    choice = random.Random(seed)
    memory = NonsenseTables(size, choice)
    ring = SplitDeviceRing(size, memory, indirect=indirect, big_endian=big_endian)
    held: list[int] = []
    for _ in range(8):
        scribble(memory.descriptors, size, choice)
        for slot in range(size):
            struct.pack_into("<H", memory.available, 4 + 2 * slot, choice.choice([slot, choice.getrandbits(16)]))
        struct.pack_into("<H", memory.available, 2, choice.choice([index, ring.last_available + 1, size]) & 0xFFFF)
        memory.asked = 0
        try:
            count = ring.refresh()
            assert count <= size
            for _ in range(count + 1):
                chain = ring.pop()
                if chain is None:
                    break
                held.append(chain.head)
                assert len(held) == len(set(held)) <= size
                assert len(chain.readable) + len(chain.writable) <= size
                assert sum(length for _, length in chain.readable + chain.writable) <= 2**32
            assert ring.pending == 0
        except RemoteError:
            assert ring.broken
            return
        finally:
            assert memory.asked <= size
        choice.shuffle(held)
        while held and choice.random() < 0.8:
            ring.push(held.pop(), choice.randrange(2**32))
        ring.publish()


@settings(max_examples=300)
@given(size=sizes, seed=st.integers(0, 2**32), areas=st.binary(min_size=3 * 1024, max_size=3 * 1024))
def test_device_arbitrary_bytes_as_a_ring_get_an_answer_or_an_error(size: int, seed: int, areas: bytes) -> None:
    memory = NonsenseTables(size, random.Random(seed))
    memory.descriptors[:] = areas[: 16 * size]
    memory.available[:] = areas[1024:][: 6 + 2 * size]
    memory.used[:] = areas[2048:][: 6 + 8 * size]
    ring = SplitDeviceRing(size, memory, indirect=True, last_available=areas[1026] | areas[1027] << 8)
    try:
        for _ in range(ring.refresh() + 1):
            chain = ring.pop()
            if chain is not None:
                ring.push(chain.head, 0)
        ring.publish()
        ring.enable_notifications()
    except RemoteError:
        assert ring.broken


@settings(max_examples=300)
@given(
    size=sizes,
    event_idx=st.booleans(),
    big_endian=st.booleans(),
    seed=st.integers(0, 2**32),
    elements=st.lists(st.tuples(words, words), min_size=1, max_size=64),
    indices=st.lists(words, min_size=1, max_size=8),
)
def test_driver_hostile_device_never_gets_a_buffer_twice(
    size: int, event_idx: bool, big_endian: bool, seed: int, elements: list[tuple[int, int]], indices: list[int]
) -> None:
    choice = random.Random(seed)
    memory = MappedRing(size)
    ring = SplitDriverRing(size, memory, event_idx=event_idx, big_endian=big_endian)
    order = ">" if big_endian else "<"
    lent: dict[int, int] = {}
    token = 0
    for index in indices:
        for _ in range(choice.randrange(1, 5)):
            count = choice.randint(1, min(3, size))
            if ring.add([(0x1000 * n, 16) for n in range(count)], choice.randint(0, count), token) >= 0:
                lent[token] = token
                token += 1
        ring.publish()
        memory.descriptors[:] = choice.randbytes(16 * size)
        memory.used[:] = choice.randbytes(memory.used.nbytes)
        for slot in range(size):
            head, written = elements[slot % len(elements)]
            struct.pack_into(order + "II", memory.used, 4 + 8 * slot, choice.choice([head, slot]), written % 20)
        target = choice.choice([index, (ring.last_used + 1) & 0xFFFF, (ring.last_used + len(lent)) & 0xFFFF])
        struct.pack_into(order + "H", memory.used, 2, target)
        ring.enable_interrupts()
        try:
            for _ in range(size + 1):
                got = ring.reap()
                if got is None:
                    break
                assert isinstance(got[0], int)
                del lent[got[0]]
        except RemoteError:
            assert ring.broken
            break
        assert ring.in_flight == sorted(lent)
    assert ring.drain() == sorted(lent)
    assert ring.free_descriptors == size
