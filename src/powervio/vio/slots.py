# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The owner's side of a Command/Response Queue: taking elements out of one's own memory (papr-vio 3.1).

An element is 16 bytes (CRQ) or 32 (Sub-CRQ), big-endian. The hypervisor fills slots in order and a non-zero header
byte makes a slot the owner's. The owner reads it, zeroes the header, and moves on, strictly in order: a slot that is
left would block the queue when the hypervisor comes round to it.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import be64, ld64, ld64_acquire, pointer, st8, st8_release

HEADER_SHIFT = cython.declare(cython.int, 56)


@cython.final
@cython.cclass
class CrqSlots:
    """A receive queue in `memory`, which is all of it and nothing else: its length in bytes is a multiple of 4096.

    `slot` is the size of an element: 16 bytes, taken with `next`, or 32, taken with `next_wide`. A new one starts at
    the first slot, as the hypervisor does after H_REG_CRQ. Raises `ValueError` for another length or size.
    """

    base: cython.p_uchar
    length: cython.ulonglong
    slot: cython.ulonglong
    place: cython.ulonglong
    high: cython.ulonglong
    low: cython.ulonglong
    third: cython.ulonglong
    fourth: cython.ulonglong
    _view: Any

    def __init__(self, memory: memoryview, slot: int = 16) -> None:
        view = memoryview(memory)
        if view.nbytes == 0 or view.nbytes % 4096 != 0:
            raise ValueError(f"a queue of {view.nbytes} bytes is not made of whole pages of 4096")
        if slot not in (16, 32):
            raise ValueError(f"elements of {slot} bytes do not exist; expected 16 or 32")
        self._view = view
        self.base = pointer(memory)
        self.length = view.nbytes
        self.slot = slot
        self.place = 0
        self.high = self.low = 0
        """Bytes 0-7 and 8-15 of what `take` or `take_wide` took last, as big-endian integers."""
        self.third = self.fourth = 0
        """The same of `take_wide`: bytes 16-23 and 24-31."""

    @cython.ccall
    def reset(self) -> cython.void:
        """Free every slot and start at the first one: to be done before the queue is registered."""
        offset: cython.ulonglong = 0
        while offset < self.length:
            st8(self.base, offset, 0)
            offset += self.slot
        self.place = 0

    @cython.ccall
    @cython.exceptval(check=False)
    def waiting(self) -> cython.bint:
        """Whether there is an element to take."""
        return (be64(ld64_acquire(self.base, self.place)) >> HEADER_SHIFT) != 0

    def next(self) -> tuple[int, int] | None:
        """Take the next element as `(high, low)`; None if there is none. See `take`."""
        return (self.high, self.low) if self.take() else None

    @cython.cfunc
    @cython.exceptval(check=False)
    def take(self) -> cython.bint:
        """Take the next element: `high` and `low` are its halves. False if there is none.

        The first half is loaded once, with its header; the header is zeroed after everything was read.
        """
        offset: cython.ulonglong = self.place
        high: cython.ulonglong = be64(ld64_acquire(self.base, offset))
        if (high >> HEADER_SHIFT) == 0:
            return False
        self.high = high
        self.low = be64(ld64(self.base, offset + 8))
        st8_release(self.base, offset, 0)
        self.place = offset + self.slot
        if self.place >= self.length:
            self.place = 0
        return True

    def next_wide(self) -> tuple[int, int, int, int] | None:
        """Take the next element of 32 bytes as four big-endian integers; None if there is none. As `next` otherwise."""
        return (self.high, self.low, self.third, self.fourth) if self.take_wide() else None

    @cython.cfunc
    @cython.exceptval(check=False)
    def take_wide(self) -> cython.bint:
        """As `take`, an element of 32 bytes, of which `third` and `fourth` are the rest."""
        offset: cython.ulonglong = self.place
        high: cython.ulonglong = be64(ld64_acquire(self.base, offset))
        if (high >> HEADER_SHIFT) == 0 or self.slot != 32:
            return False
        self.high = high
        self.low = be64(ld64(self.base, offset + 8))
        self.third = be64(ld64(self.base, offset + 16))
        self.fourth = be64(ld64(self.base, offset + 24))
        st8_release(self.base, offset, 0)
        self.place = offset + self.slot
        if self.place >= self.length:
            self.place = 0
        return True
