# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Which port an address belongs to: fixed ones, those that were learnt, and the groups that ports want.

Nothing here has a lock: who calls holds the switch's. Only what is handed over to be used is made without it.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import struct
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import copy, ld16, ld32, ld64, pointer, st16, st32, st64

_SECOND = cython.declare(cython.ulonglong, 1_000_000_000)
_WAYS = cython.declare(cython.uint, 8)
_ENTRY = cython.declare(cython.uint, 24)
"""Of an address that was learnt: key, when it was seen, port."""
_BUCKET = cython.declare(cython.uint, 8 * 24)
_ROW = cython.declare(cython.uint, 8)
"""Of a port: u32 addresses learnt, u32 that may be."""
_MIX = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
_ALL = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)


@cython.final
@cython.cclass
class AddressTable:
    """The addresses of one switch. A key is VLAN << 48 | address."""

    group_sets: cython.p_uchar
    _age: cython.ulonglong
    _seed: cython.ulonglong
    _buckets: cython.uint
    _swept: cython.ulonglong
    _macs: cython.p_uchar
    _limits: cython.p_uchar
    _fixed: cython.p_uchar
    _fixed_mask: cython.uint
    _groups: cython.p_uchar
    _groups_mask: cython.uint
    _books: Any
    _fixed_book: Any
    _group_books: Any

    def __init__(self, limit: int, *, addresses: int, age: int, seed: int) -> None:
        """See `switch_core.SwitchCore`."""
        books = bytearray(_ENTRY * addresses), bytearray(_ROW * limit)
        self._age = age
        self._seed = seed
        self._buckets = addresses // _WAYS
        self._swept = 0
        self._macs = pointer(books[0])
        self._limits = pointer(books[1])
        self._books = books
        self._fixed_book = self._group_books = None
        self.use_fixed(self.hashed([]))
        self.use_groups(self.hashed([]), bytearray(8))

    # -- what the switch sets

    @cython.cfunc
    @cython.exceptval(check=False)
    def begin(self, port: cython.uint, may_learn: cython.uint) -> cython.void:
        """A port is there, so many of whose addresses may be learnt."""
        st32(self._limits, _ROW * port, 0)
        st32(self._limits, _ROW * port + 4, may_learn)

    def hashed(self, items: list[tuple[int, int]]) -> bytearray:
        """A table of keys, which are not 0, and what they stand for; half of it is empty, so that a search ends."""
        place: cython.uint
        mask: cython.uint
        size = 16
        while size < 2 * len(items):
            size *= 2
        mask = size - 1
        book = bytearray(16 * size)
        table: cython.p_uchar = pointer(book)
        for key, value in items:
            place = _hash(key, self._seed, mask)
            while ld64(table, 16 * place) != 0:
                place = (place + 1) & mask
            st64(table, 16 * place, key)
            st64(table, 16 * place + 8, value)
        return book

    def use_fixed(self, book: bytearray) -> None:
        """Go by another table (`hashed`): keys, and the ports that they belong to."""
        self._fixed = pointer(book)
        self._fixed_mask = len(book) // 16 - 1
        self._fixed_book = book

    def use_groups(self, book: bytearray, sets: bytearray) -> None:
        """Go by another table: groups (48 bits), and the numbers of their sets of ports in `group_sets`."""
        self._groups = pointer(book)
        self._groups_mask = len(book) // 16 - 1
        self.group_sets = pointer(sets)
        self._group_books = (book, sets)

    @cython.cfunc
    @cython.exceptval(check=False)
    def forget(self, port: cython.uint, vlan: cython.longlong) -> cython.void:
        """Forget what was learnt at a port, in one VLAN or, with -1, in all."""
        place: cython.ulonglong
        key: cython.ulonglong
        for place in range(0, _ENTRY * _WAYS * self._buckets, 24):
            key = ld64(self._macs, place)
            if key and ld16(self._macs, place + 16) == port and (vlan < 0 or key >> 48 == vlan):
                self._forget(place)

    # -- what can be asked

    @property
    def learnt_bytes(self) -> int:
        """Of what `copy_learnt` gives."""
        return _ENTRY * _WAYS * self._buckets

    @cython.cfunc
    @cython.exceptval(check=False)
    def copy_learnt(self, to: cython.p_uchar) -> cython.void:
        """All that was learnt, for `entries`."""
        copy(to, 0, self._macs, 0, _ENTRY * _WAYS * self._buckets)

    def entries(self, book: bytearray, now: int) -> list[tuple[int, int, int]]:
        """Of a copy, what is not too old: VLAN, address, port."""
        entries = struct.iter_unpack("=QQQ", book)
        return [
            (key >> 48, key & 0xFFFF_FFFF_FFFF, port) for key, seen, port in entries if key and now - seen <= self._age
        ]

    # -- frames

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find_fixed(self, key: cython.ulonglong) -> cython.int:
        """The port that a key belongs to whatever anybody sends; -1: it is nobody's."""
        place: cython.uint = _hash(key, self._seed, self._fixed_mask)
        found: cython.ulonglong = ld64(self._fixed, 16 * place)
        while found != 0:
            if found == key:
                return ld32(self._fixed, 16 * place + 8)
            place = (place + 1) & self._fixed_mask
            found = ld64(self._fixed, 16 * place)
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find_group(self, mac: cython.ulonglong) -> cython.int:
        """The number of a group's set; -1 when only those want it who want all groups."""
        place: cython.uint = _hash(mac, self._seed, self._groups_mask)
        found: cython.ulonglong = ld64(self._groups, 16 * place)
        while found != 0:
            if found == mac:
                return ld32(self._groups, 16 * place + 8)
            place = (place + 1) & self._groups_mask
            found = ld64(self._groups, 16 * place)
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find_learnt(self, key: cython.ulonglong, now: cython.ulonglong) -> cython.int:
        """The port at which a key was seen last; -1 when that was too long ago."""
        way: cython.uint
        place: cython.ulonglong = cython.cast(cython.ulonglong, _hash(key, self._seed, self._buckets - 1)) * _BUCKET
        for way in range(8):
            if ld64(self._macs, place) == key:
                if self._is_old(place, now):
                    self._forget(place)
                    return -1
                return ld16(self._macs, place + 16)
            place += _ENTRY
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def learn(self, port: cython.uint, key: cython.ulonglong, now: cython.ulonglong) -> cython.void:
        """An address is at a port. It takes the place of the one of its bucket that was not seen for longest."""
        way: cython.uint
        found: cython.ulonglong
        place: cython.ulonglong
        row: cython.ulonglong = cython.cast(cython.ulonglong, _ROW) * port
        best: cython.ulonglong
        oldest: cython.ulonglong = _ALL
        place = cython.cast(cython.ulonglong, _hash(key, self._seed, self._buckets - 1)) * _BUCKET
        best = place
        for way in range(8):
            found = ld64(self._macs, place)
            if found == key:
                if ld16(self._macs, place + 16) == port:
                    st64(self._macs, place + 8, now)
                    return
                self._forget(place)  # it moved
                found = 0
            if found == 0:
                if oldest != 0:
                    best = place
                    oldest = 0
            elif ld64(self._macs, place + 8) < oldest:
                best = place
                oldest = ld64(self._macs, place + 8)
            place += _ENTRY
        if ld32(self._limits, row) >= ld32(self._limits, row + 4):
            self._sweep(now)
            if ld32(self._limits, row) >= ld32(self._limits, row + 4):
                return
        if ld64(self._macs, best) != 0:
            self._forget(best)
        st64(self._macs, best, key)
        st64(self._macs, best + 8, now)
        st16(self._macs, best + 16, port)
        st32(self._limits, row, ld32(self._limits, row) + 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_old(self, place: cython.ulonglong, now: cython.ulonglong) -> cython.bint:
        # another thread may have seen it later than this one looked at the clock
        return now > ld64(self._macs, place + 8) + self._age

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _forget(self, place: cython.ulonglong) -> cython.void:
        row: cython.ulonglong = cython.cast(cython.ulonglong, _ROW) * ld16(self._macs, place + 16)
        st64(self._macs, place, 0)
        st32(self._limits, row, ld32(self._limits, row) - 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _sweep(self, now: cython.ulonglong) -> cython.void:
        """Forget all that is too old, now and then: who has reached its limit must not cause this by each frame."""
        number: cython.uint
        place: cython.ulonglong = 0
        if now < self._swept + _SECOND:
            return
        self._swept = now
        for number in range(_WAYS * self._buckets):
            if ld64(self._macs, place) != 0 and self._is_old(place, now):
                self._forget(place)
            place += _ENTRY


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _hash(key: cython.ulonglong, seed: cython.ulonglong, mask: cython.uint) -> cython.uint:
    return ((((key ^ seed) * _MIX) & _ALL) >> 32) & mask
