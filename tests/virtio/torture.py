"""The device of `test_torture`, in a process of its own: `torture.py FD KICK CALL` and options as JSON.

Driver and device share one area of memory and two eventfds, nothing else. What a buffer looks like and how much of it
the device writes follows from its number, so each side knows what it has to find.
"""

from __future__ import annotations

import json
import os
import random
import select
import sys
from dataclasses import asdict, dataclass

from powervio.errors import RemoteError
from powervio.memory.abstract import RingMemory
from powervio.memory.area import MappedArea
from powervio.virtio.device_ring import DeviceRing
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing

TABLE = 128
"""Bytes of an indirect table: 8 descriptors."""
TABLES_AT = 1 << 20
STOP_AT = (2 << 20) - 4096
AREA = 2 << 20
PATIENCE = 20_000
"""Milliseconds after which a side that waits has been forgotten."""


@dataclass
class Options:
    """How a run is to be."""

    packed: bool
    size: int
    event_idx: bool
    indirect: bool
    in_order: bool
    buffers: int
    seed: int

    def memory(self, area: MappedArea) -> SharedRing:
        """The ring's three areas, each on pages of its own."""
        return SharedRing(area)

    def driver(self, memory: RingMemory) -> DriverRing:
        """The driver's side."""
        make = PackedDriverRing if self.packed else SplitDriverRing
        return make(self.size, memory, event_idx=self.event_idx, indirect=self.indirect, in_order=self.in_order)

    def device(self, memory: RingMemory) -> DeviceRing:
        """The device's side."""
        make = PackedDeviceRing if self.packed else SplitDeviceRing
        return make(self.size, memory, event_idx=self.event_idx, indirect=self.indirect, in_order=self.in_order)

    def json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class SharedRing(RingMemory):
    """A ring in memory that two processes have mapped."""

    def __init__(self, area: MappedArea) -> None:
        view = area.view
        self.descriptors = view[0x0_0000:0x1_0000]
        self.available = view[0x1_0000:0x2_0000]
        self.used = view[0x2_0000:0x4_0000]
        self._view = view

    def fetch_table(self, address: int, length: int) -> memoryview:
        """Tables have the offset in the area as their address."""
        if not TABLES_AT <= address <= STOP_AT - length:
            raise RemoteError(f"no table of {length} bytes at {address:#x}")
        return self._view[address : address + length]


def shape(number: int, size: int) -> tuple[list[tuple[int, int]], int]:
    """Segments of a buffer and how many of them are readable. None continues another."""
    count = 1 + number % min(size, 5)
    segments = [((number + 1 << 16) + (n << 8), 1 + (number + n) % 100) for n in range(count)]
    return segments, (number // 7) % (count + 1)


def written(number: int, size: int) -> int:
    """Bytes that the device writes: of most buffers all."""
    segments, readable = shape(number, size)
    room = sum(length for _, length in segments[readable:])
    return room // 2 if number % 5 == 0 else room


def wait(event: int) -> bool:
    """Sleep until the other side tells; False when it never does."""
    poll = select.poll()
    poll.register(event, select.POLLIN)
    if not poll.poll(PATIENCE):
        return False
    os.eventfd_read(event)
    return True


def serve(options: Options, area: MappedArea, kick: int, call: int) -> dict[str, int]:
    """Be the device until `options.buffers` are served; returns what happened."""
    choice = random.Random(options.seed + 1)
    ring = options.device(options.memory(area))
    held: list[tuple[int, int]] = []
    served = pushed = sleeps = 0
    while pushed < options.buffers:
        if choice.random() < 0.5:
            ring.disable_notifications()
        found = ring.refresh()
        for _ in range(choice.randint(0, max(1, found))):
            chain = ring.pop()
            if chain is None:
                break
            segments, readable = shape(served, options.size)
            assert (chain.readable, chain.writable) == (segments[:readable], segments[readable:]), served
            held.append((chain.head, written(served, options.size)))
            served += 1
        idle = not ring.pending
        if held:
            choice.shuffle(held)
            for _ in range(len(held) if idle else choice.randint(0, len(held))):
                ring.push(*held.pop())
                pushed += 1
                if choice.random() < 0.3 and ring.publish():
                    os.eventfd_write(call, 1)
        if ring.publish():
            os.eventfd_write(call, 1)
        if idle and pushed < options.buffers and not ring.enable_notifications():
            sleeps += 1
            assert wait(kick), f"no kick: {served} of {options.buffers} served"
    assert not held
    assert ring.in_hand == 0
    return {"served": served, "pushed": pushed, "sleeps": sleeps}


def main() -> None:
    """In the device's process."""
    fd, kick, call = (int(argument) for argument in sys.argv[1:4])
    area = MappedArea(fd, AREA)
    print(json.dumps(serve(Options(**json.loads(sys.argv[4])), area, kick, call)))


if __name__ == "__main__":
    main()
