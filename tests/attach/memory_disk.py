"""A disk in memory for the tests of attachments: a bounded pool, known holes, faults and delays on demand."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import dataclass

from powervio.attach.disk import Disk
from powervio.storage.nbd.protocol import STATE_HOLE, STATE_ZERO


@dataclass(eq=False)
class PoolBuffer:
    view: memoryview


class MemoryDisk(Disk[PoolBuffer]):
    """Whole blocks in a bytearray; what was never written, discarded or zeroed with unmapping is a hole."""

    can_discard = True
    can_write_zeroes = True
    zeroes_fast = True

    def __init__(self, size: int, *, buffers: int = 64, max_transfer: int = 256 << 10, read_only: bool = False) -> None:
        self.size = size
        self.max_transfer = max_transfer
        self.read_only = read_only
        self.data = memoryview(bytearray(size))
        self.buffers = buffers
        self._pool = [PoolBuffer(memoryview(bytearray(max_transfer))) for _ in range(buffers)]
        self._free = asyncio.Semaphore(buffers)
        self.knows_holes = False
        self.allocated = bytearray(size // self.block_size)
        self.calls: list[str] = []
        self.fail: dict[str, int] = {}
        """Name of a method -> errno that it fails with."""
        self.fail_from: int | None = None
        """Reads at this position and behind it fail with EIO."""
        self.gate: asyncio.Event | None = None
        """While it is not set every operation waits in the "device"."""

    @property
    def free_buffers(self) -> int:
        return len(self._pool)

    async def acquire(self, length: int) -> PoolBuffer:
        assert 0 < length <= self.max_transfer
        await self._free.acquire()
        return self._pool.pop()

    def release(self, buffer: PoolBuffer) -> None:
        assert buffer not in self._pool
        self._pool.append(buffer)
        self._free.release()

    async def _enter(self, name: str, position: int = 0, length: int = 0) -> None:
        assert position % self.block_size == length % self.block_size == 0
        assert position + length <= self.size
        self.calls.append(name)
        if self.gate is not None:
            await self.gate.wait()
        if name in self.fail:
            raise OSError(self.fail[name], os.strerror(self.fail[name]))

    def _mark(self, position: int, length: int, state: int) -> None:
        first, count = position // self.block_size, length // self.block_size
        self.allocated[first : first + count] = bytes([state]) * count

    async def read(self, position: int, buffer: PoolBuffer, length: int) -> None:
        await self._enter("read", position, length)
        if self.fail_from is not None and position + length > self.fail_from:
            raise OSError(errno.EIO, "bad block")
        buffer.view[:length] = self.data[position : position + length]

    async def write(self, position: int, buffer: PoolBuffer, length: int, *, fua: bool) -> None:
        await self._enter("write fua" if fua else "write", position, length)
        self.data[position : position + length] = buffer.view[:length]
        self._mark(position, length, 1)

    async def flush(self) -> None:
        await self._enter("flush")

    async def discard(self, position: int, length: int) -> None:
        await self._enter("discard", position, length)
        self.data[position : position + length] = bytes(length)
        self._mark(position, length, 0)

    async def write_zeroes(self, position: int, length: int, *, may_unmap: bool) -> None:
        await self._enter("write_zeroes unmap" if may_unmap else "write_zeroes", position, length)
        self.data[position : position + length] = bytes(length)
        self._mark(position, length, 0 if may_unmap else 1)

    async def block_status(self, position: int, length: int) -> list[tuple[int, int]] | None:
        if not self.knows_holes:
            return None
        first, count = position // self.block_size, length // self.block_size
        flags = STATE_HOLE | STATE_ZERO
        return [(self.block_size, 0 if used else flags) for used in self.allocated[first : first + count]]
