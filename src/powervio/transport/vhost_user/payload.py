# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Data of a request where they are in guest memory: nothing is copied on the way between there and the medium.

Where addresses mean mapped memory (`AddressSpace`) all is done here. With an IOMMU every piece has to be asked for
(`GuestMemory.gather`), which Python does.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.memory.hw import bytes_at, fetch, ld64, pointer, pointer_to_read, st64, store
from cython.cimports.powervio.memory.space import AddressSpace
from cython.cimports.powervio.memory.target import Target
from cython.cimports.powervio.virtio.device_ring import DeviceRing

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing

if TYPE_CHECKING:
    from powervio.transport.vhost_user.memory import GuestMemory
    from powervio.virtio.queue import Segment

_PIECES = cython.declare(cython.int, 1024)
_SMALL = bytearray(16 * 1024)
_NOTHING = bytearray()
_small = cython.declare(cython.p_uchar)
_small = pointer(_SMALL)
"""A table for what is done without letting go of the interpreter lock."""


@cython.final
@cython.freelist(64)
@cython.cclass
class GuestPayload:
    """See `Payload`."""

    length: cython.ulonglong
    _memory: Any
    _space: AddressSpace | None
    _access: cython.uint
    _count: cython.uint
    _first: cython.ulonglong
    _first_size: cython.ulonglong
    _rest: bytearray

    def __init__(self, memory: GuestMemory, segments: list[Segment], access: int) -> None:
        """`segments` are those of a chain's readable or writable part, `access` says which."""
        number: cython.uint = 0
        self._memory = memory
        self._space = memory.space
        self._access = access
        self.length = 0
        """Bytes."""
        self._begin(len(segments))
        for address, length in segments:
            self._set(number, address, length)
            number += 1

    @cython.cfunc
    def _begin(self, count: cython.uint) -> cython.void:
        """There are `count` segments; the first one, which is nearly always the only one, stands by itself."""
        self._count = count
        self._rest = bytearray(16 * (count - 1)) if count > 1 else _NOTHING

    @cython.cfunc
    def _set(self, number: cython.uint, address: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        self.length += length
        if number == 0:
            self._first = address
            self._first_size = length
        else:
            table: cython.p_uchar = pointer(self._rest)
            st64(table, 16 * (number - 1), address)
            st64(table, 16 * (number - 1) + 8, length)

    @cython.cfunc
    def _address(self, number: cython.uint) -> cython.ulonglong:
        return self._first if number == 0 else ld64(pointer(self._rest), 16 * (number - 1))

    @cython.cfunc
    def _size(self, number: cython.uint) -> cython.ulonglong:
        return self._first_size if number == 0 else ld64(pointer(self._rest), 16 * (number - 1) + 8)

    @cython.cfunc
    @cython.exceptval(-1)
    def _check(self, offset: cython.longlong, length: cython.longlong) -> cython.int:
        if offset < 0 or length < 0 or offset + length > cython.cast(cython.longlong, self.length):
            raise ValueError(f"{length} bytes at {offset} of a payload of {self.length}")
        return 0

    def _parts(self, offset: int, length: int) -> list[Segment]:
        """A range as `(guest address, bytes)`."""
        self._check(offset, length)
        number: cython.uint
        parts: list[Segment] = []
        for number in range(self._count):
            size = int(self._size(number))
            if offset >= size:
                offset -= size
                continue
            if not length:
                break
            count = min(size - offset, length)
            parts.append((int(self._address(number)) + offset, count))
            length -= count
            offset = 0
        return parts

    def _pieces(self, parts: list[Segment]) -> list[memoryview]:
        gather, access = self._memory.gather, self._access
        return [piece for address, count in parts for piece in gather(address, count, access)]

    def _written(self, offset: int, length: int) -> None:
        if self._memory.logging:
            for address, count in self._parts(offset, length):
                self._memory.written(address, count)

    @cython.cfunc
    @cython.exceptval(-1)
    def _gather(
        self, offset: cython.ulonglong, length: cython.ulonglong, table: cython.p_uchar, limit: cython.int
    ) -> cython.int:
        """A range as pieces of mapped memory; how many, or -2 where it takes Python. Raises `RemoteError`."""
        space: AddressSpace | None = self._space
        number: cython.uint = 0
        count: cython.int = 0
        size: cython.ulonglong
        address: cython.ulonglong
        if space is None:
            return -2
        while length and number < self._count:
            address = self._address(number)
            size = self._size(number)
            number += 1
            if offset >= size:
                offset -= size
                continue
            size -= offset
            if size > length:
                size = length
            count = space.gather(address + offset, size, self._access, table, count, limit)
            if count == -1:
                raise RemoteError(f"guest address {address + offset:#x} is in no memory region")
            if count < 0:
                return count
            length -= size
            offset = 0
        return count

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload`."""
        count: cython.int
        number: cython.int
        done: cython.ulonglong = 0
        self._check(offset, length)
        count = self._gather(offset, length, _small, _PIECES)
        if count < 0:
            return b"".join(self._pieces(self._parts(offset, length)))
        if count == 1:
            return bytes_at(ld64(_small, 0), ld64(_small, 8))
        data = bytearray(length)
        if length:
            to: cython.p_uchar = pointer(data)
            for number in range(count):
                fetch(to, done, ld64(_small, 16 * number), ld64(_small, 16 * number + 8))
                done += ld64(_small, 16 * number + 8)
        return bytes(data)

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `Payload`."""
        count: cython.int
        number: cython.int
        done: cython.ulonglong = 0
        length = len(data)
        self._check(offset, length)
        count = self._gather(offset, length, _small, _PIECES)
        if count >= 0:
            if length:
                source: cython.p_uchar = pointer_to_read(data)
                for number in range(count):
                    store(ld64(_small, 16 * number), source, done, ld64(_small, 16 * number + 8))
                    done += ld64(_small, 16 * number + 8)
        else:
            at = 0
            for piece in self._pieces(self._parts(offset, length)):
                piece[:] = data[at : at + len(piece)]
                at += len(piece)
        if self._memory.logging:
            self._written(offset, length)

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`: straight into guest memory, if the backing does not look at what it moves."""
        self._check(offset, length)
        try:
            if not self._move(backing, position, offset, length, True):
                self._fill(backing, position, self._pieces(self._parts(offset, length)))
        finally:
            if self._memory.logging:
                self._written(offset, length)  # also what was written before it failed

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`: straight from guest memory, if the backing does not look at what it moves."""
        self._check(offset, length)
        if self._move(backing, position, offset, length, False):
            return
        pieces = self._pieces(self._parts(offset, length))
        if backing.vectored:
            backing.write_vector(position, pieces)
        else:
            backing.write_from(position, memoryview(bytearray(b"".join(pieces))))

    @staticmethod
    def _fill(backing: Backing, position: int, pieces: list[memoryview]) -> None:
        if backing.vectored:
            backing.read_vector(position, pieces)
            return
        data = memoryview(bytearray(sum(map(len, pieces))))
        backing.read_into(position, data)
        at = 0
        for piece in pieces:
            piece[:] = data[at : at + len(piece)]
            at += len(piece)

    @cython.cfunc
    @cython.exceptval(-1)
    def _move(
        self,
        backing: Any,
        position: cython.ulonglong,
        offset: cython.ulonglong,
        length: cython.ulonglong,
        to_memory: cython.bint,
    ) -> cython.int:
        """Move by the backing's `Target`, without the interpreter lock; 0 when the backing has to do it."""
        room: cython.int = cython.cast(cython.int, self._count) + 8
        target: Target | None = backing.target
        if target is None:
            return 0
        own = bytearray(16 * room)
        table: cython.p_uchar = pointer(own)
        count: cython.int = self._gather(offset, length, table, room)
        if count < 0:
            return 0
        done: cython.bint
        with cython.nogil:
            if to_memory:
                done = target.read(table, count, position, length)
            else:
                done = target.write(table, count, position, length)
        return 1 if done else 0


@cython.cfunc
def payload_of(memory: Any, space: Any, ring: DeviceRing, writable: cython.bint) -> GuestPayload:
    """One part of the chain that was taken last."""
    first: cython.uint = ring.readable_count if writable else 0
    end: cython.uint = ring.segment_count if writable else ring.readable_count
    payload: GuestPayload = GuestPayload.__new__(GuestPayload)
    payload._memory = memory
    payload._space = space
    payload._access = 2 if writable else 1
    payload.length = 0
    payload._begin(end - first)
    number: cython.uint
    for number in range(end - first):
        payload._set(number, ld64(ring.chain, 16 * (first + number)), ld64(ring.chain, 16 * (first + number) + 8))
    return payload
