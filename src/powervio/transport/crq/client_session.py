"""What a driver has of a client adapter between DRIVER_OK and the end of the session."""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.transport.crq.driver_queue import CrqDriverQueue
from powervio.virtio.queue import Buffer, ByteOrder, DriverTransport

if TYPE_CHECKING:
    from powervio.transport.crq.client import VirtioVio


class ClientSession(DriverTransport):
    """See `DriverTransport`."""

    def __init__(self, client: VirtioVio, features: int, byteorder: ByteOrder, queues: list[CrqDriverQueue]) -> None:
        self._client = client
        self.features = features
        self.byteorder = byteorder
        self.queues = queues

    def config(self) -> bytes:
        """See `DriverTransport`: what the server wrote last, between one of our requests and its reply (P5.7)."""
        return self._client.config_snapshot

    def write_config(self, offset: int, data: bytes) -> None:
        """See `DriverTransport`."""
        self._client.write_config(offset, data)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        """See `DriverTransport`."""
        return self._client.allocate(length, mapped=mapped)

    def release(self, buffer: Buffer) -> None:
        """See `DriverTransport`."""
        self._client.release(buffer)
