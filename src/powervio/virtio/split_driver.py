# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver side of the split virtqueue (virtio 1.4, 2.7), in the driver's own memory.

What a ring may rely on stands in `driver_ring`.
This file is compiled (Cython pure mode) and also runs interpreted: 16-bit indices are masked where they are changed.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    be16,
    be32,
    be64,
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

from powervio.memory.abstract import RingMemory
from powervio.virtio.split_layout import check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)


@cython.cclass
class SplitDriverRing(DriverRing):
    """See `DriverRing`."""

    available_index: cython.uint
    last_used: cython.uint

    _published: cython.uint
    _big: cython.bint
    _free: cython.uint
    _links: cython.p_uchar
    _more_views: tuple[object, ...]

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        big_endian: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> None:
        """A ring for a new session: the three areas are cleared. Raises `LocalError` for a bad size or area."""
        check_memory(size, memory)
        DriverRing.__init__(self, size, memory, event_idx, indirect, in_order)
        links = bytearray(2 * size)
        self._more_views = (links,)
        self._links = pointer(links)
        self._big = big_endian
        self.available_index = 0
        self.last_used = 0
        self._published = 0
        self._free = 0
        for index in range(size):
            st16(self._links, 2 * index, index + 1 if index + 1 < size else 0)
        memory.descriptors[: 16 * size] = bytes(16 * size)
        memory.available[: 6 + 2 * size] = bytes(6 + 2 * size)
        memory.used[: 6 + 8 * size] = bytes(6 + 8 * size)

    @property
    def published_index(self) -> int:
        """See `DriverRing`: avail.idx."""
        return self._published

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
        """See `DriverRing`."""
        number: cython.uint
        index: cython.uint = self._free
        head: cython.uint = index
        slot: cython.uint = self.available_index & (self.size - 1)
        following: cython.uint
        flags: cython.uint
        into: cython.p_uchar = self._descriptors if table == cython.NULL else self._table
        for number in range(count):
            following = number + 1 if table != cython.NULL else ld16(self._links, 2 * index)
            flags = 0 if number < readers else _WRITE
            if number + 1 < count:
                flags |= _NEXT
            self._describe(
                into,
                index if table == cython.NULL else number,
                get64(segments, 16 * number),
                get64(segments, 16 * number + 8),
                flags,
                following if number + 1 < count else 0,
            )
            if table == cython.NULL:
                index = following
        if table != cython.NULL:
            copy(table, 0, self._table, 0, 16 * count)
            self._describe(self._descriptors, index, table_address, 16 * count, _INDIRECT, 0)
            index = ld16(self._links, 2 * index)
        self._free = index
        st16(self._available, 4 + 2 * slot, be16(head) if self._big else le16(head))
        self.available_index = (self.available_index + 1) & 0xFFFF
        return head

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _describe(
        self,
        table: cython.p_uchar,
        index: cython.uint,
        address: cython.ulonglong,
        length: cython.uint,
        flags: cython.uint,
        following: cython.uint,
    ) -> cython.void:
        place: cython.ulonglong = 16 * index
        if self._big:
            st64(table, place, be64(address))
            st32(table, place + 8, be32(length))
            st16(table, place + 12, be16(flags))
            st16(table, place + 14, be16(following))
        else:
            st64(table, place, le64(address))
            st32(table, place + 8, le32(length))
            st16(table, place + 12, le16(flags))
            st16(table, place + 14, le16(following))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `DriverRing`."""
        old: cython.uint = self._published
        new: cython.uint = self.available_index
        value: cython.uint
        if new == old or self.broken:
            return 0
        self._published = new
        self._shown = self._lent
        st16_release(self._available, 2, be16(new) if self._big else le16(new))
        fence()  # idx is visible before the device's wish is read (2.7.13.4.1)
        value = ld16(self._used, 4 + 8 * self.size if self._event_idx else 0)
        value = be16(value) if self._big else le16(value)
        if self._event_idx:
            return 1 if ((new - value - 1) & 0xFFFF) < ((new - old) & 0xFFFF) else 0
        return 0 if value & 1 else 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def _look(self) -> cython.int:
        """See `DriverRing`."""
        value: cython.uint = ld16_acquire(self._used, 2)
        ahead: cython.uint = ((be16(value) if self._big else le16(value)) - self.last_used) & 0xFFFF
        published: cython.uint = (self._published - self.last_used) & 0xFFFF
        place: cython.ulonglong
        head: cython.uint
        written: cython.uint
        if ahead == 0:
            return -1
        if ahead > published:
            with cython.gil:
                raise self._fail(
                    f"used.idx is {ahead} ahead when {published} buffers are in flight (virtio 1.4, 2.7.8)"
                )
        place = 4 + 8 * (self.last_used & (self.size - 1))
        head = ld32(self._used, place)
        written = ld32(self._used, place + 4)
        if self._big:
            head = be32(head)
            written = be32(written)
        else:
            head = le32(head)
            written = le32(written)
        if not self._is_published(head):
            with cython.gil:
                raise self._fail(f"used id {head} is no buffer in flight, queue of {self.size} (virtio 1.4, 2.7.8)")
        if written > ld64(self._rooms, 8 * head):
            with cython.gil:
                raise self._fail(
                    f"used length {written} for head {head} that has {ld64(self._rooms, 8 * head)} writable bytes "
                    "(virtio 1.4, 2.7.8.2)"
                )
        if self._in_order and self._covered(head) > ahead:
            with cython.gil:
                raise self._fail(
                    f"used id {head} covers {self._covered(head)} buffers when used.idx moved by {ahead} "
                    "(virtio 1.4, 2.7.9)"
                )
        self._batch_written = written
        return head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _free_descriptors(self, head: cython.uint) -> cython.void:
        last: cython.uint = head
        self.last_used = (self.last_used + 1) & 0xFFFF
        if self._in_order:
            return  # they come back in the order of the table, in which they are taken again (2.7.9)
        for _ in range(ld16(self._counts, 2 * head) - 1):
            last = ld16(self._links, 2 * last)
        st16(self._links, 2 * last, self._free)
        self._free = head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """See `DriverRing`."""
        index: cython.uint = self.last_used
        if self.broken:
            return 0  # its memory may be somebody else's by now
        if self._event_idx:
            st16(self._available, 4 + 2 * self.size, be16(index) if self._big else le16(index))
        else:
            st16(self._available, 0, 0)
        fence()
        value: cython.uint = ld16_acquire(self._used, 2)
        return 1 if (be16(value) if self._big else le16(value)) != index else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def disarm(self) -> cython.int:
        """See `DriverRing`."""
        index: cython.uint = (self.last_used - 1) & 0xFFFF
        if self.broken:
            return 0
        if self._event_idx:
            # As far ahead as can be: the index that is reached a whole round from now.
            st16(self._available, 4 + 2 * self.size, be16(index) if self._big else le16(index))
        else:
            st16(self._available, 0, be16(1) if self._big else le16(1))
        return 0
