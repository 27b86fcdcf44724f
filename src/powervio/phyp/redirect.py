# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Redirected copies: entries of a client's TCE table that stand in a physical adapter's table too (papr-vio 2.4, 2.5).

A copy is *live* while an operation may begin on it, and *pinned* while one is under way. A copy that was invalidated
with an operation on it stays on record until that has ended, so that its page is known to be in use. Everything here
runs under the hypervisor's lock.

Copies come and go with each page of each request, so they are no objects: a copy is a number in the `CopySet` of its
client's table, and its place in the adapter's table (`Places`) has that number and the link through which it was made.
"""

from __future__ import annotations

import mmap
import platform
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import ld32, ld64, pointer, st32, st64
from cython.cimports.powervio.phyp.ledger import CostLedger

H_RESOURCE = cython.declare(cython.int, -16)
H_IN_USE = cython.declare(cython.int, -77)
H_LONG_BUSY = cython.declare(cython.int, 9900)
BUSY = cython.declare(cython.int, 0x10000)

NOT_DRAINED = 0x10000
"""`BUSY` for callers that are not compiled: no return code of PAPR's, a partition never sees it."""

# Python's mmap module has no name for it before 3.13; the value is the kernel's (POWER has its own).
_MAP_NORESERVE = 0x40 if platform.machine().startswith(("ppc", "powerpc")) else 0x4000

# What is known of a copy: the client's entry, the place and whose place, operations under way, the copy of the same
# entry that was made before (of a number that is free: the next one that is).
_RECORD = cython.declare(cython.ulonglong, 32)
_ENTRY = cython.declare(cython.ulonglong, 0)
_PLACE = cython.declare(cython.ulonglong, 8)
_PINS = cython.declare(cython.ulonglong, 16)
_BEFORE = cython.declare(cython.ulonglong, 24)
_OWNER = cython.declare(cython.ulonglong, 28)
"""Number of the `Places`; 0 when the copy is live no more."""

_FIRST_ROOM = cython.declare(cython.uint, 64)
_FOUND = cython.declare(cython.int, 1)
_PINNED = cython.declare(cython.int, 2)


def sparse_area(size: int) -> mmap.mmap:
    """Zeroed memory of which only what was ever written takes room."""
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)


@cython.final
@cython.cclass
class Numbers:
    """Numbers from 1 on for a few objects, each for as long as it is held."""

    objects: list[Any]
    _holds: cython.p_uchar
    _book: bytearray

    def __init__(self) -> None:
        self.objects = [None]
        """By number; None where nobody holds it."""
        self._book = bytearray(8)
        self._holds = pointer(self._book)

    @cython.ccall
    def take(self, wanted: Any) -> cython.uint:
        """The number of an object, held once more."""
        number: cython.uint
        count: cython.uint = len(self.objects)
        free: cython.uint = count
        for number in range(1, count):
            if self.objects[number] is wanted:
                self.hold(number)
                return number
            if self.objects[number] is None:
                free = number
        if free == count:
            self.objects.append(wanted)
            self._book = self._book + bytes(8)
            self._holds = pointer(self._book)
        self.objects[free] = wanted
        self.hold(free)
        return free

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def hold(self, number: cython.uint) -> cython.void:
        """Hold a number once more."""
        st64(self._holds, 8 * number, ld64(self._holds, 8 * number) + 1)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def drop(self, number: cython.uint) -> cython.void:
        """Hold a number once less; held no more, it is free for another object."""
        left: cython.ulonglong = ld64(self._holds, 8 * number) - 1
        st64(self._holds, 8 * number, left)
        if left == 0:
            self.objects[number] = None


@cython.final
@cython.cclass
class Link:
    """One connection of two registered ends: whose memory is redirected through it, and on whose account.

    `ledger` is that of the server's adapter, `peer_ledger` that of the client's, `partition` the client's partition.
    """

    copies: CopySet
    memory: Any
    partition: Any
    ledger: CostLedger
    peer_ledger: CostLedger
    closing: cython.bint
    base: cython.p_uchar

    def __init__(self, copies: CopySet, partition: Any, ledger: CostLedger, peer_ledger: CostLedger) -> None:
        self.copies = copies
        self.memory = partition.memory
        self.base = pointer(partition.memory)
        self.partition = partition
        self.ledger = ledger
        self.peer_ledger = peer_ledger
        self.closing = False


