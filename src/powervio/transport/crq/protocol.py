"""The wire of virtio over CRQ: messages and header blocks, declared as tables (docs/protocol.md, P2 to P4).

A message is one CRQ element of 16 bytes with header 0x80. Byte 1 is its type; a reply has bit 7 of the type of what it
answers, an event of the server has bits 7 and 6. Bytes 2-3 are the session number, 0 in revision 0. All integers of
messages and header blocks are big-endian, whatever the byte order of rings and config space.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from struct import Struct
from typing import ClassVar, Final

from powervio.errors import RemoteError
from powervio.papr.crq import VALID_MESSAGE

HIGHEST_REVISION: Final = 1

SERVER_TYPES: Final = 0x40
"""Types from here on are the server's; what a client sends with one is dropped (P2.3)."""
REPLY: Final = 0x80
EVENT: Final = 0xC0
FLAG_BIG_ENDIAN: Final = 0x01
"""PROBE flag of revision 0: rings, config space and device structures are big-endian."""
PROBE_FLAGS: Final = FLAG_BIG_ENDIAN
MAX_QUEUE_SIZE_R0: Final = 128
MAX_QUEUES_R0: Final = 255
MAX_CONFIG_R0: Final = 255


class Message(IntEnum):
    """Message types, byte 1 of the element (P2.3)."""

    PROBE = 0x01
    ACKNOWLEDGE = 0x02
    DRIVER = 0x03
    FEATURES_OK = 0x04
    FIND_VQS = 0x05
    DRIVER_OK = 0x06
    KICK = 0x07
    CONFIG_WRITE = 0x08
    CONFIG_READ = 0x09
    RESET = 0x0A
    FAILED = 0x0B
    QUEUE_RESET = 0x0C
    SUSPEND = 0x0D
    RESUME = 0x0E
    CHANNELS = 0x0F
    USED = 0xC1
    CONFIG_CHANGED = 0xC2


REVISION_1_ONLY: Final = frozenset(
    (Message.FEATURES_OK, Message.QUEUE_RESET, Message.SUSPEND, Message.RESUME, Message.CHANNELS)
)


class Status(IntEnum):
    """Status of a reply, byte 4 (P2.5)."""

    OK = 0
    UNSUPPORTED = 1
    """The message type, or the revision, is not known here."""
    BAD_STATE = 2
    """Not allowed at this point of the device's life."""
    BAD_ADDRESS = 3
    """Remote DMA to an address of the message failed."""
    BAD_LENGTH = 4
    BAD_FEATURES = 5
    BAD_QUEUE = 6
    BAD_VALUE = 7
    DEVICE_ERROR = 8
    """The device itself could not do it; the server's log says why."""


# Fields of a message after bytes 0-3, by type: name, offset, bytes. What is not named is zero when sent and ignored
# when received (P2.2).
Field = tuple[str, int, int]
_BLOCK: tuple[Field, ...] = (("length", 6, 2), ("address", 8, 8))
_REPLY: tuple[Field, ...] = (("status", 4, 1), ("device_status", 5, 1), ("value", 6, 2), ("data", 8, 8))

LAYOUT: Final[dict[int, tuple[Field, ...]]] = {
    Message.PROBE: (("revision", 4, 1), ("flags", 5, 1), *_BLOCK),
    Message.ACKNOWLEDGE: _BLOCK,
    Message.DRIVER: (),
    Message.FEATURES_OK: (),
    Message.FIND_VQS: (("count", 4, 2), *_BLOCK),
    Message.DRIVER_OK: (),
    Message.KICK: (("queue", 4, 2), ("index", 6, 2), ("generation", 8, 2), ("round", 10, 2)),
    Message.CONFIG_WRITE: (("offset", 4, 2), ("length", 6, 2), ("data", 8, 8)),
    Message.CONFIG_READ: (),
    Message.RESET: (),
    Message.FAILED: (),
    Message.QUEUE_RESET: (("queue", 4, 2),),
    Message.SUSPEND: (),
    Message.RESUME: (),
    Message.CHANNELS: (("count", 4, 2), *_BLOCK),
    Message.USED: (("queue", 4, 2), ("index", 6, 2), ("generation", 8, 2)),
    Message.CONFIG_CHANGED: (("device_status", 5, 1), ("value", 6, 2), ("data", 8, 8)),
}
LAYOUT.update({kind | REPLY: _REPLY for kind in tuple(LAYOUT) if kind < REPLY and kind != Message.KICK})


