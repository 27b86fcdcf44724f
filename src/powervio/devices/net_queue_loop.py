"""The queues of a network device that are in the hands of a `Forwarder`, each as a `QueueLoop`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from powervio.devices.net_counters import Counters
from powervio.devices.net_forwarded import ForwardedQueue
from powervio.devices.net_loop import Forwarder
from powervio.virtio import net

if TYPE_CHECKING:
    from powervio.devices.net import NetDevice
    from powervio.network.switch import SwitchPort
    from powervio.virtio.device_queue import MappedQueue


class NetLoop:
    """Has a queue served from `run` until `stop`; the work is done in the forwarder's thread."""

    def __init__(self, forwarder: Forwarder, queue: ForwardedQueue) -> None:
        self.queue = queue
        self._forwarder = forwarder
        self._ended = threading.Event()
        queue.on_end = self._ended.set

    def run(self) -> None:
        """See `QueueLoop`."""
        self._forwarder.add(self.queue)
        self._ended.wait()
        self._forwarder.remove(self.queue)
        if self.queue.error is not None:
            raise self.queue.error

    def stop(self) -> None:
        """See `QueueLoop`."""
        self._ended.set()

    def close(self) -> None:
        """See `QueueLoop`."""

    def add_to(self, counters: Counters) -> None:
        """Count what was forwarded in `counters`."""
        counters.frames += self.queue.frames
        counters.bytes += self.queue.bytes
        for reason, count in self.queue.lost.items():
            counters.drop(reason, count)


class NetLoops:
    """Those of one device that are at work, by queue."""

    def __init__(self, forwarder: Forwarder | None) -> None:
        """Without a `forwarder` there are never any."""
        self.forwarder = forwarder
        self._loops: dict[int, NetLoop] = {}

    def __len__(self) -> int:
        return len(self._loops)

    def __iter__(self) -> Iterator[NetLoop]:
        return iter(self._loops.values())

    def begin(
        self, device: NetDevice, port: SwitchPort, queue: MappedQueue, *, features: int, header_bytes: int, taken: int
    ) -> NetLoop:
        """A loop for a queue, which is the forwarder's when it runs. `taken`: bits of `Offload`, as the driver does."""
        assert self.forwarder is not None
        served = ForwardedQueue(
            self.forwarder, queue, device, port.number, port.handle, features, device.mtu, header_bytes,
            mergeable=bool(features & net.F_MRG_RXBUF),
        )  # fmt: skip
        served.taken = taken
        served.link_up = device.link_up
        loop = NetLoop(self.forwarder, served)
        self._loops[queue.index] = loop
        if not queue.index & 1:
            served.arrived()  # what is there already
        return loop

    def end(self, loop: NetLoop) -> None:
        """It has it no more."""
        index = loop.queue.queue.index
        if self._loops.get(index) is loop:
            del self._loops[index]

    def arrived(self, index: int) -> bool:
        """There is something for a receive queue; False when no loop has it."""
        loop = self._loops.get(index)
        if loop is None:
            return False
        loop.queue.arrived()
        return True

    def still(self) -> AbstractContextManager[None]:
        """No loop goes by what the driver or the operator says, while they say it."""
        return self.forwarder.still() if self.forwarder is not None and self._loops else nullcontext()

    def set_link(self, up: bool) -> None:
        """The cable was plugged or unplugged."""
        for loop in self._loops.values():
            loop.queue.link_up = up

    def take(self, offloads: int) -> None:
        """The driver takes other frames as they are: bits of `Offload`."""
        for loop in self._loops.values():
            loop.queue.taken = offloads

    def counted(self, counters: Counters, side: int) -> Counters:
        """What was counted elsewhere, with what the loops of one side have counted."""
        loops = [loop for index, loop in list(self._loops.items()) if index & 1 == side]
        if not loops:
            return counters
        both = replace(counters, dropped=dict(counters.dropped))
        for loop in loops:
            loop.add_to(both)
        return both
