"""A port: where the frames of a network device go to and come from.

A frame is an Ethernet frame without preamble and FCS. Its checksum may be partial, as kernels and virtio have it: the
field that is named holds the sum of a pseudo header, and whoever sends the frame over a wire finishes it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

ETHERNET_BYTES = 14
TAG_BYTES = 4
_TAGS = (b"\x81\x00", b"\x88\xa8")
MAX_TAGS = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame."""

    data: bytes | memoryview
    """From the destination address on; nobody changes it any more."""
    partial: tuple[int, int] | None = None
    """Where a checksum is to be finished: over all from byte `start` on; its field is `offset` bytes behind that."""
    valid: bool = False
    """Whether its checksums were found good by whoever gave it to the port."""


def header_length(data: bytes | memoryview) -> int:
    """Bytes of a frame before what counts for the MTU: addresses, up to two VLAN tags, type."""
    length = ETHERNET_BYTES
    for _ in range(MAX_TAGS):
        if data[length - 2 : length] not in _TAGS:
            break
        length += TAG_BYTES
    return length


class Port(ABC):
    """One end of a network. All but what is said otherwise is for the thread of its device."""

    name: str
    """For messages."""
    mtu: int
    """Bytes of the largest frame without its Ethernet header."""

    def __init__(self) -> None:
        self.sent = 0
        """Frames that went on."""
        self.received = 0
        """Frames that `receive` gave out."""
        self.dropped: dict[str, int] = {}
        """Frames that were lost here, by reason."""
        self.on_arrival: Callable[[], None] | None = None
        """Called when there is something to receive, from any thread; not by a port that has a descriptor."""

    def fileno(self) -> int:
        """What is readable while there is something to receive; -1 for a port that calls `on_arrival`."""
        return -1

    @abstractmethod
    def send(self, frame: Frame) -> bool:
        """Let a frame go, with its checksum partial or not. It never waits: False when it was dropped, and counted."""

    @abstractmethod
    def receive(self) -> Frame | None:
        """The next frame that came, or None. Raises `OSError` when the port is of no use any more."""

    def take_partial(self, wanted: bool) -> None:
        """Whether frames with a partial checksum may be received; the port may finish them, and need not."""

    def close(self) -> None:
        """Give up what the port has; it is not used afterwards."""

    def drop(self, reason: str) -> bool:
        """Count a frame that is lost; False."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return False
