"""Virtqueues as devices and drivers see them, whatever ring and transport is below.

A device pops `Request`s from a `DeviceQueue` and completes them, in any order, at once or later. A driver adds buffers
to a `DriverQueue`, kicks, and reaps tokens. Which memory the bytes are in is known to the transport alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Payload
from powervio.virtio.batch import Batch
from powervio.virtio.device_ring import Chain, DeviceRing

ByteOrder: TypeAlias = Literal["little", "big"]
"""Of rings, config fields and device structures: little in virtio 1, the guest's own in legacy devices."""
Segment: TypeAlias = tuple[int, int]
"""A run of bytes as the device is told of it: device address, length in bytes."""


_LEAST_COST = 4096


class Request:
    """One buffer that the driver made available: what the device may read, and what it may write."""

    __slots__ = ("_queue", "head", "readable", "writable")

    def __init__(self, queue: DeviceQueue, head: int, readable: Payload, writable: Payload) -> None:
        self._queue = queue
        self.head = head
        self.readable = readable
        self.writable = writable

    @property
    def queue_index(self) -> int:
        """Number of the queue that it came from."""
        return self._queue.index

    def charge(self, cost: int) -> None:
        """Count more than its bytes against this pass: for what takes long and carries little."""
        if self._queue.allowance is not None:
            self._queue.allowance -= cost

    def complete(self, written: int) -> None:
        """Give the buffer back; `written` bytes from the first writable one have been written (never over-report)."""
        self._queue.complete(self.head, written)


class DeviceQueue:
    """The device side of one virtqueue, for the life of one session between DRIVER_OK and reset."""

    def __init__(
        self,
        index: int,
        ring: DeviceRing,
        payload: Callable[[DeviceQueue, list[Segment]], Payload],
        notify: Callable[[int], None],
        broken: Callable[[int, RemoteError], None] | None = None,
        wake: Callable[[DeviceQueue], None] | None = None,
        batch: Batch | None = None,
    ) -> None:
        """`payload` makes the transport's `Payload` of descriptor segments; `notify` sends a used notification.

        `broken` is told when completions cannot be made visible, because a completion may come from anywhere.
        `wake`, called from any thread, gives the device a turn with this queue in the partition's thread.
        """
        self.index = index
        self.ring = ring
        self.live = True
        """Whether the queue belongs to a session; afterwards nothing that it handed out touches the driver's memory."""
        self.allowance: int | None = None
        """Bytes that may still be popped in this pass, each request counted as one page at least; None: no limit."""
        self.batch = batch
        """How to serve several requests together; None where that saves nothing."""
        self._payload = payload
        self._notify = notify
        self._broken = broken
        self._wake = wake
        self._wake_is_due = False

    @property
    def available(self) -> int:
        """Buffers that `pop` can give now. What a device leaves there stays the driver's until it is popped."""
        return self.ring.pending

    def wake(self) -> None:
        """Let the device's `process` be called for this queue soon; from any thread, for a device that has data.

        While the device is suspended and after the end of the session nothing comes of it; RESUME gives every queue
        a turn.
        """
        if self.live and not self._wake_is_due and self._wake is not None:
            self._wake_is_due = True
            self._wake(self)

    def woken(self) -> bool:
        """For the transport: the turn that `wake` asked for begins. False when the session is over."""
        self._wake_is_due = False
        return self.live

    def pop(self) -> Request | None:
        """The next available buffer, or None, also when the allowance is used up.

        Raises `RemoteError` when the driver broke the ring.
        """
        if not self.live or (self.allowance is not None and self.allowance <= 0):
            return None
        chain = self._next()
        if chain is None:
            return None
        request = self._request(chain)
        if self.allowance is not None:
            pieces = len(chain.readable) + len(chain.writable)  # each is a call of the hypervisor at least
            self.allowance -= max(_LEAST_COST * pieces, request.readable.length + request.writable.length)
        return request

    def _next(self) -> Chain | None:
        """For transports: where the next chain comes from."""
        return self.ring.pop()

    def _request(self, chain: Chain) -> Request:
        """For transports: a chain with its payloads."""
        return Request(self, chain.head, self._payload(self, chain.readable), self._payload(self, chain.writable))

    def complete(self, head: int, written: int) -> None:
        """Put a buffer into the used ring; `flush` makes it visible. After a reset of the queue nothing happens."""
        if self.live:
            self.ring.push(head, written)

    def flush(self) -> bool:
        """Make completed buffers visible to the driver and notify it unless it said it does not want to know.

        With IN_ORDER negotiated these are the ones before which nothing is unfinished.

        False when the driver does not see them and never will: the session is over, by now at the latest.
        """
        if not self.live:
            return False
        try:
            published = self.ring.publish()
        except RemoteError as error:
            if self._broken is None:
                raise
            self._broken(self.index, error)
            return False
        if published:
            self._notify(self.index)
        return True


@dataclass(slots=True)
class Buffer:
    """A piece of the driver's own memory that it may lend to the device."""

    view: memoryview
    """The bytes, writable."""
    address: int
    """Logical address in the driver's partition."""
    device_address: int | None
    """What the device calls it while it stays mapped; None when it is mapped for each request."""

    @property
    def length(self) -> int:
        """Bytes."""
        return len(self.view)


BufferSlice: TypeAlias = tuple[Buffer, int, int]
"""A part of a buffer: buffer, offset, length in bytes."""


class DriverQueue(ABC):
    """The driver side of one virtqueue, for the life of one session."""

    index: int
    size: int

    @abstractmethod
    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> bool:
        """Make a buffer available; `kick` tells the device. False, and nothing done, when there is no room for it.

        Raises `RemoteError` when the session is about to end, and `LocalError` for what no device may be given.
        """

    @abstractmethod
    def kick(self) -> None:
        """Tell the device of everything added since the last kick, unless it said it does not want to know."""

    @abstractmethod
    def reap(self) -> tuple[object, int] | None:
        """The next used buffer as `(token, bytes written by the device)`; it is the driver's own again."""


class DriverTransport(ABC):
    """What a driver has of its device during one session: features, config space, queues, memory."""

    features: int
    """Negotiated feature bits, up to 128."""
    byteorder: ByteOrder
    """Of config fields and device structures."""
    queues: Sequence[DriverQueue]

    @abstractmethod
    def config(self) -> bytes:
        """A consistent snapshot of the device's config space."""

    @abstractmethod
    def write_config(self, offset: int, data: bytes) -> None:
        """Write 1, 2 or 4 bytes of config; the device has them when a later request is processed."""

    @abstractmethod
    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        """Memory for requests, page-aligned. With `mapped` it stays mapped: for headers, status bytes and the like.

        Memory outlives sessions: after a reconnection it is the same buffer, mapped anew where it has to be.
        Raises `LocalError` when the partition's memory or window is exhausted.
        """

    @abstractmethod
    def release(self, buffer: Buffer) -> None:
        """Give memory back; the device must not have it any more."""

    def reset_queue(self, queue: DriverQueue, done: Callable[[list[object]], None]) -> None:
        """Have the device forget what is in one queue, while the others go on (virtio 1.4, 2.6.1).

        What the device completed before is completed as ever. Then the same queue is set up again, empty, and `done`
        gets the tokens of what was not completed, oldest first: the buffers are the driver's own again. What the driver
        adds before `done` is called comes back with them, or stays in the queue. If the session ends first, `done` is
        not called: `Driver.stop` says the same for all queues.

        Raises `LocalError` when RING_RESET was not negotiated or the session is over.
        """
        raise LocalError("this transport resets no single queues")
