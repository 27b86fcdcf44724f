# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A partition's interrupt presentation, shaped like XICS with one processor.

A source pulses. A pulse makes an idle source pending; while it is pending or accepted further pulses are lost, so a
receiver looks again after H_EOI (papr-vio 3.4). H_XIRR accepts a pending source and raises the processor priority
(CPPR) to the source's; H_EOI makes the source idle and gives the earlier priority back. A smaller number is more
favoured, and a source is presentable while its priority is more favoured than the CPPR.

The line to the receiver is an eventfd. It is written when a source becomes presentable and the line is not asserted
already; nothing of the receiver runs inside the sender's call. Sources are not masked at boot and all have one
priority: `ibm,set-xive` and its like are not modelled. The caller holds the hypervisor's lock.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import event_signal

from powervio.errors import LocalError

_PRIORITY = cython.declare(cython.uint, 5)
"""Priority of every virtual I/O source."""
_LEAST_FAVOURED = cython.declare(cython.uint, 0xFF)
"""CPPR that lets everything through; it is set at boot."""
_SOURCE = cython.declare(cython.uint, 0xFF_FFFF)

_IDLE = 0
_PENDING = 1
_ACCEPTED = 2
_RETIRED = 3
"""The adapter was unplugged while its interrupt was being handled: H_EOI still has to give the priority back."""


@cython.final
@cython.cclass
class InterruptPresentation:
    """The sources of one partition and its one line."""

    fd: cython.int
    _states: dict[int, int]
    _waiting: Any
    _cppr: cython.uint
    _asserted: cython.bint
    _held: cython.bint

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._states = {}
        self._waiting = deque()
        self._cppr = _LEAST_FAVOURED
        self._asserted = False
        self._held = False

    def add(self, source: int) -> None:
        """A new source, idle."""
        self._states[source] = _IDLE

    def remove(self, source: int) -> None:
        """The source's adapter is gone; a pulse that was not accepted yet is dropped, one that was can be ended."""
        state = self._states.pop(source, _IDLE)
        if state == _PENDING:
            self._waiting.remove(source)
        elif state == _ACCEPTED:
            self._states[source] = _RETIRED

    @cython.ccall
    def pulse(self, source: Any) -> cython.bint:
        """The source has something to tell; false if the pulse is lost because it has told so already."""
        if self._states[source] != _IDLE:
            return False
        self._states[source] = _PENDING
        self._waiting.append(source)
        if not self._asserted and self._cppr > _PRIORITY:
            self._assert()
        return True

    @cython.ccall
    def accept(self) -> cython.uint:
        """H_XIRR: CPPR before in bits 24-31, below it the accepted source, or 0 for none. Oldest pulse first."""
        before: cython.uint = self._cppr
        self._asserted = False
        if not self._waiting or before <= _PRIORITY:
            return before << 24
        source: cython.uint = self._waiting.popleft()
        self._states[source] = _ACCEPTED
        self._cppr = _PRIORITY
        return before << 24 | source

    @cython.ccall
    def end(self, xirr: cython.ulonglong) -> cython.bint:
        """H_EOI with the value of an earlier H_XIRR; false, and nothing happens, if it names no source."""
        source = int(xirr & _SOURCE)
        state = self._states.get(source)
        if state is None:
            return False
        if state == _ACCEPTED:
            self._states[source] = _IDLE
        elif state == _RETIRED:
            del self._states[source]
        self.set_priority(cython.cast(cython.uint, (xirr >> 24) & 0xFF))
        return True

    @cython.ccall
    def set_priority(self, priority: cython.uint) -> cython.void:
        """H_CPPR: what is less or equally favoured stays pending."""
        self._cppr = priority
        if priority <= _PRIORITY:
            self._asserted = False
        elif self._waiting and not self._asserted:
            self._assert()

    def hold(self, held: bool) -> None:
        """The partition is suspended: nothing is presented until it runs again. What pulses meanwhile stays pending."""
        self._held = held
        if not held and self._waiting and self._cppr > _PRIORITY and not self._asserted:
            self._assert()

    def state(self) -> tuple[int, list[int], list[int]]:
        """CPPR, pending sources with the oldest first, and accepted ones."""
        accepted = [source for source, state in self._states.items() if state in (_ACCEPTED, _RETIRED)]
        return self._cppr, list(self._waiting), accepted

    def restore(self, priority: int, pending: list[int], accepted: list[int]) -> None:
        """Take over what `state` gave of another partition, held until `hold(False)`.

        An accepted source that is not there was retired before. Raises `LocalError` for a pending one that is not.
        """
        for source in pending:
            if self._states.get(source) != _IDLE:
                raise LocalError(f"interrupt {source:#x} is pending, but is none of an adapter of this partition")
            self._states[source] = _PENDING
            self._waiting.append(source)
        for source in accepted:
            self._states[source] = _ACCEPTED if source in self._states else _RETIRED
        self._cppr = priority & 0xFF
        self._held = True

    def reset(self) -> None:
        """The partition boots: nothing is pending and everything gets through."""
        self._states = {source: _IDLE for source, state in self._states.items() if state != _RETIRED}
        self._waiting.clear()
        self._cppr = _LEAST_FAVOURED
        self._asserted = False
        self._held = False
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)

    def close(self) -> None:
        """Close the line; there are no more pulses."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    @cython.cfunc
    @cython.exceptval(-1)
    def _assert(self) -> cython.int:
        code: cython.int
        if self._held:
            return 0
        self._asserted = True
        # The owner may have filled the counter itself: then the line is readable, which is all that it has to be.
        code = event_signal(self.fd)
        if code < 0:
            raise OSError(-code, os.strerror(-code))
        return 0
