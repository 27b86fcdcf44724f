"""What a device type is: features, a config space, and what it does with requests. It never sees a transport."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from powervio.errors import LocalError
from powervio.virtio.device_queue import MappedQueue
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
    """A call that was asked for and can be called off."""

    def cancel(self) -> None:
        """Make it never happen; harmless when it has happened."""


class Scheduler(Protocol):
    """What a transport gives a device besides queues: turns, time and descriptors, all in the partition's thread."""

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds since some moment; it never goes back."""

    def call_later(self, delay: float, call: Callable[[], None]) -> Cancellable:
        """Call after `delay` seconds; only from the partition's thread."""

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Call in the partition's thread; from any thread."""

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever there is something to read; only from the partition's thread."""

    def remove_reader(self, fd: int) -> None:
        """End that, before the descriptor is closed; harmless when there is no reader."""


class QueueLoop(Protocol):
    """What a device serves a queue with, without the interpreter lock; run in a thread of its own."""

    def run(self) -> None:
        """Serve until `stop`; nothing of the queue is touched after it returned or raised.

        Raises `RemoteError` when the driver broke the ring, `OSError` when there are no kicks any more.
        """

    def stop(self) -> None:
        """Make `run` return soon; from another thread."""

    def close(self) -> None:
        """Give back what the loop has, after `run`."""


class Device(ABC):
    """One virtio device. A transport asks for features and config, starts it, and hands it queues that have work.

    A device that only answers requests implements `handle`. One that has data of its own (console, net) overrides
    `process`: it pops a buffer only when it has something for it, and otherwise leaves it in the ring, where it is in
    nobody's way when the device is suspended, moved or reset. When data come, from whatever thread, it calls the
    queue's `wake`, and gets a turn: `process`, in the partition's thread. Queues are touched nowhere else.

    A device whose data must not be doubled or lost by a reset commits in this order: fill or read the buffers,
    complete them, `flush`, and only if that is true forget what was sent or pass on what was received: else the
    driver has seen nothing of it.
    """

    device_id: ClassVar[int]
    """Device type number (virtio 1.4, chapter 5)."""
    queue_count: int = 1
    queue_size: int = 128
    """Largest queue it serves, in entries."""
    discards: ClassVar[bool] = False
    """Whether `discard` is called for a queue that has work while it is disabled."""
    repeatable: ClassVar[bool] = True
    """Whether a request may be served once more by another instance, which knows nothing of those before. If not, a
    driver whose device was lost has to hear of it, and no transport may hide that (vhost-user: INFLIGHT_SHMFD)."""

    def __init__(self) -> None:
        self.session: DeviceSession | None = None
        self.scheduler: Scheduler | None = None
        """Set by the transport before anything else is called."""
        self.requests = 0
        """Requests completed since the device was made."""
        self.config_generation = 0
        self.on_config_change: Callable[[], None] | None = None
        """Set by the transport: called when the driver has to be told that config changed."""

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

    def early_config(self, offset: int, length: int) -> bool:
        """Whether these bytes of config may be written before the features are settled (5.3.4: emerg_wr)."""
        return False

    def start(self, session: DeviceSession) -> None:
        """DRIVER_OK: the queues may be used from now on."""
        self.session = session

    def reset(self) -> None:
        """The session is over: forget its queues. Requests that are not completed will be made anew by the driver."""
        self.session = None

    def queue_reset(self, index: int) -> None:
        """The driver reset one queue: requests of it that are in hand are forgotten, like all of them at `reset`."""

    def suspend(self) -> None:
        """The driver wants quiet: give back, used or not, whatever buffers are kept for later (virtio 1.4, 3.4).

        What is under way may go on: it is waited for, while other devices are served, until it is completed.
        """

    def drain(self) -> None:
        """After `suspend`, where a transport cannot wait like that: return when all that is in hand is completed."""

    def process(self, queue: DeviceQueue) -> None:
        """The driver made buffers available: pop until there is none. Raises `RemoteError` when the ring is broken.

        A queue gives out only so much in one pass; what is left comes in a later one.
        """
        while (request := queue.pop()) is not None:
            self.handle(request)

    def discard(self, queue: DeviceQueue) -> None:
        """A disabled queue, which vhost-user alone knows, has work: a network's frames are taken and dropped."""

    def handle(self, request: Request) -> None:
        """Serve one request and complete it, now or later. Must not raise for anything a driver can send."""
        raise NotImplementedError  # a device overrides `handle` or `process`

    def loop(self, queue: MappedQueue, spin: float) -> QueueLoop | None:
        """What serves a mapped queue from now on in place of `process`; None: `process` does.

        `spin` is the seconds for which an empty queue is looked at before the loop sleeps. `loop_ended` follows.
        """
        return None

    def loop_ended(self, loop: QueueLoop) -> None:
        """A loop that `loop` gave is not used any more."""

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
