# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Both rings of a network driver's queue pair: what is done for every frame (virtio 1.4, 5.1.6).

A frame stands behind its virtio_net_hdr in the partition's memory, and there it stays: what reads it from a TAP puts it
where the device takes it, and what the device gave is written to the TAP from where it is. `net` has sessions.

* **Transmit.** Frames lie one behind the other in one buffer that stays mapped, a ring of bytes; so small ones take
  little room, and a device that copies may take many at once. Room is free again in the order in which it was taken.
* **Receive.** Buffers that stay mapped, all alike. They go back to the device by a quarter of them at a time.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    address_of,
    copy,
    ld8,
    ld16,
    ld32,
    le16,
    pointer,
    pointer_to_read,
    preadv,
    pwritev,
    st8,
    st32,
    st64,
    zero,
)
from cython.cimports.powervio.virtio.driver_queue import Buffer, DriverQueue

from powervio.errors import LocalError, RemoteError
from powervio.virtio import net

ALLOW_CSUM = 1
"""Of `ReceiveRing.allowed`, beside 1 << (GSO type) for each kind of large frames, and `net.GSO_ECN`: checksums."""

_AGAIN = cython.declare(cython.longlong, -errno.EAGAIN)
_DOWN = cython.declare(cython.longlong, -errno.EIO)
_ETHERNET = cython.declare(cython.ulonglong, 14)
_ALIGN = cython.declare(cython.ulonglong, 64)
_PLAIN_HEADER = cython.declare(cython.ulonglong, net.LEGACY_HEADER_BYTES)
_NEEDS_CSUM = cython.declare(cython.uint, net.H_NEEDS_CSUM)
_ECN = cython.declare(cython.uint, 0x80)
_ALLOW_CSUM = cython.declare(cython.uint, ALLOW_CSUM)
_MOST_PARTS = cython.declare(cython.uint, 64)
"""Buffers of one frame."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _swap(base: cython.p_uchar, place: cython.ulonglong, count: cython.uint) -> cython.void:
    """Turn `count` numbers of 16 bits round: a legacy device is big-endian, a TAP is not."""
    number: cython.uint
    first: cython.uint
    for number in range(count):
        first = ld8(base, place + 2 * number)
        st8(base, place + 2 * number, ld8(base, place + 2 * number + 1))
        st8(base, place + 2 * number + 1, first)


@cython.final
@cython.cclass
class TransmitRing:
    """Frames to the device, for one session."""

    queue: DriverQueue
    frames: cython.ulonglong
    bytes_: cython.ulonglong
    in_flight: cython.uint
    starved: cython.bint
    _buffer: Buffer
    _base: cython.p_uchar
    _capacity: cython.ulonglong
    _room: cython.ulonglong
    _header: cython.ulonglong
    _big_endian: cython.bint
    # The next frame's place, and that of the oldest one in flight; numbers of frames, modulo `_most`.
    _head: cython.ulonglong
    _tail: cython.ulonglong
    _most: cython.uint
    _first: cython.uint
    _next: cython.uint
    _starts: cython.p_uchar
    _done: cython.p_uchar
    _table: cython.p_uchar
    _views: tuple[Any, ...]

    def __init__(self, queue: DriverQueue, buffer: Buffer, room: int, header_bytes: int, *, big_endian: bool) -> None:
        """`buffer` stays mapped; `room` is the bytes of the longest frame with its header of `header_bytes`."""
        starts, done, table = bytearray(4 * queue.size), bytearray(queue.size), bytearray(16)
        self.queue = queue
        self.frames = 0
        """Frames that the device was given."""
        self.bytes_ = 0
        """Their bytes, without headers."""
        self.in_flight = 0
        """Frames that the device has."""
        self.starved = False
        """Whether somebody was told that there is no room; cleared by who tells that there is."""
        self._buffer = buffer
        self._base = pointer(buffer.view)
        self._capacity = buffer.length & ~63
        self._room = (room + 63) & ~63
        if self._room >= self._capacity:
            raise LocalError(f"frames of {room} bytes need a larger buffer than {buffer.length} bytes")
        self._header = header_bytes
        self._big_endian = big_endian
        self._head = self._tail = 0
        self._most = queue.size
        self._first = self._next = 0
        self._starts = pointer(starts)
        self._done = pointer(done)
        self._table = pointer(table)
        self._views = (starts, done, table)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _place(self) -> cython.longlong:
        """Where the next frame has room, whatever its length; -1 when there is none now."""
        if self.in_flight == self._most:
            return -1
        if self.in_flight == 0:
            self._head = self._tail = 0  # the same memory again, which is in the cache
        if self._head >= self._tail:
            if self._capacity - self._head >= self._room:
                return self._head
            if self._tail <= self._room:
                return -1
            self._head = 0
            return 0
        return self._head if self._tail - self._head > self._room else -1

    @cython.cfunc
    @cython.exceptval(-1)
    def _push(self, length: cython.ulonglong) -> cython.bint:
        """Give the device `length` bytes at the place; False when its queue has no room."""
        if self._big_endian:
            _swap(self._base, self._head + 2, 4)
        if not self.queue.add(((self._buffer, self._head, length),), (), self._next):
            return False
        st32(self._starts, 4 * self._next, self._head)
        st8(self._done, self._next, 0)
        self._head += (length + _ALIGN - 1) & ~(_ALIGN - 1)
        self._next = self._next + 1 if self._next + 1 < self._most else 0
        self.in_flight += 1
        self.frames += 1
        self.bytes_ += length - self._header
        return True

    def send(self, header: bytes, frame: Any) -> bool:
        """Give the device a frame (bytes or a memoryview) behind a header of at least 10 bytes, little-endian.

        The device hears of it by `queue.kick`. False when there is no room now. Raises `LocalError` for a frame that
        is too long, `RemoteError` when the session is about to end.
        """
        length: cython.ulonglong = len(frame)
        place: cython.longlong = self._place()
        if self._header + length > self._room:
            raise LocalError(f"a frame of {length} bytes; expected at most {self._room - self._header}")
        if place < 0:
            self.starved = True
            return False
        zero(self._base, place, self._header)
        copy(self._base, place, pointer_to_read(header), 0, _PLAIN_HEADER)
        copy(self._base, place + self._header, pointer_to_read(frame), 0, length)
        if self._push(self._header + length):
            return True
        self.starved = True
        return False

    def read(self, fd: int, limit: int) -> int:
        """Give the device up to `limit` frames from a TAP, as they are; returns how many there were.

        Fewer than `limit`: there are no more now, or no more room, and then it is `starved`. Raises `OSError` when the
        TAP is of no use any more, `RemoteError` when the session is about to end.
        """
        count: cython.uint = 0
        most: cython.uint = limit
        descriptor: cython.int = fd
        place: cython.longlong
        length: cython.longlong
        while count < most:
            place = self._place()
            if place < 0:
                self.starved = True
                break
            st64(self._table, 0, address_of(self._base, place))
            st64(self._table, 8, self._room)
            with cython.nogil:
                length = preadv(descriptor, self._table, 1, 0)
            if length < 0:
                if length == _AGAIN:
                    break
                raise OSError(-length, "reading the TAP")
            if length < self._header + _ETHERNET:
                continue  # the kernel makes none
            if not self._push(length):
                self.starved = True
                break
            count += 1
        return count

    def reap(self) -> int:
        """Take back what the device has taken; returns how many frames. Raises as `DriverQueue.reap`."""
        count: cython.uint = 0
        number: cython.uint
        used: Any
        while True:
            used = self.queue.reap()
            if used is None:
                break
            number = used[0]
            st8(self._done, number, 1)
            count += 1
        while self.in_flight != 0 and ld8(self._done, self._first) != 0:
            st8(self._done, self._first, 0)
            self._first = self._first + 1 if self._first + 1 < self._most else 0
            self.in_flight -= 1
        if self.in_flight != 0:
            self._tail = ld32(self._starts, 4 * self._first)
        return count


@cython.final
@cython.cclass
class ReceiveSlot:
    """One receive buffer."""

    buffer: Buffer
    base: cython.p_uchar
    written: cython.ulonglong
    slices: tuple[Any, ...]

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        """It stays mapped."""
        self.base = pointer(buffer.view)
        self.written = 0
        self.slices = ((buffer, 0, buffer.length),)


@cython.final
@cython.cclass
class ReceiveRing:
    """Frames of the device, for one session: to a TAP, or to `on_frame`."""

    queue: DriverQueue
    frames: cython.ulonglong
    bytes_: cython.ulonglong
    dropped: dict[str, int]
    allowed: cython.uint
    longest: cython.ulonglong
    fd: cython.int
    on_frame: Callable[[list[memoryview]], None] | None
    _header: cython.ulonglong
    _merge: cython.bint
    _big_endian: cython.bint
    _slots: list[ReceiveSlot]
    _unkicked: cython.uint
    _batch: cython.uint
    _held: list[ReceiveSlot]
    _table: cython.p_uchar
    _views: tuple[Any, ...]

    def __init__(
        self, queue: DriverQueue, slots: list[ReceiveSlot], header_bytes: int, *, merge: bool, big_endian: bool
    ) -> None:
        """`merge`: a frame may be in several buffers (MRG_RXBUF). `lend` gives the device its buffers."""
        table = bytearray(16 * 64)
        self.queue = queue
        self.frames = 0
        """Frames that went on."""
        self.bytes_ = 0
        """Their bytes, without headers."""
        self.dropped = {}
        """Frames that did not, by reason."""
        self.allowed = 0
        """What a frame may leave to do; see `ALLOW_CSUM`."""
        self.longest = 0
        """Bytes of the longest frame that is no large one."""
        self.fd = -1
        """A TAP that gets the frames; -1: `on_frame` does."""
        self.on_frame = None
        """Called with the pieces of each frame, the header in front; they are the device's again when it returns."""
        self._header = header_bytes
        self._merge = merge
        self._big_endian = big_endian
        self._slots = slots
        self._unkicked = 0
        self._batch = 1
        self._held = []
        self._table = pointer(table)
        self._views = (table,)

    def lend(self, largest: int) -> None:
        """Give the device all buffers; `largest` is the bytes of the longest frame, for which there is always room."""
        count = 0
        size = 0
        slot: ReceiveSlot
        for slot in self._slots:
            if not self.queue.add((), slot.slices, slot):
                break
            size = slot.buffer.length
            count += 1
        if size:
            self._batch = max(1, min(count // 4, count - -(-largest // size)))
        self.queue.kick()

    def collect(self) -> int:
        """Let what the device brought go on, and give the buffers back; returns how many buffers there were.

        Whatever it brought: a frame that cannot be is dropped and counted. Raises as `DriverQueue.reap`.
        """
        count: cython.uint = 0
        used: Any
        slot: ReceiveSlot
        while True:
            used = self.queue.reap()
            if used is None:
                break
            slot = used[0]
            slot.written = used[1]
            self._held.append(slot)
            self._take()
            count += len(self._held)
            self._give_back()
        if self._unkicked >= self._batch:
            self._unkicked = 0
            self.queue.kick()
        return count

    @cython.cfunc
    @cython.exceptval(-1)
    def _take(self) -> cython.int:
        """The frame that begins in the buffer that is held; its others are held too then."""
        first: ReceiveSlot = self._held[0]
        slot: ReceiveSlot
        used: Any
        count: cython.uint = 1
        total: cython.ulonglong = first.written
        sound: cython.bint = first.written <= first.buffer.length
        if first.written < self._header:
            return self._drop("too short")
        if self._big_endian:
            _swap(first.base, 2, 5 if self._header > _PLAIN_HEADER else 4)
        if self._merge:
            count = le16(ld16(first.base, _PLAIN_HEADER))
            if count == 0 or count > len(self._slots):
                return self._drop("malformed")
        while len(self._held) < count:
            used = self.queue.reap()
            if used is None:
                return self._drop("missing buffers")
            slot = used[0]
            slot.written = used[1]
            self._held.append(slot)
            total += slot.written
            if slot.written > slot.buffer.length:
                sound = False
        if not sound or count > _MOST_PARTS:
            return self._drop("malformed")
        return self._deliver(first, total - self._header, count)

    @cython.cfunc
    @cython.exceptval(-1)
    def _deliver(self, first: ReceiveSlot, length: cython.ulonglong, count: cython.uint) -> cython.int:
        number: cython.uint
        done: cython.longlong
        slot: ReceiveSlot
        if length < _ETHERNET:
            return self._drop("too short")
        if not self._is_sound(first.base, length):
            return self._drop("malformed")
        if self.fd < 0:
            if self.on_frame is None:
                return self._drop("nobody there")
            self.on_frame([slot.buffer.view[: slot.written] for slot in self._held])
        else:
            for number in range(count):
                slot = self._held[number]
                st64(self._table, 16 * number, address_of(slot.base, 0))
                st64(self._table, 16 * number + 8, slot.written)
            with cython.nogil:
                done = pwritev(self.fd, self._table, count, 0)
            if done < 0:
                return self._drop("interface down" if done == _DOWN else "refused")
        self.frames += 1
        self.bytes_ += length
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_sound(self, header: cython.p_uchar, length: cython.ulonglong) -> cython.bint:
        """Whether a header asks for no more than was negotiated, and for nothing outside of its frame."""
        flags: cython.uint = ld8(header, 0)
        gso: cython.uint = ld8(header, 1)
        kind: cython.uint = gso & ~_ECN
        if flags & _NEEDS_CSUM != 0:
            if self.allowed & _ALLOW_CSUM == 0:
                return False
            if cython.cast(cython.ulonglong, le16(ld16(header, 6))) + le16(ld16(header, 8)) + 2 > length:
                return False
        elif gso != 0:
            return False
        if gso == 0:
            return length <= self.longest
        if kind == 0 or kind > 6 or (self.allowed >> kind) & 1 == 0 or (gso & _ECN) & ~self.allowed != 0:
            return False
        return ld16(header, 4) != 0 and le16(ld16(header, 2)) <= length

    @cython.cfunc
    @cython.exceptval(-1)
    def _drop(self, reason: str) -> cython.int:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _give_back(self) -> cython.int:
        """Give the device the buffers that are held, without what was in them: a device that says that it wrote more
        than it did shows nobody another frame."""
        slot: ReceiveSlot
        for slot in self._held:
            zero(slot.base, 0, min(slot.written, slot.buffer.length))
            try:
                if self.queue.add((), slot.slices, slot):
                    self._unkicked += 1
            except RemoteError:
                pass  # the session is about to end; the next one begins with all buffers
        self._held.clear()
        return 0
