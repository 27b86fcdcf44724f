"""Which flow a frame belongs to, as a number: frames of one flow stay in their order, those of others need not."""

from __future__ import annotations

from zlib import crc32

from powervio.network.frame import header_length

_IPV4 = b"\x08\x00"
_IPV6 = b"\x86\xdd"
_WITH_PORTS = frozenset((6, 17, 33, 132))
"""TCP, UDP, DCCP, SCTP: four bytes of ports come first."""
_FRAGMENT = 0x3FFF
"""Of IPv4's flags and offset: more fragments, and where this one is. Only the first has the ports."""


def flow_hash(data: bytes | memoryview) -> int:
    """32 bits, the same for all frames with the same addresses and ports; of one that is not IP, with the same MAC
    addresses and type.

    A frame that is to be segmented has the number of its segments.
    """
    network = header_length(data)
    kind = data[network - 2 : network]
    if kind == _IPV4 and len(data) >= network + 20:
        protocol = data[network + 9]
        key = bytes(data[network + 12 : network + 20])
        if protocol in _WITH_PORTS and not (data[network + 6] << 8 | data[network + 7]) & _FRAGMENT:
            transport = network + 4 * (data[network] & 15)
            key += data[transport : transport + 4]
        return crc32(key, protocol)
    if kind == _IPV6 and len(data) >= network + 40:
        protocol = data[network + 6]
        end = network + (44 if protocol in _WITH_PORTS else 40)
        return crc32(data[network + 8 : end], protocol)
    return crc32(data[:12], int.from_bytes(kind, "big"))
