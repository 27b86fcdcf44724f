"""What a transport does for several requests of one queue at once, if it charges for each step and not for each byte.

A device that can fills a `RequestTable`, has the headers fetched, moves all data and stores all statuses; each of the
three is one call here, which a transport does in as few steps as it has for it (`DeviceQueue.batch`). A device whose
requests are data and nothing else, as frames are, reads and writes those of many as a whole. Where memory is
mapped there is nothing to gain, and no batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from powervio.memory.abstract import Backing, Payload
    from powervio.virtio.request_table import RequestTable


class Batch(Protocol):
    """Nothing is kept between two calls. It is a protocol and no base class, for implementations are compiled."""

    def fetch(self, table: RequestTable) -> None:
        """Bring the first 16 readable bytes of every row that has so many; `presence` says what is there."""

    def move(self, table: RequestTable, first: int, end: int, backing: Backing) -> None:
        """Carry out what rows `first` to before `end` are for, in any order; each has its result on return."""

    def store(self, table: RequestTable, first: int, end: int) -> None:
        """Store the status byte of each of these rows; `stored` says which the driver's memory was there for."""

    def read(self, payloads: Sequence[Payload]) -> list[bytes | None]:
        """All bytes of each of these parts of requests; None for one that the driver's memory is not there for."""

    def write(self, parts: Sequence[tuple[Payload, int, bytes | memoryview]]) -> list[bool]:
        """Put bytes into writable parts of requests, each from an offset on; which the driver's memory was there for.

        What is behind the last byte for a payload may be written too, with zeros: it is not told of.
        """
