"""A client partition's block driver as a `Disk`: what makes its disk attachable to the host."""

from __future__ import annotations

from powervio.attach.disk import Disk
from powervio.drivers.awaitable import AwaitableDisk
from powervio.virtio.queue import Buffer


class BlockDisk(Disk[Buffer]):
    """The disk behind a driver that has had its first session; abilities are what was negotiated then."""

    def __init__(self, driver: AwaitableDisk) -> None:
        """`driver.ready()` must have returned."""
        self._driver = driver
        self.read_only = driver.read_only
        self.block_size = driver.block_size
        self.preferred_size = max(driver.physical_block_size, driver.block_size)
        self.max_transfer = driver.buffer_size
        self.can_discard = driver.can_discard
        self.can_write_zeroes = driver.can_write_zeroes
        # Not `zeroes_fast`: the device may have to write them out, and virtio has no way to say so.

    @property
    def size(self) -> int:  # type: ignore[override]  # it changes when the device is resized
        """Bytes, as the device said last."""
        return self._driver.capacity

    async def acquire(self, length: int) -> Buffer:
        """See `Disk`."""
        return await self._driver.acquire_buffer(length)

    def release(self, buffer: Buffer) -> None:
        """See `Disk`."""
        self._driver.release_buffer(buffer)

    async def read(self, position: int, buffer: Buffer, length: int) -> None:
        """See `Disk`."""
        await self._driver.read_buffer(position, buffer, 0, length)

    async def write(self, position: int, buffer: Buffer, length: int, *, fua: bool) -> None:
        """See `Disk`: virtio-blk has no FUA, so it is a flush behind the write."""
        await self._driver.write_buffer(position, buffer, 0, length, fua=fua)

    async def flush(self) -> None:
        """See `Disk`."""
        await self._driver.flush()

    async def discard(self, position: int, length: int) -> None:
        """See `Disk`."""
        await self._driver.discard(position, length)

    async def write_zeroes(self, position: int, length: int, *, may_unmap: bool) -> None:
        """See `Disk`."""
        await self._driver.write_zeroes(position, length, unmap=may_unmap)
