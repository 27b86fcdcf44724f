# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""An Ethernet frame, and what of it is left to do: the checksum, the segmentation.

A frame has neither preamble nor FCS. Its checksum may be partial, as kernels and virtio have it: the field that is
named holds the sum of a pseudo header, and whoever sends the frame over a wire finishes it. It may be larger than any
wire takes: a frame of TCP or UDP whose payload is to be cut into segments (generic segmentation offload).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from enum import IntFlag
from typing import Any

import cython

ETHERNET_BYTES = 14
TAG_BYTES = 4
MAX_TAGS = 2
_TAGS = (b"\x81\x00", b"\x88\xa8")

GSO_TCPV4 = 1
"""Types of frames that are to be segmented, as in a virtio-net header (virtio 1.4, 5.1.6)."""
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80
"""Beside one of TCP: the first segment has CWR set."""


class Offload(IntFlag):
    """What somebody takes unfinished. The values are those of Linux's TUN_F_*."""

    CSUM = 0x01
    """Frames whose checksum is partial; nothing else is of use without it."""
    TSO4 = 0x02
    """TCP over IPv4 that is not segmented."""
    TSO6 = 0x04
    ECN = 0x08
    """The same with CWR set, which must be in the first segment only."""
    USO4 = 0x20
    """UDP over IPv4 that is not segmented."""
    USO6 = 0x40


@cython.final
@cython.no_gc
@cython.freelist(256)
@cython.cclass
class Frame:
    """One frame. It never changes, and neither does what `data` names, so that many receivers may have the same."""

    data: Any
    partial: Any
    valid: cython.bint
    gso: cython.int
    gso_size: cython.int
    header_bytes: cython.int
    needs: cython.int

    def __init__(
        self,
        data: bytes | memoryview,
        partial: tuple[int, int] | None = None,
        valid: bool = False,
        gso: int = 0,
        gso_size: int = 0,
        header_bytes: int = 0,
    ) -> None:
        """`data`: from the destination address on, tags as on a wire.

        `partial`: where a checksum is to be finished: (start, offset), over all from byte `start` of `data` on; its
        field is `offset` bytes behind that, and within the frame. `valid`: the checksums were found good by whoever
        gave the frame. `gso`: 0, or a GSO_ type, of a frame that has `partial`; `gso_size`: bytes of payload of each
        segment, at least 1; `header_bytes`: what is before the payload, 0 if nobody said.

        `needs` has the bits of `Offload` that a receiver must take to get the frame as it is.
        """
        self.data = data
        self.partial = partial
        self.valid = valid
        self.gso = gso
        self.gso_size = gso_size
        self.header_bytes = header_bytes
        self.needs = 0 if partial is None else _needs(gso, data)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Frame) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    @cython.ccall
    def _key(self) -> tuple[Any, ...]:
        return self.data, self.partial, self.valid, self.gso, self.gso_size, self.header_bytes

    def __repr__(self) -> str:
        return (
            f"Frame({bytes(self.data)!r}, {self.partial}, {bool(self.valid)}, "
            f"gso={self.gso}, gso_size={self.gso_size}, header_bytes={self.header_bytes})"
        )


def header_length(data: bytes | memoryview) -> int:
    """Bytes of a frame before what counts for the MTU: addresses, up to two VLAN tags, type."""
    length = ETHERNET_BYTES
    for _ in range(MAX_TAGS):
        if data[length - 2 : length] not in _TAGS:
            break
        length += TAG_BYTES
    return length


_CSUM = cython.declare(cython.int, 0x01)
_TSO4 = cython.declare(cython.int, 0x02)
_TSO6 = cython.declare(cython.int, 0x04)
_ECN = cython.declare(cython.int, 0x08)
_USO4 = cython.declare(cython.int, 0x20)
_USO6 = cython.declare(cython.int, 0x40)


@cython.cfunc
def _needs(gso: cython.int, data: Any) -> cython.int:
    kind: cython.int = gso & 0x7F
    needs: cython.int = _CSUM
    if kind == GSO_TCPV4:
        needs |= _TSO4
    elif kind == GSO_TCPV6:
        needs |= _TSO6
    elif kind == GSO_UDP_L4:
        length: cython.int = header_length(data)
        needs |= _USO6 if data[length - 2 : length] == b"\x86\xdd" else _USO4
    if gso & 0x80:
        needs |= _ECN
    return needs
