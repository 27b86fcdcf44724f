"""Several requests served together, by devices whose transport charges for each step and not for each byte.

A device that can pops what is available, reads what it has to know of all of it, moves all data, writes all statuses,
and completes. Each of the three is one call here, which a transport does in as few steps as it has for it
(`DeviceQueue.batch`); where memory is mapped there is nothing to gain, and no batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing, Payload

Piece: TypeAlias = tuple[Payload, int, int]
"""A part of a payload: payload, offset, length in bytes."""


@dataclass(slots=True)
class Transfer:
    """Data between a request and a backing."""

    payload: Payload
    offset: int
    """Of the first byte in the payload."""
    length: int
    """Bytes."""
    position: int
    """Of the first byte in the backing."""
    to_driver: bool
    """Whether the backing is read and the driver's memory written."""
    error: OSError | RemoteError | None = None
    """What went wrong, after `Batch.move`; the other transfers are not touched by it."""


class Batch(ABC):
    """What a transport does with many requests of one queue at once. Nothing is kept between two calls."""

    @abstractmethod
    def read(self, pieces: Sequence[Piece]) -> list[bytes | None]:
        """The bytes of each piece; None for one that the driver took away."""

    @abstractmethod
    def move(self, transfers: Sequence[Transfer], backing: Backing) -> None:
        """Carry the transfers out, in any order; each is done or has its `error` on return."""

    @abstractmethod
    def write(self, pieces: Sequence[tuple[Payload, int, bytes]]) -> list[bool]:
        """Write bytes at an offset of each payload; whether the driver's memory was there."""
