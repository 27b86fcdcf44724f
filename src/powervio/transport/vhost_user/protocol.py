"""The wire of vhost-user: messages and payloads, declared as tables, and the one codec for them.

A message is a header of three 32-bit words (request, flags, size of the payload in bytes), the payload, and up to eight
file descriptors. All integers are in the host's byte order, for both ends run on one machine. Source: QEMU,
docs/interop/vhost-user.rst, whose names are used without their prefix.

To add a message: a row in `FRONT_END_MESSAGES` (what a front end sends) or `BACK_END_MESSAGES`, and a payload if it has
one of its own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final, Self

from powervio.errors import LocalError, RemoteError, Verdict

HEADER: Final = Struct("=III")
VERSION: Final = 1
VERSION_MASK: Final = 3
REPLY: Final = 1 << 2
NEED_REPLY: Final = 1 << 3
MAX_FDS: Final = 8
"""File descriptors with one message."""
MAX_REGIONS: Final = 8
"""Of SET_MEM_TABLE."""
MAX_CONFIG: Final = 256
"""Bytes of config space in one message."""
MAX_PAYLOAD: Final = 4096
"""Bytes of the largest payload that is accepted; more than any message has."""

NO_FD: Final = 1 << 8
"""Bit of the u64 of SET_VRING_KICK, CALL, ERR and of a reply to SET_DEVICE_STATE_FD: no descriptor comes with it."""
INDEX_MASK: Final = 0xFF
"""Of the same u64: the queue."""

F_LOG_ALL: Final = 1 << 26
"""Feature bit of the socket: what is written to memory is marked in the log."""
F_PROTOCOL_FEATURES: Final = 1 << 30
"""Feature bit of the socket: the bits below are negotiated, and rings are enabled by message."""

P_MQ: Final = 1 << 0
P_LOG_SHMFD: Final = 1 << 1
P_REPLY_ACK: Final = 1 << 3
P_BACKEND_REQ: Final = 1 << 5
P_CONFIG: Final = 1 << 9
P_INFLIGHT_SHMFD: Final = 1 << 12
P_RESET_DEVICE: Final = 1 << 13
P_INBAND_NOTIFICATIONS: Final = 1 << 14
P_CONFIGURE_MEM_SLOTS: Final = 1 << 15
P_STATUS: Final = 1 << 16
P_DEVICE_STATE: Final = 1 << 19

VRING_F_LOG: Final = 1
"""Flag of `VringAddress`: writes to the used ring are marked in the log."""


class FrontEnd(IntEnum):
    """Requests of a front end."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    IOTLB_MSG = 22
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class BackEndRequest(IntEnum):
    """Requests of a back end, over the socket of SET_BACKEND_REQ_FD."""

    IOTLB_MSG = 1
    CONFIG_CHANGE_MSG = 2


class Iotlb(IntEnum):
    """Types of IOTLB messages."""

    MISS = 1
    UPDATE = 2
    INVALIDATE = 3
    ACCESS_FAIL = 4


ACCESS_READ: Final = 1
ACCESS_WRITE: Final = 2
"""Permissions of an IOTLB entry."""


class TransferDirection(IntEnum):
    """Of SET_DEVICE_STATE_FD."""

    SAVE = 0
    LOAD = 1


@dataclass(frozen=True, slots=True)
class Payload:
    """A payload of fixed size: its fields are those of `LAYOUT`, in order."""

    LAYOUT: ClassVar[Struct]

    def pack(self) -> bytes:
        """The bytes. Raises `LocalError` for a value that does not fit."""
        try:
            return self.LAYOUT.pack(*(getattr(self, part.name) for part in fields(self)))
        except Exception as error:
            raise LocalError(f"{self}: {error}") from error

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """From the bytes. Raises `RemoteError` for another size."""
        if len(data) != cls.LAYOUT.size:
            raise RemoteError(f"a payload of {len(data)} bytes; {cls.__name__} has {cls.LAYOUT.size}", Verdict.CLOSE)
        return cls(*cls.LAYOUT.unpack(data))


