# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""From addresses that a front end or its guest names to bytes that are mapped here: what runs for every descriptor.

`RegionMap` knows the regions of guest memory by guest-physical and by user address, `TranslationCache` is the IOTLB,
`mark` sets bits of a dirty log. All addresses and lengths are bytes and any 64-bit value; sums that would pass 2^64 are
never formed. A range that crosses from one region into the next is several pieces.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import address_of, copy, fence_loads, ld64, or8, pointer, st64
from cython.cimports.powervio.memory.mapping import breaks
from cython.cimports.powervio.memory.space import AddressSpace

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.mapping import GuardedMap

_PAGE_SHIFT = cython.declare(cython.int, 12)
_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)

LOST = "the file of a memory region became shorter"

LOG_PAGE = 4096
"""Bytes of guest memory for each bit of a dirty log, whatever the guest's page size."""


@cython.final
@cython.cclass
class RegionMap(AddressSpace):
    """The regions of guest memory. They change only while nobody translates: `set` says what they are from now on."""

    count: cython.uint
    _starts: cython.p_uchar
    _sizes: cython.p_uchar
    _users: cython.p_uchar
    _hosts: cython.p_uchar
    _views: list[memoryview]
    _books: Any
    _maps: Any
    _seen: cython.ulonglong

    def __init__(self, regions: Sequence[tuple[int, int, int, memoryview]]) -> None:
        """See `set`."""
        self.set(regions)

    def set(self, regions: Sequence[tuple[int, int, int, memoryview]]) -> None:
        """Regions as `(guest address, user address, size, mapped bytes)`, without overlaps (`memory` checks)."""
        ordered = sorted(regions, key=lambda region: region[0])
        self._books = [bytearray(8 * len(ordered) + 8) for _ in range(4)]
        self._starts = pointer(self._books[0])
        self._sizes = pointer(self._books[1])
        self._users = pointer(self._books[2])
        self._hosts = pointer(self._books[3])
        self._views = []
        self.count = len(ordered)
        for index, (guest, user, size, view) in enumerate(ordered):
            if view.nbytes != size:
                raise LocalError(f"a region of {size} bytes with {view.nbytes} mapped")
            st64(self._starts, 8 * index, guest)
            st64(self._sizes, 8 * index, size)
            st64(self._users, 8 * index, user)
            st64(self._hosts, 8 * index, address_of(pointer(view), 0))
            self._views.append(view)
        self._maps = [view.obj for view in self._views if isinstance(view.obj, GuardedMap)]
        self._seen = _LAST

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def check(self) -> cython.int:
        """See `AddressSpace`."""
        fence_loads()
        if ld64(breaks(), 0) == self._seen:
            return 0
        with cython.gil:
            self._check_each()
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _check_each(self) -> cython.int:
        seen: cython.ulonglong = ld64(breaks(), 0)
        if any(memory.broken for memory in self._maps):
            raise RemoteError(LOST, Verdict.NEEDS_RESET)
        self._seen = seen
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _find(self, address: cython.ulonglong) -> cython.int:
        """The region that has a guest address, or -1."""
        low: cython.uint = 0
        high: cython.uint = self.count
        middle: cython.uint
        while low < high:
            middle = (low + high) >> 1
            if address < ld64(self._starts, 8 * middle):
                high = middle
            elif address - ld64(self._starts, 8 * middle) >= ld64(self._sizes, 8 * middle):
                low = middle + 1
            else:
                return middle
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gather(
        self,
        address: cython.ulonglong,
        length: cython.ulonglong,
        access: cython.uint,
        table: cython.p_uchar,
        count: cython.int,
        limit: cython.int,
    ) -> cython.int:
        """See `AddressSpace`; the addresses are guest-physical."""
        index: cython.int
        offset: cython.ulonglong
        room: cython.ulonglong
        while length:
            index = self._find(address)
            if index < 0:
                return -1
            if count == limit:
                return -2
            offset = address - ld64(self._starts, 8 * index)
            room = ld64(self._sizes, 8 * index) - offset
            if room > length:
                room = length
            st64(table, 16 * count, ld64(self._hosts, 8 * index) + offset)
            st64(table, 16 * count + 8, room)
            count += 1
            length -= room
            if length and _LAST - address < room:
                return -1  # beyond 2^64
            address += room
        return count

    def guest(self, address: int, length: int) -> list[memoryview]:
        """The bytes at a guest-physical address, in pieces. Raises `RemoteError` for what is not in a region."""
        pieces: list[memoryview] = []
        self._collect(address, length, pieces)
        return pieces

    @cython.cfunc
    @cython.exceptval(-1)
    def _collect(self, address: cython.ulonglong, length: cython.ulonglong, pieces: list[memoryview]) -> cython.int:
        index: cython.int
        offset: cython.ulonglong
        room: cython.ulonglong
        while length:
            index = self._find(address)
            if index < 0:
                raise RemoteError(f"guest address {address:#x} is in no memory region")
            offset = address - ld64(self._starts, 8 * index)
            room = ld64(self._sizes, 8 * index) - offset
            if room > length:
                room = length
            pieces.append(self._views[index][offset : offset + room])
            length -= room
            if length and _LAST - address < room:
                raise RemoteError(f"{length} bytes too many at guest address {address:#x}: beyond 2^64")
            address += room
        return 0

    def user(self, address: int, length: int) -> tuple[memoryview, int]:
        """The bytes at a user address, and the guest address of the first. They are in one region.

        Raises `RemoteError` for what is not.
        """
        wanted: cython.ulonglong = length
        place: cython.ulonglong = address
        offset: cython.ulonglong
        size: cython.ulonglong
        index: cython.uint
        for index in range(self.count):
            size = ld64(self._sizes, 8 * index)
            if place < ld64(self._users, 8 * index):
                continue
            offset = place - ld64(self._users, 8 * index)
            if offset < size and wanted <= size - offset:
                return self._views[index][offset : offset + wanted], ld64(self._starts, 8 * index) + offset
        raise RemoteError(f"{length} bytes at user address {address:#x} are in no memory region")


