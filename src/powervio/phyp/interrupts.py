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
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import event_signal
from cython.cimports.powervio.phyp.ledger import CostLedger

from powervio.errors import LocalError

_PRIORITY = cython.declare(cython.uint, 5)
"""Priority of every virtual I/O source."""
_LEAST_FAVOURED = cython.declare(cython.uint, 0xFF)
"""CPPR that lets everything through; it is set at boot."""
_SOURCE = cython.declare(cython.uint, 0xFF_FFFF)

_IDLE = cython.declare(cython.int, 0)
_PENDING = cython.declare(cython.int, 1)
_ACCEPTED = cython.declare(cython.int, 2)
_RETIRED = cython.declare(cython.int, 3)
"""The adapter was unplugged while its interrupt was being handled: H_EOI still has to give the priority back."""


@cython.final
@cython.cclass
class Source:
    """One interrupt source: its state, and on whose account its interrupts are, if on an adapter's."""

    number: cython.uint
    state: cython.int
    fd: cython.int
    ledger: CostLedger | None
    later: Source | None

    def __init__(self, number: int, ledger: CostLedger | None) -> None:
        self.number = number
        self.state = _IDLE
        self.fd = -1
        """Where it is directed to: an eventfd of its own, -1 for the partition's line."""
        self.ledger = ledger
        self.later = None
        """The next one that is pending."""


