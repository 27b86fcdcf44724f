"""The device of `test_torture`, in a process of its own: `torture.py FD KICK CALL`; it serves what stdin tells.

Each line is the options of a run as JSON, and so is the answer: what happened.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass

from powervio.errors import PowervioError
from powervio.memory.area import MappedArea
from powervio.testing.torture import AREA, Device, Driver, TortureRing
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing


@dataclass
class Options:
    """How a run is to be."""

    packed: bool
    size: int
    event_idx: bool
    indirect: bool
    in_order: bool
    seed: int

    def driver(self, view: memoryview, kick: int, call: int) -> Driver:
        """The driver's side; it clears the ring, so it is made first."""
        make = PackedDriverRing if self.packed else SplitDriverRing
        ring = make(
            self.size,
            TortureRing(view),
            event_idx=self.event_idx,
            indirect=self.indirect,
            in_order=self.in_order,
        )
        return Driver(ring, view, call, kick, indirect=self.indirect, seed=self.seed)

    def device(self, view: memoryview, kick: int, call: int) -> Device:
        """The device's side."""
        make = PackedDeviceRing if self.packed else SplitDeviceRing
        ring = make(
            self.size,
            TortureRing(view),
            event_idx=self.event_idx,
            indirect=self.indirect,
            in_order=self.in_order,
        )
        return Device(ring, view, kick, call, seed=self.seed + 1)

    def json(self) -> str:
        """For the other process."""
        return json.dumps(asdict(self))


def main() -> None:
    """In the device's process."""
    fd, kick, call = (int(argument) for argument in sys.argv[1:4])
    view = MappedArea(fd, AREA).view
    processors = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, processors[-1:])
    for line in sys.stdin:
        device = Options(**json.loads(line)).device(view, kick, call)
        failure = ""
        try:
            device.run()
        except PowervioError as error:
            failure = str(error)
        print(
            json.dumps(
                {
                    "failure": failure,
                    "served": device.served,
                    "given": device.given,
                    "sleeps": device.sleeps,
                    "notifications": device.notifications,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
