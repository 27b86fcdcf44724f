"""The server protocol of QEMU's `ivshmem-doorbell`, as values: what is said, in which order, with which descriptors.

Each message is a signed 64-bit integer, little-endian, some with a descriptor (SCM_RIGHTS). The server speaks: version
0, the client's own id, -1 with the shared memory, then for each peer and vector the peer's id with an eventfd; a peer's
n-th eventfd is its vector n-1. QEMU answers nothing. A partition that is a process of ours may send one `ASK_MEMORY`
(docs/gateway.md, G4), and gets that number back with the descriptor of its memory.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from powervio.errors import RemoteError, Verdict

VERSION = 0
SHARED_MEMORY = -1
ASK_MEMORY = -2
MAX_PEER = 0xFFFF
MESSAGE = struct.Struct("<q")

Message = tuple[int, int | None]
"""What is said, and the descriptor that goes with it."""


def greeting(own: int, memory: int, peers: Sequence[tuple[int, Sequence[int]]]) -> list[Message]:
    """All that a server says to a client with id `own`: the others' eventfds first, so that when it has its own it may
    ring at once."""
    messages: list[Message] = [(VERSION, None), (own, None), (SHARED_MEMORY, memory)]
    for peer, fds in peers:
        messages += [(peer, fd) for fd in fds]
    return messages


@dataclass(slots=True)
class Handshake:
    """A client's side: takes messages in their order until everything that is expected has come."""

    vectors: int
    """Vectors of its own that it waits for, at least; more are taken too."""
    server: int = 0
    """The peer that it rings."""
    own: int = -1
    memory: int = -1
    eventfds: dict[int, list[int]] = field(default_factory=dict)
    """By peer."""
    _versioned: bool = False

    @property
    def done(self) -> bool:
        """Whether it can begin."""
        return (
            self.memory >= 0
            and bool(self.eventfds.get(self.server))
            and len(self.eventfds.get(self.own, ())) >= self.vectors
        )

    def take(self, value: int, fd: int | None) -> None:
        """The next message. Raises `RemoteError`; descriptors that were taken before stay in the fields."""
        if not self._versioned:
            self._expect(value == VERSION and fd is None, value, fd, "version 0")
            self._versioned = True
        elif self.own < 0:
            self._expect(0 <= value <= MAX_PEER and fd is None, value, fd, "an id")
            self.own = value
        elif self.memory < 0:
            self._expect(value == SHARED_MEMORY and fd is not None, value, fd, "the shared memory")
            assert fd is not None
            self.memory = fd
        else:
            self._expect(0 <= value <= MAX_PEER and fd is not None, value, fd, "an eventfd of a peer")
            assert fd is not None
            self.eventfds.setdefault(value, []).append(fd)

    @staticmethod
    def _expect(good: bool, value: int, fd: int | None, wanted: str) -> None:
        if not good:
            has = "a" if fd is not None else "no"
            raise RemoteError(f"ivshmem: {value} with {has} descriptor instead of {wanted}", Verdict.CLOSE)

    def descriptors(self) -> list[int]:
        """All that were received."""
        held = [fd for fds in self.eventfds.values() for fd in fds]
        return [self.memory, *held] if self.memory >= 0 else held