@cython.final
@cython.cclass
class TranslationCache:
    """The IOTLB: ranges of I/O virtual addresses, each with a user address and permissions (bit 0 read, bit 1 write).

    Bounded: when it is full it forgets everything, for what is missing can be asked for again.
    """

    count: cython.uint
    _limit: cython.uint
    _starts: cython.p_uchar
    _lasts: cython.p_uchar
    _users: cython.p_uchar
    _rights: cython.p_uchar
    _books: Any

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._books = [bytearray(8 * limit + 16) for _ in range(4)]
        self._starts = pointer(self._books[0])
        self._lasts = pointer(self._books[1])
        self._users = pointer(self._books[2])
        self._rights = pointer(self._books[3])
        self.count = 0

    def __len__(self) -> int:
        return self.count

    @cython.cfunc
    @cython.exceptval(check=False)
    def _first_not_below(self, address: cython.ulonglong) -> cython.uint:
        """The first entry that ends at `address` or later; `count` when there is none."""
        low: cython.uint = 0
        high: cython.uint = self.count
        middle: cython.uint
        while low < high:
            middle = (low + high) >> 1
            if ld64(self._lasts, 8 * middle) < address:
                low = middle + 1
            else:
                high = middle
        return low

    def update(self, iova: int, size: int, user: int, access: int) -> None:
        """Add a range, in place of all that it overlaps. Raises `RemoteError` for one that cannot be."""
        _check_range(iova, size)
        if user + size - 1 > _LAST or not 0 < access <= 3:
            raise RemoteError(f"IOTLB entry of {size} bytes at user address {user:#x} with access {access}")
        self.invalidate(iova, size)
        if self.count == self._limit:
            self.count = 0
        index: cython.uint = self._first_not_below(iova)
        self._move(index, index + 1)
        st64(self._starts, 8 * index, iova)
        st64(self._lasts, 8 * index, iova + size - 1)
        st64(self._users, 8 * index, user)
        st64(self._rights, 8 * index, access)
        self.count += 1

    def invalidate(self, iova: int, size: int) -> None:
        """Forget every entry that overlaps a range, whole. Raises `RemoteError` for a range that cannot be."""
        _check_range(iova, size)
        last: cython.ulonglong = iova + (size - 1)
        first: cython.uint = self._first_not_below(iova)
        end: cython.uint = first
        while end < self.count and ld64(self._starts, 8 * end) <= last:
            end += 1
        if end > first:
            self._move(end, first)
            self.count -= end - first

    @cython.cfunc
    def _move(self, source: cython.uint, to: cython.uint) -> cython.void:
        """Move what begins at entry `source` to entry `to`."""
        length: cython.ulonglong = 8 * (self.count - source)
        copy(self._starts, 8 * to, self._starts, 8 * source, length)
        copy(self._lasts, 8 * to, self._lasts, 8 * source, length)
        copy(self._users, 8 * to, self._users, 8 * source, length)
        copy(self._rights, 8 * to, self._rights, 8 * source, length)

    def lookup(self, iova: int, access: int) -> tuple[int, int]:
        """`(user address, bytes that follow it in the entry)`; `(0, 0)` when no entry gives that access."""
        address: cython.ulonglong = iova
        index: cython.uint = self._first_not_below(address)
        if index >= self.count or ld64(self._starts, 8 * index) > address:
            return 0, 0
        if (ld64(self._rights, 8 * index) & access) != access:
            return 0, 0
        offset: cython.ulonglong = address - ld64(self._starts, 8 * index)
        room: cython.ulonglong = ld64(self._lasts, 8 * index) - address
        # an entry of 2^64 bytes has room for one less in 64 bits: nobody asks for more
        return ld64(self._users, 8 * index) + offset, room + 1 if room < _LAST else room


def _check_range(iova: int, size: int) -> None:
    if size <= 0 or iova + size - 1 > 0xFFFF_FFFF_FFFF_FFFF:
        raise RemoteError(f"IOTLB range of {size} bytes at {iova:#x}")


def mark(log: memoryview, address: int, length: int) -> None:
    """Set the bits of all pages of a range of guest memory, which was written before this call.

    Raises `RemoteError` when the log has no bits for them.
    """
    if length <= 0:
        return
    first: cython.ulonglong = address >> _PAGE_SHIFT
    last: cython.ulonglong = (address + length - 1) >> _PAGE_SHIFT
    if last >> 3 >= log.nbytes:
        raise RemoteError(f"the log of {log.nbytes} bytes has no bit for guest address {address + length - 1:#x}")
    bits: cython.p_uchar = pointer(log)
    page: cython.ulonglong
    for page in range(first, last + 1):
        or8(bits, page >> 3, 1 << (page & 7))