def encode(kind: int, session: int = 0, **values: int) -> tuple[int, int]:
    """A message as the two doublewords of H_SEND_CRQ. Fields that are not given are 0."""
    element = (VALID_MESSAGE << 120) | (kind << 112) | (session << 96)
    for name, offset, length in LAYOUT[kind]:
        value = values.pop(name, 0)
        if value >> (8 * length):
            raise ValueError(f"{name} = {value:#x} does not fit into {length} bytes of a {kind:#x} message")
        element |= value << (128 - 8 * (offset + length))
    if values:
        raise ValueError(f"a {kind:#x} message has no field {', '.join(values)}")
    return element >> 64, element & 0xFFFF_FFFF_FFFF_FFFF


def decode(high: int, low: int) -> dict[str, int]:
    """The fields of a message, with `type` and `session`. Raises `RemoteError` for a type that does not exist."""
    kind = (high >> 48) & 0xFF
    layout = LAYOUT.get(kind)
    if layout is None:
        raise RemoteError(f"message type {kind:#04x} does not exist (P2.3)")
    element = (high << 64) | low
    message = {"type": kind, "session": (high >> 32) & 0xFFFF}
    for name, offset, length in layout:
        message[name] = (element >> (128 - 8 * (offset + length))) & ((1 << (8 * length)) - 1)
    return message


def kick_index(high: int, low: int) -> int:
    """How far a KICK says that the driver has come: bytes 6-7, above them the round, bytes 10-11 (P6.2)."""
    return (high & 0xFFFF) | (low >> 16) & 0xFFFF_0000


def describe(high: int, low: int) -> str:
    """A message in words, for traces and logs."""
    try:
        message = decode(high, low)
    except RemoteError:
        return f"unknown {high:016x} {low:016x}"
    kind = message.pop("type")
    known = Message(kind & ~REPLY if kind & EVENT == REPLY else kind)
    name = f"{known.name} reply" if kind & EVENT == REPLY else known.name
    if "status" in message:
        status = message.pop("status")
        name += f" {Status(status).name if status in Status._value2member_map_ else status}"
    return " ".join((name, *(f"{field}={value:#x}" for field, value in message.items())))


@dataclass(slots=True)
class DeviceHeader:
    """The block through which a device describes itself to its driver (P3.1 revision 0, P3.2 revision 1).

    Feature words are plain bit masks here (up to 32 bits in revision 0, 128 in revision 1).
    """

    device_type: int = 0
    queue_count: int = 0
    queue_size: int = 0
    """Largest number of entries of a queue, a power of two; the same for all queues."""
    device_features: int = 0
    driver_features: int = 0
    config_length: int = 0
    device_status: int = 0
    config_generation: int = 0


class HeaderCodec:
    """Where the fields of a device header stand in one revision."""

    size: ClassVar[int]
    status_offset: ClassVar[int]
    driver_features_offset: ClassVar[int]
    driver_features_size: ClassVar[int]

    @staticmethod
    def pack(header: DeviceHeader) -> bytes:
        """The block as bytes, without the config space that may follow it."""
        raise NotImplementedError

    @staticmethod
    def unpack(block: bytes) -> DeviceHeader:
        """The block from bytes."""
        raise NotImplementedError

    @classmethod
    def pack_driver_features(cls, features: int) -> bytes:
        """What the driver puts at `driver_features_offset`."""
        return features.to_bytes(cls.driver_features_size, "big")


