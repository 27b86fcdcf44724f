"""The file that has the records of requests in flight of all queues: made here, kept by the front end, mapped again.

What the records say is `inflight`'s.
"""

from __future__ import annotations

import os

from powervio.errors import RemoteError
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user.inflight import (
    ALIGN,
    MAX_SIZE,
    InflightQueue,
    PackedInflight,
    SplitInflight,
    packed_bytes,
    split_bytes,
)
from powervio.transport.vhost_user.memory import MappedFile


def queue_bytes(queue_size: int, *, packed: bool) -> int:
    """Bytes of the record of one queue."""
    return packed_bytes(queue_size) if packed else split_bytes(queue_size)


def create(queues: int, queue_size: int, *, packed: bool) -> tuple[int, int]:
    """A new record, for a front end to keep: its file descriptor, and its size in bytes.

    All of it is zero, also the versions: each queue's is begun when the queue is started for the first time.
    """
    size = queues * queue_bytes(queue_size, packed=packed)
    area = MappedArea.create("inflight", size)
    fd = os.dup(area.fd)
    area.close()
    return fd, size


class InflightRecord:
    """The record of all queues, as a front end brought it. Whether they are packed is known when one is started."""

    def __init__(self, fd: int, offset: int, size: int, queues: int, queue_size: int) -> None:
        """Map it; `fd` stays the caller's. Raises `RemoteError` when it cannot be one."""
        if not 0 < queue_size <= MAX_SIZE or size < queues * queue_bytes(queue_size, packed=False):
            raise RemoteError(f"a record of {size} bytes for {queues} queues of {queue_size} descriptors")
        if offset % ALIGN:
            raise RemoteError(f"a record at {offset}: not aligned to {ALIGN}")
        self._file = MappedFile(fd, offset, size, "record of requests in flight")
        self.queues = queues
        self.queue_size = queue_size

    def queue(self, index: int, size: int, *, packed: bool) -> InflightQueue:
        """The part of one queue, of `size` descriptors.

        Raises `RemoteError` when there is none, when the queue is too long for it, or when it is of another kind.
        """
        each = queue_bytes(self.queue_size, packed=packed)
        if index >= self.queues or (index + 1) * each > len(self._file.view):
            raise RemoteError(
                f"the record of requests in flight has {len(self._file.view)} bytes for {self.queues} queues, and none "
                f"for queue {index}"
            )
        if size > self.queue_size:
            raise RemoteError(f"ring {index} has {size} entries, its record {self.queue_size}")
        view = self._file.view[index * each : (index + 1) * each]
        return PackedInflight(view, self.queue_size, size) if packed else SplitInflight(view, self.queue_size)

    def close(self) -> None:
        """Unmap it, when the last queue is gone too."""
        self._file.close()
