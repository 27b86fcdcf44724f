"""The virtio block driver: `BlockCore` with buffers and awaitable operations for asyncio.

Operations take any length of whole sectors and cut it into requests that the device takes. One returns, or raises,
only when the device does not have its buffers any more, also when its task is cancelled: requests that still wait are
withdrawn then, and for the others the device's answer is awaited before CancelledError goes on.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from powervio.drivers.block_core import SECTOR, BlockCore
from powervio.drivers.block_request import BlockError, BlockRequest
from powervio.errors import LocalError
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer, BufferSlice, DriverTransport

__all__ = ["SECTOR", "BlockCore", "BlockDriver", "BlockError", "BlockRequest"]


class BlockDriver(BlockCore):
    """A disk to `await`: read, write, flush, discard, write_zeroes, secure_erase, get_id.

    All positions and lengths are bytes, multiples of 512. Errors are `BlockError`s. Everything runs in one event loop,
    which is the partition's thread.
    """

    def __init__(
        self, *, max_queues: int = 16, buffers: int = 64, buffer_size: int = 256 * 1024, keep_mapped: bool = False
    ) -> None:
        """A pool of up to `buffers` buffers of `buffer_size` bytes, made when they are first needed.

        With `keep_mapped` they stay mapped for the device, which saves the hypervisor calls of mapping each request
        and gives the server access to the whole pool at any time.
        """
        super().__init__(max_queues=max_queues)
        if buffers < 1 or buffer_size < SECTOR or buffer_size % SECTOR:
            raise LocalError(f"{buffers} buffers of {buffer_size} bytes: expected one at least, in whole sectors")
        self.buffer_size = buffer_size
        self._buffer_limit = buffers
        self._buffer_count = 0
        self._keep_mapped = keep_mapped
        self._free_buffers: list[Buffer] = []
        self._buffer_waiters: deque[asyncio.Future[Buffer]] = deque()
        self._give_back: Callable[[Buffer], None] | None = None
        self._kick_is_due = False
        self._ready_waiters: list[asyncio.Future[None]] = []

    async def ready(self) -> None:
        """Wait for the first session: the disk's size and limits are known then. Raises `BlockError` (ESHUTDOWN)."""
        if self._closed is not None:
            raise BlockError(errno.ESHUTDOWN, self._closed)
        if not self.started:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._ready_waiters.append(waiter)
            await waiter

    # Buffers

    async def acquire_buffer(self, length: int) -> Buffer:
        """A buffer of `buffer_size` bytes, as soon as there is one; `length`, what is needed, must not be more.

        Page-aligned; its contents are what its last user left. Raises `LocalError` for a length that no buffer has
        and when the partition has no memory at all, `BlockError` (ESHUTDOWN) when the disk goes away.
        """
        if length > self.buffer_size:
            raise LocalError(f"{length} bytes are more than the {self.buffer_size} of a buffer")
        if self._closed is not None:
            raise BlockError(errno.ESHUTDOWN, self._closed)
        buffer = self._spare_buffer()
        if buffer is not None:
            return buffer
        waiter: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        self._buffer_waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.release_buffer(waiter.result())
            raise

    def release_buffer(self, buffer: Buffer) -> None:
        """Give a buffer back; the device must not have it any more."""
        if self._give_back is not None:
            self._give_back(buffer)
            return
        while self._buffer_waiters:
            waiter = self._buffer_waiters.popleft()
            if not waiter.done():
                waiter.set_result(buffer)
                return
        self._free_buffers.append(buffer)
        self._trim()

    def limit_buffers(self, limit: int) -> None:
        """Let the pool have another number of buffers; those that are too many go when they are not in use."""
        self._buffer_limit = limit
        self._trim()
        self._serve_waiters()

    def _trim(self) -> None:
        transport = self._transport
        while self._buffer_count > self._buffer_limit and self._free_buffers and transport is not None:
            self._buffer_count -= 1
            transport.release(self._free_buffers.pop())

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """See `Driver.release`; to be called after `fail_all`."""
        super().release(give_back)
        self._give_back = give_back
        while self._free_buffers:
            give_back(self._free_buffers.pop())

    def _spare_buffer(self) -> Buffer | None:
        if self._free_buffers:
            return self._free_buffers.pop()
        if self._transport is None or self._buffer_count >= self._buffer_limit:
            return None
        try:
            buffer = self._transport.allocate(self.buffer_size, mapped=self._keep_mapped)
        except LocalError:
            if not self._buffer_count:
                raise
            self._buffer_limit = self._buffer_count  # so many there are, and they come back
            return None
        self._buffer_count += 1
        return buffer

    def start(self, transport: DriverTransport) -> None:
        """Begin a session, and serve those who wait for it or for a buffer."""
        super().start(transport)
        for waiter in self._ready_waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._ready_waiters.clear()
        self._serve_waiters()

    def _serve_waiters(self) -> None:
        while self._buffer_waiters:
            buffer = self._spare_buffer()
            if buffer is None:
                break
            self.release_buffer(buffer)

    def fail_all(self, reason: str) -> None:
        """The disk goes away for good: all operations end with ESHUTDOWN, what the device has when it gives it back."""
        super().fail_all(reason)
        waiters: list[asyncio.Future[Any]] = [*self._buffer_waiters, *self._ready_waiters]
        self._buffer_waiters.clear()
        self._ready_waiters.clear()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_exception(BlockError(errno.ESHUTDOWN, reason))

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
