# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Both sides of a ring, each in a loop without the interpreter lock, doing all that is allowed at the worst moments.

`Driver` and `Device` run on two processors and share one area of memory and two eventfds, nothing else. Batches have
random sizes; buffers are shown and given back one by one or together, out of order where that is allowed; notifications
are switched off and on, and each side polls for a while and sleeps for a while, as the standard says that it may. What
a buffer looks like follows from its number, so each side knows what it has to find; and each carries eight bytes of
data, written before it changes hands and checked afterwards. A wake-up that is lost is noticed by whoever sleeps, after
`PATIENCE` milliseconds.
This file is compiled (Cython pure mode) and also runs interpreted, then in two threads of one process (`memory/hw.py`).
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    address_of,
    at,
    clock_ns,
    event_signal,
    event_take,
    ld16,
    ld64,
    ld64_acquire,
    pointer,
    relax,
    st16,
    st64,
    st64_release,
    wait_readable,
    yield_cpu,
)
from cython.cimports.powervio.memory.space import AddressSpace
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.driver_ring import DriverRing

from powervio.errors import LocalError
from powervio.memory.abstract import RingMemory

AREA = 2 << 20
"""Bytes of the area that is shared."""
MOST = 1024
"""The largest queue size for which it has room."""
PATIENCE = 20_000
"""Milliseconds after which a side that sleeps has been forgotten."""

_PATIENCE = cython.declare(cython.int, PATIENCE)
_ALL = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_FACTOR = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
_END_AT = cython.declare(cython.ulonglong, 0x0F_0000)
_TABLES_AT = cython.declare(cython.ulonglong, 0x10_0000)
_TABLE = cython.declare(cython.uint, 128)
_TABLES_END = cython.declare(cython.ulonglong, 0x10_0000 + 128 * MOST)
_CELLS_AT = cython.declare(cython.ulonglong, 0x18_0000)
_CELLS = cython.declare(cython.uint, 0xFFFF)
_NO_TABLE = cython.declare(cython.uint, 0xFFFF)
_SEGMENTS = cython.declare(cython.uint, 5)
_LOOKS = cython.declare(cython.uint, 400)


@cython.cclass
class AreaSpace(AddressSpace):
    """Indirect tables are where the area has them: their offset is their device address."""

    _view: memoryview
    _base: cython.p_uchar

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._base = pointer(view)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gather(
        self,
        address: cython.ulonglong,
        length: cython.ulonglong,
        access: cython.uint,
        table: cython.p_uchar,
        count: cython.int,
        limit: cython.int,
    ) -> cython.int:
        """See `AddressSpace`."""
        if address < _TABLES_AT or address > _TABLES_END or length > _TABLES_END - address:
            return -1
        if count >= limit:
            return -2
        st64(table, 16 * count, address_of(self._base, address))
        st64(table, 16 * count + 8, length)
        return count + 1


class TortureRing(RingMemory):
    """The ring's three areas, each on pages of its own."""

    def __init__(self, view: memoryview) -> None:
        """`view` is the area, writable."""
        self.descriptors = view[0x0_0000:0x1_0000]
        self.available = view[0x1_0000:0x2_0000]
        self.used = view[0x2_0000:0x4_0000]
        self.space = AreaSpace(view)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """Never called: there is a `space`."""
        raise NotImplementedError


