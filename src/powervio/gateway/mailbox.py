# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The hypervisor's end of the ring of hcalls (docs/gateway.md, G5): takes what is posted, in order, and answers it.

The other end is hostile. Each word is read once; a slot whose number is not the next one is not posted, whatever it
holds, and nothing in the region can make this end write anywhere but into the second half of a slot and two words of
the header.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    at,
    clock_ns,
    fence,
    ld64,
    ld64_acquire,
    le64,
    pointer,
    relax,
    st32,
    st64,
    st64_release,
)

from powervio.gateway import layout
from powervio.papr.codes import ReturnCode

_log = logging.getLogger(__name__)

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
_REGISTERS = cython.declare(cython.uint, layout.REGISTERS)
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_BUSY = (int(ReturnCode.H_BUSY),)
_HARDWARE = (int(ReturnCode.H_HARDWARE),)


@cython.final
@cython.cclass
class Mailbox:
    """One session's ring. `call` is `PartitionPort.hcall`, or something in front of it."""

    _served: cython.ulonglong
    _region: cython.p_uchar
    _slots: cython.p_uchar
    _mask: cython.ulonglong
    _call: Callable[..., tuple[int, ...]]
    _view: Any

    def __init__(self, region: memoryview, where: layout.Layout, call: Callable[..., tuple[int, ...]]) -> None:
        """`region` is written by the other side at any moment; `where` is what this side wrote into its header."""
        self._view = region
        self._region = pointer(region)
        self._slots = at(self._region, where.slots_offset)
        self._mask = where.slots - 1
        self._call = call
        self._served = 0

    def turn(self, limit: int) -> tuple[bool, bool]:
        """Answer at most `limit` hcalls; `(whether there is more, whether the partition sleeps for one of these)`."""
        left: cython.longlong = limit
        wake: cython.bint = False
        st32(self._region, _AWAKE, 1)
        while left > 0:
            if not self._is_posted():
                st32(self._region, _AWAKE, 0)
                fence()
                if not self._is_posted():
                    return False, wake
                st32(self._region, _AWAKE, 1)
            if self._answer():
                wake = True
            left -= 1
        return True, wake  # awake stays set: there is another turn

    def look(self, spin_ns: int) -> bool:
        """Look for the next hcall for so many nanoseconds, without the interpreter lock; whether there is one.

        Meanwhile the partition need not ring (G5.7).
        """
        spin: cython.ulonglong = spin_ns
        found: cython.bint
        st32(self._region, _AWAKE, 1)
        found = self._appears(spin)
        if not found:
            st32(self._region, _AWAKE, 0)
            fence()
            found = self._is_posted()
        return bool(found)

    @property
    def served(self) -> int:
        """Number of the last hcall that was answered; also those that were withdrawn count."""
        return self._served

    @property
    def waiting(self) -> bool:
        """Whether something is posted."""
        return bool(self._is_posted())

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _slot(self) -> cython.p_uchar:
        return at(self._slots, (self._served & self._mask) * _SLOT)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_posted(self) -> cython.bint:
        return le64(ld64_acquire(self._slot(), _POSTED)) == self._served + 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _appears(self, spin: cython.ulonglong) -> cython.bint:
        end: cython.ulonglong
        found: cython.bint = False
        with cython.nogil:
            end = clock_ns() + spin
            while not found and clock_ns() < end:
                relax()
                found = self._is_posted()
        return found

    @cython.cfunc
    @cython.exceptval(-1)
    def _answer(self) -> cython.bint:
        """Take the next one; whether somebody sleeps until it is done."""
        slot: cython.p_uchar = self._slot()
        number: cython.ulonglong = self._served + 1
        index: cython.uint
        value: cython.ulonglong
        result: tuple[int, ...] = _BUSY
        st64(slot, _TAKEN, le64(number))
        fence()
        if le64(ld64(slot, _WITHDRAWN)) != number:
            result = self._called(slot)
        index = 0
        for each in result:
            value = each & _MASK
            st64(slot, _CODE + 8 * index, le64(value))  # the results follow the return code
            index += 1
        while index <= _REGISTERS:
            st64(slot, _CODE + 8 * index, 0)
            index += 1
        st64_release(slot, _DONE, le64(number))
        self._served = number
        fence()
        return le64(ld64(slot, _WAITING)) == number

    @cython.cfunc
    def _called(self, slot: cython.p_uchar) -> tuple[int, ...]:
        token: cython.ulonglong = le64(ld64(slot, _TOKEN))
        try:
            return self._call(
                token,
                le64(ld64(slot, _ARGUMENTS)),
                le64(ld64(slot, _ARGUMENTS + 8)),
                le64(ld64(slot, _ARGUMENTS + 16)),
                le64(ld64(slot, _ARGUMENTS + 24)),
                le64(ld64(slot, _ARGUMENTS + 32)),
                le64(ld64(slot, _ARGUMENTS + 40)),
                le64(ld64(slot, _ARGUMENTS + 48)),
                le64(ld64(slot, _ARGUMENTS + 56)),
                le64(ld64(slot, _ARGUMENTS + 64)),
            )[:10]
        except Exception:  # a fault of ours: the partition gets an answer, its neighbours their turn
            _log.exception("hcall %#x failed", token)
            return _HARDWARE
