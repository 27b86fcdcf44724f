"""A disk behind several devices to `await`: `MultipathCore` with buffers and awaitable operations for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from powervio.drivers.awaitable import AwaitableDisk
from powervio.drivers.multipath import CHECK_INTERVAL, MultipathCore, Path, Policy
from powervio.virtio.device import Scheduler
from powervio.virtio.queue import Buffer


class MultipathDriver(MultipathCore, AwaitableDisk):
    """See `BlockDriver`; `paths` are the drivers of the adapters.

    The buffers are mapped for each request, by the path that it goes to: none is ever known to a server that has no
    request with it.
    """

    def __init__(
        self,
        names: Sequence[str],
        scheduler: Scheduler,
        *,
        policy: Policy = "failover",
        check_interval: float = CHECK_INTERVAL,
        max_queues: int = 16,
        buffers: int = 64,
        buffer_size: int = 256 * 1024,
    ) -> None:
        """See `MultipathCore`; a pool of up to `buffers` buffers of `buffer_size` bytes."""
        super().__init__(names, scheduler, policy=policy, check_interval=check_interval, max_queues=max_queues)
        self._open_pool(buffers, buffer_size)
        self._known_waiters: list[asyncio.Future[None]] = []

    def _allocate(self, length: int) -> Buffer | None:
        path = next((path for path in self.paths if path.connected), None)
        return None if path is None else path.allocate(length)

    def _free(self, buffer: Buffer) -> bool:
        path = next((path for path in self.paths if path.connected), None)
        if path is None:
            return False
        path.free(buffer)
        return True

    async def known(self, path: Path) -> None:
        """Wait until a path that has a session has said which disk it is, or has lost it."""
        while path.connected and path.serial is None:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._known_waiters.append(waiter)
            await waiter

    def settled(self) -> None:
        """Serve those who wait for the disk, for a path or for a buffer."""
        waiters, self._known_waiters = self._known_waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.connected:
            self._is_ready()

    def fail_all(self, reason: str) -> None:
        """See `BlockDriver.fail_all`."""
        super().fail_all(reason)
        self._is_closed(reason)

    def release_memory(self, give_back: Callable[[Buffer], None]) -> None:
        """Give the buffers back, those in use when they return."""
        self.pool.release(give_back)
