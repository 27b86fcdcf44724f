"""What a device type is: features, a config space, and what it does with requests. It never sees a transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from powervio.errors import LocalError
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request


@dataclass(frozen=True, slots=True)
class DeviceSession:
    """One life of a device between DRIVER_OK and reset."""

    features: int
    """Negotiated feature bits."""
    byteorder: ByteOrder
    """"little" or "big": of the device's structures in requests (legacy devices follow the guest)."""
    queues: Mapping[int, DeviceQueue]
    """By number; a queue that the driver resets and sets up again is another object from then on."""


class Cancellable(Protocol):
    """A call that is still to come."""

    def cancel(self) -> None:
        """Make it never happen; harmless when it did."""


class Timers(Protocol):
    """Time as a device has it from its transport: in its partition's thread, and a test's own clock in a test."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that only grow."""

    def call_later(self, delay: float, call: Callable[[], None]) -> Cancellable:
        """Call after `delay` seconds."""


class Device(ABC):
    """One virtio device. A transport asks for features and config, starts it, and hands it queues that have work.

    A device that only answers requests implements `handle`; one that starts data itself (console, net) overrides
    `process` and keeps buffers until it has something for them.
    """

    device_id: ClassVar[int]
    """Device type number (virtio 1.4, chapter 5)."""
    queue_count: int = 1
    queue_size: int = 128
    """Largest queue it serves, in entries."""

    def __init__(self) -> None:
        self.session: DeviceSession | None = None
        self.requests = 0
        """Requests completed since the device was made."""
        self.config_generation = 0
        self.on_config_change: Callable[[], None] | None = None
        """Set by the transport: called when the driver has to be told that config changed."""
        self.timers: Timers | None = None
        """Set by the transport."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Device-type feature bits that are offered (ring and transport bits are the transport's)."""

    @abstractmethod
    def config(self, byteorder: ByteOrder) -> bytes:
        """The config space now, as a driver reads it."""

    def write_config(self, offset: int, data: bytes, byteorder: ByteOrder) -> None:
        """The driver wrote config. Raises `RemoteError` for fields that are not writable."""
        raise LocalError(f"device type {self.device_id} has no writable config field (offset {offset})")

    def start(self, session: DeviceSession) -> None:
        """DRIVER_OK: the queues may be used from now on."""
        self.session = session

    def reset(self) -> None:
        """The session is over: forget its queues. Requests that are not completed will be made anew by the driver."""
        self.session = None

    def queue_reset(self, index: int) -> None:
        """The driver reset one queue: requests of it that are in hand are forgotten, like all of them at `reset`."""

    def suspend(self) -> None:
        """The driver wants quiet: give back, used or not, whatever buffers are kept for later (virtio 1.4, 3.4)."""

    def process(self, queue: DeviceQueue) -> None:
        """The driver made buffers available: pop until there is none. Raises `RemoteError` when the ring is broken.

        A queue gives out only so much in one pass; what is left comes in a later one.
        """
        while (request := queue.pop()) is not None:
            self.handle(request)

    def handle(self, request: Request) -> None:
        """Serve one request and complete it, now or later. Must not raise for anything a driver can send."""
        raise NotImplementedError  # a device overrides `handle` or `process`

    def config_changed(self) -> None:
        """To be called by the device itself, in its partition's thread, after its config became another."""
        self.config_generation += 1
        if self.on_config_change is not None:
            self.on_config_change()

    def state(self) -> dict[str, object]:
        """What has to survive a move to another server, as one serialisable value (virtio 1.4, device parts)."""
        return {}

    def restore(self, state: dict[str, object]) -> None:
        """Take over what `state` of another instance gave, before `start`. Raises `LocalError` when it does not fit."""
