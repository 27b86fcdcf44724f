# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the headers of a frame say: where they are, whether offload metadata is true, and which flow the frame is of.

The bytes that are looked at are private: somebody else's memory is copied before, for it may change between two looks.
Offsets count from the frame's first byte; integers of headers are big-endian.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import be16, be32, get16, get32, ld8, pointer_to_read

LOOK = 256
"""Bytes of a frame that are enough to find its headers in."""

_ETHERNET = cython.declare(cython.uint, 14)
_TAGS = cython.declare(cython.int, 2)
_EXTENSIONS = cython.declare(cython.int, 8)
"""Extension headers of IPv6 that are walked over at most."""
_TCP = cython.declare(cython.uint, 6)
_UDP = cython.declare(cython.uint, 17)
_GSO_TCPV4 = cython.declare(cython.uint, 1)
_GSO_TCPV6 = cython.declare(cython.uint, 4)
_GSO_UDP_L4 = cython.declare(cython.uint, 5)
_GSO_ECN = cython.declare(cython.uint, 0x80)
_ALL32 = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_SPREAD = cython.declare(cython.ulonglong, 0x9E37_79B1)


@cython.final
@cython.cclass
class FrameView:
    """The headers of the frame that was looked at last."""

    link_bytes: cython.uint
    tagged: cython.bint
    vlan: cython.uint
    network: cython.uint
    protocol: cython.uint
    transport: cython.uint
    _data: cython.p_uchar
    _have: cython.ulonglong

    def __init__(self) -> None:
        self.link_bytes = 0
        """Bytes of addresses, up to two VLAN tags and type."""
        self.tagged = False
        """Whether there is a VLAN tag."""
        self.vlan = 0
        """VLAN of the outer tag; 0 when there is none, or it has a priority alone."""
        self.network = 0
        """4 or 6 for a packet of that IP version whose header is whole, else 0."""
        self.protocol = 0
        """Of its payload."""
        self.transport = 0
        """Where the header of TCP or UDP is, or would be; 0 in a fragment, and where it was not found."""
        self._have = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, data: cython.p_uchar, have: cython.ulonglong) -> cython.void:
        """Find the headers in the first `have` bytes of a frame, at least 14, which stay there until the next look."""
        kind: cython.uint = be16(get16(data, 12))
        tags: cython.int = 0
        self._data = data
        self._have = have
        self.link_bytes = _ETHERNET
        self.tagged = False
        self.vlan = self.network = self.protocol = self.transport = 0
        while (kind == 0x8100 or kind == 0x88A8) and tags < _TAGS and self.link_bytes + 4 <= have:
            if tags == 0:
                self.tagged = True
                self.vlan = be16(get16(data, self.link_bytes)) & 0xFFF
            kind = be16(get16(data, self.link_bytes + 2))
            self.link_bytes += 4
            tags += 1
        if kind == 0x0800:
            self._look_at_ipv4()
        elif kind == 0x86DD:
            self._look_at_ipv6()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look_at_ipv4(self) -> cython.void:
        at: cython.uint = self.link_bytes
        length: cython.uint
        if at + 20 > self._have or ld8(self._data, at) >> 4 != 4:
            return
        length = 4 * (ld8(self._data, at) & 15)
        if length < 20 or at + length > self._have:
            return
        self.network = 4
        self.protocol = ld8(self._data, at + 9)
        if not be16(get16(self._data, at + 6)) & 0x3FFF:  # no fragment
            self.transport = at + length

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _look_at_ipv6(self) -> cython.void:
        at: cython.ulonglong = self.link_bytes
        number: cython.int
        if at + 40 > self._have or ld8(self._data, at) >> 4 != 6:
            return
        self.network = 6
        self.protocol = ld8(self._data, at + 6)
        at += 40
        for number in range(_EXTENSIONS):
            if self.protocol != 0 and self.protocol != 43 and self.protocol != 60:
                break
            if at + 8 > self._have:
                return
            self.protocol = ld8(self._data, at)
            at += 8 * (ld8(self._data, at + 1) + 1)
        if self.protocol == _TCP or self.protocol == _UDP:
            self.transport = cython.cast(cython.uint, at)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def headers_of(
        self, gso: cython.uint, begin: cython.uint, offset: cython.uint, length: cython.ulonglong
    ) -> cython.uint:
        """Bytes of all headers of a frame of `length` bytes that is to be segmented as `gso` says, with its checksum at
        `begin` and `offset`; 0 when that cannot be so.
        """
        kind: cython.uint = gso & ~_GSO_ECN
        end: cython.ulonglong
        if self.transport == 0 or begin != self.transport:
            return 0
        if kind == _GSO_UDP_L4:
            if self.protocol != _UDP or offset != 6 or gso & _GSO_ECN:
                return 0
            end = begin + 8
        else:
            if self.protocol != _TCP or offset != 16 or begin + 20 > self._have:
                return 0
            if not (kind == _GSO_TCPV4 and self.network == 4) and not (kind == _GSO_TCPV6 and self.network == 6):
                return 0
            end = 4 * (ld8(self._data, begin + 12) >> 4)
            if end < 20:
                return 0
            end += begin
        # without payload there is nothing to segment
        return cython.cast(cython.uint, end) if end <= self._have and end < length else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def has_ports(self) -> cython.bint:
        """Whether TCP or UDP ports are there."""
        return (
            self.transport != 0
            and (self.protocol == _TCP or self.protocol == _UDP)
            and self.transport + 4 <= self._have
        )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flow(self) -> cython.uint:
        """A number that both directions of a flow have in common; 0 for what is not IP."""
        at: cython.uint = self.link_bytes
        mixed: cython.ulonglong = self.protocol
        number: cython.uint
        if self.network == 4:
            mixed ^= get32(self._data, at + 12) ^ get32(self._data, at + 16)
        elif self.network == 6:
            for number in range(8):
                mixed ^= get32(self._data, at + 8 + 4 * number)
        else:
            return 0
        if self.has_ports():
            mixed ^= (get16(self._data, self.transport) ^ get16(self._data, self.transport + 2)) << 8
        mixed = (mixed * _SPREAD) & _ALL32
        return cython.cast(cython.uint, mixed ^ mixed >> 15)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hashed(self, types: cython.uint, key: cython.p_uchar) -> cython.longlong:
        """The Toeplitz hash (5.1.6.4.3) of what `types` wants of this frame, with a key of 40 bytes; -1: of nothing."""
        at: cython.uint = self.link_bytes
        shift: cython.uint = 0 if self.network == 4 else 3
        hashes: cython.ulonglong
        ports: cython.bint = False
        if self.network == 0:
            return -1
        if self.has_ports():
            ports = types >> (shift + (1 if self.protocol == _TCP else 2)) & 1 != 0
        if not ports and not types >> shift & 1:
            return -1
        if self.network == 4:
            hashes = self._toeplitz(key, 0, at + 12, 8)
            if ports:
                hashes ^= self._toeplitz(key, 8, self.transport, 4)
        else:
            hashes = self._toeplitz(key, 0, at + 8, 32)
            if ports:
                hashes ^= self._toeplitz(key, 32, self.transport, 4)
        return cython.cast(cython.longlong, hashes)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _toeplitz(
        self, key: cython.p_uchar, place: cython.uint, at: cython.uint, length: cython.uint
    ) -> cython.ulonglong:
        """What bytes of the frame from `at` on give when they are the input from byte `place` on."""
        found: cython.ulonglong = 0
        window: cython.ulonglong
        byte: cython.uint
        number: cython.uint
        bit: cython.uint
        for number in range(length):
            byte = ld8(self._data, at + number)
            window = be32(get32(key, place + number))
            window = window << 8 | ld8(key, place + number + 4)
            for bit in range(8):
                if byte >> (7 - bit) & 1:
                    found ^= window >> (8 - bit) & _ALL32
        return found

    # -- for callers in Python

    @cython.ccall
    def look_at(self, data: object, start: cython.ulonglong) -> cython.void:
        """As `look`, at the frame that begins at `start` in a buffer of as many bytes more, at least."""
        view = memoryview(data)[int(start) :]  # type: ignore[arg-type]
        self.look(pointer_to_read(view), len(view))

    @cython.ccall
    def segmented_headers(
        self, gso: cython.uint, begin: cython.uint, offset: cython.uint, length: cython.ulonglong
    ) -> cython.uint:
        """As `headers_of`."""
        return self.headers_of(gso, begin, offset, length)
