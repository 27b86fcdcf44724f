# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver side of the split virtqueue (virtio 1.4, 2.7), in the driver's own memory.

The device is as hostile as the driver is to `split_device`, where the rules are; they hold here too. What is in flight
and which descriptors are free stand in private books and are never read back from the ring.
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
    ld8,
    ld16,
    ld16_acquire,
    ld32,
    le16,
    le32,
    le64,
    pointer,
    st8,
    st16,
    st16_release,
    st32,
    st64,
)

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.virtio.split_layout import check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)
_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)

# Where a driver's descriptor head is, in its own books.
_FREE = cython.declare(cython.uint, 0)
_ADDED = cython.declare(cython.uint, 1)
_PUBLISHED = cython.declare(cython.uint, 2)


@cython.cclass
class SplitDriverRing:
    """The driver's side, in its own mapped memory: `add`, `publish`, kick; `reap` until None; `enable_interrupts`.

    Which descriptors are free, how chains hang together and what is in flight stand in private books: the device could
    write the shared ones.
    """

    size = cython.declare(cython.uint, visibility="readonly")
    available_index = cython.declare(cython.uint, visibility="readonly")
    published_index = cython.declare(cython.uint, visibility="readonly")
    last_used = cython.declare(cython.uint, visibility="readonly")
    free_descriptors = cython.declare(cython.uint, visibility="readonly")
    broken = cython.declare(cython.bint, visibility="readonly")

    _views: tuple[object, ...]
    _tokens: dict[int, object]
    _writable: list[int]
    _why: str
    _big: cython.bint
    _event_idx: cython.bint
    _indirect: cython.bint
    _free: cython.uint
    _descriptors: cython.p_uchar
    _available: cython.p_uchar
    _used: cython.p_uchar
    _table: cython.p_uchar
    _links: cython.p_uchar
    _counts: cython.p_uchar
    _states: cython.p_uchar
    _heads: cython.p_uchar

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        big_endian: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        """A ring for a new session: the three areas are cleared. Raises `LocalError` for a bad size or area."""
        check_memory(size, memory)
        if memory.remote:
            raise LocalError("a driver's ring is in its own memory")
        books = tuple(bytearray(count * size) for count in (16, 2, 2, 1, 2))
        self.size = size
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            *books,
        )
        self._descriptors = pointer(memory.descriptors)
        self._available = pointer(memory.available)
        self._used = pointer(memory.used)
        self._table = pointer(books[0])
        self._links = pointer(books[1])
        self._counts = pointer(books[2])
        self._states = pointer(books[3])
        self._heads = pointer(books[4])
        self._big = big_endian
        self._event_idx = event_idx
        self._indirect = indirect
        self._tokens = {}
        self._writable = [0] * size
        self.available_index = 0
        self.last_used = 0
        self.free_descriptors = size
        self.broken = False
        self.published_index = 0
        self._free = 0
        self._why = ""
        for index in range(size):
            st16(self._links, 2 * index, (index + 1) & 0xFFFF)
        memory.descriptors[: 16 * size] = bytes(16 * size)
        memory.available[: 6 + 2 * size] = bytes(6 + 2 * size)
        memory.used[: 6 + 8 * size] = bytes(6 + 8 * size)

    @property
    def in_flight(self) -> list[object]:
        """The tokens of all buffers that were added and not reaped yet, oldest first."""
        return list(self._tokens.values())

    def add(
        self,
        segments: list[tuple[int, int]],
        readable_count: int,
        token: object,
        table: tuple[memoryview, int] | None = None,
    ) -> int:
        """Put a buffer into the ring and return its head; -1, and nothing done, when there is no room.

        `segments` are `(device address, length)`: the first `readable_count` for the device to read, the rest to
        write. The device sees the buffer after `publish`. `table` is the driver's memory for an indirect table and
        its device address; it belongs to the buffer until that is reaped. Raises `LocalError` for a buffer that no
        device may be given (2.7.5.2, 2.7.5.3.1).
        """
        count: cython.uint = len(segments)
        needed: cython.uint = 1 if table is not None else count
        readers: cython.uint
        number: cython.uint = 0
        index: cython.uint = self._free
        head: cython.uint = index
        flags: cython.uint
        total: cython.ulonglong = 0
        writable: cython.ulonglong = 0
        address: cython.ulonglong
        length: cython.ulonglong
        if self.broken:
            raise self._again()
        if count == 0 or count > self.size or readable_count < 0 or readable_count > count:
            raise LocalError(f"a buffer of {count} segments, {readable_count} readable, for a queue of {self.size}")
        readers = readable_count
        for address, length in segments:
            if length < 1 or length > _MAX_LENGTH:
                raise LocalError(f"a segment of {length} bytes (virtio 1.4, 2.7.5)")
            total += length
            if number >= readers:
                writable += length
            number += 1
        if total > _MAX_BYTES:
            raise LocalError(f"a buffer of {total} bytes is more than 2^32 (virtio 1.4, 2.7.5.2)")
        if table is not None:
            if not self._indirect:
                raise LocalError("an indirect table without the feature (virtio 1.4, 2.7.5.3.1)")
            if table[0].nbytes < 16 * count:
                raise LocalError(f"{count} segments do not fit into a table of {table[0].nbytes} bytes")
        if needed > self.free_descriptors:
            return -1

        number = 0
        if table is not None:
            for address, length in segments:
                flags = 0 if number < readers else _WRITE
                if number + 1 < count:
                    flags |= _NEXT
                self._describe(self._table, number, address, length, flags, number + 1 if number + 1 < count else 0)
                number += 1
            copy(pointer(table[0]), 0, self._table, 0, 16 * count)
            self._describe(self._descriptors, index, table[1], 16 * count, _INDIRECT, 0)
            index = ld16(self._links, 2 * index)
        else:
            for address, length in segments:
                flags = 0 if number < readers else _WRITE
                number += 1
                if number < count:
                    flags |= _NEXT
                following: cython.uint = ld16(self._links, 2 * index)
                self._describe(self._descriptors, index, address, length, flags, following if number < count else 0)
                index = following
        self._free = index
        self.free_descriptors -= needed
        st16(self._counts, 2 * head, needed)
        st8(self._states, head, _ADDED)
        self._tokens[head] = token
        self._writable[head] = writable
        slot: cython.uint = self.available_index & (self.size - 1)
        st16(self._heads, 2 * slot, head)
        st16(self._available, 4 + 2 * slot, be16(head) if self._big else le16(head))
        self.available_index = (self.available_index + 1) & 0xFFFF
        return head

    @cython.cfunc
    @cython.inline
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

    def publish(self) -> bool:
        """Make added buffers visible, then tell whether the device has to be kicked (2.7.10.1)."""
        old: cython.uint = self.published_index
        new: cython.uint = self.available_index
        value: cython.uint
        if new == old or self.broken:
            return False
        while self.published_index != new:
            st8(self._states, ld16(self._heads, 2 * (self.published_index & (self.size - 1))), _PUBLISHED)
            self.published_index = (self.published_index + 1) & 0xFFFF
        st16_release(self._available, 2, be16(new) if self._big else le16(new))
        fence()  # idx is visible before the device's wish is read (2.7.13.4.1)
        value = ld16(self._used, 4 + 8 * self.size if self._event_idx else 0)
        value = be16(value) if self._big else le16(value)
        if self._event_idx:
            return ((new - value - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not value & 1

    def reap(self) -> tuple[object, int] | None:
        """The next used buffer as `(token, bytes the device wrote)`, or None. Its memory is the driver's own again.

        Raises `RemoteError` with NEEDS_RESET when the used ring tells what cannot be; the ring is `broken` then, and
        `drain` gives back what is in flight.
        """
        value: cython.uint
        place: cython.ulonglong
        head: cython.uint
        written: cython.uint
        ahead: cython.uint
        if self.broken:
            raise self._again()
        value = ld16_acquire(self._used, 2)
        ahead = ((be16(value) if self._big else le16(value)) - self.last_used) & 0xFFFF
        if ahead == 0:
            return None
        if ahead > ((self.published_index - self.last_used) & 0xFFFF):
            in_flight = (self.published_index - self.last_used) & 0xFFFF
            raise self._fail(f"used.idx is {ahead} ahead when {in_flight} buffers are in flight (virtio 1.4, 2.7.8)")
        place = 4 + 8 * (self.last_used & (self.size - 1))
        head = ld32(self._used, place)
        written = ld32(self._used, place + 4)
        if self._big:
            head = be32(head)
            written = be32(written)
        else:
            head = le32(head)
            written = le32(written)
        if head >= self.size or ld8(self._states, head) != _PUBLISHED:
            raise self._fail(f"used id {head} is no buffer in flight, queue of {self.size} (virtio 1.4, 2.7.8)")
        if written > self._writable[head]:
            raise self._fail(
                f"used length {written} for head {head} that has {self._writable[head]} writable bytes "
                "(virtio 1.4, 2.7.8.2)"
            )
        token = self._tokens.pop(head)
        self._release(head)
        self.last_used = (self.last_used + 1) & 0xFFFF
        return token, written

    @cython.cfunc
    @cython.inline
    def _release(self, head: cython.uint) -> cython.void:
        count: cython.uint = ld16(self._counts, 2 * head)
        last: cython.uint = head
        for _ in range(count - 1):
            last = ld16(self._links, 2 * last)
        st16(self._links, 2 * last, self._free)
        self._free = head
        self.free_descriptors += count
        st8(self._states, head, _FREE)

    def _fail(self, what: str) -> RemoteError:
        self.broken = True
        self._why = what
        return RemoteError(what, Verdict.NEEDS_RESET)

    def _again(self) -> RemoteError:
        return RemoteError(f"the queue is broken until it is reset: {self._why}", Verdict.NEEDS_RESET)

    def enable_interrupts(self) -> bool:
        """Ask for used notifications, before sleeping. True when more came meanwhile: `reap` again, do not sleep."""
        index: cython.uint = self.last_used
        if self.broken:
            return False  # its memory may be somebody else's by now
        if self._event_idx:
            st16(self._available, 4 + 2 * self.size, be16(index) if self._big else le16(index))
        else:
            st16(self._available, 0, 0)
        fence()
        value: cython.uint = ld16_acquire(self._used, 2)
        return (be16(value) if self._big else le16(value)) != index

    def disable_interrupts(self) -> None:
        """Say that used notifications are not needed for now; they may come all the same (2.7.7.1)."""
        index: cython.uint = (self.last_used - 1) & 0xFFFF
        if self.broken:
            return
        if self._event_idx:
            # As far ahead as can be: the index that is reached a whole round from now.
            st16(self._available, 4 + 2 * self.size, be16(index) if self._big else le16(index))
        else:
            st16(self._available, 0, be16(1) if self._big else le16(1))

    def drain(self) -> list[object]:
        """The session is over: all tokens in flight, oldest first. The ring is not used afterwards."""
        tokens = self.in_flight
        for head in self._tokens:
            self._release(head)
        self._tokens.clear()
        self.broken = True
        self._why = "its session is over"
        return tokens
