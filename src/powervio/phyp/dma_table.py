# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The TCE table of a physical adapter: pages of its owner's memory, and redirected copies of its clients' entries.

An engine operation resolves and pins all its pages when it begins (`DmaOperation.take`) and unpins them when it ends;
between the two it owns the addresses that it was given, whatever happens to the entries. Everything here runs under the
hypervisor's lock, but for `DmaOperation.carry_out`, which touches nothing but what the operation owns.
"""

from __future__ import annotations

import errno
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    address_of,
    at,
    be64,
    copy,
    ld32,
    ld64,
    pointer,
    st32,
    st64,
)
from cython.cimports.powervio.memory.target import Target
from cython.cimports.powervio.phyp.redirect import CopySet, Link, Places
from cython.cimports.powervio.phyp.tce import TceTable

from powervio.memory.abstract import Backing

H_REMOTE_PARM = cython.declare(cython.int, -15)

PAGE = cython.declare(cython.ulonglong, 4096)
PAGE_SHIFT = cython.declare(cython.int, 12)
ACCESS = cython.declare(cython.ulonglong, 3)
READ = cython.declare(cython.ulonglong, 1)
WRITE = cython.declare(cython.ulonglong, 2)

# What `redirect.Places` has of a place.
_PLACE = cython.declare(cython.ulonglong, 16)
_LINK = cython.declare(cython.ulonglong, 0)
_NUMBER = cython.declare(cython.ulonglong, 4)
_TCE = cython.declare(cython.ulonglong, 8)

# A move of `papr.engine.MOVE`: where its fields are.
_MOVE = cython.declare(cython.ulonglong, 32)
_POSITION = cython.declare(cython.ulonglong, 0)
_IOBA = cython.declare(cython.ulonglong, 8)
_LENGTH = cython.declare(cython.ulonglong, 16)
_FLAGS = cython.declare(cython.ulonglong, 24)
_RESULT = cython.declare(cython.ulonglong, 28)
_TO_MEMORY = cython.declare(cython.uint, 1)
_CONTINUES = cython.declare(cython.uint, 2)
# In the operation's own list also this flag, and `_RESULT` is where the runs of the move begin.
_DONE = cython.declare(cython.uint, 4)


@cython.ccall
@cython.exceptval(-1)
def first_beyond(addresses: bytearray, count: cython.ulonglong, size: cython.ulonglong) -> cython.ulonglong:
    """The first of `count` big-endian addresses that is not below `size`; `count` when all are."""
    words: cython.p_uchar = pointer(addresses)
    index: cython.ulonglong
    for index in range(count):
        if be64(ld64(words, 8 * index)) >= size:
            return index
    return count


@cython.final
@cython.cclass
class DmaTable:
    """`own` has the entries that the owner put itself; a copy in a place of `places` hides that entry of it."""

    own: TceTable
    places: Places
    partition: Any
    count: cython.ulonglong
    done: cython.ulonglong

    def __init__(self, own: TceTable, partition: Any) -> None:
        self.own = own
        self.done = 0
        """Entries that the last `redirect` copied."""
        self.partition = partition
        self.count = own.count
        self.places = Places(own.count)

    @cython.ccall
    @cython.exceptval(-1)
    def redirect(
        self,
        index: cython.ulonglong,
        link: Link,
        table: TceTable,
        addresses: bytearray | None,
        first: cython.ulonglong,
        count: cython.ulonglong,
        limit: cython.int,
    ) -> cython.int:
        """Copy `count` entries of the client's `table` to places in the bounds of this one, with their access bits.

        Those that map `addresses` (big-endian, `count` of them), or consecutive ones from `first`. Ends with the first
        that cannot be copied: H_REMOTE_PARM for one that maps nothing, H_RESOURCE and H_IN_USE as `CopySet.check`, in
        this order. `done` tells how many were.
        """
        i: cython.ulonglong
        entry: cython.ulonglong
        tce: cython.ulonglong
        code: cython.int = 0
        copies: CopySet = table.copies
        places: Places = self.places
        there: cython.p_uchar = places.entries
        own: TceTable = self.own
        listed: cython.bint = addresses is not None
        words: cython.p_uchar = table.entries if addresses is None else pointer(addresses)
        self.done = 0
        if link.closing:
            return H_REMOTE_PARM if count else 0
        account: cython.uint = places.links.take(link)
        owner: cython.uint = copies.owners.take(places)
        for i in range(count):
            entry = be64(ld64(words, 8 * i)) >> PAGE_SHIFT if listed else first + i
            tce = table.get(entry << PAGE_SHIFT)
            if (tce & ACCESS) == 0 or (tce >> PAGE_SHIFT) >= table.memory_pages:
                code = H_REMOTE_PARM
                break
            code = copies.check(entry, owner, index + i, limit)
            if code != 0:
                break
            # overwritten: what was copied there before is a copy no more
            if ld32(there, _PLACE * (index + i) + _LINK) != 0:
                self.forget(index + i, 1)
            own.drop(index + i)
            places.put(index + i, account, copies.add(entry, owner, index + i), tce)
            self.done += 1
        places.links.drop(account)
        copies.owners.drop(owner)
        if code != 0:
            table.end_use()
        return code

    @cython.ccall
    @cython.exceptval(-1)
    def forget(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """End the copies in a range of places in bounds."""
        place: cython.ulonglong
        number: cython.uint
        known: cython.uint = 0
        places: Places = self.places
        there: cython.p_uchar = places.entries
        copies: CopySet | None = None
        for place in range(index, index + count):
            number = ld32(there, _PLACE * place + _LINK)
            if number == 0:
                continue
            if number != known:
                copies = cython.cast(Link, places.links.objects[number]).copies
                known = number
            assert copies is not None
            copies.invalidate_in(places, ld32(there, _PLACE * place + _NUMBER))
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def redirected(self, index: cython.ulonglong) -> cython.ulonglong:
        """The client's entry that was copied to a place in bounds; 0 where none was."""
        there: cython.p_uchar = self.places.entries
        return ld64(there, _PLACE * index + _TCE) if ld32(there, _PLACE * index + _LINK) else 0