@dataclass(frozen=True, slots=True)
class U64(Payload):
    """One number: features, an error, a queue with `NO_FD`."""

    LAYOUT = Struct("=Q")
    value: int


@dataclass(frozen=True, slots=True)
class VringState(Payload):
    """A queue and a number: its size, base, or whether it is enabled."""

    LAYOUT = Struct("=II")
    index: int
    value: int


@dataclass(frozen=True, slots=True)
class VringAddress(Payload):
    """Where a ring is: user addresses of the front end, or I/O virtual ones with ACCESS_PLATFORM."""

    LAYOUT = Struct("=IIQQQQ")
    index: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int
    """Guest address under which writes to the used ring are logged."""


@dataclass(frozen=True, slots=True)
class Region(Payload):
    """A piece of guest memory: addresses and size in bytes; `offset` is where it begins in its file."""

    LAYOUT = Struct("=QQQQ")
    guest: int
    size: int
    user: int
    offset: int


@dataclass(frozen=True, slots=True)
class SingleRegion(Payload):
    """ADD_MEM_REG and REM_MEM_REG."""

    LAYOUT = Struct("=QQQQQ")
    padding: int
    guest: int
    size: int
    user: int
    offset: int

    @property
    def region(self) -> Region:
        """Without the padding."""
        return Region(self.guest, self.size, self.user, self.offset)


@dataclass(frozen=True, slots=True)
class MemoryTable(Payload):
    """SET_MEM_TABLE: as many regions as descriptors come with it."""

    LAYOUT = Struct("=II")
    regions: tuple[Region, ...]

    def pack(self) -> bytes:
        """See `Payload`."""
        return self.LAYOUT.pack(len(self.regions), 0) + b"".join(region.pack() for region in self.regions)

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """See `Payload`. Some front ends send room for `MAX_REGIONS` whatever the count is."""
        size = Region.LAYOUT.size
        if len(data) < cls.LAYOUT.size:
            raise RemoteError(f"a memory table of {len(data)} bytes", Verdict.CLOSE)
        count = cls.LAYOUT.unpack_from(data)[0]
        if count > MAX_REGIONS or len(data) < cls.LAYOUT.size + count * size:
            raise RemoteError(
                f"a memory table of {len(data)} bytes with {count} regions; at most {MAX_REGIONS} of {size} bytes each",
                Verdict.CLOSE,
            )
        return cls(tuple(Region.unpack(data[at : at + size]) for at in range(8, 8 + count * size, size)))


@dataclass(frozen=True, slots=True)
class LogArea(Payload):
    """SET_LOG_BASE with LOG_SHMFD: size of the log and where it begins in its file, in bytes."""

    LAYOUT = Struct("=QQ")
    size: int
    offset: int


@dataclass(frozen=True, slots=True)
class IotlbMessage(Payload):
    """A translation that is wanted, given or taken back."""

    LAYOUT = Struct("=QQQBB6x")
    iova: int
    size: int
    user: int
    access: int
    kind: int


@dataclass(frozen=True, slots=True)
class ConfigSpace(Payload):
    """A part of the config space. An empty one is the answer to what cannot be read."""

    LAYOUT = Struct("=III")
    offset: int
    size: int
    flags: int
    data: bytes

    def pack(self) -> bytes:
        """See `Payload`."""
        return self.LAYOUT.pack(self.offset, self.size, self.flags) + self.data

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """See `Payload`."""
        if not cls.LAYOUT.size <= len(data) <= cls.LAYOUT.size + MAX_CONFIG:
            raise RemoteError(f"a config payload of {len(data)} bytes; at most 12 and {MAX_CONFIG}", Verdict.CLOSE)
        offset, size, flags = cls.LAYOUT.unpack_from(data)
        return cls(offset, size, flags, data[cls.LAYOUT.size :])


