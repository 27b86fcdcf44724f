"""A port: where the frames of a network device go to and come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable

from powervio.network.frame import (
    ETHERNET_BYTES,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP_L4,
    MAX_TAGS,
    TAG_BYTES,
    Frame,
    Offload,
    header_length,
)
from powervio.network.segment import fitted

__all__ = [
    "ETHERNET_BYTES",
    "GSO_ECN",
    "GSO_TCPV4",
    "GSO_TCPV6",
    "GSO_UDP_L4",
    "MAX_TAGS",
    "TAG_BYTES",
    "Frame",
    "Offload",
    "Port",
    "header_length",
]


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
        self.taken = 0
        """Bits of `Offload`: what `receive` may give out unfinished."""
        self._rest: deque[Frame] = deque()

    def fileno(self) -> int:
        """What is readable while there is something to receive; -1 for a port that calls `on_arrival`."""
        return -1

    @abstractmethod
    def send(self, frame: Frame) -> bool:
        """Let a frame go, finished or not. It never waits: False when it was dropped, and counted."""

    @abstractmethod
    def receive(self) -> Frame | None:
        """The next frame that came, or None. Raises `OSError` when the port is of no use any more."""

    def take(self, offloads: Offload) -> None:
        """What may be received unfinished from now on, at first nothing; the port finishes everything else."""
        self.taken = int(offloads)

    def _fit(self, frame: Frame) -> Frame | None:
        """What `receive` gives out of a frame that came; further segments are in `_rest`. None when it was dropped."""
        if not frame.needs & ~self.taken:
            return frame
        parts = fitted(frame, self.taken)
        if not parts:
            self.drop("malformed")
            return None
        self._rest.extend(parts[1:])
        return parts[0]

    def close(self) -> None:
        """Give up what the port has; it is not used afterwards."""

    def drop(self, reason: str) -> bool:
        """Count a frame that is lost; False."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return False
