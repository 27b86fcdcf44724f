# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The device side of the packed virtqueue (virtio 1.4, 2.8), over a `RingMemory`; `packed_driver` is the other side.

One ring of descriptors carries both directions. The driver writes chains one after the other; a descriptor is available
when its AVAIL flag equals the wrap counter of its place and USED does not. The device writes one used descriptor for
each chain, in the order of completion, from the place of the oldest chain that it has not used, and goes on by as many
places as that chain had. What a ring may rely on stands in `device_ring`; here in addition:

1. The first descriptor of a chain becomes available last, so one that was known to be available before it was copied
   makes its whole chain good. A chain that then runs into a descriptor that is not available is a broken ring.
2. All available descriptors are copied into private memory by `refresh`, mapped or not; `pop` reads nothing else.
3. The driver looks at one place only, that of the next used descriptor. So what is written behind it in a batch is not
   seen, and its places not used again, before the flags of the batch's first descriptor are written, last. A ring that
   goes on for a dead device takes back what that one wrote behind the place, for the driver would see it sooner or
   later, in another order than the completions that are to come.
4. Buffer ids are the driver's and given back as they came (2.8.6); the books go by numbers of our own.

Offsets, lengths and addresses are bytes. Ring fields are little-endian. The three areas must be aligned to 16, 4 and 4
bytes (2.8.10.1); who maps them checks that. Positions: see `packed_layout`.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    fence,
    ld16,
    ld16_acquire,
    ld32,
    ld64,
    le16,
    le32,
    le64,
    pointer,
    st16,
    st16_release,
    st32,
    st64,
)
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.packed_layout import descriptors_between, event_is_due, position_of, round_of

from powervio.errors import LocalError
from powervio.memory.abstract import RingMemory
from powervio.virtio.packed_layout import FIRST_POSITION, check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)
_AVAILABLE = cython.declare(cython.uint, 0x80)
_USED = cython.declare(cython.uint, 0x8000)
_DISABLE = cython.declare(cython.uint, 1)
_DESC = cython.declare(cython.uint, 2)
_ROUNDS = cython.declare(cython.uint, 0x10000)


