# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Virtqueues in the client's memory as the server reaches them: shadows of its own, and copies by remote DMA.

A device ring works on the shadow as if it were the ring; each method here is one batch of copies (`RingMemory`). What a
batch costs is what decides over the transport's speed, so areas that are adjacent at the client come in one copy.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import ClassVar

import cython
from cython.cimports.powervio.transport.crq.shadow import RingShadow

from powervio.errors import RemoteError
from powervio.memory.abstract import RingMemory
from powervio.transport.crq.protocol import QueueAddresses
from powervio.transport.crq.remote import RemoteWindow
from powervio.vio.dma import DmaSpace
from powervio.virtio import packed_layout, split_layout


class RemoteRing(RingMemory):
    """What both kinds of ring have: three shadow areas that follow one another, and one for an indirect table."""

    remote: ClassVar[bool] = True

    def __init__(
        self, window: RemoteWindow, dma: DmaSpace, addresses: QueueAddresses, available_bytes: int, used_bytes: int
    ) -> None:
        """`addresses` are the client's. The shadows live until `release`."""
        self._window = window
        self._dma = dma
        self._size = size = addresses.size
        self._addresses = addresses
        self._available_at = 16 * size
        self._used_at = (self._available_at + available_bytes + 7) & ~7
        self._table_at = (self._used_at + used_bytes + 15) & ~15
        self._memory = dma.allocate(self._table_at + 16 * size)
        self.shadow = RingShadow(window, self._memory)
        view = self._memory.view
        self.descriptors = view[: self._available_at]
        self.available = view[self._available_at : self._available_at + available_bytes]
        self.used = view[self._used_at : self._used_at + used_bytes]
        self._table = view[self._table_at :]

    def release(self) -> None:
        """Give back the shadows; the ring is not used afterwards."""
        self.descriptors.release()
        self.available.release()
        self.used.release()
        self._table.release()
        self.shadow.release()
        self._dma.release(self._memory)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """See `RingMemory`: one copy; a table longer than the queue is refused (virtio 1.4, 2.7.5.3.1, 2.8.17)."""
        if length > len(self._table):
            raise RemoteError(
                f"an indirect table of {length} bytes is longer than the queue ({len(self._table)} bytes)"
            )
        self._window.fetch(address, length, self._memory, self._table_at)
        return self._table[:length]


class RemoteSplitRing(RemoteRing):
    """A split virtqueue in the client's memory."""

    def __init__(self, window: RemoteWindow, dma: DmaSpace, addresses: QueueAddresses, *, fresh: bool = True) -> None:
        """A ring that is not `fresh` was served by somebody else before."""
        size = addresses.size
        available_bytes = split_layout.available_bytes(size)
        super().__init__(window, dma, addresses, available_bytes, split_layout.used_bytes(size))
        self._available_bytes = available_bytes
        self._adjacent = addresses.available == addresses.descriptors + 16 * size
        # What the client's memory has: a new ring is all zeroes, of one that is taken over nothing is known.
        self._suppression = (bytes(2), bytes(2)) if fresh else (b"", b"")

    def fetch_available(self) -> None:
        """See `RingMemory`: one copy."""
        self.shadow.fetch(self._addresses.available, self._available_bytes, self._available_at)

    def fetch_descriptors(self) -> None:
        """See `RingMemory`: one copy when the client's areas are adjacent, else two."""
        if self._adjacent:
            self.shadow.fetch_along(self._addresses.descriptors, 16 * self._size + self._available_bytes, 0)
        else:
            self.shadow.fetch(self._addresses.descriptors, 16 * self._size, 0)
            self.fetch_available()

    def store_used(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """See `RingMemory`: elements (two copies where they wrap), then the index in a copy of its own, because no
        order is promised inside one copy (papr-vio 4.1)."""
        shadow: RingShadow = self.shadow
        used: cython.ulonglong = self._addresses.used
        place: cython.ulonglong = self._used_at
        until_end: cython.ulonglong = self._size - first
        if count < until_end:
            until_end = count
        shadow.store(used + 4 + 8 * first, 8 * until_end, place + 4 + 8 * first)
        if count > until_end:
            shadow.store(used + 4, 8 * (count - until_end), place + 4)
        shadow.store(used + 2, 2, place + 2)

    def store_suppression(self) -> None:
        """See `RingMemory`: only what changed since the last time."""
        used: cython.ulonglong = self._addresses.used
        event_at: cython.ulonglong = 4 + 8 * self._size
        shadow: RingShadow = self.shadow
        flags, event = bytes(self.used[:2]), bytes(self.used[event_at : event_at + 2])
        if flags != self._suppression[0]:
            shadow.store(used, 2, self._used_at)
        if event != self._suppression[1]:
            shadow.store(used + event_at, 2, self._used_at + event_at)
        self._suppression = (flags, event)


class RemotePackedRing(RemoteRing):
    """A packed virtqueue in the client's memory. Nothing of it is read but descriptors, a run at a time."""

    def __init__(self, window: RemoteWindow, dma: DmaSpace, addresses: QueueAddresses) -> None:
        """See `RemoteRing`."""
        super().__init__(window, dma, addresses, packed_layout.EVENT_BYTES, packed_layout.EVENT_BYTES)
        self._ring = addresses.descriptors

    def fetch_run(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """See `RingMemory`: one copy, two where the run goes over the end of the ring."""
        shadow: RingShadow = self.shadow
        ring: cython.ulonglong = self._ring
        until_end: cython.ulonglong = self._size - first
        if count < until_end:
            until_end = count
        shadow.fetch_along(ring + 16 * first, 16 * until_end, 16 * first)
        if count > until_end:
            shadow.fetch(ring, 16 * (count - until_end), 0)

    def store_run(self, first: cython.ulonglong, count: cython.ulonglong) -> None:
        """See `RingMemory`: one copy of all but the first (two over the end of the ring), then one aligned doubleword,
        which H_WRITE_RDMA stores whole (P6.7)."""
        shadow: RingShadow = self.shadow
        ring: cython.ulonglong = self._ring
        size: cython.ulonglong = self._size
        start: cython.ulonglong = first + 1 if first + 1 < size else 0
        until_end: cython.ulonglong = size - start
        place: cython.ulonglong = 16 * first + 8
        if count - 1 < until_end:
            until_end = count - 1
        if until_end:
            shadow.store(ring + 16 * start, 16 * until_end, 16 * start)
        if count - 1 > until_end:
            shadow.store(ring, 16 * (count - 1 - until_end), 0)
        shadow.write(ring + place, 8, place)

    def store_suppression(self) -> None:
        """See `RingMemory`: one call."""
        self.shadow.write(self._addresses.used, packed_layout.EVENT_BYTES, self._used_at)
