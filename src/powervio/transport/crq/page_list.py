# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Pages of a client's window and moves in them, as redirected DMA takes them: arrays of 64-bit numbers.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import be64, copy, ld32, ld64, pointer, st32, st64, zero

from powervio.papr.engine import MOVE, MOVE_CONTINUES, MOVE_TO_MEMORY
from powervio.papr.tce import MULTI_TCE_LIMIT, TCE_PAGE_SHIFT

_SHIFT = cython.declare(cython.int, TCE_PAGE_SHIFT)
_OFFSET = cython.declare(cython.ulonglong, 4095)
_MOVE = cython.declare(cython.ulonglong, MOVE.size)
_TO_MEMORY = cython.declare(cython.uint, MOVE_TO_MEMORY)
_CONTINUES = cython.declare(cython.uint, MOVE_CONTINUES)
_ADDRESS_END = cython.declare(cython.ulonglong, 1 << 62)
"""No window reaches so far, and sums of what is below do not overflow."""
_LIMIT = cython.declare(cython.uint, MULTI_TCE_LIMIT)
_SLOTS = cython.declare(cython.uint, 2 * MULTI_TCE_LIMIT)
_WORD = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_SPREAD = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
"""2^64 divided by the golden ratio: neighbours land far from each other."""


@cython.ccall
@cython.exceptval(-2)
def consecutive_from(pages: bytearray, count: cython.ulonglong) -> cython.longlong:
    """The first of `count` (one or more) page numbers, if each is followed by the next number; else -1."""
    words: cython.p_uchar = pointer(pages)
    first: cython.ulonglong = ld64(words, 0)
    index: cython.ulonglong
    for index in range(1, count):
        if ld64(words, 8 * index) != first + index:
            return -1
    return cython.cast(cython.longlong, first)


@cython.ccall
def write_list(memory: Any, address: cython.ulonglong, pages: bytearray, count: cython.ulonglong) -> cython.void:
    """Write the addresses of pages to logical `address` as H_PUT_RTCE_INDIRECT takes them, big-endian."""
    words: cython.p_uchar = pointer(pages)
    to: cython.p_uchar = pointer(memory)
    index: cython.ulonglong
    for index in range(count):
        st64(to, address + 8 * index, be64(ld64(words, 8 * index) << _SHIFT))


@cython.final
@cython.cclass
class MoveList:
    """Requests that are redirected together: their pages, each once and at most 512, and their moves.

    Addresses of moves are counted from the first of the pages until `shift`.
    """

    pages: bytearray
    moves: bytearray
    count: cython.uint
    move_count: cython.uint
    _pages: cython.p_uchar
    _moves: cython.p_uchar
    _room: cython.uint
    _set: cython.p_uchar
    _slots: bytearray

    def __init__(self) -> None:
        self.pages = bytearray(8 * MULTI_TCE_LIMIT)
        """u64: numbers of pages of the client's window."""
        self._room = 64
        self.moves = bytearray(MOVE.size * 64)
        """`papr.engine.MOVE`."""
        self._slots = bytearray(16 * MULTI_TCE_LIMIT)
        self._pages = pointer(self.pages)
        self._moves = pointer(self.moves)
        self._set = pointer(self._slots)
        self.count = 0
        self.move_count = 0

    @cython.ccall
    def clear(self) -> cython.void:
        """Begin anew."""
        if self.count:
            zero(self._set, 0, 8 * _SLOTS)
        self.count = 0
        self.move_count = 0

    @cython.cfunc
    @cython.exceptval(-2)
    def add(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, to_memory: cython.bint
    ) -> cython.int:
        """One more request with these pieces {u64 address, u64 length} of the client's window, none of them empty.

        1: it is in. 0: it cannot be redirected together with others: it takes a page twice or one that another takes,
        too many, or no page at all is meant. -1: there is no room for its pages beside those of the others.
        """
        number: cython.ulonglong
        address: cython.ulonglong
        length: cython.ulonglong
        page: cython.ulonglong
        wanted: cython.ulonglong = 0
        flags: cython.uint = _TO_MEMORY if to_memory else 0
        last: cython.uint = self.count
        place: cython.ulonglong
        for number in range(count):
            address = ld64(pieces, 16 * number)
            length = ld64(pieces, 16 * number + 8)
            if address >= _ADDRESS_END or length >= _ADDRESS_END:
                return 0
            wanted += ((address + length + _OFFSET) >> _SHIFT) - (address >> _SHIFT)
            if wanted > _LIMIT:
                return 0
        if wanted == 0:
            return 0
        if self.count + wanted > _LIMIT:
            return -1
        if self.move_count + count > self._room:
            self._make_room(count)
        for number in range(count):
            address = ld64(pieces, 16 * number)
            length = ld64(pieces, 16 * number + 8)
            place = _MOVE * (self.move_count + number)
            st64(self._moves, place, position)
            st64(self._moves, place + 8, (cython.cast(cython.ulonglong, last) << _SHIFT) | (address & _OFFSET))
            st64(self._moves, place + 16, length)
            st32(self._moves, place + 24, flags)
            st32(self._moves, place + 28, 0)
            flags |= _CONTINUES
            for page in range(address >> _SHIFT, (address + length + _OFFSET) >> _SHIFT):
                if not self._note(page):
                    while last > self.count:  # in the order in which they came, so no other is lost with them
                        last -= 1
                        st64(self._set, 8 * self._slot_of(ld64(self._pages, 8 * last)), 0)
                    return 0
                st64(self._pages, 8 * last, page)
                last += 1
        self.count = last
        self.move_count += count
        return 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _slot_of(self, page: cython.ulonglong) -> cython.ulonglong:
        """Where a page is in the set, or would be. The set is never more than half full."""
        slot: cython.ulonglong = ((page * _SPREAD & _WORD) >> 32) & (_SLOTS - 1)
        found: cython.ulonglong = ld64(self._set, 8 * slot)
        while found and found != page + 1:
            slot = (slot + 1) & (_SLOTS - 1)
            found = ld64(self._set, 8 * slot)
        return slot

    @cython.cfunc
    @cython.exceptval(check=False)
    def _note(self, page: cython.ulonglong) -> cython.bint:
        """Put a page into the set; False when it is there already."""
        slot: cython.ulonglong = self._slot_of(page)
        if ld64(self._set, 8 * slot):
            return False
        st64(self._set, 8 * slot, page + 1)
        return True

    @cython.cfunc
    def _make_room(self, count: cython.uint) -> cython.void:
        grown: bytearray
        self._room = 2 * (self.move_count + count)
        grown = bytearray(_MOVE * self._room)
        copy(pointer(grown), 0, self._moves, 0, _MOVE * self.move_count)
        self.moves = grown
        self._moves = pointer(grown)

    @cython.ccall
    def shift(self, start: cython.ulonglong) -> cython.void:
        """The first of the pages is at this I/O address of the engine."""
        number: cython.ulonglong
        for number in range(self.move_count):
            st64(self._moves, _MOVE * number + 8, ld64(self._moves, _MOVE * number + 8) + start)

    @cython.cfunc
    @cython.exceptval(check=False)
    def result(self, number: cython.ulonglong) -> cython.uint:
        """What came of the request that begins with this move: 0 or an errno."""
        return ld32(self._moves, _MOVE * number + 28)
