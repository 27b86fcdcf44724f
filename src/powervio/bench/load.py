# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A load of block requests at full speed: so many reads or writes of 4 KiB in flight, at random positions.

`Load` is a driver without a `Driver`: it lays out headers, data and status bytes once, and replaces each completed
request by the next at once, without the interpreter lock from the first to the last. Each block read has to carry its
number at its begin and at its end (`bench.reads.write_numbered`); each block written gets them.

What a transport is, it does not know: `LoadPort` is its side of the queue. `EventPort` is that of transports whose
kicks and interrupts are eventfds; one that has to call Python for them takes the lock there.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable

import cython
from cython.cimports.powervio.memory.hw import (
    at,
    clock_ns,
    event_signal,
    event_take,
    ld8,
    ld16,
    ld64,
    le32,
    le64,
    pointer,
    relax,
    st8,
    st16,
    st32,
    st64,
    wait_readable,
)
from cython.cimports.powervio.virtio.driver_ring import DriverRing

from powervio.errors import LocalError
from powervio.virtio.block import T_IN, T_OUT
from powervio.virtio.queue import Buffer

BLOCK = 4096
"""Bytes of a request."""
PATIENCE = 10.0
"""Seconds without any completion after which a device has failed."""

_BLOCK = cython.declare(cython.uint, BLOCK)
_SECTORS = cython.declare(cython.uint, BLOCK // 512)
_LAST = cython.declare(cython.uint, BLOCK - 8)
_ALL = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_NOT_WRITTEN = cython.declare(cython.uint, 0xFF)
_LOOKS = cython.declare(cython.uint, 64)
_SLEEP = cython.declare(cython.int, 1000)

# A request's place in the control memory: header at 0, status at 16, indirect table at 64. Where headers lie together,
# so do status bytes, behind them, and then tables.
_PLACE = cython.declare(cython.uint, 128)
_HEADER = cython.declare(cython.uint, 16)
_STATUS = cython.declare(cython.uint, 16)
_TABLE = cython.declare(cython.uint, 64)
_TABLE_BYTES = cython.declare(cython.uint, 48)
_SEGMENTS = cython.declare(cython.uint, 48)


@cython.cclass
class LoadPort:
    """A driver's side of one queue, over some transport.

    What is done to the ring is done through here as well, for a transport may have to map what it lends.
    """

    ring: DriverRing
    indirect: cython.bint
    together: cython.bint
    kicks: cython.ulonglong
    sleeps: cython.ulonglong

    def __init__(self, ring: DriverRing, indirect: bool) -> None:
        """`indirect`: buffers are described by indirect tables."""
        self.ring = ring
        self.indirect = indirect
        self.together = False
        """Whether the headers of all requests lie together, and the status bytes: for a device that copies them."""
        self.kicks = 0
        """Kicks that were sent."""
        self.sleeps = 0
        """How often it was waited for the device."""

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
        """See `DriverRing.lend`."""
        return self.ring.lend(segments, count, readers, table, table_address)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """See `DriverRing.show`."""
        return self.ring.show()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def take_back(self) -> cython.int:
        """See `DriverRing.take_back`."""
        return self.ring.take_back()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def kick(self) -> cython.int:
        """Tell the device of what was shown. Returns 0."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def wait(self, milliseconds: cython.int) -> cython.int:
        """Nothing is to be taken back: wait at most so long until there may be. 0 when the time is up, else 1."""
        with cython.gil:
            raise NotImplementedError


@cython.cclass
class EventPort(LoadPort):
    """A queue whose kicks and interrupts are eventfds."""

    polling: cython.bint
    _event_idx: cython.bint
    _kick_fd: cython.int
    _call_fd: cython.int

    def __init__(
        self, ring: DriverRing, kick_fd: int, call_fd: int, *, indirect: bool = False, event_idx: bool = False
    ) -> None:
        """The eventfds are non-blocking and stay the caller's; `event_idx` and `indirect` are those of the ring."""
        LoadPort.__init__(self, ring, indirect)
        self.polling = False
        """Whether it looks at the ring again and again instead of sleeping."""
        self._event_idx = event_idx
        self._kick_fd = kick_fd
        self._call_fd = call_fd

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def kick(self) -> cython.int:
        """See `LoadPort`."""
        failure: cython.int = event_signal(self._kick_fd)
        self.kicks += 1
        if failure:
            with cython.gil:
                raise OSError(-failure, "the device cannot be kicked")
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def wait(self, milliseconds: cython.int) -> cython.int:
        """See `LoadPort`."""
        ready: cython.int
        if self.polling:
            relax()
            return 1
        if self.ring.arm():
            return 1
        self.sleeps += 1
        ready = wait_readable(self._call_fd, milliseconds)
        if ready > 0:
            ready = event_take(self._call_fd)
        if ready < 0:
            with cython.gil:
                raise OSError(-ready, "the device's interrupt cannot be waited for")
        if not self._event_idx:
            self.ring.disarm()  # with EVENT_IDX an interrupt that has come is not repeated until it is asked for
        return ready


@cython.cclass
class Load:
    """So many requests in flight; between two runs there are none."""

    depth: cython.uint
    writes: cython.bint
    requests: cython.ulonglong
    nanoseconds: cython.ulonglong
    touched: bytearray
    _port: LoadPort
    _views: tuple[object, ...]
    _blocks: cython.ulonglong
    _first: cython.ulonglong
    _patience: cython.ulonglong
    _random: cython.ulonglong
    _failed: cython.bint
    _in_flight: cython.uint
    _control_address: cython.ulonglong
    _step: cython.uint
    _status: cython.uint
    _status_step: cython.uint
    _tables: cython.uint
    _table_step: cython.uint
    _control: cython.p_uchar
    _data: cython.p_uchar
    _segments: cython.p_uchar
    _places: cython.p_uchar
    _slots: cython.p_uchar
    _touched: cython.p_uchar

    def __init__(
        self,
        port: LoadPort,
        allocate: Callable[[int], Buffer],
        depth: int,
        blocks: int,
        *,
        writes: bool = False,
        first: int = 0,
        seed: int = 4096,
        patience: float = PATIENCE,
        allocate_data: Callable[[int], Buffer] | None = None,
    ) -> None:
        """`depth` requests at a time, on an image of `blocks` blocks, of which the first has the number `first`.

        `allocate` gives memory of the driver's, which the device can reach for as long as the load is used;
        `allocate_data`, where it is another, memory that the port maps for each request: segment 1 of each.
        `patience`: see `PATIENCE`. Raises `LocalError` for a depth that the ring has no room for.
        """
        slot: cython.uint
        place: cython.ulonglong
        size = port.ring.size
        needed = depth if port.indirect else 3 * depth
        if depth < 1 or needed > size:
            raise LocalError(f"{depth} requests in flight need {needed} descriptors, and the queue has {size}")
        if blocks < 1 or blocks > 1 << 32:
            raise LocalError(f"an image of {blocks} blocks; expected 1 to 2^32")
        control, data = allocate(_PLACE * depth), (allocate_data or allocate)(_BLOCK * depth)
        segments, places, slots = bytearray(_SEGMENTS * depth), bytearray(8 * depth), bytearray(2 * size)
        touched = bytearray(blocks if writes else 1)
        self._views = (memoryview(control.view), memoryview(data.view), segments, places, slots)
        self.touched = touched
        """Of a load that writes: a byte for each block, 1 where the device said that it was written."""
        self.depth = depth
        self.writes = writes
        self.requests = 0
        """Completed in all runs; each was checked."""
        self.nanoseconds = 0
        """Of the last run, from its first request to its last completion."""
        self._port = port
        self._blocks = blocks
        self._first = first
        self._patience = int(patience * 1e9)
        self._random = (seed * 0x9E37_79B9_7F4A_7C15 + 1) & _ALL or 1
        self._failed = False
        self._in_flight = 0
        self._control = pointer(control.view)
        self._data = pointer(data.view)
        self._segments = pointer(segments)
        self._places = pointer(places)
        self._slots = pointer(slots)
        self._touched = pointer(touched)
        self._control_address = address_in(control)
        data_address = address_in(data)
        self._step, self._status, self._status_step = _PLACE, _STATUS, _PLACE
        self._tables, self._table_step = _TABLE, _PLACE
        if port.together:
            self._step, self._status, self._status_step = _HEADER, _HEADER * depth, 1
            self._tables, self._table_step = (_HEADER * depth + depth + 63) // 64 * 64, _TABLE_BYTES
        for slot in range(depth):
            st32(self._control, self._step * slot, le32(T_OUT if writes else T_IN))
            st32(self._control, self._step * slot + 4, 0)
            place = _SEGMENTS * slot
            for number, (address, length) in enumerate(
                (
                    (self._control_address + self._step * slot, 16),
                    (data_address + _BLOCK * slot, BLOCK),
                    (self._control_address + self._status + self._status_step * slot, 1),
                )
            ):
                st64(self._segments, place + 16 * number, address)
                st64(self._segments, place + 16 * number + 8, length)

    def run(self, seconds: float) -> int:
        """Keep the requests in flight for so long, then wait for the last; returns how many completed.

        With 0 seconds none is replaced: `depth` complete, and whatever is made at the first is made.

        Raises `LocalError` when one fails, carries wrong data, or none comes back for `patience` seconds, `RemoteError`
        when the device breaks the ring. Nothing can be run afterwards.
        """
        before: cython.ulonglong = self.requests
        limit: cython.ulonglong = int(seconds * 1e9)
        if self._failed:
            raise LocalError("the load has failed before")
        self._failed = True
        with cython.nogil:
            self._run(limit)
        self._failed = False
        return self.requests - before

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self, limit: cython.ulonglong) -> cython.int:
        head: cython.int
        slot: cython.uint
        looks: cython.uint = 0
        ending: cython.bint = limit == 0
        began: cython.ulonglong = clock_ns()
        now: cython.ulonglong = began
        progress: cython.ulonglong = began
        known: cython.ulonglong = self.requests
        for slot in range(self.depth):
            self._submit(slot)
        while self._in_flight:
            head = self._port.take_back()
            looks += 1
            if head >= 0:
                slot = ld16(self._slots, 2 * head)
                self._in_flight -= 1
                self._check(slot)
                self.requests += 1
                if not ending:
                    self._submit(slot)
            elif not self._port.wait(_SLEEP):
                looks = _LOOKS
            if looks >= _LOOKS or head < 0:
                looks = 0
                now = clock_ns()
                ending = now - began >= limit
                if self.requests != known:
                    known = self.requests
                    progress = now
                elif now - progress > self._patience:
                    with cython.gil:
                        raise LocalError(
                            f"no request completed for {self._patience / 1e9:g} s, with {self._in_flight} in flight"
                        )
        self.nanoseconds = clock_ns() - began
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _submit(self, slot: cython.uint) -> cython.int:
        """A new request in the place of a completed one."""
        head: cython.int
        block: cython.ulonglong
        number: cython.ulonglong
        begin: cython.ulonglong = self._random
        begin ^= (begin << 13) & _ALL
        begin ^= begin >> 7
        begin ^= (begin << 17) & _ALL
        self._random = begin
        block = ((begin >> 32) * self._blocks) >> 32
        st64(self._places, 8 * slot, block)
        st64(self._control, self._step * slot + 8, le64(block * _SECTORS))
        st8(self._control, self._status + self._status_step * slot, _NOT_WRITTEN)
        number = le64(self._first + block) if self.writes else _ALL
        st64(self._data, _BLOCK * slot, number)
        st64(self._data, _BLOCK * slot + _LAST, number)
        head = self._port.lend(
            at(self._segments, _SEGMENTS * slot),
            3,
            2 if self.writes else 1,
            at(self._control, self._tables + self._table_step * slot) if self._port.indirect else cython.NULL,
            self._control_address + self._tables + self._table_step * slot,
        )
        if head < 0:
            with cython.gil:
                raise LocalError(f"the queue has no room for {self._in_flight + 1} requests")
        st16(self._slots, 2 * head, slot)
        self._in_flight += 1
        if self._port.show():
            self._port.kick()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _check(self, slot: cython.uint) -> cython.int:
        """A request came back: whether it did what it should."""
        status: cython.uint = ld8(self._control, self._status + self._status_step * slot)
        block: cython.ulonglong = ld64(self._places, 8 * slot)
        number: cython.ulonglong = self._first + block
        begin: cython.ulonglong
        end: cython.ulonglong
        if status != 0:
            with cython.gil:
                raise LocalError(f"block {number}: the device gave the status {status:#x}")
        if self.writes:
            st8(self._touched, block, 1)
            return 0
        begin = le64(ld64(self._data, _BLOCK * slot))
        end = le64(ld64(self._data, _BLOCK * slot + _LAST))
        if begin != number or end != number:
            with cython.gil:
                raise LocalError(f"block {number} was read as {begin:#x} at its start and {end:#x} at its end")
        return 0


def address_in(buffer: Buffer) -> int:
    """What a device calls the first byte of a buffer; the logical address where it is mapped for each request."""
    return buffer.address if buffer.device_address is None else buffer.device_address
