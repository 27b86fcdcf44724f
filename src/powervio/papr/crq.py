"""Command/Response Queue elements: 16 bytes, big-endian (papr-vio 3.2 and 3.3)."""

from __future__ import annotations

from enum import IntEnum

ELEMENT_SIZE = 16

VALID_FREE = 0x00
"""Header of a slot that the owner has emptied."""
VALID_MESSAGE = 0x80
"""Header of a command or response; the format byte is a matter of the two drivers."""
VALID_INIT = 0xC0
"""Header of an initialization message."""
VALID_EVENT = 0xFF
"""Header of a transport event; only the hypervisor makes one."""

EVENT_OVERLAID = 0x20
"""Byte 3 of an event that had to overwrite the newest element of a full queue: one message was lost."""


class InitCode(IntEnum):
    """Format byte of an initialization message."""

    INITIALIZE = 0x01
    INITIALIZATION_COMPLETE = 0x02


class TransportEvent(IntEnum):
    """Format byte of a transport event."""

    PARTNER_FAILED = 0x01
    PARTNER_DEREGISTERED = 0x02
    PARTNER_TERMINATED = 0x04
    """The partner was terminated at this partition's own request."""
    PARTNER_SUSPENDED = 0x06
    PREPARE_FOR_SUSPEND = 0x09
    CLIENT_RESUMED = 0x0A


def init_message(code: InitCode) -> int:
    """The first doubleword of an initialization message."""
    return (VALID_INIT << 56) | (code << 48)


def event_element(event: TransportEvent) -> int:
    """The first doubleword of a transport event."""
    return (VALID_EVENT << 56) | (event << 48)


def header_of(high: int) -> int:
    """Byte 0 of an element, from its first doubleword."""
    return high >> 56


def format_of(high: int) -> int:
    """Byte 1 of an element, from its first doubleword."""
    return (high >> 48) & 0xFF
