# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A frame on its way from a mapped ring to others, and where it is.

It is copied once, but for its first bytes, which are private before they are looked at: what the switch, a filter or
the check of offload metadata has seen is what the receiver gets.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.devices.net_in_hand import FrameInHand, shift_of, write_tagged
from cython.cimports.powervio.memory.hw import at, copy, fetch, ld64, pointer, store, transfer
from cython.cimports.powervio.memory.space import READ, AddressSpace
from cython.cimports.powervio.virtio.device_ring import DeviceRing

_PRIVATE = cython.declare(cython.ulonglong, 256)
"""Bytes of a frame that are copied before they are looked at."""
_SOURCES = cython.declare(cython.int, 80)
"""Pieces of a frame at most; what has more is not usual."""
_BEFORE = cython.declare(cython.ulonglong, 16)
"""Bytes before a private frame, where its header is."""
_ETHERNET = cython.declare(cython.ulonglong, 14)
_LARGEST = cython.declare(cython.ulonglong, 65535)
_KEEP = cython.declare(cython.int, 0)


@cython.final
@cython.cclass
class Passage:
    """What goes on now in one thread that forwards: which queue is touched, and the frame in hand."""

    current: cython.uint
    open: cython.bint
    open_head: cython.uint
    opened_by: cython.uint
    hand: FrameInHand
    frame: cython.p_uchar
    out: cython.p_uchar
    out_bytes: cython.ulonglong
    rest_bytes: cython.ulonglong
    _private: cython.p_uchar
    _changed: cython.p_uchar
    _base: cython.p_uchar
    _looked: cython.bint
    _sources: cython.p_uchar
    _source_count: cython.int
    _rest_source: cython.int
    _rest_offset: cython.ulonglong
    _reading: cython.int
    _offset: cython.ulonglong
    _shift: cython.int
    _place: cython.ulonglong
    _books: Any

    def __init__(self) -> None:
        """`frame` has the first bytes as they came; `out`, as the receiver gets them; `rest_bytes` come after."""
        books = bytearray(512), bytearray(16 * 128), bytearray(512)
        self.current = 0
        """The `identity` of the queue that was touched last."""
        self.open = False
        """Whether a buffer was taken of a transmit queue, and has not gone back; it is `open_head` of `opened_by`."""
        self.open_head = self.opened_by = 0
        self.hand = FrameInHand()
        self.out_bytes = self.rest_bytes = 0
        self._private = pointer(books[0])
        self.frame = at(self._private, _BEFORE)
        self._sources = pointer(books[1])
        self._changed = pointer(books[2])
        self._base = self._private
        self.out = self.frame
        self._looked = False
        self._shift = 0
        self._source_count = self._rest_source = self._reading = 0
        self._rest_offset = self._offset = self._place = 0
        self._books = books

    # -- from the ring

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find(
        self,
        ring: DeviceRing,
        space: AddressSpace,
        header_bytes: cython.ulonglong,
        features: cython.ulonglong,
        mtu: cython.ulonglong,
    ) -> cython.bint:
        """Have the frame that was taken of a ring last, if all of it is there and it passes the checks."""
        number: cython.uint
        total: cython.ulonglong = ring.readable_bytes
        length: cython.ulonglong
        have: cython.ulonglong
        count: cython.int = 0
        if ring.writable_bytes or total < header_bytes + _ETHERNET:
            return False
        length = total - header_bytes
        if length > _LARGEST + _ETHERNET + 8:
            return False
        for number in range(ring.segment_count):
            count = space.gather(
                ld64(ring.chain, 16 * number),
                ld64(ring.chain, 16 * number + 8),
                READ,
                self._sources,
                count,
                _SOURCES,
            )
            if count < 0:
                return False
        self._source_count = count
        self._reading = 0
        self._offset = 0
        have = length if length < _PRIVATE else _PRIVATE
        self._fetch(at(self._private, _BEFORE - header_bytes), header_bytes + have)
        self._rest_source = self._reading
        self._rest_offset = self._offset
        self.rest_bytes = length - have
        return self.hand.take_up(at(self._private, _BEFORE - header_bytes), self.frame, have, length, features, mtu)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fetch(self, to: cython.p_uchar, length: cython.ulonglong) -> cython.void:
        """Copy the next bytes of the sources."""
        done: cython.ulonglong = 0
        part: cython.ulonglong
        while done < length and self._reading < self._source_count:
            part = ld64(self._sources, 16 * self._reading + 8) - self._offset
            if part > length - done:
                part = length - done
            fetch(to, done, ld64(self._sources, 16 * self._reading) + self._offset, part)
            done += part
            self._offset += part
            if self._offset == ld64(self._sources, 16 * self._reading + 8):
                self._reading += 1
                self._offset = 0

    # -- to a receiver

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def change(self, change: cython.int, tci: cython.uint) -> cython.void:
        """Make the first bytes of the frame as its receiver gets it, with `tci` in a new tag."""
        self._looked = False
        self._base = self._private if change == _KEEP else self._changed
        self._shift = shift_of(change)
        self.out = at(self._base, _BEFORE)
        if change == _KEEP:
            self.out_bytes = self.hand.have
        else:
            self.out_bytes = write_tagged(self.out, 0, self.frame, self.hand.have, change, tci)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self) -> cython.void:
        """Find the headers of the frame as a receiver gets it."""
        if not self._looked:
            self._looked = True
            self.hand.view.look(self.out, self.out_bytes)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin_reading(self, header_bytes: cython.ulonglong, buffers: cython.uint) -> cython.void:
        """Read header, first bytes and the rest of the frame from the beginning on."""
        self._place = _BEFORE - header_bytes
        self.hand.write_header(self._base, self._place, header_bytes, self._shift, buffers)
        self._reading = self._rest_source
        self._offset = self._rest_offset

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_to(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """Copy the next bytes to an address."""
        part: cython.ulonglong
        end: cython.ulonglong = _BEFORE + self.out_bytes
        while length:
            if self._place < end:
                part = end - self._place
                if part > length:
                    part = length
                store(address, self._base, self._place, part)
                self._place += part
            else:
                if self._reading >= self._source_count:
                    return
                part = ld64(self._sources, 16 * self._reading + 8) - self._offset
                if part > length:
                    part = length
                transfer(address, ld64(self._sources, 16 * self._reading) + self._offset, part)
                self._offset += part
                if self._offset == ld64(self._sources, 16 * self._reading + 8):
                    self._reading += 1
                    self._offset = 0
            address += part
            length -= part

    @cython.cfunc
    def whole(self) -> Any:
        """The frame as an object, as its receiver gets it."""
        data = bytearray(int(self.out_bytes + self.rest_bytes))
        to: cython.p_uchar = pointer(data)
        copy(to, 0, self.out, 0, self.out_bytes)
        if self.rest_bytes:
            self._reading = self._rest_source
            self._offset = self._rest_offset
            self._fetch(at(to, self.out_bytes), self.rest_bytes)
        return self.hand.as_frame(bytes(data), self._shift)
