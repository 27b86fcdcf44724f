# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A frame on its way from one driver to another: what its header says, whether that is true, and how it goes on.

Its first bytes are private: what was looked at is what the receiver gets. Whoever forwards has the rest of it.
Both ends' headers are virtio_net_hdr, little-endian (virtio 1.4, 5.1.6).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import sys
from typing import Any

import cython
from cython.cimports.powervio.devices.net_frame import FrameView
from cython.cimports.powervio.memory.hw import copy, get16, ld8, le16, pointer, st8, st16, zero

from powervio.network.frame import Frame

_ETHERNET = cython.declare(cython.ulonglong, 14)
_TAG_TYPE = cython.declare(cython.uint, 0x8100 if sys.byteorder == "big" else 0x0081)
_WITH_TAG = cython.declare(cython.uint, 18)
"""Bytes that a decision of the switch is made of."""
_NEEDS_CSUM = cython.declare(cython.uint, 1)
_MERGEABLE = cython.declare(cython.ulonglong, 12)
_NUM_BUFFERS = cython.declare(cython.ulonglong, 10)
_STRIP = cython.declare(cython.int, 1)
_PUSH = cython.declare(cython.int, 2)

_CSUM = cython.declare(cython.uint, 0x01)
_TSO4 = cython.declare(cython.uint, 0x02)
_TSO6 = cython.declare(cython.uint, 0x04)
_ECN = cython.declare(cython.uint, 0x08)
_USO4 = cython.declare(cython.uint, 0x20)
_USO6 = cython.declare(cython.uint, 0x40)


@cython.final
@cython.cclass
class FrameInHand:
    """One frame at a time."""

    view: FrameView
    data: cython.p_uchar
    have: cython.ulonglong
    length: cython.ulonglong
    needs: cython.uint
    gso: cython.uint
    link_bytes: cython.ulonglong
    _header: cython.p_uchar
    _book: Any

    def __init__(self) -> None:
        """`data`: its first bytes, `have` of them, of `length`; `needs`: bits of `Offload` that its receiver has to
        take; `link_bytes`: of the Ethernet header with a tag."""
        self._book = bytearray(16)
        self._header = pointer(self._book)
        self.view = FrameView()
        self.data = self._header
        self.have = self.length = self.link_bytes = 0
        self.needs = self.gso = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_up(
        self,
        header: cython.p_uchar,
        data: cython.p_uchar,
        have: cython.ulonglong,
        length: cython.ulonglong,
        features: cython.ulonglong,
        mtu: cython.ulonglong,
    ) -> cython.bint:
        """Look at a frame, whose `have` first bytes stay where they are; whether it may go on as it is. `features` are
        what its driver negotiated, `mtu` is its device's."""
        self.data = data
        self.have = have
        self.length = length
        self.needs = 0
        self.gso = ld8(header, 1)
        self.link_bytes = 18 if get16(data, 12) == _TAG_TYPE else _ETHERNET
        if self.gso or ld8(header, 0) & _NEEDS_CSUM:
            copy(self._header, 0, header, 0, 10)
            return self._is_true(features, mtu)
        return length <= mtu + self.link_bytes

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_true(self, features: cython.ulonglong, mtu: cython.ulonglong) -> cython.bint:
        """Whether what the driver says of offloads is true of the frame, and was negotiated."""
        begin: cython.uint = le16(get16(self._header, 6))
        offset: cython.uint = le16(get16(self._header, 8))
        size: cython.uint = le16(get16(self._header, 4))
        kind: cython.uint = self.gso & 0x7F
        bit: cython.uint
        headers: cython.uint
        if not ld8(self._header, 0) & _NEEDS_CSUM or not features & 1:
            return False
        if begin < _WITH_TAG or begin + offset + 2 > self.length:
            return False
        self.needs = _CSUM
        if self.gso == 0:
            return self.length <= mtu + self.link_bytes
        self.view.look(self.data, self.have)
        headers = self.view.headers_of(self.gso, begin, offset, self.length)
        if headers == 0 or size == 0 or headers + size - self.view.link_bytes > mtu:
            return False
        if kind == 1:
            bit = 11
            self.needs |= _TSO4
        elif kind == 4:
            bit = 12
            self.needs |= _TSO6
        else:
            bit = 56
            self.needs |= _USO4 if self.view.network == 4 else _USO6
        if self.gso & 0x80:
            if not features >> 13 & 1:
                return False
            self.needs |= _ECN
        st16(self._header, 2, le16(headers))
        return features >> bit & 1 != 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def checksum_begins(self) -> cython.uint:
        """For `SwitchCore.decide`: csum_start of a partial checksum."""
        return le16(get16(self._header, 6)) if self.needs else _WITH_TAG

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write_header(
        self,
        to: cython.p_uchar,
        place: cython.ulonglong,
        header_bytes: cython.ulonglong,
        shift: cython.int,
        buffers: cython.uint,
    ) -> cython.void:
        """Write the receiver's header: `shift` is by how much a tag moved the frame, `buffers` what the frame takes."""
        zero(to, place, header_bytes)
        if self.needs:
            copy(to, place, self._header, 0, 10)
            st8(to, place, _NEEDS_CSUM)
            if not self.gso:
                zero(to, place + 1, 5)
            elif shift:
                self._move(to, place + 2, shift)
            if shift:
                self._move(to, place + 6, shift)
        if header_bytes == _MERGEABLE:
            st16(to, place + _NUM_BUFFERS, le16(buffers))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _move(self, base: cython.p_uchar, place: cython.ulonglong, shift: cython.int) -> cython.void:
        """An offset in the header that is written moves with the tag."""
        value: cython.int = le16(get16(base, place))
        st16(base, place, le16((value + shift) & 0xFFFF))

    @cython.cfunc
    def as_frame(self, data: Any, shift: cython.int) -> Frame:
        """All of it, whose bytes are given, as an object; `shift` as in `write_header`."""
        size: cython.int = 0
        headers: cython.int = 0
        begin: cython.int
        if not self.needs:
            return Frame(data)
        begin = le16(get16(self._header, 6))
        if self.gso:
            size = le16(get16(self._header, 4))
            headers = le16(get16(self._header, 2))
            headers += shift
        offset = int(le16(get16(self._header, 8)))
        return Frame(data, (begin + shift, offset), False, int(self.gso), size, headers)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def shift_of(change: cython.int) -> cython.int:
    """By how many bytes a change of the tag moves what is behind it."""
    return 4 if change == _PUSH else -4 if change == _STRIP else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_tagged(
    to: cython.p_uchar,
    place: cython.ulonglong,
    source: cython.p_uchar,
    have: cython.ulonglong,
    change: cython.int,
    tci: cython.uint,
) -> cython.ulonglong:
    """Copy the first bytes of a frame with its tag changed, not KEEP; returns how many bytes there are then."""
    copy(to, place, source, 0, 12)
    if change == _STRIP:
        copy(to, place + 12, source, 16, have - 16)
        return have - 4
    st8(to, place + 12, 0x81)
    st8(to, place + 13, 0)
    st8(to, place + 14, tci >> 8)
    st8(to, place + 15, tci & 0xFF)
    if change == _PUSH:
        copy(to, place + 16, source, 12, have - 12)
        return have + 4
    copy(to, place + 16, source, 16, have - 16)
    return have