@cython.cclass
class PackedDeviceRing(DeviceRing):
    """See `DeviceRing`."""

    # Where the next chain is read, and the next used descriptor is written: slot and round, whose lowest bit is the
    # inverse of the wrap counter.
    _slot: cython.uint
    _round: cython.uint
    _used_slot: cython.uint
    _used_round: cython.uint
    # Descriptors from `_slot` on that are in the copy and make up `_pending` chains; that were seen to be available.
    _fetched: cython.uint
    _seen: cython.uint
    _pending: cython.uint
    # Descriptors that were taken and that the driver does not see as used, also by a predecessor.
    _taken: cython.uint
    # The indirect table of the chain that was read last, in descriptors.
    _entries: cython.uint
    _address: cython.ulonglong
    # The used descriptors that are not published: the places of the first and of the last, and how far they lead.
    _first_slot: cython.uint
    _first_round: cython.uint
    _first_flags: cython.uint
    _last_slot: cython.uint
    _last_round: cython.uint
    _skipped: cython.uint
    _armed: cython.uint
    _free: cython.uint
    _copy: cython.p_uchar
    _numbers: cython.p_uchar
    _ids: cython.p_uchar
    _counts: cython.p_uchar
    _more_views: tuple[object, ...]

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        last_available: int = FIRST_POSITION,
        used_index: int = FIRST_POSITION,
    ) -> None:
        """Start at the given positions: the defaults after a reset, those that were saved when a queue moves to another
        server. What was taken in between and not used is the device's; `retake` is to give it.

        `event_idx`, `indirect` and `in_order` say whether the features were negotiated. Raises `LocalError` for a size
        that is no queue size, an area that is too small, or positions that are further apart than the ring is long.
        """
        check_memory(size, memory)
        DeviceRing.__init__(self, size, memory, event_idx, indirect, in_order)
        books = [bytearray(2 * size) for _ in range(3)]
        private = bytearray(0 if memory.remote else 16 * size)
        self._more_views = (*books, private)
        self._numbers = pointer(books[0])
        self._ids = pointer(books[1])
        self._counts = pointer(books[2])
        self._copy = self._descriptors if memory.remote else pointer(private)
        for number in range(size):
            st16(self._numbers, 2 * number, number)
        self._free = size
        self._slot = (last_available & 0x7FFF) % size
        self._round = round_of(last_available)
        self._used_slot = (used_index & 0x7FFF) % size
        self._used_round = round_of(used_index)
        self._fetched = self._seen = self._pending = self._skipped = 0
        self._taken = descriptors_between(last_available, used_index, size)
        self._entries = 0
        self._address = 0
        if self._taken > size:
            raise LocalError(f"{self._taken} descriptors taken and not used, in a queue of {size}")
        if self._taken and not memory.remote:
            self._take_back()
        self._first_slot = self._first_round = self._first_flags = 0
        self._last_slot = self._last_round = 0
        self._armed = 0

    @cython.cfunc
    def _take_back(self) -> cython.void:
        """See 3 above. The driver does not look at these places yet, and writes none of them."""
        slot: cython.uint = self._used_slot
        turn: cython.uint = self._used_round
        flags: cython.uint
        for _ in range(1, self._taken):
            slot += 1
            if slot == self.size:
                slot = 0
                turn += 1
            flags = le16(ld16(self._descriptors, 16 * slot + 14))
            if flags & (_AVAILABLE | _USED) == (0 if turn & 1 else _AVAILABLE | _USED):
                st16(self._descriptors, 16 * slot + 14, le16(flags ^ _USED))

    @property
    def last_available(self) -> int:
        """Position of the next chain to be taken, with its round (`packed_layout`)."""
        return self._round << 16 | position_of(self._slot, self._round)

    @property
    def used_index(self) -> int:
        """Position of the next used descriptor, in 16 bits (`packed_layout`)."""
        return position_of(self._used_slot, self._used_round)

    @property
    def pending(self) -> int:
        """See `DeviceRing`."""
        return self._pending

    def ahead(self, index: int) -> int:
        """See `DeviceRing`; the index is a position with its round, the result descriptors."""
        slot: cython.ulonglong = index & 0x7FFF
        turn: cython.ulonglong = (index >> 16) & 0xFFFF
        period: cython.ulonglong = self.size
        here: cython.ulonglong = self._round
        distance: cython.ulonglong
        if slot >= self.size or ((index >> 15) & 1) == (turn & 1):
            return 0  # no position of this ring: it says how often it was gone round twice, and differently
        here = here * self.size + self._slot
        period *= _ROUNDS
        distance = (turn * self.size + slot + period - here) % period
        return distance if distance <= self.size - self._taken else 0

    def refresh(self, known_index: int | None = None) -> int:
        """See `DeviceRing`. `known_index` is a position with its round, as KICK carries it (docs/protocol.md, P6.2).

        Raises `RemoteError` for a chain that is available and not complete (2.8.6, 2.8.17).
        """
        room: cython.uint = self.size - self._taken - self._fetched
        known: cython.uint = self._seen
        hint: cython.uint = 0
        shown: cython.uint
        if self.broken:
            raise self._again()
        if room == 0:
            return self._pending
        if not self._remote:
            return self.look()
        if known_index is not None:
            hint = self.ahead(known_index)
        elif known <= self._fetched:
            self._memory.fetch_run(self._place(self._fetched), room)
            self._seen = known = self._fetched + self._available_ones(room)
        if hint > known:
            # exactly what the kick covers; a hint beyond what the copy shows was not true
            self._memory.fetch_run(self._place(self._fetched), hint - self._fetched)
            shown = self._fetched + self._available_ones(hint - self._fetched)
            self._accept(hint if shown == hint else known, shown, False)
        elif known > self._fetched:
            self._memory.fetch_run(self._place(self._fetched), room)
            shown = self._fetched + self._available_ones(room)
            self._accept(known, shown, True)
        return self._pending

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def look(self) -> cython.int:
        """See `DeviceRing`."""
        room: cython.uint = self.size - self._taken - self._fetched
        shown: cython.uint
        if self.broken:
            with cython.gil:
                raise self._again()
        if room:
            shown = self._fetched + self._load(room)
            self._accept(shown, shown, True)
        return self._pending

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _place(self, distance: cython.uint) -> cython.uint:
        """The slot `distance` descriptors after the next chain."""
        slot: cython.uint = self._slot + distance
        return slot - self.size if slot >= self.size else slot

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _wanted(self, distance: cython.uint) -> cython.uint:
        """AVAIL and USED of a descriptor there that is available."""
        turn: cython.uint = self._round + (1 if self._slot + distance >= self.size else 0)
        return _USED if turn & 1 else _AVAILABLE

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _load(self, room: cython.uint) -> cython.uint:
        """Copy available descriptors of mapped memory, up to `room`; returns how many there are."""
        count: cython.uint = 0
        flags: cython.uint
        place: cython.ulonglong
        while count < room:
            place = 16 * self._place(self._fetched + count)
            flags = ld16_acquire(self._descriptors, place + 14)
            if le16(flags) & (_AVAILABLE | _USED) != self._wanted(self._fetched + count):
                break
            st64(self._copy, place, ld64(self._descriptors, place))
            st32(self._copy, place + 8, ld32(self._descriptors, place + 8))
            st16(self._copy, place + 12, ld16(self._descriptors, place + 12))
            st16(self._copy, place + 14, flags)
            count += 1
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _available_ones(self, room: cython.uint) -> cython.uint:
        """How many descriptors, up to `room`, are available in a copy that was just made."""
        count: cython.uint = 0
        flags: cython.uint
        while count < room:
            flags = le16(ld16(self._copy, 16 * self._place(self._fetched + count) + 14))
            if flags & (_AVAILABLE | _USED) != self._wanted(self._fetched + count):
                break
            count += 1
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _accept(self, known: cython.uint, shown: cython.uint, whole: cython.bint) -> cython.int:
        """Take chains that begin before `known` from a copy that shows `shown` available descriptors.

        `whole`: the copy went as far as the ring can be filled, so a chain that is not complete in it never will be.
        """
        at: cython.uint = self._fetched
        flags: cython.uint = 0
        while self._fetched < known:
            at = self._fetched
            flags = _NEXT
            while flags & _NEXT and at < shown:
                flags = le16(ld16(self._copy, 16 * self._place(at) + 14))
                at += 1
            if flags & _NEXT:
                if whole:
                    with cython.gil:
                        raise self._fail(
                            f"the chain at slot {self._place(self._fetched)} runs into a descriptor that is not "
                            f"available after {at - self._fetched}, in a queue of {self.size} (virtio 1.4, 2.8.6, "
                            "2.8.17)"
                        )
                break
            self._fetched = at
            self._pending += 1
        self._seen = shown if shown > self._fetched else self._fetched
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take(self) -> cython.int:
        """See `DeviceRing`."""
        if self.broken:
            with cython.gil:
                raise self._again()
        while self._pending:
            if self._take_next():
                return 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _take_next(self) -> cython.int:
        """Take the next chain, there is one; 0 when it was rejected."""
        number: cython.uint = ld16(self._numbers, 2 * (self._free - 1))
        slot: cython.uint = self._slot
        count: cython.uint = self._read(number, self._copy, slot, self.size)
        self._free -= 1
        self._claim(number)
        self._fetched -= count
        self._seen -= count
        self._pending -= 1
        self._taken += count
        self._slot += count
        if self._slot >= self.size:
            self._slot -= self.size
            self._round = (self._round + 1) & 0xFFFF
        if self._record is not None:
            self._record.begin_chain(number, self._copy, slot, count)
        return self._complete_chain(number)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def peek(self, distance: cython.uint) -> cython.ulonglong:
        """See `DeviceRing`."""
        return le64(ld64(self._copy, 16 * self._place(distance))) if distance < self._fetched else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take_again(self, note: cython.uint) -> cython.int:
        """See `DeviceRing`: the record has the descriptors, for the ring's own were overwritten by used ones."""
        number: cython.uint
        count: cython.uint
        if self.broken:
            with cython.gil:
                raise self._again()
        if self._record is None or self._free == 0:
            with cython.gil:
                raise LocalError(f"chain {note} cannot be taken again: there is no record, or too much is in hand")
        number = ld16(self._numbers, 2 * (self._free - 1))
        count = self._record.recall(number, note, self._table)
        if self._read(number, self._table, 0, count) != count:
            with cython.gil:
                raise self._fail(f"chain {note} on record has more descriptors than its flags say")
        self._free -= 1
        self._claim(number)
        return self._complete_chain(number)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _read(self, number: cython.uint, table: cython.p_uchar, slot: cython.uint, period: cython.uint) -> cython.int:
        """Read the descriptors of a chain from `slot` on, in private memory of `period` places; how many they are."""
        count: cython.uint = 0
        place: cython.ulonglong
        address: cython.ulonglong
        length: cython.uint
        flags: cython.uint
        self._begin()
        self._entries = 0
        while True:
            place = 16 * slot
            address = le64(ld64(table, place))
            length = le32(ld32(table, place + 8))
            flags = le16(ld16(table, place + 14))
            count += 1
            slot = slot + 1 if slot + 1 < period else 0
            if flags & _INDIRECT:
                # WRITE means nothing here (2.8.7).
                if not self._indirect:
                    with cython.gil:
                        raise self._fail(f"indirect descriptor {place >> 4} without the feature (virtio 1.4, 2.8.19)")
                if count > 1 or flags & _NEXT:
                    with cython.gil:
                        raise self._fail(f"indirect descriptor {place >> 4} in a list of others (virtio 1.4, 2.8.19)")
                if length == 0 or length & 15:
                    with cython.gil:
                        raise self._fail(f"indirect table of {length} bytes, slot {place >> 4} (virtio 1.4, 2.8.7)")
                if length > 16 * self.size:
                    with cython.gil:
                        raise self._fail(
                            f"indirect table of {length >> 4} descriptors, queue of {self.size} (virtio 1.4, 2.8.17)"
                        )
                self._entries = length >> 4
                self._address = address
                break
            self._segment(number, address, length, flags & _WRITE != 0)
            if not flags & _NEXT:
                break
            if count == period:
                with cython.gil:
                    raise self._fail(f"a chain of {count} descriptors that does not end (virtio 1.4, 2.8.6)")
        st16(self._ids, 2 * number, ld16(table, place + 12))  # that of the last descriptor counts (2.8.6)
        st16(self._counts, 2 * number, count)
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _complete_chain(self, number: cython.uint) -> cython.int:
        """Read the indirect table of the chain that was read, if it has one; 0 when it was rejected."""
        place: cython.ulonglong
        flags: cython.uint
        index: cython.uint
        if self._entries:
            if not self._fetch_table(number, self._address, 16 * self._entries):
                return 0
            # in the order of the table; of the flags only WRITE means something (2.8.7)
            for index in range(self._entries):
                place = 16 * index
                flags = le16(ld16(self._table, place + 14))
                self._segment(
                    number, le64(ld64(self._table, place)), le32(ld32(self._table, place + 8)), flags & _WRITE != 0
                )
        self._end(number)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _use(self, head: cython.uint, written: cython.uint, joins: cython.bint) -> cython.void:
        place: cython.ulonglong
        flags: cython.uint = _WRITE if written else 0
        count: cython.uint = ld16(self._counts, 2 * head)
        if not self._skipped:
            self._first_slot = self._used_slot
            self._first_round = self._used_round
        if not joins:  # one descriptor for many stands in the place of the first of them (2.8.8)
            self._last_slot = self._used_slot
            self._last_round = self._used_round
        if not self._last_round & 1:
            flags |= _AVAILABLE | _USED
        place = 16 * self._last_slot
        st32(self._descriptors, place + 8, le32(written))
        st16(self._descriptors, place + 12, ld16(self._ids, 2 * head))
        if self._remote or self._last_slot != self._first_slot:
            st16(self._descriptors, place + 14, le16(flags))
        else:
            self._first_flags = flags
        self._skipped += count
        self._used_slot += count
        if self._used_slot >= self.size:
            self._used_slot -= self.size
            self._used_round = (self._used_round + 1) & 0xFFFF
        st16(self._numbers, 2 * self._free, head)
        self._free += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `DeviceRing`."""
        skipped: cython.uint = self._skipped
        event: cython.uint
        if not skipped:
            return 0
        if self._remote:
            with cython.gil:
                self._store()
        else:
            if self._record is not None:
                self._record.publishing(self.used_position())
            st16_release(self._descriptors, 16 * self._first_slot + 14, le16(self._first_flags))
            if self._record is not None:
                self._record.published(self.used_position())
        self._taken -= skipped
        self._skipped = 0
        self._published()
        if self._remote:
            return 1
        fence()  # the flags are visible before the driver's wish is read; the driver does the same in the other order
        event = le32(ld32(self._available, 0))
        return event_is_due(event, self._event_idx, self.size, self._used_slot, self._used_round, skipped)

    @cython.cfunc
    @cython.exceptval(-1)
    def _store(self) -> cython.int:
        """Have the used descriptors copied to the driver."""
        span: cython.uint = self._last_slot + (0 if self._last_slot >= self._first_slot else self.size)
        self._memory.store_run(self._first_slot, span - self._first_slot + 1)
        return 0

    def enable_notifications(self) -> bool:
        """See `DeviceRing`."""
        room: cython.uint = self.size - self._taken - self._fetched
        event: cython.uint
        if not self._remote:
            return self.arm() != 0
        if self.broken:
            raise self._again()
        if self._event_idx and self._seen <= self._fetched:
            event = self._event_of(self._seen)
            if event != self._armed:
                st32(self._used, 0, le32(event))
                self._memory.store_suppression()
                self._armed = event
            if room:
                self._memory.fetch_run(self._place(self._fetched), room)
                self._seen = self._fetched + self._available_ones(room)
        return self._seen > self._fetched

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """See `DeviceRing`."""
        flags: cython.uint
        if self.broken:
            with cython.gil:
                raise self._again()
        st32(self._used, 0, le32(self._event_of(self._fetched) if self._event_idx else 0))
        fence()
        if self.size == self._taken + self._fetched:
            return 0
        flags = ld16_acquire(self._descriptors, 16 * self._place(self._fetched) + 14)
        return le16(flags) & (_AVAILABLE | _USED) == self._wanted(self._fetched)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _event_of(self, distance: cython.uint) -> cython.uint:
        """Event suppression that asks for a kick for the descriptor `distance` after the next chain (2.8.10.1)."""
        turn: cython.uint = self._round + (1 if self._slot + distance >= self.size else 0)
        return position_of(self._place(distance), turn) | (_DESC << 16)

    def disable_notifications(self) -> None:
        """See `DeviceRing`."""
        if not self._remote:
            self.disarm()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """See `DeviceRing`."""
        st32(self._used, 0, le32(_DISABLE << 16))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def used_position(self) -> cython.uint:
        """See `DeviceRing`."""
        return position_of(self._used_slot, self._used_round)
