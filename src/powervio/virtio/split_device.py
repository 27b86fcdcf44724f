# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The device side of the split virtqueue (virtio 1.4, 2.7), over a `RingMemory`; `split_driver` is the other side.

A driver puts *heads* of descriptor chains into the available ring; a device takes them, and gives each back in the used
ring with the number of bytes that it wrote. Both indices run from 0 to 65535 and around; slots are `index mod size`.
What a ring may rely on stands in `device_ring`.

Offsets, lengths and addresses are bytes. Ring fields are little-endian, or the guest's order in legacy devices
(2.7.3): `big_endian`. The three areas must be aligned to 16, 2 and 4 bytes (2.7); who maps them checks that.
This file is compiled (Cython pure mode) and also runs interpreted: 16-bit indices are masked where they are changed.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    be16,
    be32,
    be64,
    fence,
    ld8,
    ld16,
    ld16_acquire,
    ld32,
    ld64,
    le16,
    le32,
    le64,
    st16,
    st16_release,
    st32,
)
from cython.cimports.powervio.virtio.device_ring import DeviceRing

from powervio.memory.abstract import RingMemory
from powervio.virtio.split_layout import check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)


@cython.cclass
class SplitDeviceRing(DeviceRing):
    """See `DeviceRing`."""

    last_available = cython.declare(cython.uint, visibility="readonly")
    used_index = cython.declare(cython.uint, visibility="readonly")
    published_index = cython.declare(cython.uint, visibility="readonly")

    _big: cython.bint
    _trusted: cython.uint
    _seen: cython.uint
    _last_used_slot: cython.uint

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        big_endian: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
        last_available: int = 0,
        used_index: int = 0,
    ) -> None:
        """Start at the given indices: 0 after a reset, those that were saved when a queue moves to another server.

        `event_idx`, `indirect` and `in_order` say whether the features were negotiated. Raises `LocalError` for a size
        that is no queue size or an area that is too small.
        """
        check_memory(size, memory)
        DeviceRing.__init__(self, size, memory, event_idx, indirect, in_order)
        self._big = big_endian
        self.last_available = last_available & 0xFFFF
        self.used_index = used_index & 0xFFFF
        self._trusted = self.last_available
        self._seen = self.last_available
        self.published_index = self.used_index
        self._last_used_slot = 0

    @property
    def pending(self) -> int:
        """See `DeviceRing`."""
        return (self._trusted - self.last_available) & 0xFFFF

    def ahead(self, index: int) -> int:
        """See `DeviceRing`; the index is avail.idx (the low 16 bits of what came)."""
        distance: cython.uint = self._ahead(index & 0xFFFF)
        return distance if distance <= self.size else 0

    def refresh(self, known_index: int | None = None) -> int:
        """See `DeviceRing`. Raises `RemoteError` when the index went back or ran ahead of the queue (2.7.6.1)."""
        known: cython.uint = self._seen
        hint: cython.uint
        if self.broken:
            raise self._again()
        if not self._remote:
            return self.look()
        if known_index is not None:
            # A kick may be late (its entries were popped already) or wrong; it is a hint. Anything up to a queue's
            # length ahead may be news, and the copy below shows whether it is.
            hint = known_index & 0xFFFF
            if self._ahead(hint) > self._ahead(known) and self._ahead(hint) <= self.size:
                known = hint
        elif self._seen == self._trusted:
            self._memory.fetch_available()
            self._see()
            known = self._seen
        if known != self._trusted:
            hint = self._seen
            self._memory.fetch_descriptors()
            self._see()
            # what the copy shows beyond the hint is for the next copy; a hint beyond what it shows was not true
            self._trusted = known if self._ahead(known) <= self._ahead(self._seen) else hint
        return self.pending

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _ahead(self, index: cython.uint) -> cython.uint:
        return (index - self.last_available) & 0xFFFF

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _index(self) -> cython.uint:
        value: cython.uint = ld16_acquire(self._available, 2)
        return be16(value) if self._big else le16(value)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _see(self) -> cython.int:
        """Take note of avail.idx as the memory has it."""
        index: cython.uint = self._index()
        if self._ahead(index) > self.size or self._ahead(index) < self._ahead(self._seen):
            with cython.gil:
                raise self._fail(
                    f"avail.idx is {index} when {self.last_available} were taken and {self._seen} announced, in a queue"
                    f" of {self.size} (virtio 1.4, 2.7.6.1: idx never goes back)"
                )
        self._seen = index
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def look(self) -> cython.int:
        """See `DeviceRing`."""
        if self.broken:
            with cython.gil:
                raise self._again()
        self._see()
        self._trusted = self._seen
        return self._ahead(self._trusted)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take(self) -> cython.int:
        """See `DeviceRing`."""
        size: cython.uint = self.size
        big: cython.bint = self._big
        raw: cython.uint
        head: cython.uint
        if self.broken:
            with cython.gil:
                raise self._again()
        while self.last_available != self._trusted:
            raw = ld16(self._available, 4 + 2 * (self.last_available & (size - 1)))
            head = be16(raw) if big else le16(raw)
            if head >= size:
                with cython.gil:
                    raise self._fail(f"available head {head} in a queue of {size} descriptors (virtio 1.4, 2.7.6)")
            if ld8(self._states, head):
                with cython.gil:
                    raise self._fail(f"head {head} made available again before it was used (virtio 1.4, 2.7.13)")
            self.last_available = (self.last_available + 1) & 0xFFFF
            if self._record is not None:
                self._record.begin(head)
            if self._walk(head):
                return 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def peek(self, distance: cython.uint) -> cython.ulonglong:
        """See `DeviceRing`."""
        head: cython.uint
        if distance >= self._ahead(self._trusted) or self._big:
            return 0
        head = le16(ld16(self._available, 4 + 2 * ((self.last_available + distance) & (self.size - 1))))
        return le64(ld64(self._descriptors, 16 * head)) if head < self.size else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take_again(self, note: cython.uint) -> cython.int:
        """See `DeviceRing`."""
        if self.broken:
            with cython.gil:
                raise self._again()
        if note >= self.size or ld8(self._states, note):
            with cython.gil:
                raise self._fail(f"head {note} cannot be taken again in a queue of {self.size} descriptors")
        return self._walk(note)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _walk(self, head: cython.uint) -> cython.int:
        """Take the chain that begins with descriptor `head`; 0 when it was rejected."""
        size: cython.uint = self.size
        big: cython.bint = self._big
        table: cython.p_uchar = self._descriptors
        entries: cython.uint = size
        steps: cython.uint = 0
        inside: cython.bint = False
        address: cython.ulonglong
        length: cython.ulonglong
        flags: cython.uint
        following: cython.uint
        place: cython.ulonglong
        index: cython.uint = head
        self._claim(head)
        self._begin()

        while True:
            if index >= entries:
                with cython.gil:
                    raise self._fail(f"descriptor {index} of a table of {entries}, chain {head} (virtio 1.4, 2.7.5)")
            if steps == size:
                with cython.gil:
                    raise self._fail(
                        f"chain {head} is a loop or longer than the queue of {size} (virtio 1.4, 2.7.5.2, 2.7.5.3.1)"
                    )
            steps += 1
            place = 16 * index
            address = ld64(table, place)
            length = ld32(table, place + 8)
            flags = ld16(table, place + 12)
            following = ld16(table, place + 14)
            if big:
                address = be64(address)
                length = be32(length)
                flags = be16(flags)
                following = be16(following)
            else:
                address = le64(address)
                length = le32(length)
                flags = le16(flags)
                following = le16(following)

            if flags & _INDIRECT:
                # WRITE means nothing here (2.7.5.3.2).
                if not self._indirect:
                    with cython.gil:
                        raise self._fail(f"indirect descriptor {index} without the feature (virtio 1.4, 2.7.5.3.1)")
                if inside:
                    with cython.gil:
                        raise self._fail(
                            f"indirect descriptor in an indirect table, chain {head} (virtio 1.4, 2.7.5.3.1)"
                        )
                if flags & _NEXT:
                    with cython.gil:
                        raise self._fail(f"descriptor {index} is INDIRECT and has NEXT (virtio 1.4, 2.7.5.3.1)")
                if length == 0 or length & 15:
                    with cython.gil:
                        raise self._fail(f"indirect table of {length} bytes, chain {head} (virtio 1.4, 2.7.5.3)")
                # A chain has `size` descriptors at most: what a table has beyond is not worth a copy.
                entries = size if length > 16 * size else length >> 4
                if not self._fetch_table(head, address, 16 * entries):
                    return 0
                table = self._table
                index = 0
                steps -= 1  # the pointer is no part of the buffer
                inside = True
                continue

            self._segment(head, address, length, flags & _WRITE != 0)
            if not flags & _NEXT:
                break
            index = following

        self._end(head)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _use(self, head: cython.uint, written: cython.uint, joins: cython.bint) -> cython.void:
        place: cython.ulonglong
        if not joins:  # one entry for many stands in the slot of the first of them (2.7.9)
            self._last_used_slot = self.used_index & (self.size - 1)
        place = 4 + 8 * self._last_used_slot
        if self._big:
            st32(self._used, place, be32(head))
            st32(self._used, place + 4, be32(written))
        else:
            st32(self._used, place, le32(head))
            st32(self._used, place + 4, le32(written))
        self.used_index = (self.used_index + 1) & 0xFFFF

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `DeviceRing`."""
        old: cython.uint = self.published_index
        new: cython.uint = self.used_index
        value: cython.uint
        if new == old:
            return 0
        if self._remote:
            st16(self._used, 2, be16(new) if self._big else le16(new))
            with cython.gil:
                self._store(old & (self.size - 1))
            self.published_index = new
            self._published()
            return 1
        if self._record is not None:
            self._record.publishing(new)
        st16_release(self._used, 2, be16(new) if self._big else le16(new))
        self.published_index = new
        self._published()
        if self._record is not None:
            self._record.published(new)
        fence()  # idx is visible before the driver's wish is read; the driver does the same in the other order
        value = ld16(self._available, 4 + 2 * self.size if self._event_idx else 0)
        value = be16(value) if self._big else le16(value)
        if self._event_idx:
            return ((new - value - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return (value & 1) == 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _store(self, first: cython.uint) -> cython.int:
        """Have the used elements from slot `first` on copied to the driver."""
        self._memory.store_used(first, ((self._last_used_slot - first) & (self.size - 1)) + 1)
        return 0

    def enable_notifications(self) -> bool:
        """See `DeviceRing`."""
        if not self._remote:
            return self.arm() != 0
        if self.broken:
            raise self._again()
        if self._event_idx:
            self._arm(self._seen)
            self._memory.store_suppression()
            fence()
            self._memory.fetch_available()
            self._see()
        return self._seen != self._trusted

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """See `DeviceRing`."""
        if self.broken:
            with cython.gil:
                raise self._again()
        if self._event_idx:
            self._arm(self._trusted)
        else:
            st16(self._used, 0, 0)
        fence()
        self._see()
        return self._seen != self._trusted

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _arm(self, index: cython.uint) -> cython.void:
        st16(self._used, 4 + 8 * self.size, be16(index) if self._big else le16(index))

    def disable_notifications(self) -> None:
        """See `DeviceRing`. With EVENT_IDX there is nothing to do: avail_event stays behind, and the driver kicks only
        when it passes it.
        """
        if not self._remote:
            self.disarm()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """See `DeviceRing`."""
        if not self._event_idx:
            st16(self._used, 0, be16(1) if self._big else le16(1))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def used_position(self) -> cython.uint:
        """See `DeviceRing`."""
        return self.used_index
