"""What a way of attaching a disk to the host (NBD, later FUSE) needs from the disk: asynchronous, with its own memory.

A client partition's block driver satisfies it through a thin adapter; so does anything else with random-access bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Generic, Protocol, TypeVar


class Lendable(Protocol):
    """Memory that the disk can reach; `powervio.virtio.queue.Buffer` is one."""

    view: memoryview
    """The bytes, writable; at least as many as were asked for."""


B = TypeVar("B", bound=Lendable)


class Disk(ABC, Generic[B]):
    """A disk whose data move through buffers from its own bounded pool. Positions, lengths and sizes are bytes.

    Every method is called in the thread of one event loop, many at a time, and ranges are inside `size` and multiples
    of `block_size`. A failure is an `OSError` whose errno says what it was. The caller never cancels an operation: when
    one has returned or raised, the device does not have the buffer any more, and only then is it released. A request
    that was given to the device must therefore end some day, with ESHUTDOWN if the disk goes away.
    """

    size: int
    read_only: bool = False
    block_size: int = 512
    """Unit of positions and lengths; a power of two up to 64 KiB."""
    preferred_size: int = 4096
    """Unit in which requests are cheap; a power of two, at least `block_size` and 512."""
    max_transfer: int
    """Largest buffer, and so the largest `read` and `write`; a multiple of `block_size`, at least 64 KiB."""
    can_discard: bool = False
    can_write_zeroes: bool = False
    zeroes_fast: bool = False
    """Whether `write_zeroes` takes less time than a `write` of the same length, whatever the length."""

    @abstractmethod
    async def acquire(self, length: int) -> B:
        """A buffer of at least `length` bytes (at most `max_transfer`), as soon as the pool has one.

        Raises `OSError` only when there will never be one again.
        """

    @abstractmethod
    def release(self, buffer: B) -> None:
        """Give a buffer back to the pool."""

    @abstractmethod
    async def read(self, position: int, buffer: B, length: int) -> None:
        """Fill the first `length` bytes of `buffer` from `position`."""

    @abstractmethod
    async def write(self, position: int, buffer: B, length: int, *, fua: bool) -> None:
        """Write the first `length` bytes of `buffer` at `position`; with `fua` they are stable at the return."""

    @abstractmethod
    async def flush(self) -> None:
        """Make every write (discard, write_zeroes) that had returned before this call stable."""

    async def discard(self, position: int, length: int) -> None:
        """Give up the contents of a range of any length; only called if `can_discard`."""
        raise NotImplementedError

    async def write_zeroes(self, position: int, length: int, *, may_unmap: bool) -> None:
        """Make a range of any length read as zeroes, allocated unless `may_unmap`; only if `can_write_zeroes`."""
        raise NotImplementedError

    async def block_status(self, position: int, length: int) -> list[tuple[int, int]] | None:
        """Consecutive `(bytes, flags)` from `position`: `STATE_HOLE` and `STATE_ZERO` of the NBD protocol.

        None when the disk cannot know. A virtio block device cannot: virtio has no request that asks for holes.
        """
        return None
