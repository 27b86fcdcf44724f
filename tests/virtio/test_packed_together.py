"""Both sides of the packed ring against the plain model, on mapped memory and on copies made at the worst moment."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from tests.virtio.machine import Queue
from tests.virtio.model import MappedPackedRing, PackedShadow

from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing

pytestmark = pytest.mark.dual


class PackedQueue(Queue):
    """A packed ring in mapped memory."""

    sizes = (1, 2, 3, 4, 5, 7, 8, 16)

    def make(self, size: int, features: dict[str, bool], big_endian: bool) -> None:
        self.memory = self.ring_memory = MappedPackedRing(size)
        self.driver = PackedDriverRing(size, self.memory, **features)
        if self.remote:
            self.ring_memory = PackedShadow(self.memory, self.random, self.meanwhile)
        self.device = PackedDeviceRing(size, self.ring_memory, **features)


class RemoteQueue(PackedQueue):
    """The same over shadows."""

    remote = True


TestMapped = PackedQueue.TestCase
TestMapped.settings = settings(max_examples=60, stateful_step_count=60)
TestRemote = RemoteQueue.TestCase
TestRemote.settings = settings(max_examples=60, stateful_step_count=60)


def test_largest_queue_can_be_full() -> None:
    # virtio 1.4, 2.8
    memory = MappedPackedRing(32768)
    driver = PackedDriverRing(32768, memory)
    device = PackedDeviceRing(32768, memory)
    for turn in range(2):
        for number in range(32768):
            assert driver.add([(number, 8)], 0, number) >= 0
        assert driver.add([(0, 8)], 0, None) == -1
        driver.publish()
        assert device.refresh() == 32768
        while (chain := device.pop()) is not None:
            device.push(chain.head, 8)
        device.publish()
        for number in range(32768):
            assert driver.reap() == (number, 8)
        assert device.last_available == driver.published_index == (turn + 1) << 16 | turn << 15
        assert device.used_index == driver.last_used == turn << 15


@pytest.mark.parametrize("size", [1, 3, 256])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("remote", [False, True])
def test_rounds_wrapping_around_lose_nothing(size: int, event_idx: bool, remote: bool) -> None:
    """More than 65536 buffers, for a queue of 1 more rounds than are counted, in batches of every size, with a kick and
    an interrupt wherever one is due."""
    choice = random.Random(size)
    memory = MappedPackedRing(size)
    driver = PackedDriverRing(size, memory, event_idx=event_idx)
    device_memory = PackedShadow(memory, choice, lambda: None) if remote else memory
    device = PackedDeviceRing(size, device_memory, event_idx=event_idx)
    sent = served = done = 0
    while done < 66000:
        for _ in range(choice.randint(1, size)):
            if driver.add([(sent, 8)], 0, sent) < 0:
                break
            sent += 1
        assert driver.publish(), "the device sleeps at each turn of this loop, so each publish has to wake it"
        while device.refresh():
            while (chain := device.pop()) is not None:
                assert chain.writable == [(served, 8)]
                served += 1
                device.push(chain.head, served % 9)
        assert not device.enable_notifications()
        assert device.publish()
        while (got := driver.reap()) is not None:
            assert got == (done, (done + 1) % 9)
            done += 1
        assert not driver.enable_interrupts()
        assert sent == served == done
    rounds, slot = divmod(sent, size)
    assert device.last_available == driver.published_index == (rounds & 0xFFFF) << 16 | (~rounds & 1) << 15 | slot
    assert device.used_index == driver.last_used == device.last_available & 0xFFFF


def test_remote_a_batch_costs_one_copy_of_descriptors() -> None:
    # the kick tells how far the driver has come, so nothing has to be copied to learn it
    size = 64
    memory = MappedPackedRing(size)
    shadow = PackedShadow(memory, random.Random(1), lambda: None)
    driver = PackedDriverRing(size, memory)
    device = PackedDeviceRing(size, shadow)
    for turn in range(1, 20):
        for number in range(10):
            assert driver.add([(0x1000, 16), (0x2000, 512), (0x3000, 1)], 1, number) >= 0
        assert driver.publish()
        assert device.refresh(driver.published_index) == 10
        assert shadow.fetches == turn
        while (chain := device.pop()) is not None:
            device.push(chain.head, 513)
        assert device.publish()
        assert shadow.stores == turn
        assert [driver.reap() for _ in range(10)] == [(number, 513) for number in range(10)]
        assert not device.enable_notifications()
        assert shadow.fetches == turn


@pytest.mark.parametrize("remote", [False, True])
def test_in_order_a_batch_that_was_written_whole_has_one_used_descriptor(remote: bool) -> None:
    # virtio 1.4, 2.8.8
    memory = MappedPackedRing(16)
    shadow = PackedShadow(memory, random.Random(1), lambda: None)
    driver = PackedDriverRing(16, memory, in_order=True)
    device = PackedDeviceRing(16, shadow if remote else memory, in_order=True)
    for number in range(4):
        driver.add([(0x1000, 16), (0x2000, 512)], 1, number)
    driver.publish()
    before = bytes(memory.descriptors)
    device.refresh(driver.published_index)
    heads = [chain.head for chain in iter(device.pop, None)]
    for number in (3, 1, 0, 2):  # the device finishes them in any order
        device.push(heads[number], 512 if number != 2 else 100)
    device.publish()
    changed = [slot for slot in range(16) if memory.descriptors[16 * slot :][:16] != before[16 * slot :][:16]]
    assert changed == [0, 6]  # one for 0, 1 and 2, of which the last was not written whole, and one for 3
    assert [driver.reap() for _ in range(5)] == [(0, 512), (1, 512), (2, 100), (3, 512), None]


class PublishedDuringTheCopy(PackedShadow):
    """Copies all first halves of descriptors, lets the driver go on, and copies all second halves, with the flags."""

    def fetch_run(self, first: int, count: int) -> None:
        self.fetches += 1
        pieces = [slice(16 * ((first + n) % self._driver.size) + half, None) for half in (0, 8) for n in range(count)]
        for number, piece in enumerate(pieces):
            if number == count:
                self._meanwhile()
            there = slice(piece.start, piece.start + 8)
            self.descriptors[there] = self._driver.descriptors[there]


@pytest.mark.parametrize("copy", [1, 2])
def test_remote_what_becomes_available_during_a_copy_is_not_trusted_with_it(copy: int) -> None:
    """docs/protocol.md, P6.7: flags of the copy's end, address of its beginning."""

    def go_on() -> None:
        if shadow.fetches == copy:
            driver.add([(0xBAD0, 8)], 0, "late")
            driver.publish()

    memory = MappedPackedRing(5)
    shadow = PublishedDuringTheCopy(memory, random.Random(1), go_on)
    driver = PackedDriverRing(5, memory)
    device = PackedDeviceRing(5, shadow)
    driver.add([(0x1000, 8)], 0, "early")
    driver.publish()
    found = []
    for _ in range(3):
        device.refresh()
        found += [chain.writable for chain in iter(device.pop, None)]
        assert [(0, 8)] not in found
    assert found == [[(0x1000, 8)], [(0xBAD0, 8)]]
