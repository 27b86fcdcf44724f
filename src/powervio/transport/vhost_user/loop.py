"""The thread of a back end: descriptors that are waited for, timers, and calls from other threads.

Everything of a back end runs in one loop: messages, kicks, the device's time (`Scheduler`). A device is called in one
thread, and a queue costs no thread of its own.
"""

from __future__ import annotations

import heapq
import logging
import os
import select
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count

_log = logging.getLogger(__name__)


class Timer:
    """A call that is due at a time."""

    __slots__ = ("call", "deadline")

    def __init__(self, deadline: float, call: Callable[[], None]) -> None:
        self.deadline = deadline
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""
        self.call = None


class Loop:
    """One thread's work. All but `call_soon_threadsafe` and `stop` is for that thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.before_sleep: Callable[[], bool] | None = None
        """Called before the loop would sleep; it does not sleep when this returns True."""
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._order = count()
        self._soon: deque[Callable[[], None]] = deque()
        self._poller = select.poll()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopping = False
        self.add_reader(self._wake_fd, self._unwake)

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever there is something to read, or the other end is gone."""
        self._readers[fd] = call
        self._watch(fd)

    def remove_reader(self, fd: int) -> None:
        """End that; before the descriptor is closed."""
        if self._readers.pop(fd, None) is not None:
            self._watch(fd)

    def add_writer(self, fd: int, call: Callable[[], None]) -> None:
        """Call whenever something can be written."""
        self._writers[fd] = call
        self._watch(fd)

    def remove_writer(self, fd: int) -> None:
        """End that."""
        if self._writers.pop(fd, None) is not None:
            self._watch(fd)

    def _watch(self, fd: int) -> None:
        events = (select.POLLIN if fd in self._readers else 0) | (select.POLLOUT if fd in self._writers else 0)
        if events:
            self._poller.register(fd, events)
        else:
            self._poller.unregister(fd)

    def call_later(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call after `delay` seconds."""
        timer = Timer(self.clock() + delay, call)
        heapq.heappush(self._timers, (timer.deadline, next(self._order), timer))
        return timer

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        """Call in the loop's thread, from any thread."""
        self._soon.append(call)
        with suppress(OSError):  # the loop may be closed by now
            os.eventfd_write(self._wake_fd, 1)

    def stop(self) -> None:
        """End `run` soon; from any thread, and from a signal handler."""
        self._stopping = True
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    def run(self) -> None:
        """Work until `stop`."""
        while not self._stopping:
            self.run_once()

    def run_once(self, limit: float | None = None) -> None:
        """Do what is due, after waiting for it; at most `limit` seconds."""
        for _ in range(len(self._soon)):
            self._guard(self._soon.popleft())
        while self._timers and (self._timers[0][2].call is None or self._timers[0][0] <= self.clock()):
            timer = heapq.heappop(self._timers)[2]
            if timer.call is not None:
                self._guard(timer.call)
        timeout = limit
        if self._soon or self._stopping or (self.before_sleep is not None and self.before_sleep()):
            timeout = 0.0
        elif self._timers:
            due = max(0.0, self._timers[0][0] - self.clock())
            timeout = due if limit is None else min(due, limit)
        for fd, events in self._poller.poll(None if timeout is None else timeout * 1000 + (timeout > 0)):
            reader, writer = self._readers.get(fd), self._writers.get(fd)
            if reader is not None and events & ~select.POLLOUT:
                self._guard(reader)
            if writer is not None and fd in self._writers and events & ~select.POLLIN:
                self._guard(writer)

    def _guard(self, call: Callable[[], None]) -> None:
        """A fault of ours must not end the service."""
        try:
            call()
        except Exception:
            _log.exception("a handler failed")

    def _unwake(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake_fd)

    def close(self) -> None:
        """Release the loop's own descriptor; it is not run afterwards."""
        self._stopping = True
        self.remove_reader(self._wake_fd)
        fd, self._wake_fd = self._wake_fd, -1
        os.close(fd)
