# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Where TCP is in a frame, for both ends of a logical LAN: its checksum may be missing, its payload may be large.

The hypervisor offloads TCP over IPv4 and IPv6, also behind extension headers, and nothing else (papr-vio 7.4). Offsets
count from the frame's first byte, tags included. The bytes that are looked at are private: nobody else writes to them.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import be16, be32, get16, get32, ld8, pointer_to_read, st8

_ETHERNET = cython.declare(cython.ulonglong, 14)
_TAG = cython.declare(cython.ulonglong, 4)
_TCP = cython.declare(cython.uint, 6)
_AUTHENTICATION = cython.declare(cython.uint, 51)
_MOBILITY = cython.declare(cython.uint, 135)
_EXTENSIONS = cython.declare(cython.int, 8)
"""Extension headers that are walked over at most."""
_CHECKSUM = cython.declare(cython.ulonglong, 16)
_LOW = cython.declare(cython.ulonglong, 0xFFFF)

CHECKSUM_OFFSET = 16
"""Of the checksum in a TCP header."""


@cython.final
@cython.cclass
class TcpView:
    """The headers of the frame that was looked at last."""

    tagged: cython.bint
    vlan: cython.uint
    version: cython.uint
    network: cython.ulonglong
    transport: cython.ulonglong
    payload: cython.ulonglong
    end: cython.ulonglong
    congested: cython.bint
    _data: cython.p_uchar

    def __init__(self) -> None:
        self._reset()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _reset(self) -> cython.void:
        self.tagged = False
        self.vlan = 0
        self.version = 0
        self.network = self.transport = self.payload = self.end = 0
        self.congested = False

    def look_at(self, data: bytes | memoryview) -> bool:
        """As `look`, for those who have an object."""
        return bool(self.look(pointer_to_read(data), len(data)))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, data: cython.p_uchar, length: cython.ulonglong) -> cython.bint:
        """Find TCP in a frame of `length` bytes: whether there is a whole TCP header, in no fragment.

        If so, `version` is of IP, `network`, `transport` and `payload` say where the headers end, `end` where the
        packet does (what is behind is padding), `congested` whether CWR is set. `tagged` and `vlan` are of its first
        tag, whatever the frame is.
        """
        kind: cython.uint
        at: cython.ulonglong = _ETHERNET
        self._reset()
        self._data = data
        if length < _ETHERNET:
            return False
        kind = be16(get16(data, 12))
        if kind == 0x8100 and length >= _ETHERNET + _TAG:
            self.tagged = True
            self.vlan = be16(get16(data, 14)) & 0xFFF
            kind = be16(get16(data, 16))
            at += _TAG
        self.network = at
        if kind == 0x0800:
            return self._ipv4(length)
        return kind == 0x86DD and self._ipv6(length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ipv4(self, length: cython.ulonglong) -> cython.bint:
        at: cython.ulonglong = self.network
        header: cython.ulonglong
        if at + 20 > length or ld8(self._data, at) >> 4 != 4:
            return False
        header = 4 * (ld8(self._data, at) & 15)
        self.end = at + be16(get16(self._data, at + 2))
        if header < 20 or self.end > length or self.end < at + header:
            return False
        if be16(get16(self._data, at + 6)) & 0x3FFF != 0 or ld8(self._data, at + 9) != _TCP:
            return False
        return self._tcp(4, at + header)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _ipv6(self, length: cython.ulonglong) -> cython.bint:
        at: cython.ulonglong = self.network
        protocol: cython.uint
        number: cython.int
        if at + 40 > length or ld8(self._data, at) >> 4 != 6:
            return False
        self.end = at + 40 + be16(get16(self._data, at + 4))
        if self.end > length:
            return False
        protocol = ld8(self._data, at + 6)
        at += 40
        for number in range(_EXTENSIONS):
            if protocol == _TCP:
                return self._tcp(6, at)
            if at + 8 > self.end:
                return False
            if protocol == 0 or protocol == 43 or protocol == 60 or protocol == _MOBILITY:
                protocol = ld8(self._data, at)
                at += 8 * (cython.cast(cython.ulonglong, ld8(self._data, at + 1)) + 1)
            elif protocol == _AUTHENTICATION:
                protocol = ld8(self._data, at)
                at += 4 * (cython.cast(cython.ulonglong, ld8(self._data, at + 1)) + 2)
            else:
                return False
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tcp(self, version: cython.uint, at: cython.ulonglong) -> cython.bint:
        header: cython.ulonglong
        if at + 20 > self.end:
            return False
        header = 4 * (ld8(self._data, at + 12) >> 4)
        if header < 20 or at + header > self.end:
            return False
        self.version = version
        self.transport = at
        self.payload = at + header
        self.congested = ld8(self._data, at + 13) & 0x80 != 0
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pseudo_sum(self) -> cython.uint:
        """The ones' complement sum of the pseudo header, which stands for a checksum that is partial.

        It has the addresses of the IP header, as if there were no routing header, as whoever goes on with it does.
        """
        total: cython.ulonglong = _TCP + (self.end - self.transport)
        at: cython.ulonglong = self.network + (12 if self.version == 4 else 8)
        number: cython.int
        for number in range(2 if self.version == 4 else 8):
            total += be32(get32(self._data, at + 4 * number))
        while total > _LOW:
            total = (total & _LOW) + (total >> 16)
        return cython.cast(cython.uint, total)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def make_partial(self) -> cython.void:
        """Put that sum into the checksum's field."""
        value: cython.uint = self.pseudo_sum()
        st8(self._data, self.transport + _CHECKSUM, value >> 8)
        st8(self._data, self.transport + _CHECKSUM + 1, value & 0xFF)
