"""When the driver of a network device hears of what was done with its buffers (virtio 1.4, 5.1.6.5.9).

It does at once, unless it has asked for fewer notifications: then used buffers are kept from it for a while.
"""

from __future__ import annotations

from powervio.devices.net_control import Coalescing, Control
from powervio.devices.net_counters import Counters
from powervio.devices.net_receive import Receiver
from powervio.virtio.device import Cancellable, Device
from powervio.virtio.queue import DeviceQueue, Request


class Notifier:
    """Of all queues of a network device but the control queue."""

    def __init__(self, device: Device, control: Control, receivers: list[Receiver], to_driver: Counters) -> None:
        """`device` has the scheduler; the others are its own."""
        self._device = device
        self._control = control
        self._receivers = receivers
        self._to_driver = to_driver
        self._sent: dict[int, list[Request]] = {}
        """By transmit queue: buffers that go back when notifications are due."""
        self._timers: dict[int, Cancellable] = {}

    def forget(self, index: int) -> None:
        """A queue is reset: what was kept from its driver is nobody's any more."""
        timer = self._timers.pop(index, None)
        if timer is not None:
            timer.cancel()
        self._sent.pop(index, None)

    def sent(self, queue: DeviceQueue, requests: list[Request]) -> None:
        """Transmit buffers go back, now or when the driver wants to hear of them."""
        if not self._control.coalescing:
            for request in requests:
                request.complete(0)
            return
        kept = self._sent.setdefault(queue.index, [])
        kept += requests
        if kept and not self.defers(queue, len(kept)):
            self.show(queue)

    def defers(self, queue: DeviceQueue, count: int) -> bool:
        """Whether `count` used buffers or frames are kept from the driver for a while (5.1.6.5.9)."""
        wish: Coalescing | None = self._control.coalescing.get(queue.index)
        scheduler = self._device.scheduler
        if wish is None or not wish.microseconds or scheduler is None:
            return False
        if count >= max(1, wish.packets) or 2 * queue.ring.in_hand >= queue.ring.size:
            return False
        if queue.index not in self._timers:
            self._timers[queue.index] = scheduler.call_later(wish.microseconds / 1e6, lambda: self._time_is_up(queue))
        return True

    def _time_is_up(self, queue: DeviceQueue) -> None:
        self._timers.pop(queue.index, None)
        if queue.live:
            self.show(queue)
            queue.flush()

    def show(self, queue: DeviceQueue) -> None:
        """Let the driver see what it has not seen."""
        timer = self._timers.pop(queue.index, None)
        if timer is not None:
            timer.cancel()
        if queue.index & 1:
            for request in self._sent.pop(queue.index, ()):
                request.complete(0)
            return
        frames, count = self._receivers[queue.index >> 1].show(queue)
        if not frames:
            return  # what went back empty is shown by the transport
        if queue.flush():
            self._to_driver.frames += frames
            self._to_driver.bytes += count
        else:
            self._to_driver.drop("no driver", frames)