@cython.final
@cython.cclass
class DmaOperation:
    """What an engine moves: runs of bytes in partitions' memories, in order, pinned until `release`."""

    links: list[Any]
    partitions: list[Any]
    length: cython.ulonglong
    _owner: Any
    _books: list[bytearray]
    _pins: cython.p_uchar
    _pin_count: cython.uint
    _pin_room: cython.uint
    _runs: cython.p_uchar
    _origins: cython.p_uchar
    _run_count: cython.uint
    _run_room: cython.uint
    _joins: cython.bint
    _known: cython.uint
    _mine: cython.uint
    _copies: CopySet | None
    _base: cython.p_uchar
    _moves: cython.p_uchar
    _move_room: cython.uint
    _moved: cython.p_uchar
    _moved_room: cython.uint

    def __init__(self) -> None:
        self._books = [bytearray(8) for _ in range(5)]
        """Links and copies that are pinned; runs as {host address, length}; where each run is in whose memory (0 is the
        table's owner, others are numbers in `links`); moves; bytes by link."""
        self._pins, self._runs, self._origins, self._moves, self._moved = map(pointer, self._books)
        self._pin_room = self._run_room = self._move_room = self._moved_room = 0
        self.clear()

    @cython.ccall
    @cython.exceptval(-1)
    def clear(self) -> cython.int:
        """Nothing is taken: for the next operation. What was pinned has been released."""
        self.links = [None]
        """Whose pages are pinned, each once."""
        self.partitions = []
        """Whose memories the runs are in, each once."""
        self.length = 0
        self._owner = None
        self._pin_count = 0
        self._run_count = 0
        self._joins = False
        self._known = 0
        self._copies = None
        return 0

    @cython.cfunc
    def _grow(self, book: cython.int, room: cython.ulonglong) -> bytearray:
        """Let one of the books have room for so many bytes."""
        grown: bytearray = self._books[book]
        grown = grown + bytes(room - len(grown))
        self._books[book] = grown
        return grown

    @cython.ccall
    @cython.exceptval(-1)
    def take(
        self, table: DmaTable, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong
    ) -> cython.bint:
        """Resolve and pin a range; False when a page of it is not mapped with all access bits of `need`.

        Then the caller releases what was taken so far.
        """
        self._known = 0
        return self._take(table, ioba, length, need)

    @cython.cfunc
    @cython.exceptval(-1)
    def _take(
        self, table: DmaTable, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong
    ) -> cython.bint:
        """As `take`, where what is known of a link holds from one range to the next: the lock was held all the time."""
        size: cython.ulonglong = table.count << PAGE_SHIFT
        there: cython.p_uchar = table.places.entries
        number: cython.uint
        pinned: cython.uint
        place: cython.ulonglong
        part: cython.ulonglong
        tce: cython.ulonglong
        address: cython.longlong
        if ioba > size or length > size - ioba:
            return False
        self.length += length
        while length > 0:
            part = PAGE - (ioba & (PAGE - 1))
            if length < part:
                part = length
            place = _PLACE * (ioba >> PAGE_SHIFT)
            number = ld32(there, place + _LINK)
            if number == 0:
                address = table.own.translate(ioba, need)
                if address < 0:
                    return False
                if self._owner is None:
                    self._owner = table.partition
                    self._add_partition(table.partition)
                self._extend(0, table.own.memory, cython.cast(cython.ulonglong, address), part)
            else:
                tce = ld64(there, place + _TCE)
                if (tce & need) != need:
                    return False
                if number != self._known:
                    self._use_link(table.places.links.objects[number], number)
                pinned = ld32(there, place + _NUMBER)
                assert self._copies is not None
                self._copies.pin(pinned)
                self._note_pin(self._mine, pinned)
                self._extend(self._mine, self._base, ((tce >> PAGE_SHIFT) << PAGE_SHIFT) + (ioba & (PAGE - 1)), part)
            ioba += part
            length -= part
        return True

    @cython.cfunc
    @cython.exceptval(-1)
    def _use_link(self, link: Link, number: cython.uint) -> cython.int:
        """The pages that follow are its."""
        self._mine = self._number_of(link)
        self._copies = link.copies
        self._base = link.base
        self._known = number
        return 0

    @cython.cfunc
    @cython.exceptval(0)
    def _number_of(self, link: Any) -> cython.uint:
        number: cython.uint
        for number in range(1, len(self.links)):
            if self.links[number] is link:
                return number
        self.links.append(link)
        self._add_partition(link.partition)
        return len(self.links) - 1

    @cython.cfunc
    @cython.exceptval(-1)
    def _add_partition(self, partition: Any) -> cython.int:
        if partition not in self.partitions:
            self.partitions.append(partition)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _note_pin(self, link: cython.uint, number: cython.uint) -> cython.int:
        if self._pin_count == self._pin_room:
            self._pin_room = 2 * self._pin_room + 64
            self._pins = pointer(self._grow(0, 8 * self._pin_room))
        st32(self._pins, 8 * self._pin_count, link)
        st32(self._pins, 8 * self._pin_count + 4, number)
        self._pin_count += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _extend(
        self, link: cython.uint, base: cython.p_uchar, start: cython.ulonglong, length: cython.ulonglong
    ) -> cython.int:
        run: cython.ulonglong
        if self._joins:
            run = 16 * (self._run_count - 1)
            if ld32(self._origins, run + 8) == link and ld64(self._origins, run) + ld64(self._runs, run + 8) == start:
                st64(self._runs, run + 8, ld64(self._runs, run + 8) + length)
                return 0
        if self._run_count == self._run_room:
            self._run_room = 2 * self._run_room + 64
            self._runs = pointer(self._grow(1, 16 * self._run_room))
            self._origins = pointer(self._grow(2, 16 * self._run_room))
        run = 16 * self._run_count
        st64(self._runs, run, address_of(base, start))
        st64(self._runs, run + 8, length)
        st64(self._origins, run, start)
        st32(self._origins, run + 8, link)
        self._run_count += 1
        self._joins = True
        return 0

    @property
    def runs(self) -> list[tuple[memoryview, int, int]]:
        """`(memory, start, end)` in logical bytes; neighbours are one."""
        return self._runs_of(0, self._run_count)

    @cython.cfunc
    def _runs_of(self, first: cython.uint, last: cython.uint) -> list[Any]:
        """Those from one to before another."""
        found: list[Any] = []
        run: cython.ulonglong
        link: cython.uint
        for run in range(first, last):
            link = ld32(self._origins, 16 * run + 8)
            start = int(ld64(self._origins, 16 * run))
            memory = self.links[link].memory if link else self._owner.memory
            found.append((memory, start, start + int(ld64(self._runs, 16 * run + 8))))
        return found

    @cython.ccall
    @cython.exceptval(-1)
    def release(self) -> cython.int:
        """Unpin every page; once."""
        pin: cython.ulonglong
        known: cython.uint = 0
        number: cython.uint
        pins: cython.p_uchar = self._pins
        copies: CopySet | None = None
        for pin in range(self._pin_count):
            number = ld32(pins, 8 * pin)
            if number != known:
                copies = cython.cast(Link, self.links[number]).copies
                known = number
            assert copies is not None
            copies.unpin(ld32(pins, 8 * pin + 4))
        self._pin_count = 0
        return 0

    # -- several moves as one operation

    @cython.ccall
    @cython.exceptval(-1)
    def take_all(self, table: DmaTable, moves: Any, count: cython.ulonglong) -> cython.bint:
        """Resolve and pin everything that a list of `papr.engine.MOVE` names; False as `take`.

        The list is copied, because it is not ours.
        """
        number: cython.ulonglong
        flags: cython.uint
        need: cython.ulonglong = WRITE
        if count > self._move_room:
            self._move_room = count
            self._moves = pointer(self._grow(3, _MOVE * count))
        mine: cython.p_uchar = self._moves
        move: cython.ulonglong
        copy(mine, 0, pointer(moves), 0, _MOVE * count)
        self._known = 0
        for number in range(count):
            move = _MOVE * number
            flags = ld32(mine, move + _FLAGS) & (_TO_MEMORY | _CONTINUES)
            st32(mine, move + _FLAGS, flags)
            if number == 0 or not flags & _CONTINUES:
                need = WRITE if flags & _TO_MEMORY else READ
                self._joins = False
            st32(mine, move + _RESULT, self._run_count)
            if not self._take(table, ld64(mine, move + _IOBA), ld64(mine, move + _LENGTH), need):
                return False
        return True

    @cython.ccall
    @cython.exceptval(-1)
    def carry_out_whole(self, target: Target, position: cython.ulonglong, to_memory: cython.bint) -> cython.bint:
        """Move all of an operation of one request without the interpreter lock; false if the backing has to do it."""
        run: cython.ulonglong
        length: cython.ulonglong = 0
        done: cython.bint
        with cython.nogil:
            for run in range(self._run_count):
                length += ld64(self._runs, 16 * run + 8)
            done = (
                target.is_whole()
                and target.move(not to_memory, self._runs, self._run_count, position, length)
                and target.is_whole()
            )
        return done

    @cython.ccall
    @cython.exceptval(-1)
    def carry_out(self, backing: Backing, moves: Any, count: cython.ulonglong) -> cython.int:
        """Move the bytes of a list that was taken, and note in it how each request ended; how many failed.

        Bytes of those that did not are counted for `settle`.
        """
        target: Target | None = backing.target
        results: cython.p_uchar = pointer(moves)
        number: cython.ulonglong = 0
        after: cython.ulonglong
        error: cython.int
        failed: cython.int = 0
        left: cython.ulonglong = count
        self._make_accounts()
        if target is not None:
            with cython.nogil:
                left = self._carry_out(target, results, count)
        if left == 0:
            return 0
        while number < count:
            after = self._after(number, count)
            if not ld32(self._moves, _MOVE * number + _FLAGS) & _DONE:
                error = self._ask(backing, number, self._end(after, count))
                if error == 0:
                    self._account(self._begin(number), self._end(after, count))
                else:
                    failed += 1
                st32(results, _MOVE * number + _RESULT, error)
            number = after
        return failed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _after(self, number: cython.ulonglong, count: cython.ulonglong) -> cython.ulonglong:
        """The move that begins the request after that of `number`."""
        number += 1
        while number < count and ld32(self._moves, _MOVE * number + _FLAGS) & _CONTINUES:
            number += 1
        return number

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin(self, number: cython.ulonglong) -> cython.uint:
        return ld32(self._moves, _MOVE * number + _RESULT)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end(self, after: cython.ulonglong, count: cython.ulonglong) -> cython.uint:
        """The run behind the last one of the request before `after`."""
        return self._run_count if after == count else self._begin(after)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _carry_out(self, target: Target, results: cython.p_uchar, count: cython.ulonglong) -> cython.ulonglong:
        """All requests that a target moves by itself; how many it did not."""
        number: cython.ulonglong = 0
        left: cython.ulonglong = 0
        after: cython.ulonglong
        length: cython.ulonglong
        run: cython.ulonglong
        begin: cython.uint
        end: cython.uint
        flags: cython.uint
        moves: cython.p_uchar = self._moves
        runs: cython.p_uchar = self._runs
        if not target.is_whole():
            return count
        while number < count:
            after = self._after(number, count)
            begin = self._begin(number)
            end = self._end(after, count)
            length = 0
            for run in range(begin, end):
                length += ld64(runs, 16 * run + 8)
            flags = ld32(moves, _MOVE * number + _FLAGS)
            if after < count:  # it comes near while this is moved
                target.expect(ld64(moves, _MOVE * after + _POSITION))
            if target.move(
                flags & _TO_MEMORY == 0,
                at(runs, 16 * begin),
                end - begin,
                ld64(moves, _MOVE * number + _POSITION),
                length,
            ):
                st32(moves, _MOVE * number + _FLAGS, flags | _DONE)
            number = after
        number = 0
        if not target.is_whole():  # nobody knows what that was: each is done again, by the backing
            while number < count:
                st32(moves, _MOVE * number + _FLAGS, ld32(moves, _MOVE * number + _FLAGS) & ~_DONE)
                number += 1
            return count
        while number < count:
            after = self._after(number, count)
            if ld32(moves, _MOVE * number + _FLAGS) & _DONE:
                st32(results, _MOVE * number + _RESULT, 0)
                self._account(self._begin(number), self._end(after, count))
            else:
                left += 1
            number = after
        return left

    @cython.cfunc
    @cython.exceptval(-1)
    def _ask(self, backing: Backing, number: cython.ulonglong, end: cython.uint) -> cython.int:
        """Have the backing carry out one request; its errno, 0 when it is done."""
        position = int(ld64(self._moves, _MOVE * number + _POSITION))
        to_memory = bool(ld32(self._moves, _MOVE * number + _FLAGS) & _TO_MEMORY)
        buffers = [memory[first:last] for memory, first, last in self._runs_of(self._begin(number), end)]
        try:
            if len(buffers) == 1:
                (backing.read_into if to_memory else backing.write_from)(position, buffers[0])
            else:
                (backing.read_vector if to_memory else backing.write_vector)(position, buffers)
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    # -- accounts

    @cython.cfunc
    @cython.exceptval(-1)
    def _make_accounts(self) -> cython.int:
        """One for each link."""
        if len(self.links) > self._moved_room:
            self._moved_room = 2 * len(self.links)
            self._moved = pointer(self._grow(4, 8 * self._moved_room))
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _account(self, begin: cython.uint, end: cython.uint) -> cython.void:
        run: cython.ulonglong
        link: cython.uint
        moved: cython.p_uchar = self._moved
        for run in range(begin, end):
            link = ld32(self._origins, 16 * run + 8)
            st64(moved, 8 * link, ld64(moved, 8 * link) + ld64(self._runs, 16 * run + 8))

    @cython.ccall
    @cython.exceptval(-1)
    def count_all(self) -> cython.int:
        """All bytes of the operation are where they belong."""
        self._make_accounts()
        self._account(0, self._run_count)
        return 0

    @cython.ccall
    @cython.exceptval(-1)
    def settle(self) -> cython.int:
        """Put the bytes that were counted on the ledgers of the links."""
        number: cython.ulonglong
        link: Link
        for number in range(1, len(self.links)):
            if number < self._moved_room and ld64(self._moved, 8 * number):
                link = self.links[number]
                link.ledger.redirected(0, ld64(self._moved, 8 * number))
                link.peer_ledger.redirected(0, ld64(self._moved, 8 * number))
                st64(self._moved, 8 * number, 0)
        return 0