@dataclass(frozen=True, slots=True)
class Inflight(Payload):
    """The memory in which requests in flight are on record: its place in the file, and for which queues."""

    LAYOUT = Struct("=QQHH4x")
    size: int
    offset: int
    queues: int
    queue_size: int

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """See `Payload`. The padding at the end is the compiler's of some front ends, and missing from others."""
        return cls(*cls.LAYOUT.unpack(data.ljust(cls.LAYOUT.size, b"\0") if len(data) == 20 else _sized(cls, data)))


def _sized(cls: type[Payload], data: bytes) -> bytes:
    if len(data) != cls.LAYOUT.size:
        raise RemoteError(f"a payload of {len(data)} bytes; {cls.__name__} has {cls.LAYOUT.size}", Verdict.CLOSE)
    return data


@dataclass(frozen=True, slots=True)
class DeviceState(Payload):
    """SET_DEVICE_STATE_FD: `TransferDirection`, and the phase of migration (0, stopped, is the only one)."""

    LAYOUT = Struct("=II")
    direction: int
    phase: int


@dataclass(frozen=True, slots=True)
class Row:
    """What is known of one request."""

    payload: type[Payload] | None = None
    reply: type[Payload] | None = None
    """What answers it; a request without is answered by a U64 if REPLY_ACK was negotiated and it asks for that."""
    fds: tuple[int, int] = (0, 0)
    """Least and most descriptors."""
    needs: int = 0
    """Protocol feature without which it must not be sent."""


FRONT_END_MESSAGES: Mapping[int, Row] = {
    FrontEnd.GET_FEATURES: Row(reply=U64),
    FrontEnd.SET_FEATURES: Row(U64),
    FrontEnd.SET_OWNER: Row(),
    FrontEnd.RESET_OWNER: Row(),
    FrontEnd.SET_MEM_TABLE: Row(MemoryTable, fds=(0, MAX_REGIONS)),
    FrontEnd.SET_LOG_BASE: Row(LogArea, U64, fds=(1, 1), needs=P_LOG_SHMFD),
    FrontEnd.SET_LOG_FD: Row(fds=(1, 1)),
    FrontEnd.SET_VRING_NUM: Row(VringState),
    FrontEnd.SET_VRING_ADDR: Row(VringAddress),
    FrontEnd.SET_VRING_BASE: Row(VringState),
    FrontEnd.GET_VRING_BASE: Row(VringState, VringState),
    FrontEnd.SET_VRING_KICK: Row(U64, fds=(0, 1)),
    FrontEnd.SET_VRING_CALL: Row(U64, fds=(0, 1)),
    FrontEnd.SET_VRING_ERR: Row(U64, fds=(0, 1)),
    FrontEnd.GET_PROTOCOL_FEATURES: Row(reply=U64),
    FrontEnd.SET_PROTOCOL_FEATURES: Row(U64),
    FrontEnd.GET_QUEUE_NUM: Row(reply=U64, needs=P_MQ),
    FrontEnd.SET_VRING_ENABLE: Row(VringState),
    FrontEnd.SET_BACKEND_REQ_FD: Row(fds=(1, 1), needs=P_BACKEND_REQ),
    FrontEnd.IOTLB_MSG: Row(IotlbMessage),
    FrontEnd.GET_CONFIG: Row(ConfigSpace, ConfigSpace, needs=P_CONFIG),
    FrontEnd.SET_CONFIG: Row(ConfigSpace, needs=P_CONFIG),
    FrontEnd.GET_INFLIGHT_FD: Row(Inflight, Inflight, needs=P_INFLIGHT_SHMFD),
    FrontEnd.SET_INFLIGHT_FD: Row(Inflight, fds=(1, 1), needs=P_INFLIGHT_SHMFD),
    FrontEnd.RESET_DEVICE: Row(needs=P_RESET_DEVICE),
    FrontEnd.GET_MAX_MEM_SLOTS: Row(reply=U64, needs=P_CONFIGURE_MEM_SLOTS),
    FrontEnd.ADD_MEM_REG: Row(SingleRegion, fds=(1, 1), needs=P_CONFIGURE_MEM_SLOTS),
    FrontEnd.REM_MEM_REG: Row(SingleRegion, fds=(0, 1), needs=P_CONFIGURE_MEM_SLOTS),
    FrontEnd.SET_STATUS: Row(U64, needs=P_STATUS),
    FrontEnd.GET_STATUS: Row(reply=U64, needs=P_STATUS),
    FrontEnd.SET_DEVICE_STATE_FD: Row(DeviceState, U64, fds=(1, 1), needs=P_DEVICE_STATE),
    FrontEnd.CHECK_DEVICE_STATE: Row(reply=U64, needs=P_DEVICE_STATE),
}

