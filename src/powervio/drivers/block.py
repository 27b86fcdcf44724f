"""The virtio block driver: `BlockCore` with buffers and awaitable operations for asyncio."""

from __future__ import annotations

from collections.abc import Callable

from powervio.drivers.awaitable import AwaitableDisk
from powervio.drivers.block_core import BlockCore
from powervio.drivers.block_limits import SECTOR
from powervio.drivers.block_request import BlockError, BlockRequest
from powervio.virtio.queue import Buffer, DriverTransport

__all__ = ["SECTOR", "BlockCore", "BlockDriver", "BlockError", "BlockRequest"]


class BlockDriver(BlockCore, AwaitableDisk):
    """A disk to `await`, behind one device."""

    def __init__(
        self, *, max_queues: int = 16, buffers: int = 64, buffer_size: int = 256 * 1024, keep_mapped: bool = False
    ) -> None:
        """A pool of up to `buffers` buffers of `buffer_size` bytes, made when they are first needed.

        With `keep_mapped` they stay mapped for the device, which saves the hypervisor calls of mapping each request
        and gives the server access to the whole pool at any time.
        """
        super().__init__(max_queues=max_queues)
        self._open_pool(buffers, buffer_size)
        self._keep_mapped = keep_mapped

    def _allocate(self, length: int) -> Buffer | None:
        return None if self._transport is None else self._transport.allocate(length, mapped=self._keep_mapped)

    def _free(self, buffer: Buffer) -> bool:
        if self._transport is None:
            return False
        self._transport.release(buffer)
        return True

    def start(self, transport: DriverTransport) -> None:
        """Begin a session, and serve those who wait for it or for a buffer."""
        super().start(transport)
        self._is_ready()

    def fail_all(self, reason: str) -> None:
        """The disk goes away for good: all operations end with ESHUTDOWN, what the device has when it gives it back."""
        super().fail_all(reason)
        self._is_closed(reason)

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """See `Driver.release`; to be called after `fail_all`."""
        super().release(give_back)
        self.pool.release(give_back)
