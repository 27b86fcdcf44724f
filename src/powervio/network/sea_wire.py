"""What two Shared Ethernet Adapters of a pair tell each other, as frames on their control channel.

The channel is a VLAN of the hypervisor's switch in which nobody else is. Frames have the Ethernet type that IEEE 802
keeps for local experiments, go to all, and are versioned; integers are big-endian. What is not exactly as here is
refused.

    u8[4] "VSEA"   u8 version (1)   u8 kind   u16 length, from "VSEA" on   u16 pair   u16 0
    u8[6] sender   u32 incarnation  u32 sequence
    u8 priority    u8 mode          u8 flags  u8 entries
    u8[6] heard    u32 heard sequence          the last message that the sender had of its partner
    entries        of CLIENTS: u16 VLAN, u8[6] MAC address; of others: u16 trunk (its PVID), u8 state, u8 0
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from powervio.errors import RemoteError

ETHERTYPE = b"\x88\xb5"
VERSION = 1
MAX_TRUNKS = 16
"""As many as the real ones have."""
MAX_CLIENTS = 160
"""Addresses in one message."""
HEALTHY = 1
"""Flag: the uplink has a link."""

_MAGIC = b"VSEA"
_HEADER = Struct("!4sBBHHH6sIIBBBB6sI")
_TRUNK = Struct("!HBB")
_CLIENT = Struct("!H6s")
_ETHERNET_BYTES = 14
_LEAST = 60
_EVERYBODY = b"\xff" * 6
_MAX_VLAN = 4094


class Kind(IntEnum):
    """What a message is for; `entstat` counts them by it."""

    KEEP_ALIVE = 1
    RECOVERY = 2
    """The sender wants trunks that the other has."""
    NOTIFY = 3
    """It may have them."""
    LIMBO = 4
    """The sender cannot bridge."""
    CLIENTS = 5
    """Addresses of clients, for who will have to announce them."""


class Mode(IntEnum):
    """What an operator wants of an adapter (`ha_mode`)."""

    AUTO = 0
    SHARING = 1
    STANDBY = 2
    """Bridge only while nobody else can."""
    FORCED = 3
    """Bridge whatever the priorities are."""


class State(IntEnum):
    """Of one trunk."""

    INIT = 0
    LIMBO = 1
    BACKUP = 2
    RECOVERY = 3
    NOTIFY = 4
    PRIMARY = 5

    @property
    def bridges(self) -> bool:
        """Whether its frames are bridged."""
        return self >= State.NOTIFY


@dataclass(frozen=True, slots=True)
class Message:
    """One."""

    kind: Kind
    pair: int
    """Of adapters: others may use the same channel."""
    sender: bytes
    incarnation: int
    sequence: int
    priority: int
    mode: Mode
    healthy: bool
    heard: bytes = bytes(6)
    heard_sequence: int = 0
    trunks: tuple[tuple[int, State], ...] = ()
    clients: tuple[tuple[int, bytes], ...] = ()

    def pack(self) -> bytes:
        """The frame."""
        if self.kind is Kind.CLIENTS:
            body = b"".join(_CLIENT.pack(vlan, mac) for vlan, mac in self.clients)
            count = len(self.clients)
        else:
            body = b"".join(_TRUNK.pack(pvid, state, 0) for pvid, state in self.trunks)
            count = len(self.trunks)
        header = _HEADER.pack(
            _MAGIC,
            VERSION,
            self.kind,
            _HEADER.size + len(body),
            self.pair,
            0,
            self.sender,
            self.incarnation,
            self.sequence,
            self.priority,
            self.mode,
            HEALTHY if self.healthy else 0,
            count,
            self.heard,
            self.heard_sequence,
        )
        return b"".join((_EVERYBODY, self.sender, ETHERTYPE, header, body)).ljust(_LEAST, b"\0")


def parse(data: bytes | memoryview) -> Message:
    """What a frame says. Raises `RemoteError`; padding behind the message is not looked at."""
    if len(data) < _ETHERNET_BYTES + _HEADER.size or data[12:14] != ETHERTYPE:
        raise RemoteError(f"a frame of {len(data)} bytes; expected {_ETHERNET_BYTES + _HEADER.size} of type 88b5")
    (
        magic, version, kind, length, pair, reserved, sender, incarnation, sequence,
        priority, mode, flags, count, heard, heard_sequence,
    ) = _HEADER.unpack_from(data, _ETHERNET_BYTES)  # fmt: skip
    if magic != _MAGIC or version != VERSION:
        raise RemoteError(f"{magic!r} of version {version}; expected {_MAGIC!r} of version {VERSION}")
    if sender != data[6:12] or sender[0] & 1 or not any(sender):
        raise RemoteError(f"a message of {sender.hex(':')}; expected the address that sent the frame")
    if kind not in Kind.__members__.values() or mode not in Mode.__members__.values():
        raise RemoteError(f"kind {kind}, mode {mode}; expected one of either")
    if reserved or flags & ~HEALTHY:
        raise RemoteError(f"reserved {reserved:#x}, flags {flags:#x}; expected 0, and 1 at most")
    entry = _CLIENT if kind == Kind.CLIENTS else _TRUNK
    most = MAX_CLIENTS if kind == Kind.CLIENTS else MAX_TRUNKS
    if count > most or length != _HEADER.size + count * entry.size or length > len(data) - _ETHERNET_BYTES:
        raise RemoteError(f"{count} entries in {length} of {len(data)} bytes; expected {entry.size} bytes for each")
    body = data[_ETHERNET_BYTES + _HEADER.size : _ETHERNET_BYTES + length]
    entries = list(entry.iter_unpack(body))
    return Message(
        Kind(kind), pair, sender, incarnation, sequence, priority, Mode(mode), flags != 0, heard, heard_sequence,
        *(((), _clients(entries)) if kind == Kind.CLIENTS else (_trunks(entries), ())),
    )  # fmt: skip


def _clients(entries: list[tuple[int, bytes]]) -> tuple[tuple[int, bytes], ...]:
    for vlan, mac in entries:
        if not 1 <= vlan <= _MAX_VLAN or mac[0] & 1:
            raise RemoteError(
                f"{mac.hex(':')} in VLAN {vlan}; expected the address of one device, and 1 to {_MAX_VLAN}"
            )
    return tuple(entries)


def _trunks(entries: list[tuple[int, int, int]]) -> tuple[tuple[int, State], ...]:
    for pvid, state, reserved in entries:
        if not 1 <= pvid <= _MAX_VLAN or state not in State.__members__.values() or reserved:
            raise RemoteError(f"trunk {pvid} in state {state}; expected 1 to {_MAX_VLAN}, and a state")
    if len({pvid for pvid, _, _ in entries}) != len(entries):
        raise RemoteError("a trunk is there twice")
    return tuple((pvid, State(state)) for pvid, state, _ in entries)
