# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a partition's kernel does in one pass: interrupts (H_XIRR, handler, H_EOI), deferred calls, timers that are due.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import heapq
import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import event_take

from powervio.papr.port import HcallPort

_SOURCE_MASK = cython.declare(cython.uint, 0x00FF_FFFF)
_INTERRUPT_LIMIT = cython.declare(cython.uint, 64)
"""Interrupts taken in one pass, so that a partner that floods does not keep timers and other work from their turn."""
_FEW_SOURCES = cython.declare(cython.uint, 2)
"""The tree's and one adapter's: a second interrupt then waits so seldom that to look for it, a system call that fails,
costs more than to be called again when there is one."""
_log = logging.getLogger(__name__)


class Timer:
    """A call that is due at a time; `cancel` makes it never happen."""

    __slots__ = ("call", "deadline")

    def __init__(self, deadline: float, call: Callable[[], None]) -> None:
        self.deadline = deadline
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Forget the call; harmless when it was made already."""
        self.call = None


@cython.final
@cython.cclass
class Dispatcher:
    """The calls of one partition, and when they are made; in the partition's thread, but for `soon`."""

    handlers: dict[int, Callable[[], None]]
    soon: Any
    fd: cython.int
    timers: list[tuple[float, int, Timer]]
    _order: Any
    _port: HcallPort
    _clock: Callable[[], float]

    def __init__(self, port: HcallPort, fd: int, clock: Callable[[], float]) -> None:
        """`fd` is a duplicate of the port's `interrupt_fd`, and stays the caller's to close."""
        self.handlers = {}
        """Who is called for which interrupt source."""
        self.soon: deque[Callable[[], None]] = deque()
        """Calls of the next pass; any thread may append to it."""
        self.fd = fd
        self.timers = []
        """A heap: deadline, number, timer."""
        self._order = count()
        self._port = port
        self._clock = clock

    def add_timer(self, delay: float, call: Callable[[], None]) -> Timer:
        """Call after `delay` seconds."""
        timer = Timer(self._clock() + delay, call)
        heapq.heappush(self.timers, (timer.deadline, next(self._order), timer))
        return timer

    def next_deadline(self) -> float | None:
        """When the next timer is due, in the clock's seconds."""
        while self.timers and self.timers[0][2].call is None:
            heapq.heappop(self.timers)
        return self.timers[0][0] if self.timers else None

    def poll(self) -> bool:
        """One pass, without waiting. True when anything was done. Raises `OSError` when the line is closed."""
        worked: cython.bint = self.take_interrupts() != 0
        if self.soon:
            worked = True
            for _ in range(len(self.soon)):  # what these append is for the next pass
                self.guard(self.soon.popleft())
        while self.timers and self.timers[0][0] <= self._clock():
            timer = heapq.heappop(self.timers)[2]
            if timer.call is not None:
                worked = True
                self.guard(timer.call)
        return worked

    @cython.ccall
    @cython.exceptval(-1)
    def take_interrupts(self) -> cython.int:
        """Take the interrupts that wait, up to 64, and make nothing else of the pass; how many there were.

        A handler is called once before and once after H_EOI, because a pulse that comes while the interrupt is pending
        leaves no trace (papr-vio 3.4).
        """
        taken: cython.int
        xirr: cython.uint
        found: cython.int = 0
        limit: cython.uint = 1 if len(self.handlers) <= _FEW_SOURCES else _INTERRUPT_LIMIT
        while limit != 0:
            limit -= 1
            with cython.nogil:
                taken = event_take(self.fd)
            if taken < 0:
                raise OSError(-taken, f"the interrupt line of partition {self._port.partition_name}")
            if taken == 0:
                break
            found += 1
            xirr = self._port.xirr()
            if xirr & _SOURCE_MASK == 0:
                continue
            handler = self.handlers.get(xirr & _SOURCE_MASK)
            if handler is not None:
                self.guard(handler)
            self._port.eoi(xirr)
            if handler is not None:
                self.guard(handler)
        return found

    @cython.ccall
    def guard(self, call: Callable[[], None]) -> cython.void:
        """A fault of ours in one adapter must not stop the others of the partition."""
        try:
            call()
        except Exception:
            _log.exception("partition %s: a handler failed", self._port.partition_name)
