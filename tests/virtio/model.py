"""What the tests of the rings compare with: memories that behave well or badly, and a plain model of a queue.

The model knows nothing of descriptors or indices: buffers go from the driver to the device in the order in which they
were made available and come back in the order in which they were used.
"""

from __future__ import annotations

import ctypes
import mmap
import random
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from powervio.errors import RemoteError
from powervio.memory.abstract import RingMemory

Segments: TypeAlias = list[tuple[int, int]]

NEXT, WRITE, INDIRECT = 1, 2, 4
PAGE = mmap.PAGESIZE


class MappedRing(RingMemory):
    """Areas of a split ring that both sides see at once, each ending at a page that faults when it is touched."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._maps: list[mmap.mmap] = []
        lengths = self.lengths(size)
        self.descriptors, self.available, self.used = (self.guarded(length) for length in lengths)
        self.tables: dict[int, memoryview] = {}

    @staticmethod
    def lengths(size: int) -> tuple[int, int, int]:
        """Of the areas, in bytes (virtio 1.4, 2.7)."""
        return 16 * size, 6 + 2 * size, 6 + 8 * size

    def guarded(self, length: int) -> memoryview:
        """`length` bytes, aligned to 4 as the used ring has to be, up to an inaccessible page (but for 2 bytes)."""
        whole = -(-length // 4) * 4
        pages = -(-whole // PAGE)
        area = mmap.mmap(-1, (pages + 1) * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(area))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(start + pages * PAGE), ctypes.c_size_t(PAGE), 0) == 0
        self._maps.append(area)
        return memoryview(area)[pages * PAGE - whole :][:length]

    def fetch_table(self, address: int, length: int) -> memoryview:
        table = self.tables.get(address)
        if table is None or table.nbytes < length:
            raise RemoteError(f"no {length} bytes at {address:#x}")
        return table[:length]


class MappedPackedRing(MappedRing):
    """The same for a packed ring."""

    @staticmethod
    def lengths(size: int) -> tuple[int, int, int]:
        """Of the areas, in bytes (virtio 1.4, 2.8.10.1)."""
        return 16 * size, 4, 4


class ShadowRing(RingMemory):
    """A stand-in for the remote memory of a split ring: shadows that only fetch and store bring up to date.

    A copy is made in pieces, in an order that nobody promises (descriptors before available, as the contract has it,
    or all mixed as one copy may do); `meanwhile` runs between the pieces, so that the driver can go on during a copy.
    """

    remote = True

    def __init__(self, driver: MappedRing, choice: random.Random, meanwhile: Callable[[], None]) -> None:
        self._driver = driver
        self._choice = choice
        self._meanwhile = meanwhile
        lengths = driver.lengths(driver.size)
        self.descriptors, self.available, self.used = (memoryview(bytearray(length)) for length in lengths)
        self.fetches = 0
        self.stores = 0

    def _copy(self, pieces: list[tuple[memoryview, memoryview, int, int]]) -> None:
        for to, source, start, end in pieces:
            to[start:end] = source[start:end]
            self._meanwhile()

    def _available_pieces(self) -> list[tuple[memoryview, memoryview, int, int]]:
        edge = self._choice.randrange(4, 6 + 2 * self._driver.size, 2)
        there = self._driver.available
        return [(self.available, there, edge, there.nbytes), (self.available, there, 0, edge)]

    def fetch_available(self) -> None:
        self.fetches += 1
        pieces = self._available_pieces()
        self._choice.shuffle(pieces)
        self._copy(pieces)

    def fetch_descriptors(self) -> None:
        self.fetches += 1
        there = self._driver.descriptors
        edge = 16 * self._choice.randrange(self._driver.size + 1)
        pieces = [(self.descriptors, there, 0, edge), (self.descriptors, there, edge, there.nbytes)]
        self._choice.shuffle(pieces)
        pieces += self._available_pieces()
        if self._choice.random() < 0.5:
            self._choice.shuffle(pieces)
        self._copy(pieces)

    def fetch_table(self, address: int, length: int) -> memoryview:
        self.fetches += 1
        return memoryview(bytes(self._driver.fetch_table(address, length)))

    def store_used(self, first: int, count: int) -> None:
        self.stores += 1
        assert 0 <= first < self._driver.size
        assert 0 < count <= self._driver.size
        for number in range(count):
            place = 4 + 8 * ((first + number) % self._driver.size)
            self._driver.used[place : place + 8] = self.used[place : place + 8]
            self._meanwhile()
        self._driver.used[2:4] = self.used[2:4]

    def store_suppression(self) -> None:
        self.stores += 1
        self._driver.used[0:2] = self.used[0:2]
        self._driver.used[-2:] = self.used[-2:]


class PackedShadow(ShadowRing):
    """The same for a packed ring. A copy is made doubleword by doubleword, each of them whole, in any order."""

    def _doublewords(self, first: int, count: int) -> list[slice]:
        """Of the descriptors, in the order of the copy."""
        size = self._driver.size
        assert 0 <= first < size
        assert 0 <= count <= size
        starts = [16 * ((first + n) % size) + half for n in range(count) for half in (0, 8)]
        if self._choice.random() < 0.7:
            self._choice.shuffle(starts)
        return [slice(start, start + 8) for start in starts]

    def _move(self, to: memoryview, source: memoryview, pieces: list[slice]) -> None:
        pauses = set(self._choice.sample(range(len(pieces)), min(3, len(pieces))))
        for number, piece in enumerate(pieces):
            to[piece] = source[piece]
            if number in pauses:
                self._meanwhile()

    def fetch_run(self, first: int, count: int) -> None:
        assert count
        self.fetches += 1
        self._move(self.descriptors, self._driver.descriptors, self._doublewords(first, count))

    def store_run(self, first: int, count: int) -> None:
        assert count
        self.stores += 1
        behind = (first + 1) % self._driver.size
        self._move(self._driver.descriptors, self.descriptors, self._doublewords(behind, count - 1))
        start = 16 * first + 8
        self._driver.descriptors[start : start + 8] = self.descriptors[start : start + 8]

    def store_suppression(self) -> None:
        self.stores += 1
        self._driver.used[:] = self.used


def merged(segments: Segments) -> Segments:
    """Segments as a device gets them: those that continue each other are one, empty ones are left out."""
    result: Segments = []
    for address, length in segments:
        if not length:
            continue
        if result and sum(result[-1]) == address:
            result[-1] = (result[-1][0], result[-1][1] + length)
        else:
            result.append((address, length))
    return result


@dataclass
class Buffer:
    """One buffer of the model."""

    token: int
    readable: Segments
    writable: Segments
    descriptors: int
    written: int = 0

    @property
    def room(self) -> int:
        return sum(length for _, length in self.writable)


@dataclass
class Model:
    """A queue as its users see it, split or packed."""

    size: int
    in_order: bool = False
    added: deque[Buffer] = field(default_factory=deque)
    """By the driver, before it published."""
    available: deque[Buffer] = field(default_factory=deque)
    at_device: dict[int, Buffer] = field(default_factory=dict)
    """By head, as the device has them."""
    finished: set[int] = field(default_factory=set)
    """Heads at the device that were pushed and wait for older ones (IN_ORDER)."""
    pushed: deque[Buffer] = field(default_factory=deque)
    """By the device, before it published."""
    used: deque[Buffer] = field(default_factory=deque)

    def push(self, head: int, written: int) -> None:
        """The device gives a buffer back; with IN_ORDER it goes on after all that were made available before it."""
        self.at_device[head].written = written
        self.finished.add(head)
        for each in list(self.at_device) if self.in_order else [head]:
            if each not in self.finished:
                break
            self.finished.remove(each)
            self.pushed.append(self.at_device.pop(each))

    @property
    def in_flight(self) -> list[Buffer]:
        """All buffers that the driver has not got back."""
        return [*self.added, *self.available, *self.at_device.values(), *self.pushed, *self.used]

    @property
    def free(self) -> int:
        """Descriptors that the driver can use."""
        return self.size - sum(buffer.descriptors for buffer in self.in_flight)


class RawRing(MappedRing):
    """Ring areas that a test writes by hand, as a driver would that knows no rules."""

    def __init__(self, size: int, order: str = "<") -> None:
        super().__init__(size)
        self._order = order

    def describe(self, index: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        """Write one descriptor."""
        struct.pack_into(self._order + "QIHH", self.descriptors, 16 * index, address, length, flags, following)

    def table(self, address: int, *entries: tuple[int, int, int, int]) -> int:
        """Put an indirect table there; returns its length in bytes."""
        data = b"".join(struct.pack(self._order + "QIHH", *entry) for entry in entries)
        self.tables[address] = memoryview(bytearray(data))
        return len(data)

    def offer(self, *heads: int) -> None:
        """Put heads into the available ring and move idx."""
        index = self.available_index
        for number, head in enumerate(heads):
            place = 4 + 2 * ((index + number) % self.size)
            struct.pack_into(self._order + "H", self.available, place, head)
        self.available_index = index + len(heads)

    @property
    def available_index(self) -> int:
        value: int = struct.unpack_from(self._order + "H", self.available, 2)[0]
        return value

    @available_index.setter
    def available_index(self, value: int) -> None:
        struct.pack_into(self._order + "H", self.available, 2, value & 0xFFFF)

    @property
    def used_index(self) -> int:
        value: int = struct.unpack_from(self._order + "H", self.used, 2)[0]
        return value

    def use(self, index: int, *elements: tuple[int, int]) -> None:
        """Put `(id, length)` into the used ring from `index` on and set idx behind them."""
        for number, element in enumerate(elements):
            struct.pack_into(self._order + "II", self.used, 4 + 8 * ((index + number) % self.size), *element)
        struct.pack_into(self._order + "H", self.used, 2, (index + len(elements)) & 0xFFFF)


class RawPackedRing(MappedPackedRing):
    """Areas of a packed ring that a test writes by hand, as a driver or a device would that knows no rules."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.slot = 0
        self.wrap = 1

    def describe(self, slot: int, address: int, length: int, ident: int, flags: int) -> None:
        """Write one descriptor, flags and all."""
        struct.pack_into("<QIHH", self.descriptors, 16 * slot, address, length, ident, flags)

    def descriptor(self, slot: int) -> tuple[int, int, int, int]:
        """Address, length, id, flags."""
        return struct.unpack_from("<QIHH", self.descriptors, 16 * slot)

    def offer(self, *chain: tuple[int, int, int], ident: int = 0) -> None:
        """Make `(address, length, flags)` available at the next places, in the flags that the round asks for."""
        for address, length, flags in chain:
            self.describe(self.slot, address, length, ident, flags | (0x80 if self.wrap else 0x8000))
            self.slot += 1
            if self.slot == self.size:
                self.slot, self.wrap = 0, 1 - self.wrap

    def table(self, address: int, *entries: tuple[int, int, int, int]) -> int:
        """Put an indirect table of `(address, length, id, flags)` there; returns its length in bytes."""
        data = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        self.tables[address] = memoryview(bytearray(data))
        return len(data)

    def event(self, area: memoryview) -> tuple[int, int, int]:
        """Slot, wrap counter and flags of an event suppression structure."""
        place, flags = struct.unpack("<HH", area)
        return place & 0x7FFF, place >> 15, flags
