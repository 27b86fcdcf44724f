"""A driver's memory behind a vhost-user front end, and its side of the queues in it.

One sealed memfd is the whole of the guest's memory, shared with the back end as one region. Its three kinds of address
(guest-physical, user, I/O virtual) differ on purpose: one taken for another is noticed at once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.transport.vhost_user.protocol import Region, VringAddress
from powervio.virtio import features as feature
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.queue import Buffer, BufferSlice, DriverQueue
from powervio.virtio.split_driver import SplitDriverRing
from powervio.virtio.split_layout import available_bytes, descriptors_bytes, used_bytes

GUEST_BASE = 0x4000_0000
USER_BASE = 0x7F00_0000_0000
IOVA_BASE = 0x10_0000_0000
"""Where the first byte of memory is in each kind of address."""

_ONE = (1).to_bytes(8, "little")


class DriverMemory:
    """Memory that is given out by pages; pages that nobody used cost nothing."""

    def __init__(self, size: int) -> None:
        """`size` is bytes, whole pages."""
        self.area = MappedArea.create("guest", size)
        self.device_base = GUEST_BASE
        """What the device calls the first byte: `IOVA_BASE` with ACCESS_PLATFORM."""
        self._next = 0
        self._free: dict[int, list[int]] = {}

    @property
    def region(self) -> Region:
        """All of it."""
        return Region(GUEST_BASE, self.area.size, USER_BASE, 0)

    def allocate(self, length: int) -> Buffer:
        """Zeroed pages for `length` bytes. Raises `LocalError` when there are no more."""
        pages = max(PAGE_SIZE, length + -length % PAGE_SIZE)
        view = self.area.view
        free = self._free.get(pages)
        if free:
            start = free.pop()
            view[start : start + pages] = bytes(pages)
        else:
            start = self._next
            if start + pages > self.area.size:
                raise LocalError(f"the memory of {self.area.size} bytes has no {pages} left")
            self._next = start + pages
        return Buffer(view[start : start + length], GUEST_BASE + start, self.device_base + start)

    def release(self, buffer: Buffer) -> None:
        """Take pages back."""
        pages = max(PAGE_SIZE, buffer.length + -buffer.length % PAGE_SIZE)
        self._free.setdefault(pages, []).append(buffer.address - GUEST_BASE)

    def translate(self, iova: int) -> int | None:
        """The user address behind an I/O virtual address, or None."""
        offset = iova - IOVA_BASE
        return USER_BASE + offset if 0 <= offset < self.area.size else None

    def close(self) -> None:
        """Unmap it."""
        self.area.close()


class OwnRing(RingMemory):
    """The areas of one ring; those of a split one are large enough for a packed one."""

    def __init__(self, memory: DriverMemory, size: int) -> None:
        self._memory = memory
        self._buffers = [
            memory.allocate(bytes_of(size)) for bytes_of in (descriptors_bytes, available_bytes, used_bytes)
        ]
        self.descriptors, self.available, self.used = (buffer.view for buffer in self._buffers)

    def address(self, index: int, flags: int, features: int) -> VringAddress:
        """SET_VRING_ADDR: user addresses, or I/O virtual ones."""
        if features & feature.ACCESS_PLATFORM:
            places = [buffer.device_address or 0 for buffer in self._buffers]
        else:
            places = [buffer.address - GUEST_BASE + USER_BASE for buffer in self._buffers]
        logged = self._buffers[0 if features & feature.RING_PACKED else 2]
        return VringAddress(index, flags, places[0], places[2], places[1], logged.address)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """A driver never fetches a table."""
        raise NotImplementedError

    def release(self) -> None:
        """Give the areas back."""
        for buffer in self._buffers:
            self._memory.release(buffer)


class VhostDriverQueue(DriverQueue):
    """See `DriverQueue`. A kick is a write to an eventfd."""

    def __init__(self, index: int, size: int, memory: DriverMemory, features: int) -> None:
        self.index = index
        self.size = size
        self.memory = OwnRing(memory, size)
        self.kick_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.call_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.error_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.kicks = 0
        """Kicks that were sent."""
        self.ending = False
        self._pages = memory
        self._indirect = bool(features & feature.INDIRECT_DESC)
        self._tables: list[Buffer] = []
        self._all_tables: list[Buffer] = []
        kind = PackedDriverRing if features & feature.RING_PACKED else SplitDriverRing
        self.ring: DriverRing = kind(
            size,
            self.memory,
            event_idx=bool(features & feature.EVENT_IDX),
            indirect=self._indirect,
            in_order=bool(features & feature.IN_ORDER),
        )

    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> bool:
        """See `DriverQueue`: through an indirect table where there is more than one slice."""
        if self.ending:
            raise RemoteError("the session is over", Verdict.CLOSE)
        segments = []
        for buffer, offset, length in (*readable, *writable):
            if buffer.device_address is None or offset < 0 or offset + length > buffer.length:
                raise LocalError(f"slice of {length} bytes at {offset} of a buffer of {buffer.length}")
            segments.append((buffer.device_address + offset, length))
        if not self._indirect or len(segments) < 2:
            return self.ring.add(segments, len(readable), (token, None)) >= 0
        table = self._take_table()
        assert table.device_address is not None
        if self.ring.add(segments, len(readable), (token, table), (table.view, table.device_address)) < 0:
            self._tables.append(table)
            return False
        return True

    def _take_table(self) -> Buffer:
        if not self._tables:
            self._all_tables.append(self._pages.allocate(16 * self.size))
            self._tables.append(self._all_tables[-1])
        return self._tables.pop()

    def kick(self) -> None:
        """See `DriverQueue`."""
        if not self.ending and self.ring.publish():
            self.ring_the_bell()

    def ring_the_bell(self) -> None:
        """Kick whether it is wanted or not, as a ring has to be started."""
        self.kicks += 1
        with suppress(BlockingIOError):
            os.write(self.kick_fd, _ONE)

    def reap(self) -> tuple[object, int] | None:
        """See `DriverQueue`. Raises `RemoteError` when the device broke the ring."""
        used = self.ring.reap()
        if used is None:
            return None
        pair, written = used
        assert isinstance(pair, tuple)
        token, table = pair
        if table is not None:
            self._tables.append(table)
        return token, written

    def release(self) -> None:
        """The queue is not used any more: give back memory and descriptors."""
        self.ending = True
        self.ring.drain()
        for table in self._all_tables:
            self._pages.release(table)
        self.memory.release()
        for fd in (self.kick_fd, self.call_fd, self.error_fd):
            os.close(fd)
