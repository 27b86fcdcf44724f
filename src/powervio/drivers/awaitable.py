"""A disk to `await`: read, write, flush and the rest for asyncio, over a core that takes requests and calls back.

Operations take any length of whole sectors and cut it into requests that the device takes. One returns, or raises,
only when the device does not have its buffers any more, also when its task is cancelled: requests that still wait are
withdrawn then, and for the others the device's answer is awaited before CancelledError goes on.
"""

from __future__ import annotations

import asyncio
import errno
from abc import abstractmethod
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

from powervio.drivers.block_limits import SECTOR, BlockLimits
from powervio.drivers.block_request import BlockError, BlockRequest
from powervio.drivers.buffer_pool import BufferPool
from powervio.errors import LocalError
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer, BufferSlice


class AwaitableDisk(BlockLimits):
    """read, write, flush, discard, write_zeroes, secure_erase, get_id, and a pool of buffers.

    All positions and lengths are bytes, multiples of 512. Errors are `BlockError`s. Everything runs in one event loop,
    which is the partition's thread. A subclass joins it with a core, and calls `_open_pool` before anything else.
    """

    def _open_pool(self, buffers: int, buffer_size: int) -> None:
        if buffers < 1 or buffer_size < SECTOR or buffer_size % SECTOR:
            raise LocalError(f"{buffers} buffers of {buffer_size} bytes: expected one at least, in whole sectors")
        self.pool = BufferPool(buffers, buffer_size, self._allocate)
        self.buffer_size = buffer_size
        self._kick_is_due = False
        self._ready_waiters: list[asyncio.Future[None]] = []

    @abstractmethod
    def submit(self, request: BlockRequest) -> None:
        """See `BlockCore.submit`."""

    @abstractmethod
    def kick(self) -> None:
        """See `BlockCore.kick`."""

    @abstractmethod
    def withdraw(self, request: BlockRequest) -> None:
        """See `BlockCore.withdraw`."""

    @abstractmethod
    def _allocate(self, length: int) -> Buffer | None:
        """Memory of the partition for the pool; None while there is no session to have it by."""

    @abstractmethod
    def _free(self, buffer: Buffer) -> bool:
        """Give a buffer of the pool back to the partition; False while there is no session to do it by."""

    async def ready(self) -> None:
        """Wait for the first session: the disk's size and limits are known then. Raises `BlockError` (ESHUTDOWN)."""
        if self._closed is not None:
            raise BlockError(errno.ESHUTDOWN, self._closed)
        if not self.started:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ready_waiters.append(waiter)
            await waiter

    def _is_ready(self) -> None:
        """A session has begun: serve those who wait for it, or for a buffer."""
        for waiter in self._ready_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._ready_waiters.clear()
        self.pool.serve()

    def _is_closed(self, reason: str) -> None:
        """The disk goes away for good: those who wait for it, or for a buffer, get ESHUTDOWN."""
        self.pool.close(reason)
        waiters, self._ready_waiters = self._ready_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(BlockError(errno.ESHUTDOWN, reason))

    # Buffers

    async def acquire_buffer(self, length: int) -> Buffer:
        """A buffer of `buffer_size` bytes: see `BufferPool.acquire`."""
        return await self.pool.acquire(length)

    def release_buffer(self, buffer: Buffer) -> None:
        """Give a buffer back; the device must not have it any more."""
        self.pool.put(buffer)
        self._trim()

    def limit_buffers(self, limit: int) -> None:
        """Let the pool have another number of buffers; those that are too many go when they are not in use."""
        self.pool.limit = limit
        self._trim()
        self.pool.serve()

    def _trim(self) -> None:
        while (buffer := self.pool.surplus()) is not None:
            if not self._free(buffer):
                self.pool.count += 1
                self.pool.free.append(buffer)
                break

    # Data

    async def read(self, position: int, length: int) -> bytes:
        """`length` bytes from `position`."""
        if length > self.buffer_size:
            data = bytearray(length)
            await self.read_into(position, memoryview(data))
            return bytes(data)
        buffer = await self.acquire_buffer(length)
        try:
            await self.read_buffer(position, buffer, 0, length)
            return bytes(buffer.view[:length])
        finally:
            self.release_buffer(buffer)

    async def read_into(self, position: int, target: memoryview) -> None:
        """Fill `target` (bytes) from `position`, by way of buffers of the pool."""

        async def part(at: int, length: int) -> None:
            buffer = await self.acquire_buffer(length)
            try:
                await self.read_buffer(position + at, buffer, 0, length)
                target[at : at + length] = buffer.view[:length]
            finally:
                self.release_buffer(buffer)

        await _all([part(at, length) for at, length in _cut(len(target), self.buffer_size)])

    async def write(self, position: int, data: bytes | bytearray | memoryview) -> None:
        """Write `data` (bytes) at `position`, by way of buffers of the pool."""
        source = memoryview(data)

        async def part(at: int, length: int) -> None:
            buffer = await self.acquire_buffer(length)
            try:
                buffer.view[:length] = source[at : at + length]
                await self.write_buffer(position + at, buffer, 0, length)
            finally:
                self.release_buffer(buffer)

        await _all([part(at, length) for at, length in _cut(len(source), self.buffer_size)])

    async def read_buffer(self, position: int, buffer: Buffer, offset: int, length: int) -> None:
        """Fill `length` bytes of `buffer` at `offset` from `position`, without a copy."""
        await self._transfer(blk.T_IN, position, buffer, offset, length)

    async def write_buffer(self, position: int, buffer: Buffer, offset: int, length: int, *, fua: bool = False) -> None:
        """Write `length` bytes of `buffer` at `offset` to `position`; with `fua` they are stable then."""
        await self._transfer(blk.T_OUT, position, buffer, offset, length)
        if fua:
            await self.flush()

    async def _transfer(self, kind: int, position: int, buffer: Buffer, offset: int, length: int) -> None:
        if not length:
            return
        if length <= self.size_max:
            await self._do(BlockRequest(kind, position, length, ((buffer, offset, length),)))
            return
        await _all(
            [
                self._do(BlockRequest(kind, position + at, count, self._slices(buffer, offset + at, count)))
                for at, count in _cut(length, self.size_max * self.seg_max)
            ]
        )

    def _slices(self, buffer: Buffer, offset: int, length: int) -> Sequence[BufferSlice]:
        return [(buffer, offset + at, count) for at, count in _cut(length, self.size_max)]

    # The rest

    async def flush(self) -> None:
        """Make every write that had returned before this call stable; at once if the device has no volatile cache."""
        if not self.started or self.needs_flush:
            await self._do(BlockRequest(blk.T_FLUSH))

    async def discard(self, position: int, length: int) -> None:
        """Give up the contents of a range. Raises `BlockError` (ENOTSUP) if `can_discard` is false."""
        await self.ready()
        end = position + length
        while position < end:
            stop = min(end, position + (self.max_discard or length))
            if stop < end and stop - stop % self.discard_alignment > position:
                stop -= stop % self.discard_alignment
            await self._do(BlockRequest(blk.T_DISCARD, position, stop - position))
            position = stop

    async def secure_erase(self, position: int, length: int) -> None:
        """Make a range unreadable for good. Raises `BlockError` (ENOTSUP) if `can_secure_erase` is false."""
        await self.ready()
        for at, count in _cut(length, self.max_secure_erase or length):
            await self._do(BlockRequest(blk.T_SECURE_ERASE, position + at, count))

    async def write_zeroes(self, position: int, length: int, *, unmap: bool = False) -> None:
        """Make a range read as zeroes; with `unmap` its space may be given back.

        Where the device cannot do it by itself (`can_write_zeroes`) zeroes are written.
        """
        await self.ready()
        if not self.can_write_zeroes:
            await self._write_zero_data(position, length)
            return
        flags = blk.SEGMENT_UNMAP if unmap else 0
        for at, count in _cut(length, self.max_write_zeroes or length):
            await self._do(BlockRequest(blk.T_WRITE_ZEROES, position + at, count, flags=flags))

    async def _write_zero_data(self, position: int, length: int) -> None:
        buffer = await self.acquire_buffer(min(length, self.buffer_size))
        try:
            buffer.view[:] = bytes(self.buffer_size)
            for at, count in _cut(length, self.buffer_size):
                await self.write_buffer(position + at, buffer, 0, count)
        finally:
            self.release_buffer(buffer)

    async def get_id(self) -> str:
        """The disk's serial, up to 20 characters."""
        request = BlockRequest(blk.T_GET_ID)
        await self._do(request)
        return request.answer.split(b"\0", 1)[0].decode("ascii", "replace")

    # Waiting

    async def _do(self, request: BlockRequest) -> None:
        """Submit and wait until it is done. Raises its `BlockError`."""
        loop = asyncio.get_running_loop()
        request.context = loop.create_future()
        request.callback = _wake
        self.submit(request)
        if not self._kick_is_due:
            # One kick for all that this turn of the loop submits: a kick is a hypervisor call and wakes the server.
            self._kick_is_due = True
            loop.call_soon(self._kick_now)
        try:
            await request.context
        except asyncio.CancelledError:
            self.withdraw(request)
            while not request.done:
                request.context = loop.create_future()
                try:
                    await request.context
                except asyncio.CancelledError:
                    continue  # asked again: the answer is the same
            raise
        if request.error is not None:
            raise request.error

    def _kick_now(self) -> None:
        self._kick_is_due = False
        self.kick()


def _wake(request: BlockRequest) -> None:
    future = request.context
    if isinstance(future, asyncio.Future) and not future.done():
        future.set_result(None)


def _cut(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """`(offset, bytes)` of consecutive pieces of at most `limit` bytes."""
    at = 0
    while at < length:
        count = min(limit, length - at)
        yield at, count
        at += count


async def _all(parts: list[Coroutine[Any, Any, None]]) -> None:
    """Wait for all of them, whatever happens to some; then raise the first error."""
    if len(parts) == 1:
        await parts[0]
        return
    for outcome in await asyncio.gather(*parts, return_exceptions=True):
        if outcome is not None:
            raise outcome
