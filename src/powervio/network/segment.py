"""Segmentation in software: what a network adapter does with large frames, for who does not take them.

The rules are those of Linux's GSO: each segment has the headers of the frame with its own lengths; the IPv4 identifier
counts up; the sequence number goes on; FIN and PSH are the last segment's, CWR is the first's.
"""

from __future__ import annotations

from powervio.network.checksum import checksum, finished
from powervio.network.frame import GSO_TCPV4, GSO_UDP_L4, Frame, Offload, header_length

_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"
_IPV6_BYTES = 40
_TCP, _UDP = 6, 17
_MAX_IP = 65535
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
_MOST = 1366
"""Segments of one frame: 64 KiB in pieces of 48 bytes, Linux's smallest."""
_FRAGMENT = 0x3FFF
"""Of the IPv4 flags and offset: more fragments, and where this one is."""
_CSUM = int(Offload.CSUM)


def fitted(frame: Frame, taken: int) -> tuple[Frame, ...] | list[Frame]:
    """What somebody gets of a frame who takes these bits of `Offload`.

    Nothing of a frame that cannot be segmented, for it is not what it says.
    """
    missing = frame.needs & ~taken
    if not missing:
        return (frame,)
    if frame.gso:
        return segments(frame, partial=taken & _CSUM != 0)
    return (finished(frame),)


def segments(frame: Frame, *, partial: bool = False) -> list[Frame]:
    """The segments of a frame that is to be segmented, their checksums finished or else partial.

    Empty for one that cannot be: its headers are not of its type, or outside of the frame.
    """
    if frame.partial is None or frame.gso_size <= 0:
        return []
    data = memoryview(frame.data)
    network = header_length(data)
    start, offset = frame.partial
    is_tcp = frame.gso & 0x7F != GSO_UDP_L4
    is_ipv4 = _is_ipv4(frame, data, network)
    header = _headers(data, network, start, is_tcp, is_ipv4)
    if header is None or offset != (16 if is_tcp else 6):
        return []
    size = frame.gso_size
    end = len(data)
    count = max(1, -(-(end - len(header)) // size))
    if count > _MOST:
        return []
    # the field has the sum of a pseudo header with the length of all of it, which the segments' lengths replace
    pseudo = int.from_bytes(header[start + offset : start + offset + 2], "big") + (~(end - start) & 0xFFFF)
    identifier = int.from_bytes(header[network + 4 : network + 6], "big")
    sequence = int.from_bytes(header[start + 4 : start + 8], "big")
    flags = header[start + 13] if is_tcp else 0
    parts = []
    for number in range(count):
        payload = data[len(header) + number * size : len(header) + (number + 1) * size]
        segment = bytearray(header)
        length = len(header) + len(payload) - start
        if is_ipv4:
            segment[network + 2 : network + 4] = (length + start - network).to_bytes(2, "big")
            segment[network + 4 : network + 6] = (identifier + number & 0xFFFF).to_bytes(2, "big")
            segment[network + 10 : network + 12] = b"\0\0"
            segment[network + 10 : network + 12] = checksum(memoryview(segment)[network:start]).to_bytes(2, "big")
        else:
            segment[network + 4 : network + 6] = (length + start - network - _IPV6_BYTES).to_bytes(2, "big")
        if is_tcp:
            segment[start + 4 : start + 8] = (sequence + number * size & 0xFFFF_FFFF).to_bytes(4, "big")
            mine = flags if number == 0 else flags & ~_CWR
            segment[start + 13] = mine if number == count - 1 else mine & ~(_FIN | _PSH)
        else:
            segment[start + 4 : start + 6] = length.to_bytes(2, "big")
        segment[start + offset : start + offset + 2] = _folded(pseudo + length).to_bytes(2, "big")
        part = Frame(b"".join((segment, payload)), (start, offset), header_bytes=len(header))
        parts.append(part if partial else finished(part))
    return parts


def _is_ipv4(frame: Frame, data: memoryview, network: int) -> bool:
    kind = frame.gso & 0x7F
    return kind == GSO_TCPV4 or (kind == GSO_UDP_L4 and data[network - 2 : network] == _IPV4)


def _headers(data: memoryview, network: int, start: int, is_tcp: bool, is_ipv4: bool) -> bytes | None:
    """All before the payload, whose transport header begins at `start`; None if they are not that."""
    protocol = _TCP if is_tcp else _UDP
    if len(data) < start + (20 if is_tcp else 8) or data[network - 2 : network] != (_IPV4 if is_ipv4 else _IPV6):
        return None
    if is_ipv4:
        if start < network + 20 or data[network] >> 4 != 4 or start != network + 4 * (data[network] & 15):
            return None
        if data[network + 9] != protocol or int.from_bytes(data[network + 6 : network + 8], "big") & _FRAGMENT:
            return None
    elif start < network + _IPV6_BYTES or data[network] >> 4 != 6 or _is_other(data, network, start, protocol):
        return None
    length = start + (4 * (data[start + 12] >> 4) if is_tcp else 8)
    if length < start + (20 if is_tcp else 8) or length > len(data) or len(data) - network > _MAX_IP + _IPV6_BYTES:
        return None
    return bytes(data[:length])


def _is_other(data: memoryview, network: int, start: int, protocol: int) -> bool:
    """Whether the transport of IPv6 is another; what is behind extension headers is as the sender says."""
    return start == network + _IPV6_BYTES and data[network + 6] != protocol


def _folded(total: int) -> int:
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total
