"""From a transmit buffer to a frame: what stands before it, and every check of that (virtio 1.4, 5.1.6.2).

What a driver says of offloads is believed only as far as the frame's own headers say the same; `hdr_len` is a hint, and
not looked at (5.1.6.2.2).
"""

from __future__ import annotations

from powervio.devices.net_frame import LOOK, FrameView
from powervio.network.port import ETHERNET_BYTES, MAX_TAGS, TAG_BYTES, Frame, header_length
from powervio.virtio import net
from powervio.virtio.queue import ByteOrder, Request

MAX_FRAME = 65535 + ETHERNET_BYTES + MAX_TAGS * TAG_BYTES
"""Bytes of the largest frame that is to be segmented: an IP packet has 16 bits for its length."""

_HOST_BITS = {
    net.GSO_TCPV4: net.F_HOST_TSO4,
    net.GSO_TCPV6: net.F_HOST_TSO6,
    net.GSO_UDP_L4: net.F_HOST_USO,
}


class FrameReader:
    """For one session of one device."""

    def __init__(self, features: int, byteorder: ByteOrder, mtu: int) -> None:
        """`mtu` is bytes of a frame without its Ethernet header and tags."""
        self.header_bytes = net.header_bytes(features)
        self._features = features
        self._header = net.HEADER[byteorder]
        self._mtu = mtu
        self._view = FrameView()
        segments = features & (net.F_HOST_TSO4 | net.F_HOST_TSO6 | net.F_HOST_USO)
        largest = mtu + ETHERNET_BYTES + MAX_TAGS * TAG_BYTES
        self.longest = self.header_bytes + (max(largest, MAX_FRAME) if segments else largest)
        """Bytes that a buffer may have, with the header."""
        self.shortest = self.header_bytes + ETHERNET_BYTES

    def refusal(self, request: Request) -> str:
        """Why a transmit buffer is not even read."""
        length = request.readable.length
        if request.writable.length or length < self.header_bytes:
            return "malformed"
        if length < self.shortest:
            return "too short"
        return "too long" if length > self.longest else ""

    def read(self, data: bytes) -> Frame | str:
        """The frame in a buffer of a length between `shortest` and `longest`, or why there is none that may go on."""
        frame = memoryview(data)[self.header_bytes :]
        flags, gso = data[0], data[1]
        if gso != net.GSO_NONE:
            return self._segmented(data, frame, flags, gso)
        if not fits(frame, self._mtu):
            return "too long"
        if not flags & net.H_NEEDS_CSUM:  # other flags are ignored (5.1.6.2.2)
            return Frame(frame)
        if not self._features & net.F_CSUM:
            return "not negotiated"
        _, _, _, _, begin, offset = self._header.unpack_from(data)
        if begin + offset + 2 > len(frame):
            return "checksum outside"
        return Frame(frame, (begin, offset))

    def _segmented(self, data: bytes, frame: memoryview, flags: int, gso: int) -> Frame | str:
        _, _, _, size, begin, offset = self._header.unpack_from(data)
        kind = gso & ~net.GSO_ECN
        if not self._features & _HOST_BITS.get(kind, 0):
            return "not negotiated"
        if gso & net.GSO_ECN and not self._features & net.F_HOST_ECN:
            return "not negotiated"
        if not flags & net.H_NEEDS_CSUM:  # a driver must set it with a type (5.1.6.2.1)
            return "segmentation"
        if begin + offset + 2 > len(frame):
            return "checksum outside"
        view = self._view
        view.look_at(frame[:LOOK], 0)
        headers = view.segmented_headers(gso, begin, offset, len(frame))
        if not headers or not size:
            return "segmentation"
        if headers + size - view.link_bytes > self._mtu:
            return "too long"
        return Frame(frame, (begin, offset), False, gso, size, headers)


def fits(data: bytes | memoryview, mtu: int) -> bool:
    """Whether a frame has no more than `mtu` bytes behind its Ethernet header and tags."""
    excess = len(data) - mtu
    return excess <= ETHERNET_BYTES or excess <= header_length(data)
