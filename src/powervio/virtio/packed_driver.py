# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver side of the packed virtqueue (virtio 1.4, 2.8), in the driver's own memory; `packed_device` is the other.

Chains are written one after the other from the place of the next free descriptor. The flags of the first descriptor of
a batch are written last, by `publish`: a device looks at no place behind one that is not available, so until then it
sees nothing of the batch. Used descriptors are looked for at one place only, from which each leads on by the length of
the chain that it gives back. What a ring may rely on stands in `driver_ring`.

Ring fields are little-endian. Positions: see `packed_layout`.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    copy,
    fence,
    get64,
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
from cython.cimports.powervio.virtio.driver_ring import DriverRing
from cython.cimports.powervio.virtio.packed_layout import event_is_due, position_of

from powervio.memory.abstract import RingMemory
from powervio.virtio.packed_layout import EVENT_BYTES, check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)
_AVAILABLE = cython.declare(cython.uint, 0x80)
_USED = cython.declare(cython.uint, 0x8000)
_DISABLE = cython.declare(cython.uint, 1)
_DESC = cython.declare(cython.uint, 2)


@cython.cclass
class PackedDriverRing(DriverRing):
    """See `DriverRing`."""

    # Where the next chain is written, and the next used descriptor is read: slot and round, whose lowest bit is the
    # inverse of the wrap counter.
    _slot: cython.uint
    _round: cython.uint
    _used_slot: cython.uint
    _used_round: cython.uint
    _published: cython.uint
    # The batch that is not published: the flags that make it available, their place, descriptors.
    _first_slot: cython.uint
    _first_flags: cython.uint
    _unpublished: cython.uint
    _free: cython.uint
    _ids: cython.p_uchar
    _more_views: tuple[object, ...]

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> None:
        """A ring for a new session: the three areas are cleared. Raises `LocalError` for a bad size or area."""
        check_memory(size, memory)
        DriverRing.__init__(self, size, memory, event_idx, indirect, in_order)
        ids = bytearray(2 * size)
        self._more_views = (ids,)
        self._ids = pointer(ids)
        for number in range(size):
            st16(self._ids, 2 * number, size - 1 - number)
        self._free = size
        self._slot = self._used_slot = self._first_slot = 0
        self._round = self._used_round = 0
        self._published = position_of(0, 0)
        self._first_flags = self._unpublished = 0
        memory.descriptors[: 16 * size] = bytes(16 * size)
        memory.available[:EVENT_BYTES] = bytes(EVENT_BYTES)
        memory.used[:EVENT_BYTES] = bytes(EVENT_BYTES)

    @property
    def published_index(self) -> int:
        """See `DriverRing`: the position after what is published, with its round (`packed_layout`)."""
        return self._published

    @property
    def last_used(self) -> int:
        """Position at which the next used descriptor is looked for, in 16 bits (`packed_layout`)."""
        return position_of(self._used_slot, self._used_round)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def _write(
        self,
        segments: cython.p_uchar,
        count: cython.uint,
        readers: cython.uint,
        table: cython.p_uchar,
        table_address: cython.ulonglong,
    ) -> cython.int:
        """See `DriverRing`. The head is the buffer id."""
        number: cython.uint
        head: cython.uint
        flags: cython.uint
        place: cython.ulonglong
        self._free -= 1
        head = ld16(self._ids, 2 * self._free)
        for number in range(count):
            flags = 0 if number < readers else _WRITE
            place = 16 * number
            if table == cython.NULL:
                if number + 1 < count:
                    flags |= _NEXT
                self._describe(head, get64(segments, place), get64(segments, place + 8), flags)
            else:
                st64(self._table, place, le64(get64(segments, place)))
                st32(self._table, place + 8, le32(get64(segments, place + 8)))
                st16(self._table, place + 12, 0)
                st16(self._table, place + 14, le16(flags))
        if table != cython.NULL:
            copy(table, 0, self._table, 0, 16 * count)
            self._describe(head, table_address, 16 * count, _INDIRECT)
        return head

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _describe(
        self, head: cython.uint, address: cython.ulonglong, length: cython.uint, flags: cython.uint
    ) -> cython.void:
        """Write the next descriptor of the ring; the flags of a batch's first one are left to `publish`."""
        place: cython.ulonglong = 16 * self._slot
        flags |= _USED if self._round & 1 else _AVAILABLE
        st64(self._descriptors, place, le64(address))
        st32(self._descriptors, place + 8, le32(length))
        st16(self._descriptors, place + 12, le16(head))
        if self._unpublished:
            st16(self._descriptors, place + 14, le16(flags))
        else:
            self._first_slot = self._slot
            self._first_flags = flags
        self._unpublished += 1
        self._slot += 1
        if self._slot == self.size:
            self._slot = 0
            self._round = (self._round + 1) & 0xFFFF

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `DriverRing`."""
        count: cython.uint = self._unpublished
        event: cython.uint
        if not count or self.broken:
            return 0
        self._shown = self._lent
        st16_release(self._descriptors, 16 * self._first_slot + 14, le16(self._first_flags))
        self._unpublished = 0
        self._published = self._round << 16 | position_of(self._slot, self._round)
        fence()  # the flags are visible before the device's wish is read (2.8.21.2)
        event = le32(ld32(self._used, 0))
        return 1 if event_is_due(event, self._event_idx, self.size, self._slot, self._round, count) else 0

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _flags(self) -> cython.uint:
        """The flags at the place of the next used descriptor, or 0 while there is none."""
        flags: cython.uint = le16(ld16_acquire(self._descriptors, 16 * self._used_slot + 14))
        wanted: cython.uint = 0 if self._used_round & 1 else _AVAILABLE | _USED
        return flags | 0x10000 if flags & (_AVAILABLE | _USED) == wanted else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def _look(self) -> cython.int:
        """See `DriverRing`."""
        flags: cython.uint = self._flags()
        place: cython.ulonglong = 16 * self._used_slot
        head: cython.uint
        written: cython.uint
        if not flags:
            return -1
        # without WRITE the length is reserved (2.8.4)
        written = le32(ld32(self._descriptors, place + 8)) if flags & _WRITE else 0
        head = le16(ld16(self._descriptors, place + 12))
        if not self._is_published(head):
            with cython.gil:
                raise self._fail(f"used id {head} is no buffer in flight, queue of {self.size} (virtio 1.4, 2.8.6)")
        if written > ld64(self._rooms, 8 * head):
            with cython.gil:
                raise self._fail(
                    f"used length {written} for id {head} that has {ld64(self._rooms, 8 * head)} writable bytes "
                    "(virtio 1.4, 2.8.4)"
                )
        self._batch_written = written
        return head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _free_descriptors(self, head: cython.uint) -> cython.void:
        self._used_slot += ld16(self._counts, 2 * head)
        if self._used_slot >= self.size:
            self._used_slot -= self.size
            self._used_round = (self._used_round + 1) & 0xFFFF
        st16(self._ids, 2 * self._free, head)
        self._free += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """See `DriverRing`."""
        event: cython.uint
        if self.broken:
            return 0  # its memory may be somebody else's by now
        event = position_of(self._used_slot, self._used_round) | _DESC << 16 if self._event_idx else 0
        st32(self._available, 0, le32(event))
        fence()
        return 1 if self._batch != 0 or self._flags() != 0 else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def disarm(self) -> cython.int:
        """See `DriverRing`."""
        if not self.broken:
            st32(self._available, 0, le32(_DISABLE << 16))
        return 0
