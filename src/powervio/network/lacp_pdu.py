"""The frames of link aggregation as values (IEEE 802.1AX-2014, 6.4.2 and 6.5.3): LACPDUs and Markers.

Both go to 01-80-C2-00-00-02, which no bridge forwards, with the Ethernet type of slow protocols. All numbers are
big-endian. Fields that are reserved are sent as zeros and not looked at, as the standard has it, so that later versions
are understood as far as version 1 goes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from struct import Struct

from powervio.errors import LocalError, RemoteError

DESTINATION = bytes.fromhex("0180c2000002")
SLOW_PROTOCOLS = b"\x88\x09"
LACP = 1
"""Subtypes."""
MARKER = 2
VERSION = 1

_HEADER_BYTES = 14
_ETHERNET = Struct("!6s6s2s")
_PORT_INFO = Struct("!BBH6sHHHB3x")
"""TLV type and length; system priority, system, key, port priority, port, state."""
_COLLECTOR = Struct("!BBH12x")
_ACTOR_TLV, _PARTNER_TLV, _COLLECTOR_TLV, _TERMINATOR = 1, 2, 3, 0
_PORT_INFO_BYTES = 20
_COLLECTOR_BYTES = 16
_LACPDU_BYTES = 110
"""Of a version 1 LACPDU, subtype and version included."""
_MARKER_INFO = Struct("!BBH6sI2x")
"""TLV type and length; requester's port, system, transaction."""
_MARKER_TLV, _RESPONSE_TLV = 1, 2
_MARKER_BYTES = 110


class State(IntFlag):
    """What a port says of itself (6.4.2.3)."""

    ACTIVITY = 0x01
    """It sends LACPDUs whether it is asked to or not."""
    TIMEOUT = 0x02
    """It wants them every second; else every 30."""
    AGGREGATION = 0x04
    """It may be one of several; else it is a link of its own."""
    SYNCHRONIZATION = 0x08
    """It belongs to the right aggregate."""
    COLLECTING = 0x10
    DISTRIBUTING = 0x20
    DEFAULTED = 0x40
    """What it says of its partner is not from an LACPDU."""
    EXPIRED = 0x80


_NO_STATE = State(0)


@dataclass(frozen=True, slots=True)
class PortInfo:
    """One end of a link."""

    system_priority: int = 0
    system: bytes = bytes(6)
    """Its MAC address."""
    key: int = 0
    """Ports of a system with the same one may be aggregated."""
    port_priority: int = 0
    port: int = 0
    state: State = _NO_STATE

    def same_link(self, other: PortInfo) -> bool:
        """Whether both are the same end, and both aggregate or both do not: all but the rest of the state."""
        return self._identity() == other._identity()

    def _identity(self) -> tuple[object, ...]:
        aggregates = self.state & State.AGGREGATION
        return self.system_priority, self.system, self.key, self.port_priority, self.port, aggregates


@dataclass(frozen=True, slots=True)
class Lacpdu:
    """What a port tells its partner: of itself, and what it knows of the partner."""

    actor: PortInfo
    partner: PortInfo
    max_delay: int = 0
    """Tens of microseconds that its collector may take."""

    def pack(self, source: bytes) -> bytes:
        """The frame, from the port's own address."""
        return b"".join(
            (
                _ETHERNET.pack(DESTINATION, source, SLOW_PROTOCOLS),
                bytes((LACP, VERSION)),
                _packed_info(_ACTOR_TLV, self.actor),
                _packed_info(_PARTNER_TLV, self.partner),
                _COLLECTOR.pack(_COLLECTOR_TLV, _COLLECTOR_BYTES, self.max_delay),
                bytes(52),
            )
        )


@dataclass(frozen=True, slots=True)
class Marker:
    """Asked behind the last frame of a conversation, answered when that has been collected (6.5)."""

    port: int
    system: bytes
    transaction: int
    is_response: bool = False

    def pack(self, source: bytes) -> bytes:
        """The frame, from the port's own address."""
        kind = _RESPONSE_TLV if self.is_response else _MARKER_TLV
        info = _MARKER_INFO.pack(kind, _MARKER_INFO.size, self.port, self.system, self.transaction)
        return _ETHERNET.pack(DESTINATION, source, SLOW_PROTOCOLS) + bytes((MARKER, VERSION)) + info + bytes(92)

    def response(self) -> Marker:
        """The answer."""
        return Marker(self.port, self.system, self.transaction, True)