class HeaderR0(HeaderCodec):
    """The slides' header, packed: type, num_vqs, vqs_size (u8), features (u32), config_len, device_status (u8)."""

    _struct: ClassVar = Struct(">BBBIIBB")
    size = 13
    status_offset = 12
    driver_features_offset = 7
    driver_features_size = 4

    @staticmethod
    def pack(header: DeviceHeader) -> bytes:
        """See `HeaderCodec.pack`. Raises `struct.error` for what revision 0 cannot carry."""
        return HeaderR0._struct.pack(
            header.device_type,
            header.queue_count,
            header.queue_size,
            header.device_features,
            header.driver_features,
            header.config_length,
            header.device_status,
        )

    @staticmethod
    def unpack(block: bytes) -> DeviceHeader:
        """See `HeaderCodec.unpack`."""
        return DeviceHeader(*HeaderR0._struct.unpack(block[: HeaderR0.size]))


class HeaderR1(HeaderCodec):
    """The header of revision 1: u16 counts, 128 feature bits, config generation; 48 bytes (one H_WRITE_RDMA)."""

    _struct: ClassVar = Struct(">HHHHIB3x16s16s")
    size = 48
    status_offset = 12
    driver_features_offset = 32
    driver_features_size = 16

    @staticmethod
    def pack(header: DeviceHeader) -> bytes:
        """See `HeaderCodec.pack`."""
        return HeaderR1._struct.pack(
            header.device_type,
            header.queue_count,
            header.queue_size,
            header.config_length,
            header.config_generation,
            header.device_status,
            header.device_features.to_bytes(16, "big"),
            header.driver_features.to_bytes(16, "big"),
        )

    @staticmethod
    def unpack(block: bytes) -> DeviceHeader:
        """See `HeaderCodec.unpack`."""
        kind, queues, size, config, generation, status, offered, accepted = HeaderR1._struct.unpack(
            block[: HeaderR1.size]
        )
        return DeviceHeader(
            device_type=kind,
            queue_count=queues,
            queue_size=size,
            device_features=int.from_bytes(offered, "big"),
            driver_features=int.from_bytes(accepted, "big"),
            config_length=config,
            device_status=status,
            config_generation=generation,
        )


HEADERS: Final[dict[int, type[HeaderCodec]]] = {0: HeaderR0, 1: HeaderR1}


@dataclass(frozen=True, slots=True)
class QueueAddresses:
    """One entry of the block of FIND_VQS: where a queue's three areas are (P3.3). 32 bytes."""

    index: int
    size: int
    descriptors: int
    """I/O bus address."""
    available: int
    used: int

    STRUCT: ClassVar = Struct(">HH4xQQQ")
    SIZE: ClassVar = 32

    def pack(self) -> bytes:
        """The entry as bytes."""
        return self.STRUCT.pack(*(getattr(self, field.name) for field in fields(self)))

    @classmethod
    def unpack(cls, block: bytes) -> QueueAddresses:
        """The entry from 32 bytes."""
        return cls(*cls.STRUCT.unpack(block))


CARRIED: Final = 1
"""Status of a CHANNELS entry: both ends send this queue's KICK and USED into each other's Sub-CRQs."""


@dataclass(frozen=True, slots=True)
class ChannelEntry:
    """One entry of the block of CHANNELS: the Sub-CRQs of one queue (P3.5). 32 bytes."""

    queue: int
    generation: int
    status: int
    """Written by the server: `CARRIED`, or 0 for a queue that stays on the CRQ."""
    client: int
    """Cookie of the client's Sub-CRQ."""
    server: int = 0
    """Cookie of the server's Sub-CRQ, written by the server."""

    STRUCT: ClassVar = Struct(">HHB3xQQ8x")
    SIZE: ClassVar = 32

    def pack(self) -> bytes:
        """The entry as bytes."""
        return self.STRUCT.pack(self.queue, self.generation, self.status, self.client, self.server)

    @classmethod
    def unpack(cls, block: bytes) -> ChannelEntry:
        """The entry from 32 bytes."""
        return cls(*cls.STRUCT.unpack(block))


def sub_crq_element(high: int, low: int) -> bytes:
    """A notification as the 32 bytes of a Sub-CRQ: those of the CRQ message, then zeroes (P2.7)."""
    return high.to_bytes(8, "big") + low.to_bytes(8, "big") + bytes(16)
