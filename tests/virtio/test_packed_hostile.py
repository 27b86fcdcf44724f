"""Packed rings full of nonsense: each side gives an answer or raises `RemoteError`, in bounded steps, in its memory.

Reading over the end of an area is a fault here: MappedRing puts an inaccessible page behind each.
"""

from __future__ import annotations

import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.virtio.model import MappedPackedRing

from powervio.errors import RemoteError, Verdict
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing

pytestmark = pytest.mark.dual

sizes = st.sampled_from([1, 2, 3, 8, 63, 64])
seeds = st.integers(0, 2**32)


class NonsenseTables(MappedPackedRing):
    """Tables of nonsense, or none; as remote memory it says what was copied."""

    def __init__(self, size: int, choice: random.Random) -> None:
        super().__init__(size)
        self.choice = choice
        self.asked = 0
        self.copied = 0

    def fetch_table(self, address: int, length: int) -> memoryview:
        self.asked += 1
        assert 16 <= length <= 16 * self.size
        assert length % 16 == 0
        verdict = self.choice.choice([None, None, None, None, *Verdict])
        if verdict is not None:
            raise RemoteError("no such table", verdict)
        table = self.guarded(length)
        scribble(table, length // 16, self.choice, 1)
        return table

    def _run(self, first: int, count: int) -> None:
        self.copied += 1
        assert 0 <= first < self.size
        assert 1 <= count <= self.size

    def fetch_run(self, first: int, count: int) -> None:
        self._run(first, count)

    def store_run(self, first: int, count: int) -> None:
        self._run(first, count)


class RemoteNonsense(NonsenseTables):
    remote = True


def scribble(descriptors: memoryview, count: int, choice: random.Random, wrap: int) -> None:
    """Descriptors that are mostly plausible: random ones would never get far."""
    for index in range(count):
        available = 0x80 if wrap else 0x8000
        struct.pack_into(
            "<QIHH",
            descriptors,
            16 * index,
            choice.choice([0, 0x1000, 2**64 - 1, choice.getrandbits(64)]),
            choice.choice([0, 1, 16, 32, 0x1000, 2**32 - 1, choice.getrandbits(32)]),
            choice.choice([index, choice.getrandbits(16)]),
            choice.choice([0, 0, 1, 2, 2, 3, 4, 6]) | choice.choice([available] * 12 + [available ^ 0x8080, 0, 0x8080]),
        )


@settings(max_examples=300)
@given(size=sizes, indirect=st.booleans(), in_order=st.booleans(), remote=st.booleans(), seed=seeds)
def test_device_hostile_driver_gets_an_answer_or_breaks_its_own_ring(
    size: int, indirect: bool, in_order: bool, remote: bool, seed: int
) -> None:
    choice = random.Random(seed)
    memory = (RemoteNonsense if remote else NonsenseTables)(size, choice)
    ring = PackedDeviceRing(size, memory, indirect=indirect, in_order=in_order)
    held: list[int] = []
    for _ in range(8):
        scribble(memory.descriptors, size, choice, ring.last_available >> 15 & 1)
        memory.available[:] = choice.randbytes(4)
        memory.asked = memory.copied = 0
        hint = choice.choice([None, choice.getrandbits(32), ring.last_available + choice.randrange(size + 1)])
        try:
            count = ring.refresh(hint)
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
            ring.enable_notifications()
        except RemoteError:
            assert ring.broken
            return
        finally:
            assert memory.asked <= size
            assert memory.copied <= 2
        choice.shuffle(held)
        while held and choice.random() < 0.8:
            ring.push(held.pop(), choice.randrange(2**32))
        ring.publish()
        assert ring.in_hand <= size


@settings(max_examples=300)
@given(size=sizes, seed=seeds, areas=st.binary(min_size=1032, max_size=1032), position=st.integers(0, 2**32 - 1))
def test_device_arbitrary_bytes_as_a_ring_get_an_answer_or_an_error(
    size: int, seed: int, areas: bytes, position: int
) -> None:
    memory = NonsenseTables(size, random.Random(seed))
    memory.descriptors[:] = areas[8:][: 16 * size]
    memory.available[:], memory.used[:] = areas[:4], areas[4:8]
    ring = PackedDeviceRing(size, memory, indirect=True, event_idx=True, last_available=position, used_index=position)
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
@given(size=sizes, event_idx=st.booleans(), in_order=st.booleans(), seed=seeds)
def test_driver_hostile_device_never_gets_a_buffer_twice(size: int, event_idx: bool, in_order: bool, seed: int) -> None:
    choice = random.Random(seed)
    memory = MappedPackedRing(size)
    ring = PackedDriverRing(size, memory, event_idx=event_idx, in_order=in_order)
    lent: set[int] = set()
    token = 0
    for _ in range(12):
        for _ in range(choice.randrange(1, 5)):
            count = choice.randint(1, min(3, size))
            if ring.add([(0x1000 * n, 16) for n in range(count)], choice.randint(0, count), token) >= 0:
                lent.add(token)
                token += 1
        memory.used[:] = choice.randbytes(4)
        ring.publish()
        used = 0x8080 if ring.last_used & 0x8000 else 0
        for slot in range(size):
            if choice.random() < 0.7:
                flags = choice.choice([used, used, used | 2, used | 7, choice.getrandbits(16)])
                ident = choice.choice([slot, size - 1 - slot, choice.randrange(size), choice.getrandbits(16)])
                struct.pack_into("<QIHH", memory.descriptors, 16 * slot, 0, choice.randrange(20), ident, flags)
        ring.enable_interrupts()
        try:
            for _ in range(size + 1):
                got = ring.reap()
                if got is None:
                    break
                assert isinstance(got[0], int)
                lent.remove(got[0])
        except RemoteError:
            assert ring.broken
            break
        assert ring.in_flight == sorted(lent)
    assert ring.drain() == sorted(lent)
    assert ring.free_descriptors == size
