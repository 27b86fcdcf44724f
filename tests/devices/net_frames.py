"""Frames and headers for tests of the network device."""

from __future__ import annotations

from struct import Struct

from powervio.virtio import net

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("020202020202")
ALL = (1 << 128) - 1
HEADER = Struct("<BBHHHHH")


def header(flags: int = 0, gso: int = 0, headers: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    """A virtio-net header, with num_buffers 0 as drivers send it."""
    return HEADER.pack(flags, gso, headers, size, start, offset, 0)


def ipv4(
    payload: bytes = b"",
    protocol: int = 17,
    *,
    source: bytes = b"\x0a\0\0\1",
    target: bytes = b"\x0a\0\0\2",
    tag: bytes = b"",
    to: bytes = MAC,
) -> bytes:
    """An IPv4 packet in a frame; its header checksum is not filled in."""
    head = (
        b"\x45\0" + ((20 + len(payload)) & 0xFFFF).to_bytes(2, "big") + b"\0\0\x40\0\x40" + bytes([protocol]) + b"\0\0"
    )
    return to + OTHER + tag + b"\x08\0" + head + source + target + payload


def ipv6(payload: bytes = b"", protocol: int = 17, *, source: bytes = bytes(16), target: bytes = bytes(16)) -> bytes:
    """An IPv6 packet in a frame."""
    return (
        MAC
        + OTHER
        + b"\x86\xdd\x60\0\0\0"
        + len(payload).to_bytes(2, "big")
        + bytes([protocol, 64])
        + source
        + target
        + payload
    )


def tcp(payload: int, source: int = 1000, target: int = 80, *, words: int = 5) -> bytes:
    """A TCP segment of so many bytes behind its header of `words` times 4 bytes."""
    ports = source.to_bytes(2, "big") + target.to_bytes(2, "big")
    return (
        ports
        + bytes(8)
        + bytes([words << 4, 0x18])
        + bytes(6 + 4 * (words - 5))
        + bytes(at % 251 for at in range(payload))
    )


def udp(payload: int, source: int = 1000, target: int = 53) -> bytes:
    """A UDP datagram of so many bytes behind its header."""
    ports = source.to_bytes(2, "big") + target.to_bytes(2, "big")
    return ports + (8 + payload).to_bytes(2, "big") + bytes(2) + bytes(at % 251 for at in range(payload))


TCP4 = header(net.H_NEEDS_CSUM, net.GSO_TCPV4, 54, 1448, 34, 16)
TCP6 = header(net.H_NEEDS_CSUM, net.GSO_TCPV6, 74, 1428, 54, 16)
UDP4 = header(net.H_NEEDS_CSUM, net.GSO_UDP_L4, 42, 1400, 34, 6)
UDP6 = header(net.H_NEEDS_CSUM, net.GSO_UDP_L4, 62, 1400, 54, 6)
