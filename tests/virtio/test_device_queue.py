"""What a device's queue over mapped memory shows the driver, and when."""

from __future__ import annotations

import pytest

from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Payload
from powervio.testing.direct import DirectMemory, MappedPayload, MappedRing
from powervio.virtio.device_queue import DeviceQueue, MappedQueue, Segment
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing

RINGS = pytest.mark.parametrize(("packed", "in_order"), [(False, False), (False, True), (True, False), (True, True)])
ROOM = 16


class Pair:
    """A driver's ring with three buffers of `ROOM` bytes, and the device's queue."""

    def __init__(self, packed: bool, in_order: bool) -> None:
        self.memory = DirectMemory(1 << 16)
        self.ring = MappedRing(self.memory, 4)
        buffer = self.memory.allocate(4096)
        assert buffer.device_address is not None
        driver = PackedDriverRing if packed else SplitDriverRing
        device = PackedDeviceRing if packed else SplitDeviceRing
        self.driver: DriverRing = driver(4, self.ring, in_order=in_order)
        self.queue = MappedQueue(0, device(4, self.ring, in_order=in_order), self._payload, self._broken, print, None)
        for number in range(3):
            self.driver.add([(buffer.device_address + 100 * number, ROOM)], 0, number)
        self.driver.publish()
        self.queue.ring.refresh()

    def _payload(self, queue: DeviceQueue, segments: list[Segment]) -> Payload:
        return MappedPayload(self.memory, segments)

    def _broken(self, index: int, error: RemoteError) -> None:
        raise error

    def reaped(self) -> list[tuple[object, int]]:
        found = []
        while (used := self.driver.reap()) is not None:
            found.append(used)
        return found


@pytest.mark.dual
@RINGS
def test_buffer_that_is_given_back_is_visible_at_once(packed: bool, in_order: bool) -> None:
    pair = Pair(packed, in_order)
    for number in range(3):
        request = pair.queue.pop()
        assert request is not None
        request.complete(number)
        assert pair.reaped() == [(number, number)]


@pytest.mark.dual
@RINGS
def test_buffers_that_are_given_back_together_are_visible_all_at_once(packed: bool, in_order: bool) -> None:
    pair = Pair(packed, in_order)
    first, second, third = pair.queue.pop(), pair.queue.pop(), pair.queue.pop()
    assert first is not None
    assert second is not None
    assert third is not None
    with pytest.raises(LocalError):  # in the middle of it
        pair.queue.complete_together([(first, ROOM), (second, ROOM), (second, ROOM)])
    assert pair.reaped() == []
    pair.queue.complete_together([(third, 7)])
    assert pair.reaped() == [(0, ROOM), (1, ROOM), (2, 7)]


@pytest.mark.dual
@RINGS
def test_each_of_them_has_a_used_entry_of_its_own(packed: bool, in_order: bool) -> None:
    # virtio 1.4, 2.7.9 and 2.8.8 would let one stand for all that were written whole; DPDK's driver looks at each
    pair = Pair(packed, in_order)
    requests = [request for _ in range(3) if (request := pair.queue.pop()) is not None]
    pair.queue.complete_together([(request, ROOM) for request in requests])
    if packed:
        entries = [bytes(pair.ring.descriptors[16 * slot + 8 : 16 * slot + 16]) for slot in range(3)]
        assert [int.from_bytes(entry[:4], "little") for entry in entries] == [ROOM] * 3
        assert all(int.from_bytes(entry[6:], "little") & 0x8080 == 0x8080 for entry in entries)
    else:
        assert bytes(pair.ring.used[2:4]) == b"\3\0"
        assert [int.from_bytes(pair.ring.used[8 + 8 * slot : 12 + 8 * slot], "little") for slot in range(3)] == [
            ROOM
        ] * 3


@pytest.mark.dual
def test_after_the_session_nothing_is_given_back() -> None:
    pair = Pair(False, False)
    request = pair.queue.pop()
    assert request is not None
    pair.queue.live = False
    pair.queue.complete_together([(request, 1)])
    assert pair.reaped() == []
