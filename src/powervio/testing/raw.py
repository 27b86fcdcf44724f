"""A driver that sends whatever a test says, for tests of devices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport

_AREA = 4 << 20


class Exchange:
    """One buffer that was sent, and what came back."""

    def __init__(self, memory: Buffer, offset: int, length: int) -> None:
        self._memory = memory
        self._offset = offset
        self._length = length
        self.used: int | None = None
        """Bytes that the device says it wrote; None until it gave the buffer back."""
        self.times = 0
        """How often it came back; more than once is the device's fault."""

    @property
    def answer(self) -> bytes:
        """All writable bytes, 0xEE where the device wrote nothing."""
        return bytes(self._memory.view[self._offset : self._offset + self._length])


class RawDriver(Driver):
    """Accepts the features it was told to, of those offered, and exchanges raw buffers."""

    device_id: ClassVar[int] = 0

    def __init__(self, features: int = (1 << 128) - 1, queues: int = 1) -> None:
        self.features = features
        self.queues = queues
        self.transport: DriverTransport | None = None
        self.config_changes = 0
        self._memory: Buffer | None = None
        self._next = 0

    def select_features(self, offered: int) -> int:
        """Those that the test wants."""
        return offered & self.features

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """As many as the test wants."""
        return self.queues

    def start(self, transport: DriverTransport) -> None:
        """Get memory for the buffers."""
        self.transport = transport
        if self._memory is None:
            self._memory = transport.allocate(_AREA, mapped=True)
        self._next = 0

    def stop(self) -> None:
        """Forget the session."""
        self.transport = None

    def config_changed(self) -> None:
        """Count it."""
        self.config_changes += 1

    def send(self, readable: Sequence[bytes], writable: Sequence[int], queue: int = 0) -> Exchange:
        """Make a buffer of these readable parts, and writable parts of these lengths, available, and kick."""
        assert self.transport is not None
        assert self._memory is not None
        memory = self._memory
        sizes = [*(len(part) for part in readable), *writable]
        if self._next + sum(sizes) > memory.length:
            self._next = 0
        start = at = self._next
        self._next += sum(sizes)
        slices = []
        for size in sizes:
            slices.append((memory, at, size))
            at += size
        given = b"".join(readable)
        memory.view[start : start + len(given)] = given
        memory.view[start + len(given) : at] = b"\xee" * sum(writable)
        exchange = Exchange(memory, start + len(given), sum(writable))
        link = self.transport.queues[queue]
        if not link.add(slices[: len(readable)], slices[len(readable) :], exchange):
            raise AssertionError("the queue is full")
        link.kick()
        return exchange

    def completed(self, queue: DriverQueue) -> None:
        """Note what came back."""
        while (used := queue.reap()) is not None:
            exchange, length = used
            assert isinstance(exchange, Exchange)
            exchange.used = length
            exchange.times += 1
