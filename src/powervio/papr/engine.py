"""What a VIO server's software sees of a physical adapter: a TCE table and a DMA engine on it (papr-vio 2.2, 2.5).

The server puts entries of its clients into the table (H_PUT_RTCE) and gives the engine a position of a backing and a
list of addresses in the table's window; the engine moves the bytes, the server never touches them. phyp implements it
for partitions in its own process, the gateway for others.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from struct import Struct
from typing import TypeAlias

from powervio.errors import PowervioError
from powervio.memory.abstract import Backing
from powervio.papr.nodes import PhysicalNode

DmaSegment: TypeAlias = tuple[int, int]
"""A run of bytes in an engine's window: I/O bus address, length in bytes."""


class DmaFault(PowervioError):
    """An operation met an entry that is not valid or lacks the access it needs; nothing was moved, nothing else
    happened."""


MOVE = Struct("=QQQIi")
"""One move of `DmaEngine.move_all`, in host byte order: position in the backing, I/O bus address, length (bytes all),
flags, and a place for the result: 0, or an errno of the backing."""
MOVE_TO_MEMORY = 1
"""The backing is read and the segment written; without it the other way round."""
MOVE_CONTINUES = 2
"""One more segment of the request before: position, direction and result are those of its first move."""


class DmaEngine(ABC):
    """The DMA engine of one physical storage adapter.

    Both operations return when they have ended, and until then their pages are pinned: the hypervisor neither lets the
    pages' owners change the entries nor gives the memory to anybody else. An engine must end its operations by itself:
    a hypervisor call of a client may be waiting for them (`Policy.drain_limit`).
    """

    node: PhysicalNode
    """The adapter, with the LIOBN and the size of its window."""

    @abstractmethod
    def read(self, backing: Backing, position: int, segments: Sequence[DmaSegment]) -> None:
        """Move bytes from `backing` at `position` (bytes) into the segments, in order. Entries need write access.

        Raises `DmaFault`, or `OSError` from the backing: some of the bytes may have been moved then.
        """

    @abstractmethod
    def write(self, backing: Backing, position: int, segments: Sequence[DmaSegment]) -> None:
        """Move the bytes of the segments, in order, to `backing` at `position`. Entries need read access.

        Raises as `read`.
        """

    @abstractmethod
    def move_all(self, backing: Backing, moves: bytearray, count: int) -> int:
        """Several reads and writes that begin and end together: `count` entries of `MOVE`.

        Returns how many requests failed; the first entry of each request has the result. Raises `DmaFault` when any of
        the segments is not good; nothing was moved then.
        """
