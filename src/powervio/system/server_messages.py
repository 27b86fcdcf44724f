"""What the hypervisor's process and that of a VIO server say to each other: msgpack, a message in each packet.

The hypervisor asks, and hears one `Answer` with the same number. A request may bring one descriptor.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec

from powervio.system.config import Disk
from powervio.system.sea_section import SeaPlan

PACKET = 1 << 18
"""Bytes of the longest message."""


class Begin(msgspec.Struct, tag=True):
    """Be the partition behind a door; to be said first."""

    door: str
    limit: float
    """Seconds that an hcall may take."""
    log_level: int


class Open(msgspec.Struct, tag=True):
    """Open a disk's image. A descriptor with it is the lock that an image shares with others (`ImageShare`)."""

    disk: int
    """What it is called from here on."""
    declared: Disk
    folder: str | None
    """For the sockets of QEMU's daemons."""


class Serve(msgspec.Struct, tag=True):
    """Have the disk behind an adapter, without starting."""

    disk: int
    unit_address: int


class Do(msgspec.Struct, tag=True):
    """Call a method of the `DiskEnd`."""

    disk: int
    what: Literal["start", "retire", "flush", "close", "resize_image", "image_resized", "resize_device"]
    size: int | None = None
    """Of those that take one, in bytes."""


class Look(msgspec.Struct, tag=True):
    """Say the facts of every disk that is served, by its number."""


class ServeSea(msgspec.Struct, tag=True):
    """Run a Shared Ethernet Adapter on logical LAN adapters."""

    plan: SeaPlan
    trunks: list[int]
    """Unit addresses."""
    control: int | None


class AskSea(msgspec.Struct, tag=True):
    """Say the facts of one, after the operator's request if there is one."""

    name: str
    mode: str | None = None


class Stop(msgspec.Struct, tag=True):
    """Stop all, close all, and end after the answer."""


Request: TypeAlias = Begin | Open | Serve | Do | Look | ServeSea | AskSea | Stop


class Ask(msgspec.Struct, array_like=True):
    """A request with its number."""

    number: int
    request: Request


class Answer(msgspec.Struct, array_like=True):
    """What came of a request."""

    number: int
    kind: Literal["done", "refused", "late", "failed"]
    """`refused` is `LocalError`, `late` `TimeoutError`, `failed` `OSError`."""
    text: str = ""
    """Of an error."""
    code: int = 0
    """`errno` of what failed."""
    value: dict[str, Any] = {}


def pack(message: Ask | Answer) -> bytes:
    """As a packet."""
    return msgspec.msgpack.encode(message, enc_hook=int)  # a Size is one


def unpack_ask(packet: bytes) -> Ask:
    """Raises `msgspec.MsgspecError`."""
    return msgspec.msgpack.decode(packet, type=Ask, dec_hook=lambda kind, value: kind(value))


def unpack_answer(packet: bytes) -> Answer:
    """Raises `msgspec.MsgspecError`."""
    return msgspec.msgpack.decode(packet, type=Answer)
