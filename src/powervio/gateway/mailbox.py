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
    address_of,
    at,
    clock_ns,
    fence,
    get64,
    ld64,
    ld64_acquire,
    le64,
    pointer,
    relax,
    st32,
    st64,
    st64_release,
    wait_readable,
    word_at,
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
_ROW = cython.declare(cython.ulonglong, 16)
_LOOKS = cython.declare(cython.int, 8)
"""At rings, for each look at a descriptor, which is a system call."""
LAST_LOOK = 20_000
"""Nanoseconds of looking after the partitions have to ring (G5.7): what was stored before a look at AWAKE has come by
then, also from a processor whose fences order nothing."""
_LAST_LOOK = cython.declare(cython.ulonglong, LAST_LOOK)
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
        """Answer at most `limit` hcalls; `(whether there is more, whether the partition sleeps for one of these)`.

        From here on the partition need not ring: whoever calls this looks again, or calls `rest` (G5.7).
        """
        left: cython.longlong = limit
        wake: cython.bint = False
        st32(self._region, _AWAKE, 1)
        while left > 0 and self._is_posted():
            if self._answer():
                wake = True
            left -= 1
        return bool(self._is_posted()), wake

    @cython.ccall
    def wake(self) -> cython.void:
        """The ring is looked at: the partition need not ring."""
        st32(self._region, _AWAKE, 1)

    @cython.ccall
    def rest(self) -> cython.void:
        """From now on the partition has to ring. What was posted before it could know that is found by a look after
        this (G5.7)."""
        st32(self._region, _AWAKE, 0)
        fence()

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
    def expect(self, table: cython.p_uchar, row: cython.uint) -> cython.void:
        """Write down {address of the next slot's POSTED, what it is when something is posted}, 8 bytes each."""
        st64(table, row * _ROW, address_of(self._slot(), _POSTED))
        st64(table, row * _ROW + 8, le64(self._served + 1))

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


@cython.final
@cython.cclass
class Lookout:
    """Rings that are looked at for what is posted, beside a descriptor that tells of all else.

    Nothing here takes a ring away: whoever does that has called `watch` without it before.
    """

    _mailboxes: list[Mailbox]
    _table: bytearray
    _count: cython.uint
    _fd: cython.int

    def __init__(self, fd: int) -> None:
        """`fd` is looked at, too: a look ends when it is readable."""
        self._fd = fd
        self.watch([])

    def watch(self, mailboxes: list[Mailbox]) -> None:
        """These from now on."""
        self._mailboxes = list(mailboxes)
        self._count = len(mailboxes)
        self._table = bytearray(_ROW * max(1, self._count))

    def look(self, spin_ns: int) -> bool:
        """Look for something to do for at most so many nanoseconds, without the interpreter lock; whether there is.

        Partitions need not ring from the beginning of this to the next `rest`.
        """
        spin: cython.ulonglong = spin_ns
        mailbox: Mailbox
        for mailbox in self._mailboxes:
            mailbox.wake()
        return bool(self._appears(spin))

    def rest(self) -> bool:
        """Let partitions ring from now on, and look for what they had posted before they could know; whether there is
        something: then there is no rest."""
        mailbox: Mailbox
        for mailbox in self._mailboxes:
            mailbox.rest()
        if not self._appears(_LAST_LOOK if self._count else 0):
            return False
        for mailbox in self._mailboxes:
            mailbox.wake()
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _appears(self, spin: cython.ulonglong) -> cython.bint:
        mailbox: Mailbox
        row: cython.uint = 0
        looks: cython.int
        table: cython.p_uchar = pointer(self._table)
        end: cython.ulonglong = 0
        found: cython.bint
        for mailbox in self._mailboxes:
            mailbox.expect(table, row)
            row += 1
        with cython.nogil:
            found = self._is_any_posted(table) or wait_readable(self._fd, 0) != 0
            if not found and spin:
                end = clock_ns() + spin
            while not found and clock_ns() < end:
                looks = _LOOKS
                while not found and looks > 0:
                    looks -= 1
                    relax()
                    found = self._is_any_posted(table)
                found = found or wait_readable(self._fd, 0) != 0
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_any_posted(self, table: cython.p_uchar) -> cython.bint:
        row: cython.uint
        for row in range(self._count):
            if word_at(get64(table, row * _ROW)) == get64(table, row * _ROW + 8):
                return True
        return False
