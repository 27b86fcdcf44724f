"""Frames for tests of the switch."""

from __future__ import annotations

MAC = [b"\2\0\0\0\0" + bytes([number]) for number in range(16)]


def ethernet(to: bytes, source: bytes, kind: int = 0x88B5, payload: int = 46, first: int = 0) -> bytes:
    """A frame without a tag, filled with a pattern."""
    return to + source + kind.to_bytes(2, "big") + bytes((first + at) % 251 for at in range(payload))


def tag(data: bytes, vlan: int, priority: int = 0) -> bytes:
    """The frame with an 802.1Q tag."""
    return data[:12] + b"\x81\x00" + (priority << 13 | vlan).to_bytes(2, "big") + data[12:]