@cython.final
@cython.cclass
class InterruptPresentation:
    """The sources of one partition and its one line."""

    fd: cython.int
    _sources: dict[int, Source]
    _first: Source | None
    _last: Source | None
    _recent: Source | None
    _cppr: cython.uint
    _asserted: cython.bint
    _held: cython.bint

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._sources = {}
        self._first = None
        """Pending sources, the oldest first, are linked by `later` from here."""
        self._last = None
        self._recent = None
        """Accepted last, if it is still known: most likely the next to be ended."""
        self._cppr = _LEAST_FAVOURED
        self._asserted = False
        self._held = False

    def add(self, number: int, ledger: CostLedger | None = None) -> None:
        """A new source, idle."""
        self._sources[number] = Source(number, ledger)

    def remove(self, number: int) -> None:
        """The source's adapter is gone; a pulse that was not accepted yet is dropped, one that was can be ended."""
        source: Source | None = self._sources.get(number)
        if source is None:
            return
        if source.state == _ACCEPTED:
            source.state = _RETIRED
            source.ledger = None
            return
        if source.state == _PENDING:
            self._drop(source)
        self._forget(source)

    @cython.cfunc
    @cython.exceptval(-1)
    def _forget(self, source: Source) -> cython.int:
        del self._sources[source.number]
        if self._recent is source:
            self._recent = None
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _append(self, source: Source) -> cython.void:
        source.state = _PENDING
        if self._last is None:
            self._first = source
        else:
            self._last.later = source
        self._last = source

    @cython.cfunc
    @cython.exceptval(check=False)
    def _drop(self, source: Source) -> cython.void:
        """A pending one is pending no more."""
        before: Source | None = None
        one: Source | None = self._first
        while one is not None and one is not source:
            before = one
            one = one.later
        if before is None:
            self._first = source.later
        else:
            before.later = source.later
        if self._last is source:
            self._last = before
        source.later = None

    @cython.ccall
    @cython.exceptval(-1)
    def pulse(self, number: Any) -> cython.bint:
        """The source has something to tell; false if the pulse is lost because it has told so already."""
        source: Source = self._sources[number]
        if source.fd >= 0:
            return self._tell(source) == 0
        if source.state != _IDLE:
            return False
        self._append(source)
        if not self._asserted and self._cppr > _PRIORITY:
            self._assert()
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def accept(self, counter: cython.int, other: CostLedger) -> cython.uint:
        """H_XIRR: CPPR before in bits 24-31, below it the accepted source, or 0 for none. Oldest pulse first.

        The call counts on the ledger of the source's adapter, on `other` if there is none.
        """
        before: cython.uint = self._cppr
        source: Source | None = self._first
        self._asserted = False
        if source is None or before <= _PRIORITY:
            other.count(counter)
            return before << 24
        self._drop(source)
        source.state = _ACCEPTED
        self._recent = source
        self._cppr = _PRIORITY
        (other if source.ledger is None else source.ledger).count(counter)
        return before << 24 | source.number

    @cython.ccall
    @cython.exceptval(-1)
    def end(self, xirr: cython.ulonglong, counter: cython.int, other: CostLedger) -> cython.bint:
        """H_EOI with the value of an earlier H_XIRR; false, and nothing happens, if it names no source.

        The call counts as in `accept`.
        """
        number: cython.uint = cython.cast(cython.uint, xirr & _SOURCE)
        source: Source | None = self._recent
        if source is None or source.number != number:
            source = self._sources.get(number)
        if source is None:
            other.count(counter)
            return False
        (other if source.ledger is None else source.ledger).count(counter)
        if source.state == _ACCEPTED:
            source.state = _IDLE
        elif source.state == _RETIRED:
            self._forget(source)
        self.set_priority(cython.cast(cython.uint, (xirr >> 24) & 0xFF))
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def set_priority(self, priority: cython.uint) -> cython.int:
        """H_CPPR: what is less or equally favoured stays pending."""
        self._cppr = priority
        if priority <= _PRIORITY:
            self._asserted = False
        elif self._first is not None and not self._asserted:
            self._assert()
        return 0

    def direct(self, number: int, fd: int) -> bool:
        """Direct a source to an eventfd of its own, or with -1 back to the line; false if there is no such source.

        A directed source has no state: each pulse is told at once, H_XIRR does not give it and H_EOI does nothing. What
        is pending is told there. The eventfd stays the caller's, who directs the source back before closing it.
        """
        source: Source | None = self._sources.get(number)
        if source is None or source.state == _RETIRED:
            return False
        source.fd = fd
        if fd >= 0 and source.state == _PENDING:
            self._drop(source)
            source.state = _IDLE
            self._tell(source)
        return True

    def direct_back(self) -> None:
        """Direct every source to the line."""
        source: Source
        for source in self._sources.values():
            source.fd = -1

    def hold(self, held: bool) -> None:
        """The partition is suspended: nothing is presented until it runs again. What pulses meanwhile stays pending.

        Directed sources have nothing that could be pending, so all of them tell something when it runs again.
        """
        source: Source
        self._held = held
        if not held:
            for source in self._sources.values():
                if source.fd >= 0:
                    self._tell(source)
        if not held and self._first is not None and self._cppr > _PRIORITY and not self._asserted:
            self._assert()

    def state(self) -> tuple[int, list[int], list[int]]:
        """CPPR, pending sources with the oldest first, and accepted ones."""
        pending: list[int] = []
        one: Source | None = self._first
        while one is not None:
            pending.append(one.number)
            one = one.later
        accepted: list[int] = []
        for one in self._sources.values():
            if one.state == _ACCEPTED or one.state == _RETIRED:
                accepted.append(one.number)
        return self._cppr, pending, accepted

    def restore(self, priority: int, pending: list[int], accepted: list[int]) -> None:
        """Take over what `state` gave of another partition, held until `hold(False)`.

        An accepted source that is not there was retired before. Raises `LocalError` for a pending one that is not, and
        for what no partition can have.
        """
        source: Source | None
        for number in pending:
            source = self._sources.get(number)
            if source is None or source.state != _IDLE:
                raise LocalError(f"interrupt {number:#x} is pending, but is none of an adapter of this partition")
            self._append(source)
        for number in accepted:
            source = self._sources.get(number)
            if not 0 < number <= _SOURCE or (source is not None and source.state == _PENDING):
                raise LocalError(f"interrupt {number:#x} is said to be accepted, but it is pending or none at all")
            if source is None:
                source = self._sources[number] = Source(number, None)
                source.state = _RETIRED
            else:
                source.state = _ACCEPTED
        self._cppr = priority & 0xFF
        self._held = True

    def reset(self) -> None:
        """The partition boots: nothing is pending and everything gets through."""
        source: Source
        for source in list(self._sources.values()):
            source.later = None
            source.fd = -1
            if source.state == _RETIRED:
                self._forget(source)
            else:
                source.state = _IDLE
        self._first = self._last = None
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

    @cython.cfunc
    @cython.exceptval(-1)
    def _tell(self, source: Source) -> cython.int:
        """Pulse a directed source: 1 if nobody hears of it now."""
        code: cython.int
        if self._held:
            return 1
        code = event_signal(source.fd)
        if code < 0:
            raise OSError(-code, os.strerror(-code))
        return 0
