# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the driver sides of the split and the packed virtqueue have in common (virtio 1.4, 2.7 and 2.8).

The ring is in the driver's own memory, and the device is as hostile as the driver is to `device_ring`. Which
descriptors are free, how long chains are and what is in flight stand in private books, never read back from the ring.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import ld16, pointer, st8, st16

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory

_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)

# Where a buffer is, in the driver's books: free, added, published.
_FREE = cython.declare(cython.uint, 0)
_ADDED = cython.declare(cython.uint, 1)


@cython.cclass
class DriverRing:
    """The driver's side, in its own mapped memory: `add`, `publish`, kick; `reap` until None; `enable_interrupts`.

    A buffer in flight is known by its head: the head descriptor of a split ring, the buffer id of a packed one.
    """

    size: cython.uint
    free_descriptors: cython.uint
    broken: cython.bint
    _views: tuple[object, ...]
    _tokens: dict[int, object]
    _rooms: list[int]
    _why: str
    _event_idx: cython.bint
    _indirect: cython.bint
    _in_order: cython.bint
    _oldest: cython.uint
    _ordered: cython.uint
    _batch: cython.uint
    _batch_written: cython.uint
    _descriptors: cython.p_uchar
    _available: cython.p_uchar
    _used: cython.p_uchar
    _table: cython.p_uchar
    _counts: cython.p_uchar
    _states: cython.p_uchar
    _order: cython.p_uchar

    def __init__(self, size: int, memory: RingMemory, event_idx: bool, indirect: bool, in_order: bool) -> None:
        """For the rings themselves: `size` and `memory` are checked, the three features are those negotiated."""
        if memory.remote:
            raise LocalError("a driver's ring is in its own memory")
        table, counts, states = (bytearray(each * size) for each in (16, 2, 1))
        order = bytearray(2 * size if in_order else 2)
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            table,
            counts,
            states,
            order,
        )
        self.size = size
        self.free_descriptors = size
        self.broken = False
        self._tokens = {}
        self._rooms = [0] * size
        self._why = ""
        self._event_idx = event_idx
        self._indirect = indirect
        self._in_order = in_order
        self._oldest = 0
        self._ordered = 0
        self._batch = 0
        self._batch_written = 0
        self._descriptors = pointer(memory.descriptors)
        self._available = pointer(memory.available)
        self._used = pointer(memory.used)
        self._table = pointer(table)
        self._counts = pointer(counts)
        self._states = pointer(states)
        self._order = pointer(order)

    # -- what each ring does in its own way

    @property
    def published_index(self) -> int:
        """How far the device may go, as a kick carries it (docs/protocol.md, P6.2)."""
        raise NotImplementedError

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
        device may be given (2.7.5.2, 2.7.5.3.1, 2.8.17).
        """
        raise NotImplementedError

    def publish(self) -> bool:
        """Make added buffers visible, then tell whether the device has to be kicked (2.7.10.1, 2.8.21.2)."""
        raise NotImplementedError

    def reap(self) -> tuple[object, int] | None:
        """The next used buffer as `(token, bytes the device wrote)`, or None. Its memory is the driver's own again.

        Raises `RemoteError` with NEEDS_RESET when the ring tells what cannot be; it is `broken` then, and `drain`
        gives back what is in flight.
        """
        raise NotImplementedError

    def enable_interrupts(self) -> bool:
        """Ask for used notifications, before sleeping. True when more came meanwhile: `reap` again, do not sleep."""
        raise NotImplementedError

    def disable_interrupts(self) -> None:
        """Say that used notifications are not needed for now; they may come all the same (2.7.7.1)."""
        raise NotImplementedError

    @cython.cfunc
    def _free_descriptors(self, head: cython.uint) -> cython.void:
        """The descriptors of `head` may be used again."""
        raise NotImplementedError

    # -- the books

    @property
    def in_flight(self) -> list[object]:
        """The tokens of all buffers that were added and not reaped yet, oldest first."""
        return list(self._tokens.values())

    def drain(self) -> list[object]:
        """The session is over: all tokens in flight, oldest first. The ring is not used afterwards."""
        tokens = self.in_flight
        for head in self._tokens:
            self._release(head)
        self._tokens.clear()
        self._batch = 0
        self.broken = True
        self._why = "its session is over"
        return tokens

    @cython.cfunc
    def _check(self, segments: Any, readable_count: Any, table: Any) -> cython.ulonglong:
        """Whether a buffer may be given to a device; returns how many bytes of it can be written."""
        entries: list[tuple[int, int]] = segments
        count: cython.uint = len(entries)
        readers: cython.uint
        number: cython.uint = 0
        total: cython.ulonglong = 0
        room: cython.ulonglong = 0
        length: cython.ulonglong
        if self.broken:
            raise self._again()
        if count == 0 or count > self.size or readable_count < 0 or readable_count > count:
            raise LocalError(f"a buffer of {count} segments, {readable_count} readable, for a queue of {self.size}")
        readers = readable_count
        for _, length in entries:
            if length < 1 or length > _MAX_LENGTH:
                raise LocalError(f"a segment of {length} bytes (virtio 1.4, 2.7.5)")
            total += length
            if number >= readers:
                room += length
            number += 1
        if total > _MAX_BYTES:
            raise LocalError(f"a buffer of {total} bytes is more than 2^32 (virtio 1.4, 2.7.5.2)")
        if table is not None:
            if not self._indirect:
                raise LocalError("an indirect table without the feature (virtio 1.4, 2.7.5.3.1)")
            if table[0].nbytes < 16 * count:
                raise LocalError(f"{count} segments do not fit into a table of {table[0].nbytes} bytes")
        return room

    @cython.cfunc
    def _lend(self, head: cython.uint, count: cython.uint, room: cython.ulonglong, token: Any) -> cython.void:
        """A buffer of `count` descriptors was added."""
        place: cython.uint
        self.free_descriptors -= count
        st16(self._counts, 2 * head, count)
        st8(self._states, head, _ADDED)
        self._tokens[head] = token
        self._rooms[head] = room
        if self._in_order:
            place = self._oldest + self._ordered
            if place >= self.size:
                place -= self.size
            st16(self._order, 2 * place, head)
            self._ordered += 1

    @cython.cfunc
    def _covered(self, head: cython.uint) -> cython.uint:
        """How many buffers a used entry for `head`, which is in flight, covers with IN_ORDER (2.7.9, 2.8.8)."""
        number: cython.uint = 0
        place: cython.uint = self._oldest
        while number < self._ordered:
            number += 1
            if ld16(self._order, 2 * place) == head:
                break
            place = place + 1 if place + 1 < self.size else 0
        return number

    @cython.cfunc
    def _next_of_batch(self) -> tuple[Any, ...]:
        """The oldest buffer in flight, which a used entry covers; without an entry of its own it was used whole."""
        head: cython.uint = ld16(self._order, 2 * self._oldest)
        self._oldest = self._oldest + 1 if self._oldest + 1 < self.size else 0
        self._ordered -= 1
        self._batch -= 1
        if self._batch:
            # 2^32 bytes are one more than a used length can say; no device may leave such an entry out
            return self._take_back(head, min(self._rooms[head], _MAX_LENGTH))
        return self._take_back(head, self._batch_written)

    @cython.cfunc
    def _take_back(self, head: cython.uint, written: cython.uint) -> tuple[Any, ...]:
        """`head` was used."""
        token = self._tokens.pop(head)
        self._release(head)
        return token, written

    @cython.cfunc
    def _release(self, head: cython.uint) -> cython.void:
        self._free_descriptors(head)
        self.free_descriptors += ld16(self._counts, 2 * head)
        st8(self._states, head, _FREE)

    def _fail(self, what: str) -> RemoteError:
        self.broken = True
        self._why = what
        return RemoteError(what, Verdict.NEEDS_RESET)

    def _again(self) -> RemoteError:
        return RemoteError(f"the queue is broken until it is reset: {self._why}", Verdict.NEEDS_RESET)
