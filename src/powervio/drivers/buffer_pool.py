"""A pool of equal data buffers of the partition's memory, made when they are first needed."""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable

from powervio.drivers.block_request import BlockError
from powervio.errors import LocalError
from powervio.virtio.queue import Buffer


class BufferPool:
    """Up to `limit` buffers of `size` bytes, page-aligned, for tasks of one event loop."""

    def __init__(self, limit: int, size: int, allocate: Callable[[int], Buffer | None]) -> None:
        """`allocate(size)` gives another one, or None when it cannot now; it may raise `LocalError` for ever."""
        self.size = size
        self.limit = limit
        self.count = 0
        """How many were made and not given back to the partition."""
        self.free: list[Buffer] = []
        self.closed: str | None = None
        """Why there are none any more."""
        self._allocate = allocate
        self._waiters: deque[asyncio.Future[Buffer]] = deque()
        self._give_back: Callable[[Buffer], None] | None = None

    async def acquire(self, length: int) -> Buffer:
        """A buffer, as soon as there is one; `length`, what is needed, must not be more than it has.

        Its contents are what its last user left. Raises `LocalError` for a length that no buffer has and when the
        partition has no memory at all, `BlockError` (ESHUTDOWN) when the disk goes away.
        """
        if length > self.size:
            raise LocalError(f"{length} bytes are more than the {self.size} of a buffer")
        if self.closed is not None:
            raise BlockError(errno.ESHUTDOWN, self.closed)
        buffer = self._spare()
        if buffer is not None:
            return buffer
        waiter: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.put(waiter.result())
            raise

    def put(self, buffer: Buffer) -> None:
        """Give a buffer back; the device must not have it any more."""
        if self._give_back is not None:
            self._give_back(buffer)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(buffer)
                return
        self.free.append(buffer)

    def surplus(self) -> Buffer | None:
        """A free buffer that is over the limit; the caller gives it back to the partition."""
        if self.count <= self.limit or not self.free:
            return None
        self.count -= 1
        return self.free.pop()

    def serve(self) -> None:
        """There may be memory now: let those who wait have it."""
        while self._waiters:
            buffer = self._spare()
            if buffer is None:
                break
            self.put(buffer)

    def close(self, reason: str) -> None:
        """The disk goes away for good: whoever waits for a buffer, or asks for one, gets ESHUTDOWN."""
        self.closed = reason
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(BlockError(errno.ESHUTDOWN, reason))

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """Give back every buffer, those in use when they return."""
        self._give_back = give_back
        while self.free:
            give_back(self.free.pop())

    def _spare(self) -> Buffer | None:
        if self.free:
            return self.free.pop()
        if self.count >= self.limit:
            return None
        try:
            buffer = self._allocate(self.size)
        except LocalError:
            if not self.count:
                raise
            self.limit = self.count  # so many there are, and they come back
            return None
        if buffer is not None:
            self.count += 1
        return buffer