def is_slow(data: bytes | memoryview) -> bool:
    """Whether a frame is one of a slow protocol, which no client of an aggregate gets."""
    return data[12:14] == SLOW_PROTOCOLS and data[:6] == DESTINATION


def parse(data: bytes | memoryview) -> Lacpdu | Marker:
    """What a frame of `is_slow` says. Raises `RemoteError`; what is behind it, such as padding, is not looked at."""
    subtype = data[_HEADER_BYTES] if len(data) > _HEADER_BYTES else 0
    if subtype == LACP:
        return _lacpdu(bytes(data[_HEADER_BYTES:]))
    if subtype == MARKER:
        return _marker(bytes(data[_HEADER_BYTES:]))
    raise RemoteError(f"slow protocol {subtype}; expected {LACP} (LACP) or {MARKER} (Marker)")


def _packed_info(kind: int, info: PortInfo) -> bytes:
    return _PORT_INFO.pack(
        kind,
        _PORT_INFO_BYTES,
        info.system_priority,
        info.system,
        info.key,
        info.port_priority,
        info.port,
        info.state,
    )


def _lacpdu(data: bytes) -> Lacpdu:
    if len(data) < _LACPDU_BYTES:
        raise RemoteError(f"an LACPDU of {len(data)} bytes; expected {_LACPDU_BYTES}")
    if data[1] < VERSION:
        raise RemoteError(f"an LACPDU of version {data[1]}; expected {VERSION} or later")
    actor = _info(data, 2, _ACTOR_TLV, "actor")
    partner = _info(data, 2 + _PORT_INFO_BYTES, _PARTNER_TLV, "partner")
    kind, length, max_delay = _COLLECTOR.unpack_from(data, 2 + 2 * _PORT_INFO_BYTES)
    if (kind, length) != (_COLLECTOR_TLV, _COLLECTOR_BYTES):
        raise RemoteError(f"TLV {kind} of {length} bytes; expected the collector's, 3 of 16")
    if not any(actor.system) or actor.system[0] & 1:
        raise RemoteError(f"an LACPDU of system {actor.system.hex(':')}; expected the address of one device")
    if data[1] == VERSION and data[58:60] != b"\0\0":
        raise RemoteError(f"TLV {data[58]} of {data[59]} bytes; expected the end of a version 1 LACPDU")
    return Lacpdu(actor, partner, max_delay)


def _info(data: bytes, offset: int, expected: int, name: str) -> PortInfo:
    kind, length, system_priority, system, key, priority, port, state = _PORT_INFO.unpack_from(data, offset)
    if (kind, length) != (expected, _PORT_INFO_BYTES):
        raise RemoteError(f"TLV {kind} of {length} bytes; expected the {name}'s, {expected} of {_PORT_INFO_BYTES}")
    return PortInfo(system_priority, system, key, priority, port, State(state))


def _marker(data: bytes) -> Marker:
    if len(data) < _MARKER_BYTES:
        raise RemoteError(f"a Marker PDU of {len(data)} bytes; expected {_MARKER_BYTES}")
    kind, length, port, system, transaction = _MARKER_INFO.unpack_from(data, 2)
    if data[1] < VERSION or kind not in (_MARKER_TLV, _RESPONSE_TLV) or length != _MARKER_INFO.size:
        raise RemoteError(f"TLV {kind} of {length} bytes in a Marker PDU; expected 1 or 2, of {_MARKER_INFO.size}")
    return Marker(port, system, transaction, kind == _RESPONSE_TLV)


def check_address(system: bytes) -> None:
    """Raise `LocalError` for what is not the address of one device."""
    if len(system) != 6 or system[0] & 1 or not any(system):
        raise LocalError(f"{system.hex(':')} is not the address of one device; a system of LACP is named by one")
