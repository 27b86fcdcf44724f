"""A packed ring of which a front end says half a base: a new one, or one that was gone round (`vring.packed_base`)."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.virtio.model import RawPackedRing

from powervio.transport.vhost_user.vring import base_of, packed_base
from powervio.virtio import features as feature
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.packed_layout import FIRST_POSITION

pytestmark = pytest.mark.dual

NEW = FIRST_POSITION << 16 | FIRST_POSITION


class Pair:
    """Both sides of a packed ring."""

    def __init__(self, size: int, *, in_order: bool = False) -> None:
        self.size = size
        self.memory = RawPackedRing(size)
        self.driver = PackedDriverRing(size, self.memory, in_order=in_order)
        self.device = PackedDeviceRing(size, self.memory, in_order=in_order)
        self.taken: list[int] = []

    @property
    def base(self) -> int:
        return base_of(self.device, feature.RING_PACKED)

    def offer(self, length: int) -> None:
        """The driver takes back what was used, and makes a chain of so many descriptors available."""
        while self.driver.reap() is not None:
            pass
        if length <= self.driver.free_descriptors:
            self.driver.add([(0x1000, 16)] * length, length, None)
            self.driver.publish()

    def take(self) -> None:
        self.device.refresh()
        while (chain := self.device.pop()) is not None:
            self.taken.append(chain.head)

    def use(self, count: int) -> None:
        for head in self.taken[:count]:
            self.device.push(head, 0)
        del self.taken[:count]
        self.device.publish()


@pytest.mark.parametrize("said", [0, 0x8000])  # Linux's virtio_uml, DPDK's virtio-user
def test_base_of_a_new_ring_is_its_first_place_whatever_is_available(said: int) -> None:
    pair = Pair(4)
    assert packed_base(said, 4, pair.memory) == NEW
    for _ in range(4):
        pair.offer(1)
        assert packed_base(said, 4, pair.memory) == NEW


def test_base_that_is_not_0_is_taken_at_its_word() -> None:
    assert packed_base(0x8003_8003, 4, Pair(4).memory) == 0x8003_8003


def test_ring_whose_first_place_was_in_the_middle_of_a_chain_is_not_new() -> None:
    # 4 chains of 3 in a ring of 4 go round three times; the third round's place 0 is the end of a chain, not used
    pair = Pair(4)
    for _ in range(4):
        pair.offer(3)
        pair.take()
        pair.use(1)
    assert pair.memory.descriptor(0)[3] & 0x8080 == 0x0080
    assert pair.base == 0
    assert packed_base(0, 4, pair.memory) == 0
    pair.offer(4)
    assert packed_base(0, 4, pair.memory) == 0


def test_ring_that_is_in_flight_as_a_whole_after_a_round_is_not_new() -> None:
    pair = Pair(4)
    for _ in range(4):
        pair.offer(1)
        pair.take()
        pair.use(1)
    for _ in range(4):
        pair.offer(1)
        pair.take()
    assert pair.base == 0x8000
    assert packed_base(pair.base, 4, pair.memory) == 0x8000


@pytest.mark.parametrize("in_order", [False, True])
def test_every_way_around_a_small_ring_that_comes_to_base_0(in_order: bool) -> None:
    for size in (1, 2, 3):
        for lengths in itertools.product(range(1, size + 1), repeat=6):
            pair = Pair(size, in_order=in_order)
            for length, position in zip(lengths, itertools.accumulate(lengths), strict=True):
                pair.offer(length)
                pair.take()
                pair.use(1)
                assert (pair.base == 0) is (position % (2 * size) == size)
                assert packed_base(pair.base, size, pair.memory) == pair.base


@given(
    st.integers(1, 8),
    st.booleans(),
    st.lists(st.tuples(st.integers(1, 8), st.booleans(), st.integers(0, 3)), max_size=60),
)
def test_base_that_a_ring_comes_to_is_kept(size: int, in_order: bool, steps: list[tuple[int, bool, int]]) -> None:
    pair = Pair(size, in_order=in_order)
    for length, take, use in steps:
        pair.offer(length)
        if take:
            pair.take()
        pair.use(use)
        assert packed_base(pair.base, size, pair.memory) == pair.base
