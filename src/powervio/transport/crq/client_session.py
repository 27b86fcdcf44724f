"""What a driver has of a client adapter between DRIVER_OK and the end of the session."""

from __future__ import annotations

from collections.abc import Callable

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.transport.crq.driver_queue import CrqDriverQueue
from powervio.transport.crq.handshake import Handshake, Request
from powervio.transport.crq.protocol import Message
from powervio.transport.crq.quiescence import Quiescence
from powervio.vio.dma import DmaMemory, DmaSpace, PartitionPages
from powervio.virtio.queue import Buffer, DriverQueue, DriverTransport


class DriverMemory:
    """Memory that a driver asked for; it outlives sessions."""

    def __init__(self, pages: PartitionPages, dma: DmaSpace) -> None:
        self.may_map = False
        """Set while a session is on: nothing is mapped for a server that has lost its connection (P1.5)."""
        self._pages = pages
        self._dma = dma

    def allocate(self, length: int, *, mapped: bool) -> Buffer:
        """See `DriverTransport.allocate`. Raises `RemoteError` for mapped memory when no session is on."""
        if mapped:
            if not self.may_map:
                raise RemoteError("the session is over", Verdict.CLOSE)
            memory = self._dma.allocate(length)
            return Buffer(memory.view, memory.address, memory.ioba)
        address = self._pages.allocate(length)
        return Buffer(self._pages.memory[address : address + length], address, None)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport.release`."""
        if buffer.device_address is not None:
            self._dma.release(DmaMemory(buffer.address, buffer.device_address, buffer.view))
        else:
            self._pages.free(buffer.address, buffer.length)


class ClientSession(DriverTransport):
    """See `DriverTransport`."""

    def __init__(self, handshake: Handshake, quiescence: Quiescence, memory: DriverMemory, request: Request) -> None:
        """Of a handshake that is through; `request` sends a message of the session."""
        self.live = True
        """Cleared by the client when the session ends."""
        self.features = handshake.features
        self.byteorder = handshake.byteorder
        self.queues = handshake.queues
        self._handshake = handshake
        self._quiescence = quiescence
        self._memory = memory
        self._request = request

    def config(self) -> bytes:
        """See `DriverTransport`: what the server wrote last, between one of our requests and its reply (P5.7)."""
        return self._handshake.config

    def write_config(self, offset: int, data: bytes) -> None:
        """See `DriverTransport` (P5.8). Raises `LocalError` when the session is over."""
        if not self.live:
            raise LocalError("config cannot be written: the session is over")
        known = self._handshake.config
        self._handshake.config = known[:offset] + data + known[offset + len(data) :]
        value = int.from_bytes(data.ljust(8, b"\0"), "big")
        self._request(Message.CONFIG_WRITE, offset=offset, length=len(data), data=value)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        """See `DriverTransport`."""
        return self._memory.allocate(length, mapped=mapped)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport`."""
        self._memory.release(buffer)

    def reset_queue(self, queue: DriverQueue, done: Callable[[list[object]], None]) -> None:
        """See `DriverTransport` (P5.11)."""
        if not self.live or not isinstance(queue, CrqDriverQueue):
            raise LocalError(f"queue {queue.index} cannot be reset: it is of no session that is on")
        self._quiescence.reset_queue(queue, done)