@cython.cclass
class Side:
    """What both sides have."""

    size: cython.uint
    sleeps: cython.ulonglong
    notifications: cython.ulonglong
    _view: memoryview
    _area: cython.p_uchar
    _expected: cython.p_uchar
    _expected_bytes: bytearray
    _random: cython.ulonglong
    _looks: cython.uint
    _wake_fd: cython.int
    _tell_fd: cython.int
    _count: cython.uint
    _readers: cython.uint
    _room: cython.ulonglong

    def __init__(self, size: int, view: memoryview, wake_fd: int, tell_fd: int, seed: int) -> None:
        """It sleeps on one eventfd and signals the other; both are non-blocking and stay the caller's."""
        if size > MOST or view.nbytes < AREA:
            raise LocalError(f"a ring of {size} in {view.nbytes} bytes; expected up to {MOST} in {AREA}")
        expected = bytearray(16 * _SEGMENTS)
        self.size = size
        self.sleeps = 0
        """How often it slept."""
        self.notifications = 0
        """How often it woke the other side."""
        self._view = view
        self._area = pointer(view)
        self._expected_bytes = expected
        self._expected = pointer(expected)
        self._random = (seed * _FACTOR + 1) & _ALL or 1
        self._looks = 0
        self._wake_fd = wake_fd
        self._tell_fd = tell_fd

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _choose(self, limit: cython.uint) -> cython.uint:
        """A number below `limit`."""
        value: cython.ulonglong = self._random
        value ^= (value << 13) & _ALL
        value ^= value >> 7
        value ^= (value << 17) & _ALL
        self._random = value
        return ((value >> 32) * limit) >> 32

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _expect(self, number: cython.ulonglong) -> cython.void:
        """The segments of a buffer, of which none continues another, how many are readable, and what has room."""
        place: cython.uint
        length: cython.ulonglong
        self._count = 1 + number % (self.size if self.size < _SEGMENTS else _SEGMENTS)
        self._readers = (number // 7) % (self._count + 1)
        self._room = 0
        for place in range(self._count):
            length = 1 + (number + place) % 100
            st64(self._expected, 16 * place, (((number + 1) << 16) + (place << 8)) & _ALL)
            st64(self._expected, 16 * place + 8, length)
            if place >= self._readers:
                self._room += length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _written(self, number: cython.ulonglong) -> cython.uint:
        """What the device writes into the buffer of `_expect`: of most buffers all."""
        return self._room // 2 if number % 5 == 0 else self._room

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _tell(self) -> cython.int:
        """Wake the other side."""
        self.notifications += 1
        if event_signal(self._tell_fd):
            with cython.gil:
                raise LocalError("an eventfd cannot be signalled")
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _polls(self) -> cython.bint:
        """Whether it looks again this time, instead of sleeping: in one sleep of four the beginning of many times."""
        if self._looks == 0:
            if self._choose(4) == 0:
                self._looks = self._choose(_LOOKS)
            return False
        self._looks -= 1
        if self._looks % 16:
            relax()
        else:
            yield_cpu()
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _forget(self) -> cython.void:
        """Often, have nothing from earlier wake it: what it then sleeps for is what comes from here on."""
        if self._choose(4):
            event_take(self._wake_fd)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _sleep(self) -> cython.int:
        """Until the other side tells; 0 when it never does."""
        self.sleeps += 1
        if wait_readable(self._wake_fd, _PATIENCE) <= 0:
            return 0
        event_take(self._wake_fd)
        return 1


@cython.cclass
class Driver(Side):
    """The driver's side."""

    lent: cython.ulonglong
    taken: cython.ulonglong
    _ring: DriverRing
    _indirect: cython.bint
    _sum: cython.ulonglong
    _free_tables: cython.uint
    _tables: cython.p_uchar
    _table_of: cython.p_uchar
    _numbers: cython.p_uchar
    _books: tuple[object, ...]

    def __init__(
        self, ring: DriverRing, view: memoryview, call_fd: int, kick_fd: int, *, indirect: bool, seed: int
    ) -> None:
        """`ring` is new, over `TortureRing(view)`; made before the device looks."""
        Side.__init__(self, ring.size, view, call_fd, kick_fd, seed)
        tables, table_of, numbers = bytearray(2 * ring.size), bytearray(2 * ring.size), bytearray(8 * ring.size)
        self.lent = 0
        self.taken = 0
        """Buffers that came back."""
        self._ring = ring
        self._indirect = indirect
        self._sum = 0
        self._free_tables = ring.size
        self._books = (tables, table_of, numbers)
        self._tables = pointer(tables)
        self._table_of = pointer(table_of)
        self._numbers = pointer(numbers)
        for number in range(ring.size):
            st16(self._tables, 2 * number, number)
            st64(self._numbers, 8 * number, _ALL)
        st64(self._area, _END_AT, _ALL)

    def run(self, seconds: float) -> int:
        """Go on for so long, until all buffers are back, and tell the device; returns how many there were.

        Raises `LocalError` for whatever went wrong, `RemoteError` when the device broke the ring.
        """
        limit: cython.ulonglong = int(seconds * 1e9)
        with cython.nogil:
            self._run(limit)
        if self._ring.free_descriptors != self.size or self._free_tables != self.size:
            raise LocalError(f"{self._ring.free_descriptors} descriptors of {self.size} are free at the end")
        if self._sum != (self.lent * (self.lent - 1) // 2) & _ALL:
            raise LocalError("the numbers that came back are not those that were lent")
        return self.taken

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self, limit: cython.ulonglong) -> cython.int:
        began: cython.ulonglong = clock_ns()
        ending: cython.bint = False
        full: cython.bint
        number: cython.uint
        while not ending or self.taken != self.lent:
            ending = clock_ns() - began >= limit
            if self._choose(2):
                self._ring.disarm()
            full = ending
            if not ending:
                for number in range(self._choose(2 * self.size + 1)):
                    if not self._lend():
                        full = True
                        break
                    if self._choose(10) == 0 and self._ring.show():
                        self._tell()
            if self._ring.show():
                self._tell()
            self._take_back()
            if self.taken != self.lent and (full or self._choose(4) == 0) and not self._polls():
                self._forget()
                if not self._ring.arm() and not self._sleep():
                    with cython.gil:
                        raise LocalError(f"no notification: {self.taken} of {self.lent} buffers came back")
        st64_release(self._area, _END_AT, self.lent)
        self._tell()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _lend(self) -> cython.int:
        """Lend one more buffer; 0 when there is no room."""
        number: cython.ulonglong = self.lent
        table: cython.uint = _NO_TABLE
        place: cython.ulonglong = 0
        head: cython.int
        self._expect(number)
        if self._indirect and self._free_tables and self._count > 1 and self._choose(10) < 7:
            table = ld16(self._tables, 2 * (self._free_tables - 1))
            place = _TABLES_AT + _TABLE * table
        # no other buffer in flight has this cell: there are never so many
        st64(self._area, _CELLS_AT + 8 * (number & _CELLS), (number * _FACTOR) & _ALL)
        head = self._ring.lend(
            self._expected, self._count, self._readers, at(self._area, place) if place else cython.NULL, place
        )
        if head < 0:
            return 0
        if table != _NO_TABLE:
            self._free_tables -= 1
        st16(self._table_of, 2 * head, table)
        st64(self._numbers, 8 * head, number)
        self.lent += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _take_back(self) -> cython.int:
        """Take back all that are used."""
        number: cython.ulonglong
        answer: cython.ulonglong
        head: cython.int = self._ring.take_back()
        while head >= 0:
            number = ld64(self._numbers, 8 * head)
            if number == _ALL:
                with cython.gil:
                    raise LocalError(f"buffer {head} came back twice")
            st64(self._numbers, 8 * head, _ALL)
            self._expect(number)
            if self._ring.written != self._written(number):
                with cython.gil:
                    raise LocalError(f"buffer {number} came back with {self._ring.written} bytes written")
            answer = ld64(self._area, _CELLS_AT + 8 * (number & _CELLS))
            if answer != (number * _FACTOR) & _ALL ^ _ALL:
                with cython.gil:
                    raise LocalError(f"buffer {number} came back with {answer:#x} as its data")
            if ld16(self._table_of, 2 * head) != _NO_TABLE:
                st16(self._tables, 2 * self._free_tables, ld16(self._table_of, 2 * head))
                self._free_tables += 1
            self._sum = (self._sum + number) & _ALL
            self.taken += 1
            head = self._ring.take_back()
        return 0


@cython.cclass
class Device(Side):
    """The device's side."""

    served: cython.ulonglong
    given: cython.ulonglong
    _ring: DeviceRing
    _held: cython.uint
    _heads: cython.p_uchar
    _lengths: cython.p_uchar
    _books: tuple[object, ...]

    def __init__(self, ring: DeviceRing, view: memoryview, kick_fd: int, call_fd: int, *, seed: int) -> None:
        """`ring` is new, over `TortureRing(view)`."""
        Side.__init__(self, ring.size, view, kick_fd, call_fd, seed)
        heads, lengths = bytearray(2 * ring.size), bytearray(2 * ring.size)
        self.served = 0
        """Buffers that were taken, each as it had to be."""
        self.given = 0
        """Buffers that were given back."""
        self._ring = ring
        self._held = 0
        self._books = (heads, lengths)
        self._heads = pointer(heads)
        self._lengths = pointer(lengths)

    def run(self) -> int:
        """Serve until the driver tells the end; returns how many buffers it were. Raises as `Driver.run`."""
        with cython.nogil:
            self._run()
        if self._ring.in_hand or self._ring.rejected:
            raise LocalError(f"{self._ring.in_hand} buffers are in hand, {self._ring.rejected} were rejected")
        return self.served

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self) -> cython.int:
        found: cython.uint
        count: cython.uint
        number: cython.uint
        idle: cython.bint
        while True:
            if self._choose(2):
                self._ring.disarm()
            found = self._ring.look()
            idle = found == 0
            for number in range(self._choose(found + 1)):
                if not self._ring.take():
                    idle = True
                    break
                self._serve()
            count = self._held if idle else self._choose(self._held + 1)
            for number in range(count):
                self._give()
                if self._choose(10) < 3 and self._ring.show():
                    self._tell()
            if self._ring.show():
                self._tell()
            if idle and not self._polls():
                self._forget()
                if self.given == ld64_acquire(self._area, _END_AT):
                    return 0
                if not self._ring.arm() and not self._sleep():
                    with cython.gil:
                        raise LocalError(f"no kick, after {self.served} buffers")

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _serve(self) -> cython.int:
        """A buffer was taken: it is the next one, whole, and its data is there."""
        number: cython.ulonglong = self.served
        cell: cython.ulonglong = _CELLS_AT + 8 * (number & _CELLS)
        data: cython.ulonglong = ld64(self._area, cell)
        place: cython.uint
        self._expect(number)
        if self._ring.segment_count != self._count or self._ring.readable_count != self._readers:
            with cython.gil:
                raise LocalError(
                    f"buffer {number} has {self._ring.readable_count} of {self._ring.segment_count} segments readable;"
                    f" expected {self._readers} of {self._count}"
                )
        for place in range(2 * self._count):
            if ld64(self._ring.chain, 8 * place) != ld64(self._expected, 8 * place):
                with cython.gil:
                    raise LocalError(f"buffer {number} has {ld64(self._ring.chain, 8 * place):#x} at {place}")
        if data != (number * _FACTOR) & _ALL:
            with cython.gil:
                raise LocalError(f"buffer {number} came with {data:#x} as its data")
        st64(self._area, cell, data ^ _ALL)
        st16(self._heads, 2 * self._held, self._ring.head)
        st16(self._lengths, 2 * self._held, self._written(number))
        self._held += 1
        self.served += 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _give(self) -> cython.int:
        """Give one of those that are held back."""
        place: cython.uint = self._choose(self._held)
        head: cython.uint = ld16(self._heads, 2 * place)
        length: cython.uint = ld16(self._lengths, 2 * place)
        self._held -= 1
        st16(self._heads, 2 * place, ld16(self._heads, 2 * self._held))
        st16(self._lengths, 2 * place, ld16(self._lengths, 2 * self._held))
        self._ring.give(head, length)
        self.given += 1
        return 0
