# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the driver sides of the split and the packed virtqueue have in common (virtio 1.4, 2.7 and 2.8).

The ring is in the driver's own memory, and the device is as hostile as the driver is to `device_ring`. Which
descriptors are free, how long chains are and what is in flight stand in private books, never read back from the ring.

What is done for every buffer is done without the interpreter lock, by `lend`, `show`, `take_back`, `arm` and `disarm`,
which compiled drivers call; `add`, `publish`, `reap`, `enable_interrupts` and `disable_interrupts` are the same for
Python, with a token for each buffer. A ring is one thread's at a time, whichever of them it uses.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import get64, ld16, ld64, pointer, st16, st64

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory

_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)


@cython.cclass
class DriverRing:
    """The driver's side, in its own mapped memory: `add`, `publish`, kick; `reap` until None; `enable_interrupts`.

    A buffer in flight is known by its head: the head descriptor of a split ring, the buffer id of a packed one.
    """

    size: cython.uint
    free_descriptors: cython.uint
    broken: cython.bint
    written: cython.uint
    _views: tuple[object, ...]
    _tokens: list[object]
    _why: str
    _event_idx: cython.bint
    _indirect: cython.bint
    _in_order: cython.bint
    # Buffers are numbered from 1 as they are lent. `_ages` has the number of each head in flight, or 0; up to `_shown`
    # they are published. With IN_ORDER those up to `_taken` are back, and `_order` tells which head has which number.
    _lent: cython.ulonglong
    _shown: cython.ulonglong
    _taken: cython.ulonglong
    _batch: cython.uint
    _batch_written: cython.uint
    _descriptors: cython.p_uchar
    _available: cython.p_uchar
    _used: cython.p_uchar
    _entries: cython.p_uchar
    _table: cython.p_uchar
    _counts: cython.p_uchar
    _rooms: cython.p_uchar
    _ages: cython.p_uchar
    _order: cython.p_uchar

    def __init__(self, size: int, memory: RingMemory, event_idx: bool, indirect: bool, in_order: bool) -> None:
        """For the rings themselves: `size` and `memory` are checked, the three features are those negotiated."""
        if memory.remote:
            raise LocalError("a driver's ring is in its own memory")
        entries, table, counts, rooms, ages = (bytearray(each * size) for each in (16, 16, 2, 8, 8))
        order = bytearray(2 * size if in_order else 2)
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            entries,
            table,
            counts,
            rooms,
            ages,
            order,
        )
        self.size = size
        self.free_descriptors = size
        self.broken = False
        self.written = 0
        """Bytes that the device wrote into the buffer that was taken back last."""
        self._tokens = [None] * size
        self._why = ""
        self._event_idx = event_idx
        self._indirect = indirect
        self._in_order = in_order
        self._lent = self._shown = self._taken = 0
        self._batch = 0
        self._batch_written = 0
        self._descriptors = pointer(memory.descriptors)
        self._available = pointer(memory.available)
        self._used = pointer(memory.used)
        self._entries = pointer(entries)
        self._table = pointer(table)
        self._counts = pointer(counts)
        self._rooms = pointer(rooms)
        self._ages = pointer(ages)
        self._order = pointer(order)

    # -- what each ring does in its own way

    @property
    def published_index(self) -> int:
        """How far the device may go, as a kick carries it (docs/protocol.md, P6.2)."""
        raise NotImplementedError

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
        """Write a buffer, for which there is room, into the ring, unseen by the device; returns its head."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def _look(self) -> cython.int:
        """The head of the next used entry, checked, or -1; its length goes to `_batch_written`."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """Make lent buffers visible; 1 when the device has to be kicked (2.7.10.1, 2.8.21.2), 0 when not."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """Ask for used notifications, before sleeping. 1 when more came meanwhile: take it, do not sleep."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def disarm(self) -> cython.int:
        """Say that used notifications are not needed for now; they may come all the same (2.7.7.1). Returns 0."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _free_descriptors(self, head: cython.uint) -> cython.void:
        """The descriptors of `head` may be used again."""

    # -- buffers, without the interpreter lock

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def lend(
        self,
        segments: cython.p_uchar,
        count: cython.uint,
        readers: cython.uint,
        table: cython.p_uchar,
        table_address: cython.ulonglong,
    ) -> cython.int:
        """Put a buffer into the ring and return its head; -1, and nothing done, when there is no room.

        `segments` are `count` entries of 16 bytes in the caller's private memory, u64 device address and u64 length in
        host byte order: the first `readers` for the device to read, the rest to write. The device sees the buffer
        after `show`. `table` is NULL, or the driver's memory of 16 * `count` bytes for an indirect table, whose
        device address is `table_address`; it belongs to the buffer until that is taken back. Raises (-2) `LocalError`
        for a buffer that no device may be given (2.7.5.2, 2.7.5.3.1, 2.8.17), `RemoteError` when the ring is broken.
        """
        room: cython.longlong
        head: cython.int
        needed: cython.uint = 1 if table != cython.NULL else count
        if self.broken:
            with cython.gil:
                raise self._again()
        room = self._check(segments, count, readers, table != cython.NULL)
        if needed > self.free_descriptors:
            return -1
        head = self._write(segments, count, readers, table, table_address)
        self.free_descriptors -= needed
        st16(self._counts, 2 * head, needed)
        st64(self._rooms, 8 * head, room)
        if self._in_order:
            st16(self._order, 2 * (self._lent % self.size), head)
        self._lent += 1
        st64(self._ages, 8 * head, self._lent)
        return head

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def take_back(self) -> cython.int:
        """The head of the next used buffer, with `written` beside it; -1 when there is none. Its memory is free again.

        Raises (-2) `RemoteError` with NEEDS_RESET when the ring tells what cannot be; it is `broken` then, and `drain`
        gives back what is in flight.
        """
        head: cython.int
        if self.broken:
            with cython.gil:
                raise self._again()
        if not self._batch:
            head = self._look()
            if head < 0 or not self._in_order:
                if head >= 0:
                    self.written = self._batch_written
                    self._release(head)
                return head
            self._batch = self._covered(head)
        # Of several buffers that one used entry covers the last has a length; those before it were used whole.
        head = ld16(self._order, 2 * (self._taken % self.size))
        self._batch -= 1
        if self._batch:
            # 2^32 bytes are one more than a used length can say; no device may leave such an entry out
            self.written = min(ld64(self._rooms, 8 * head), _MAX_LENGTH)
        else:
            self.written = self._batch_written
        self._release(head)
        return head

    @cython.cfunc
    def name(self, head: cython.uint, token: object) -> cython.void:
        """Give a buffer that was lent a token, as `add` does."""
        self._tokens[head] = token

    @cython.cfunc
    def token(self, head: cython.uint) -> object:
        """The token of a buffer that was taken back; to be asked for once."""
        token = self._tokens[head]
        self._tokens[head] = None
        return token

    # -- the same for Python

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
        count: cython.uint = len(segments)
        number: cython.uint = 0
        head: cython.int
        length: cython.ulonglong
        if count == 0 or count > self.size or readable_count < 0 or readable_count > count:
            raise LocalError(f"a buffer of {count} segments, {readable_count} readable, for a queue of {self.size}")
        if table is not None and table[0].nbytes < 16 * count:
            raise LocalError(f"{count} segments do not fit into a table of {table[0].nbytes} bytes")
        for address, length in segments:
            st64(self._entries, 16 * number, address)
            st64(self._entries, 16 * number + 8, length)
            number += 1
        if table is None:
            head = self.lend(self._entries, count, readable_count, cython.NULL, 0)
        else:
            head = self.lend(self._entries, count, readable_count, pointer(table[0]), table[1])
        if head >= 0:
            self._tokens[head] = token
        return head

    def publish(self) -> bool:
        """Make added buffers visible, then tell whether the device has to be kicked (2.7.10.1, 2.8.21.2)."""
        return self.show() != 0

    def reap(self) -> tuple[object, int] | None:
        """The next used buffer as `(token, bytes the device wrote)`, or None. Its memory is the driver's own again.

        Raises `RemoteError` with NEEDS_RESET when the ring tells what cannot be; it is `broken` then, and `drain`
        gives back what is in flight.
        """
        head: cython.int = self.take_back()
        if head < 0:
            return None
        return self.token(head), self.written

    def enable_interrupts(self) -> bool:
        """Ask for used notifications, before sleeping. True when more came meanwhile: `reap` again, do not sleep."""
        return self.arm() != 0

    def disable_interrupts(self) -> None:
        """Say that used notifications are not needed for now; they may come all the same (2.7.7.1)."""
        self.disarm()

    # -- the books

    @property
    def in_flight(self) -> list[object]:
        """The tokens of all buffers that were added and not reaped yet, oldest first; None for one that was lent."""
        return [self._tokens[head] for head in self._heads_in_flight()]

    def drain(self) -> list[object]:
        """The session is over: all tokens in flight, oldest first. The ring is not used afterwards."""
        head: cython.uint
        heads = self._heads_in_flight()
        tokens = [self._tokens[head] for head in heads]
        for head in heads:
            self._release(head)
        self._tokens = [None] * self.size
        self._batch = 0
        self.broken = True
        self._why = "its session is over"
        return tokens

    def _heads_in_flight(self) -> list[int]:
        """Oldest first."""
        ages = sorted((ld64(self._ages, 8 * head), head) for head in range(self.size))
        return [head for age, head in ages if age]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _check(
        self, segments: cython.p_uchar, count: cython.uint, readers: cython.uint, indirect: cython.bint
    ) -> cython.longlong:
        """Whether a buffer may be given to a device; returns how many bytes of it can be written."""
        number: cython.uint
        total: cython.ulonglong = 0
        room: cython.ulonglong = 0
        length: cython.ulonglong
        if count == 0 or count > self.size or readers > count:
            with cython.gil:
                raise LocalError(f"a buffer of {count} segments, {readers} readable, for a queue of {self.size}")
        for number in range(count):
            length = get64(segments, 16 * number + 8)
            if length < 1 or length > _MAX_LENGTH:
                with cython.gil:
                    raise LocalError(f"a segment of {length} bytes (virtio 1.4, 2.7.5)")
            total += length
            if number >= readers:
                room += length
        if total > _MAX_BYTES:
            with cython.gil:
                raise LocalError(f"a buffer of {total} bytes is more than 2^32 (virtio 1.4, 2.7.5.2)")
        if indirect and not self._indirect:
            with cython.gil:
                raise LocalError("an indirect table without the feature (virtio 1.4, 2.7.5.3.1)")
        return room

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_published(self, head: cython.uint) -> cython.bint:
        """Whether the device has `head`, any 32-bit number, by the driver's books."""
        age: cython.ulonglong
        if head >= self.size:
            return False
        age = ld64(self._ages, 8 * head)
        return age != 0 and age <= self._shown

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _covered(self, head: cython.uint) -> cython.uint:
        """How many buffers a used entry for `head`, which is published, covers with IN_ORDER (2.7.9, 2.8.8)."""
        return ld64(self._ages, 8 * head) - self._taken

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _release(self, head: cython.uint) -> cython.void:
        self._free_descriptors(head)
        self.free_descriptors += ld16(self._counts, 2 * head)
        st64(self._ages, 8 * head, 0)
        self._taken += 1

    def _fail(self, what: str) -> RemoteError:
        self.broken = True
        self._why = what
        return RemoteError(what, Verdict.NEEDS_RESET)

    def _again(self) -> RemoteError:
        return RemoteError(f"the queue is broken until it is reset: {self._why}", Verdict.NEEDS_RESET)
