# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The receive buffers that one frame of a relay (`net_relay`) goes to.

What is not as usual is left for the device's Python: `Receiver.held`.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.devices.net_relay_end import RelayEnd
from cython.cimports.powervio.devices.net_relay_frames import RelayFrames
from cython.cimports.powervio.memory.hw import copy, ld32, ld64, pointer, st32
from cython.cimports.powervio.virtio.device_queue import DeviceQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.staging import Staging

_PIECES = cython.declare(cython.uint, 256)
_HELD = cython.declare(cython.uint, 64)
"""Segments of the buffers of one frame, and these buffers, at most; what needs more is not usual."""
_LOST = cython.declare(cython.int, 0)
_GOT = cython.declare(cython.int, 1)
_WAITS = cython.declare(cython.int, 2)


@cython.final
@cython.cclass
class RelayBuffers:
    """Buffers that were taken of a receive queue for the frame in hand."""

    count: cython.uint
    # u32 head, number of pieces, and room of each, and {u64 address, u64 bytes}.
    _heads: cython.p_uchar
    _pieces: cython.p_uchar
    _piece_count: cython.uint
    _room: cython.ulonglong
    _books: Any

    def __init__(self) -> None:
        """`count` says how many there are."""
        books = bytearray(12 * 64), bytearray(16 * 256)
        self._heads = pointer(books[0])
        self._pieces = pointer(books[1])
        self._books = books
        self.count = self._piece_count = 0
        self._room = 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def clear(self) -> cython.void:
        """Hold none."""
        self.count = self._piece_count = 0

    @cython.cfunc
    @cython.exceptval(-1)
    def hold(self, other: RelayEnd, queue: DeviceQueue, needed: cython.ulonglong) -> cython.int:
        """Take buffers for so many bytes: got; lost, for one cannot be used; waits, when there are too few."""
        ring: DeviceRing = queue.ring
        least: cython.ulonglong = other._header_bytes if other._mergeable else needed
        self.count = self._piece_count = 0
        self._room = 0
        while self._room < needed:
            if self.count == _HELD or not queue.take():
                self._leave(other, queue)
                return _WAITS
            if ring.readable_bytes or ring.writable_bytes < least:
                ring.give(ring.head, 0)
                other._receiver.bad_buffers += 1
                if not other._mergeable:
                    other._to_driver.drop("no room")
                    return _LOST
            elif self._piece_count + ring.segment_count > _PIECES:
                request = queue.request()
                self._leave(other, queue)
                other._receiver.held.append(request)
                return _WAITS
            else:
                self._keep(ring)
        return _GOT

    @cython.cfunc
    @cython.exceptval(check=False)
    def _keep(self, ring: DeviceRing) -> cython.void:
        """The buffer that was taken last is for the frame in hand."""
        copy(self._pieces, 16 * self._piece_count, ring.chain, 0, 16 * ring.segment_count)
        self._piece_count += ring.segment_count
        st32(self._heads, 12 * self.count, ring.head)
        st32(self._heads, 12 * self.count + 4, ring.segment_count)
        st32(
            self._heads,
            12 * self.count + 8,
            cython.cast(cython.uint, ring.writable_bytes if ring.writable_bytes < 0x7FFF_FFFF else 0x7FFF_FFFF),
        )
        self.count += 1
        self._room += ring.writable_bytes

    @cython.cfunc
    @cython.exceptval(-1)
    def _leave(self, other: RelayEnd, queue: DeviceQueue) -> cython.int:
        """The buffers that are held are for the frame that the device's Python gets next."""
        number: cython.uint
        first: cython.uint = 0
        count: cython.uint
        requests: list[Any] = []
        for number in range(self.count):
            count = ld32(self._heads, 12 * number + 4)
            writable = [
                (ld64(self._pieces, 16 * place), ld64(self._pieces, 16 * place + 8))
                for place in range(first, first + count)
            ]
            first += count
            requests.append(queue.request_of(ld32(self._heads, 12 * number), [], writable))
        other._receiver.held[:0] = requests
        self.count = self._piece_count = 0
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def fill(
        self,
        queue: DeviceQueue,
        frames: RelayFrames,
        row: cython.uint,
        place: cython.ulonglong,
        staged: cython.ulonglong,
        needed: cython.ulonglong,
    ) -> cython.int:
        """Put header and frame into the buffers that are held, and give them back; 0 when they went back empty.

        `staged` bytes are at `place`, and the rest is in the sender's memory.
        """
        number: cython.uint
        piece: cython.uint = 0
        end: cython.uint
        room: cython.ulonglong
        address: cython.ulonglong
        part: cython.ulonglong
        size: cython.ulonglong
        sound: cython.bint = True
        there: Staging = cython.cast(Staging, queue.staging)
        frames.begin_rest(row)
        for number in range(self.count):
            room = ld32(self._heads, 12 * number + 8)
            if room > needed:
                room = needed
            needed -= room
            st32(self._heads, 12 * number + 8, room)  # what of it is used
            end = piece + ld32(self._heads, 12 * number + 4)
            while piece < end:
                address = ld64(self._pieces, 16 * piece)
                part = ld64(self._pieces, 16 * piece + 8)
                if part > room:
                    part = room
                room -= part
                piece += 1
                while part and sound:
                    if staged:
                        size = part if part < staged else staged
                        sound = there.put(address, size, place) != 0
                        place += size
                        staged -= size
                    else:
                        size = part
                        sound = frames.pass_rest(there, address, size) != 0
                    address += size
                    part -= size
        for number in range(self.count):
            queue.ring.give(ld32(self._heads, 12 * number), ld32(self._heads, 12 * number + 8) if sound else 0)
        self.count = self._piece_count = 0
        return 1 if sound else 0
