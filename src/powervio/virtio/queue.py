"""Virtqueues as devices and drivers see them, whatever ring and transport is below.

A device pops `Request`s from a `DeviceQueue` and completes them, in any order, at once or later. A driver adds buffers
to a `DriverQueue`, kicks, and reaps tokens. Which memory the bytes are in is known to the transport alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from powervio.errors import LocalError
from powervio.virtio.device_queue import DeviceQueue, Request, Segment
from powervio.virtio.driver_queue import Buffer, BufferSlice, DriverQueue

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
