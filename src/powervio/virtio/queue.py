"""Virtqueues as devices and drivers see them, whatever ring and transport is below.

A device pops `Request`s from a `DeviceQueue` and completes them, in any order, at once or later. A driver adds buffers
to a `DriverQueue`, kicks, and reaps tokens. Which memory the bytes are in is known to the transport alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from powervio.errors import LocalError
from powervio.virtio.device_queue import DeviceQueue, Request, Segment

__all__ = [
    "Buffer",
    "BufferSlice",
    "ByteOrder",
    "DeviceQueue",
    "DriverQueue",
    "DriverTransport",
    "Request",
    "Segment",
]

ByteOrder: TypeAlias = Literal["little", "big"]
"""Of rings, config fields and device structures: little in virtio 1, the guest's own in legacy devices."""


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