BACK_END_MESSAGES: Mapping[int, Row] = {
    BackEndRequest.IOTLB_MSG: Row(IotlbMessage),
    BackEndRequest.CONFIG_CHANGE_MSG: Row(),
}


def name_of(messages: Mapping[int, Row], request: int) -> str:
    """For people: "SET_MEM_TABLE", or "request 77"."""
    for kind in messages:
        if kind == request and isinstance(kind, IntEnum):
            return kind.name
    return f"request {request}"


@dataclass(slots=True)
class Message:
    """One message. Its descriptors are its own: `close` closes those that nobody took."""

    request: int
    payload: Payload | None = None
    fds: list[int] = field(default_factory=list)
    reply: bool = False
    need_reply: bool = False

    def take_fd(self) -> int:
        """The first descriptor, which is the caller's from here on. Raises `RemoteError` when there is none left."""
        if not self.fds:
            raise RemoteError("a descriptor is missing from the message")
        return self.fds.pop(0)

    def close(self) -> None:
        """Close the descriptors that are left."""
        close_all(self.fds)

    def encode(self) -> bytes:
        """Header and payload."""
        data = b"" if self.payload is None else self.payload.pack()
        flags = VERSION | (REPLY if self.reply else 0) | (NEED_REPLY if self.need_reply else 0)
        return HEADER.pack(self.request, flags, len(data)) + data


def close_all(fds: list[int]) -> None:
    """Close descriptors, and forget them."""
    while fds:
        with suppress(OSError):
            os.close(fds.pop())


def payload_size(header: bytes) -> int:
    """How many bytes follow a header. Raises `RemoteError` (CLOSE) for a header that no message has."""
    request, flags, size = HEADER.unpack(header)
    if flags & VERSION_MASK != VERSION:
        raise RemoteError(f"request {request}: version {flags & VERSION_MASK}; expected {VERSION}", Verdict.CLOSE)
    if flags & ~(VERSION_MASK | REPLY | NEED_REPLY):
        raise RemoteError(f"request {request}: flags {flags:#x} are not known", Verdict.CLOSE)
    if size > MAX_PAYLOAD:
        raise RemoteError(f"request {request}: a payload of {size} bytes; at most {MAX_PAYLOAD}", Verdict.CLOSE)
    return int(size)


def decode(messages: Mapping[int, Row], header: bytes, data: bytes, fds: Sequence[int]) -> Message:
    """A message of its parts. Raises `RemoteError` (CLOSE); the descriptors are the caller's to close then."""
    request, flags, _ = HEADER.unpack(header)
    row = messages.get(request)
    name = name_of(messages, request)
    if row is None:
        raise RemoteError(f"{name} is not known", Verdict.CLOSE)
    reply = flags & REPLY != 0
    kind = (row.reply or U64) if reply else row.payload
    if kind is None:
        # some front ends send a number with messages that have none (SET_OWNER, GET_QUEUE_NUM): it says nothing
        payload = None
        if len(data) not in (0, U64.LAYOUT.size):
            raise RemoteError(f"{name}: {len(data)} bytes; expected none", Verdict.CLOSE)
    else:
        try:
            payload = kind.unpack(data)
        except RemoteError as error:
            raise RemoteError(f"{name}: {error}", Verdict.CLOSE) from None
    least, most = (0, MAX_FDS) if reply else row.fds
    if not least <= len(fds) <= most:
        raise RemoteError(f"{name}: {len(fds)} descriptors; expected {least} to {most}", Verdict.CLOSE)
    return Message(request, payload, list(fds), reply, flags & NEED_REPLY != 0)
