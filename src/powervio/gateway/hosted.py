"""Partitions that run in the gateway's thread: their kernels, descriptors and calls, beside the doors.

A VIO server of this process that runs there has what a guest posted in its CRQ without another thread that has to be
woken for it first. It runs without the gateway's lock, and everybody's hcalls wait for as long as it takes.
"""

from __future__ import annotations

import select
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Protocol


class Kernel(Protocol):
    """A partition's kernel (`vio.kernel.PartitionKernel`)."""

    @property
    def poll(self) -> Callable[[], bool]:
        """One pass without waiting; whether anything was done."""

    def timeout(self) -> float | None:
        """Seconds after which it has something to do by itself."""


class Hosted:
    """What `PartitionKernel.start` wants of a thread that is not the partition's alone."""

    def __init__(self, epoll: select.epoll, wake: Callable[[], None]) -> None:
        """`wake` ends a wait for `epoll`, from any thread."""
        self.thread: threading.Thread | None = None
        """The one that all of this is called in; set while there is one."""
        self._epoll = epoll
        self._wake = wake
        self._kernels: tuple[Kernel, ...] = ()
        self._readers: dict[int, tuple[Callable[..., object], tuple[Any, ...]]] = {}
        self._soon: deque[Callable[[], object]] = deque()

    def enter(self, kernel: Kernel) -> None:
        """Give a kernel its turn in every pass from now on."""
        self._kernels += (kernel,)

    def leave(self, kernel: Kernel) -> None:
        """End that."""
        self._kernels = tuple(one for one in self._kernels if one is not kernel)

    def add_reader(self, fd: int, call: Callable[..., object], *arguments: Any) -> None:
        """Call whenever the descriptor is readable, before the kernels have their turn."""
        if fd not in self._readers:
            self._epoll.register(fd, select.EPOLLIN)
        self._readers[fd] = call, arguments

    def remove_reader(self, fd: int) -> bool:
        """End that, before the descriptor is closed; whether there was one."""
        if self._readers.pop(fd, None) is None:
            return False
        self._epoll.unregister(fd)
        return True

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        """Call in the thread, from any thread."""
        self._soon.append(call)
        self._wake()

    def timeout(self, longest: float) -> float:
        """Seconds until a kernel has something to do by itself, `longest` at most."""
        if self._soon:
            return 0.0
        for kernel in self._kernels:
            own = kernel.timeout()
            if own is not None and own < longest:
                longest = own
        return longest

    def run(self, events: Iterable[tuple[int, int]]) -> None:
        """Make the calls that are due: of descriptors among `events`, of kernels, and those that were asked for."""
        for fd, _ in events:
            reader = self._readers.get(fd)
            if reader is not None:  # it may have been removed by one before it
                reader[0](*reader[1])
        for kernel in self._kernels:
            kernel.poll()
        for _ in range(len(self._soon)):
            self._soon.popleft()()
