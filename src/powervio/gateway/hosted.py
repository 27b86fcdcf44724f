"""Partitions that run in the gateway's thread: their descriptors, timers and calls, beside the doors.

A VIO server of this process that runs there has what a guest posted in its CRQ without another thread that has to be
woken for it first. It runs without the gateway's lock, and everybody's hcalls wait for as long as it takes.
"""

from __future__ import annotations

import heapq
import itertools
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class Later:
    """A call at a later time, unless it is cancelled first."""

    def __init__(self, call: Callable[[], object]) -> None:
        """Not asked for yet."""
        self.call: Callable[[], object] | None = call

    def cancel(self) -> None:
        """Not at all."""
        self.call = None


class Hosted:
    """What `PartitionKernel.start` wants of a thread that is not the partition's alone."""

    def __init__(self, epoll: select.epoll, wake: Callable[[], None]) -> None:
        """`wake` ends a wait for `epoll`, from any thread."""
        self.thread: threading.Thread | None = None
        """The one that all of this is called in; set while there is one."""
        self._epoll = epoll
        self._wake = wake
        self._readers: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self._timers: list[tuple[float, int, Later]] = []
        self._count = itertools.count()
        self._soon: deque[Callable[[], object]] = deque()

    def add_reader(self, fd: int, call: Callable[..., object], *arguments: Any) -> None:
        """Call whenever the descriptor is readable."""
        if fd not in self._readers:
            self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = call, arguments

    def remove_reader(self, fd: int) -> bool:
        """End that, before the descriptor is closed; whether there was one."""
        if self._readers.pop(fd, None) is None:
            return False
        self._epoll.unregister(fd)
        return True

    def call_later(self, delay: float, call: Callable[[], object]) -> Later:
        """Call after `delay` seconds."""
        later = Later(call)
        heapq.heappush(self._timers, (time.monotonic() + delay, next(self._count), later))
        return later

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        """Call in the thread, from any thread."""
        self._soon.append(call)
        self._wake()

    def timeout(self, longest: float) -> float:
        """Seconds until the next timer, `longest` at most."""
        if self._soon:
            return 0.0
        while self._timers and self._timers[0][2].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return longest
        return min(longest, max(0.0, self._timers[0][0] - time.monotonic()))

    def run(self, events: list[tuple[int, int]]) -> None:
        """Make the calls that are due: of descriptors among `events`, of timers, and those that were asked for."""
        for fd, _ in events:
            reader = self._readers.get(fd)
            if reader is not None:  # it may have been removed by one before it
                reader[0](*reader[1])
        while self._timers and self._timers[0][0] <= time.monotonic():
            call = heapq.heappop(self._timers)[2].call
            if call is not None:
                call()
        for _ in range(len(self._soon)):
            self._soon.popleft()()
