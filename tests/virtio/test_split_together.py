"""Both sides of the split ring against the plain model, on mapped memory and on copies made at the worst moment."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from tests.virtio.machine import Queue
from tests.virtio.model import MappedRing, ShadowRing

from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing

pytestmark = pytest.mark.dual


class SplitQueue(Queue):
    """A split ring in mapped memory."""

    sizes = (1, 2, 4, 8, 16)

    def make(self, size: int, features: dict[str, bool], big_endian: bool) -> None:
        self.memory = self.ring_memory = MappedRing(size)
        self.driver = SplitDriverRing(size, self.memory, big_endian=big_endian, **features)
        if self.remote:
            self.ring_memory = ShadowRing(self.memory, self.random, self.meanwhile)
        self.device = SplitDeviceRing(size, self.ring_memory, big_endian=big_endian, **features)


class RemoteQueue(SplitQueue):
    """The same over shadows."""

    remote = True


TestMapped = SplitQueue.TestCase
TestMapped.settings = settings(max_examples=60, stateful_step_count=60)
TestRemote = RemoteQueue.TestCase
TestRemote.settings = settings(max_examples=60, stateful_step_count=60)


def test_largest_queue_can_be_full() -> None:
    # virtio 1.4, 2.7
    memory = MappedRing(32768)
    driver = SplitDriverRing(32768, memory)
    device = SplitDeviceRing(32768, memory)
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
        assert device.used_index == (turn + 1) * 32768 & 0xFFFF


@pytest.mark.parametrize("size", [1, 4, 256])
@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("remote", [False, True])
def test_indices_wrapping_around_lose_nothing(size: int, event_idx: bool, remote: bool) -> None:
    """More than 65536 buffers, in batches of every size, with a kick and an interrupt wherever one is due."""
    choice = random.Random(size)
    memory = MappedRing(size)
    driver = SplitDriverRing(size, memory, event_idx=event_idx)
    device_memory = ShadowRing(memory, choice, lambda: None) if remote else memory
    device = SplitDeviceRing(size, device_memory, event_idx=event_idx)
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
    assert device.last_available == device.used_index == driver.available_index == sent & 0xFFFF