@cython.final
@cython.cclass
class Places:
    """What was copied to the places of one adapter's table.

    `entries` has 16 bytes for each: the number of the link (u32; 0 when there is no copy), the number of the copy
    (u32), the client's entry as it was copied (u64).
    """

    links: Numbers
    entries: cython.p_uchar
    _area: Any

    def __init__(self, count: cython.ulonglong) -> None:
        """For a table of `count` entries."""
        self.links = Numbers()
        self._area = sparse_area(16 * count)
        self.entries = pointer(self._area)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def put(
        self, place: cython.ulonglong, link: cython.uint, number: cython.uint, tce: cython.ulonglong
    ) -> cython.void:
        """A copy stands in a place where there was none; `link` is its number in `links`."""
        self.links.hold(link)
        st32(self.entries, 16 * place, link)
        st32(self.entries, 16 * place + 4, number)
        st64(self.entries, 16 * place + 8, tce)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def clear(self, place: cython.ulonglong) -> cython.void:
        """It stands there no more."""
        self.links.drop(ld32(self.entries, 16 * place))
        st32(self.entries, 16 * place, 0)


@cython.final
@cython.cclass
class CopySet:
    """All copies of the entries of one table that are live or pinned; empty for nearly every table."""

    tracked: cython.ulonglong
    live: cython.ulonglong
    pinned: cython.ulonglong
    bit_bucket: cython.bint
    owners: Numbers
    _count: cython.ulonglong
    _newest: cython.p_uchar
    _area: Any
    _records: cython.p_uchar
    _book: bytearray
    _room: cython.uint
    _free: cython.uint

    def __init__(self, count: cython.ulonglong) -> None:
        """For a table of `count` entries."""
        self.tracked = 0
        """Copies on record."""
        self.live = 0
        self.pinned = 0
        self.bit_bucket = True
        """Bit Bucket Allowed (H_LIOBN_ATTRIBUTES): an entry with a live copy may be changed, which ends the copy."""
        self.owners = Numbers()
        """The `Places` that live copies stand in."""
        self._count = count
        self._area = None
        """For each entry the number of its newest copy, or 0; made with the first copy, as most tables have none."""
        self._book = bytearray(32)
        self._newest = self._records = pointer(self._book)
        self._room = 0
        self._free = 0

    @cython.cfunc
    def _make_room(self) -> cython.void:
        """More numbers."""
        number: cython.uint
        before: cython.uint = self._room
        if before == 0:
            self._area = sparse_area(4 * self._count)
            self._newest = pointer(self._area)
        self._room = 2 * before if before else _FIRST_ROOM
        self._book = self._book + bytes(32 * (self._room - before))
        self._records = pointer(self._book)
        for number in range(self._room, before, -1):
            st32(self._records, _RECORD * number + _BEFORE, self._free)
            self._free = number

    @cython.cfunc
    @cython.exceptval(check=False)
    def check(
        self, entry: cython.ulonglong, owner: cython.uint, place: cython.ulonglong, limit: cython.int
    ) -> cython.int:
        """Whether one more copy of an entry may be made: H_RESOURCE when all `limit` are, H_IN_USE for the same."""
        found: cython.int = 0
        same: cython.bint = False
        record: cython.ulonglong
        number: cython.uint
        if self.live == 0:
            return 0 if limit > 0 else H_RESOURCE
        number = ld32(self._newest, 4 * entry)
        while number:
            record = _RECORD * number
            if ld32(self._records, record + _OWNER):
                found += 1
                if ld32(self._records, record + _OWNER) == owner and ld64(self._records, record + _PLACE) == place:
                    same = True
            number = ld32(self._records, record + _BEFORE)
        if found >= limit:
            return H_RESOURCE
        return H_IN_USE if same else 0

    @cython.cfunc
    @cython.exceptval(0)
    def add(self, entry: cython.ulonglong, owner: cython.uint, place: cython.ulonglong) -> cython.uint:
        """Record a copy that is made now; its number. `owner` is the number of the `Places`."""
        number: cython.uint
        record: cython.ulonglong
        if self._free == 0:
            self._make_room()
        records: cython.p_uchar = self._records
        newest: cython.p_uchar = self._newest
        number = self._free
        record = _RECORD * number
        self._free = ld32(records, record + _BEFORE)
        self.owners.hold(owner)
        st64(records, record + _ENTRY, entry)
        st64(records, record + _PLACE, place)
        st64(records, record + _PINS, 0)
        st32(records, record + _BEFORE, ld32(newest, 4 * entry))
        st32(records, record + _OWNER, owner)
        st32(newest, 4 * entry, number)
        self.tracked += 1
        self.live += 1
        return number

    @cython.cfunc
    @cython.exceptval(check=False)
    def invalidate(self, number: cython.uint) -> cython.void:
        """No operation begins on the live copy any more; it is forgotten when none is under way."""
        places: Places = self.owners.objects[ld32(self._records, _RECORD * number + _OWNER)]
        self.invalidate_in(places, number)

    @cython.cfunc
    @cython.exceptval(check=False)
    def invalidate_in(self, places: Places, number: cython.uint) -> cython.void:
        """As `invalidate`, where it is known whose place the copy is in."""
        records: cython.p_uchar = self._records
        record: cython.ulonglong = _RECORD * number
        places.clear(ld64(records, record + _PLACE))
        self.owners.drop(ld32(records, record + _OWNER))
        st32(records, record + _OWNER, 0)
        self.live -= 1
        if ld64(records, record + _PINS) == 0:
            self._forget(number)

    @cython.cfunc
    @cython.exceptval(check=False)
    def pin(self, number: cython.uint) -> cython.void:
        """An operation begins on the copy's page."""
        record: cython.ulonglong = _RECORD * number
        pins: cython.ulonglong = ld64(self._records, record + _PINS)
        if pins == 0:
            self.pinned += 1
        st64(self._records, record + _PINS, pins + 1)

    @cython.cfunc
    @cython.exceptval(check=False)
    def unpin(self, number: cython.uint) -> cython.void:
        """An operation has ended."""
        record: cython.ulonglong = _RECORD * number
        pins: cython.ulonglong = ld64(self._records, record + _PINS) - 1
        st64(self._records, record + _PINS, pins)
        if pins == 0:
            self.pinned -= 1
            if ld32(self._records, record + _OWNER) == 0:
                self._forget(number)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _forget(self, number: cython.uint) -> cython.void:
        records: cython.p_uchar = self._records
        record: cython.ulonglong = _RECORD * number
        before: cython.uint = ld32(records, record + _BEFORE)
        entry: cython.ulonglong = ld64(records, record + _ENTRY)
        later: cython.uint = ld32(self._newest, 4 * entry)
        if later == number:
            st32(self._newest, 4 * entry, before)
        else:
            while ld32(records, _RECORD * later + _BEFORE) != number:
                later = ld32(records, _RECORD * later + _BEFORE)
            st32(records, _RECORD * later + _BEFORE, before)
        st32(records, record + _BEFORE, self._free)
        self._free = number
        self.tracked -= 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _visit(self, index: cython.ulonglong, count: cython.ulonglong, ends: cython.bint) -> cython.int:
        """Look at the copies of a range of entries, or end them: whether there are any, and whether any is pinned."""
        seen: cython.int = 0
        entry: cython.ulonglong
        number: cython.uint
        if count <= self._room:
            for entry in range(index, index + count):
                if ld32(self._newest, 4 * entry):
                    seen |= self._visit_entry(entry, ends)
            return seen
        # cheaper by number: a table has far more entries than there ever were copies at a time
        for number in range(1, self._room + 1):
            entry = ld64(self._records, _RECORD * number + _ENTRY)
            # what a free number was last says nothing, but its entry may have other copies: looked at once more
            if entry >= index and entry - index < count and ld32(self._newest, 4 * entry):
                seen |= self._visit_entry(entry, ends)
        return seen

    @cython.cfunc
    @cython.exceptval(check=False)
    def _visit_entry(self, entry: cython.ulonglong, ends: cython.bint) -> cython.int:
        seen: cython.int = 0
        before: cython.uint
        number: cython.uint = ld32(self._newest, 4 * entry)
        while number:
            seen |= _FOUND
            before = ld32(self._records, _RECORD * number + _BEFORE)
            if ld64(self._records, _RECORD * number + _PINS):
                seen |= _PINNED
            if ends and ld32(self._records, _RECORD * number + _OWNER):
                self.invalidate(number)
            number = before
        return seen

    @cython.ccall
    @cython.exceptval(check=False)
    def change(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """Entries are about to be changed. H_RESOURCE: they must not. BUSY: they may when operations have ended."""
        if self._visit(index, count, False) == 0:
            return 0
        if not self.bit_bucket:
            return H_RESOURCE
        return BUSY if self._visit(index, count, True) & _PINNED else 0

    @cython.ccall
    def invalidate_all(self) -> cython.void:
        """The connection or the table is gone."""
        if self.live != 0:
            self._visit(0, self._count, True)

    @cython.ccall
    def close(self) -> cython.int:
        """The connection is to end in order: 0 when no copy is left and no operation under way (papr-vio 1.5)."""
        if self.tracked == 0:
            return 0
        if self.live != 0 and not self.bit_bucket:
            return H_RESOURCE
        self.invalidate_all()
        return H_LONG_BUSY if self.pinned != 0 else 0
