# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The partition's end of the ring of hcalls (docs/gateway.md, G5): posts, waits a bounded time, withdraws.

What a guest's driver does in C, for a partition that is a process of ours. One thread at a time uses it.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    at,
    clock_ns,
    event_take,
    fence,
    ld32,
    ld64,
    ld64_acquire,
    le32,
    le64,
    low64,
    pointer,
    relax,
    st64,
    st64_release,
    wait_any,
)

from powervio.gateway import layout

_SLOT = cython.declare(cython.ulonglong, layout.SLOT_SIZE)
_POSTED = cython.declare(cython.ulonglong, layout.POSTED)
_TOKEN = cython.declare(cython.ulonglong, layout.TOKEN)
_ARGUMENTS = cython.declare(cython.ulonglong, layout.ARGUMENTS)
_WAITING = cython.declare(cython.ulonglong, layout.WAITING)
_WITHDRAWN = cython.declare(cython.ulonglong, layout.WITHDRAWN)
_TAKEN = cython.declare(cython.ulonglong, layout.TAKEN)
_DONE = cython.declare(cython.ulonglong, layout.DONE)
_CODE = cython.declare(cython.ulonglong, layout.CODE)
_RESULTS = cython.declare(cython.ulonglong, layout.RESULTS)
_AWAKE = cython.declare(cython.ulonglong, layout.AWAKE)
_STATE = cython.declare(cython.ulonglong, layout.STATE)
_REGISTERS = cython.declare(cython.uint, layout.REGISTERS)
_LOOK_AGAIN = cython.declare(cython.int, 10)
"""Milliseconds after which a sleeper looks by itself: an interpreted end has no fence between processes."""
_MILLION = cython.declare(cython.ulonglong, 1_000_000)
_SIGN = 1 << 63

DONE, TIME_IS_UP, ENDED = 1, 0, -1
"""What `wait` says."""
_DONE_NOW = cython.declare(cython.int, DONE)
_TIME_IS_UP = cython.declare(cython.int, TIME_IS_UP)
_ENDED = cython.declare(cython.int, ENDED)


@cython.final
@cython.cclass
class CallRing:
    """Numbers count from 1; number n is in slot (n - 1) modulo the slots."""

    _number: cython.ulonglong
    _region: cython.p_uchar
    _slots: cython.p_uchar
    _count: cython.ulonglong
    _call_fd: cython.int
    _socket_fd: cython.int
    _view: Any

    def __init__(self, region: memoryview, where: layout.Layout, call_fd: int, socket_fd: int) -> None:
        """`call_fd` is the eventfd of vector 0; `socket_fd` becomes readable when the hypervisor has gone."""
        self._view = region
        self._region = pointer(region)
        self._slots = at(self._region, where.slots_offset)
        self._count = where.slots
        self._call_fd = call_fd
        self._socket_fd = socket_fd
        self._number = 0

    @property
    def number(self) -> int:
        """The last one that was posted."""
        return self._number

    def room(self) -> bool:
        """Whether the next slot is free: what was posted there last is done."""
        return bool(self._has_room())

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _has_room(self) -> cython.bint:
        return self._number < self._count or self._is_done(self._number + 1 - self._count)

    def post(self, token: int, registers: tuple[int, ...]) -> int:
        """Post an hcall in the next slot, for which there must be `room`; its number. The doorbell is the caller's."""
        number: cython.ulonglong = self._number + 1
        slot: cython.p_uchar = self._slot(number)
        index: cython.uint = 0
        st64(slot, _TOKEN, le64(low64(token)))
        for value in registers:
            if index < _REGISTERS:
                st64(slot, _ARGUMENTS + 8 * index, le64(low64(value)))
            index += 1
        while index < _REGISTERS:
            st64(slot, _ARGUMENTS + 8 * index, 0)
            index += 1
        st64_release(slot, _POSTED, le64(number))
        self._number = number
        return number

    def must_ring(self) -> bool:
        """Whether the hypervisor has to be told by doorbell of what was posted: it does not look by itself."""
        fence()
        return le32(ld32(self._region, _AWAKE)) == 0

    def wait(self, number: int, spin_ns: int, limit_ns: int) -> int:
        """Wait until a posted one is done: DONE, TIME_IS_UP or ENDED (the hypervisor has gone).

        Looks for `spin_ns` nanoseconds, then sleeps; never longer than `limit_ns`, and never with the interpreter lock.
        """
        code: cython.int = 0
        want: cython.ulonglong = number
        start: cython.ulonglong = clock_ns()
        spun: cython.ulonglong = start + cython.cast(cython.ulonglong, spin_ns)
        end: cython.ulonglong = start + cython.cast(cython.ulonglong, limit_ns)
        with cython.nogil:
            code = self._look(want, spun)
        if code == 0:
            st64(self._slot(want), _WAITING, le64(want))
            fence()
            with cython.nogil:
                while code == 0:
                    code = self._sleep(want, end)
        return _TIME_IS_UP if code == 2 else code

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look(self, number: cython.ulonglong, end: cython.ulonglong) -> cython.int:
        while True:
            if self._is_done(number):
                return _DONE_NOW
            if clock_ns() >= end:
                return 0
            relax()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _sleep(self, number: cython.ulonglong, end: cython.ulonglong) -> cython.int:
        """Once: DONE, ENDED, 0 to do it again, 2 when the time is up."""
        now: cython.ulonglong
        pause: cython.int = _LOOK_AGAIN
        seen: cython.int
        if self._is_done(number):
            return _DONE_NOW
        if le32(ld32(self._region, _STATE)) != 0:
            return _ENDED
        now = clock_ns()
        if now >= end:
            return 2
        if end - now < _MILLION * cython.cast(cython.ulonglong, _LOOK_AGAIN):
            pause = cython.cast(cython.int, (end - now) // _MILLION) + 1
        seen = wait_any(self._call_fd, self._socket_fd, -1, pause)
        if seen > 0 and seen & 1 != 0:
            event_take(self._call_fd)
        if self._is_done(number):
            return _DONE_NOW
        if seen > 0 and seen & 2 != 0:
            return _ENDED
        return 0

    def withdraw(self, number: int) -> bool:
        """The caller gives up on a posted one. True: it is not carried out, now or later. False: it was taken.

        What was taken may still be answered as withdrawn; its answer says so.
        """
        slot: cython.p_uchar = self._slot(number)
        want: cython.ulonglong = number
        st64(slot, _WITHDRAWN, le64(want))
        fence()
        return le64(ld64(slot, _TAKEN)) != want

    def result(self, number: int) -> tuple[int, ...]:
        """What a call that is done returned: `(return code, r4, ..., r12)`."""
        slot: cython.p_uchar = self._slot(number)
        code: int = le64(ld64(slot, _CODE))
        values = [(code ^ _SIGN) - _SIGN]
        for index in range(_REGISTERS):
            values.append(le64(ld64(slot, _RESULTS + 8 * index)))
        return tuple(values)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_done(self, number: cython.ulonglong) -> cython.bint:
        return le64(ld64_acquire(self._slot(number), _DONE)) == number

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _slot(self, number: cython.ulonglong) -> cython.p_uchar:
        return at(self._slots, ((number - 1) & (self._count - 1)) * _SLOT)
