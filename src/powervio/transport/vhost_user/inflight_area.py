"""The file that has the records of requests in flight of all queues: made here, kept by the front end, mapped again.

What the records say is `inflight`'s.
"""

from __future__ import annotations

import os

from powervio.errors import RemoteError
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user.inflight import ALIGN, SplitInflight, split_bytes
from powervio.transport.vhost_user.memory import MappedFile


def create(queues: int, queue_size: int) -> tuple[int, int]:
    """A new record, for a front end to keep: its file descriptor, and its size in bytes."""
    size = queues * split_bytes(queue_size)
    area = MappedArea.create("inflight", size)
    for index in range(queues):
        SplitInflight(area.view[index * split_bytes(queue_size) :], queue_size)
    fd = os.dup(area.fd)
    area.close()
    return fd, size


class InflightRecord:
    """The record of all queues, as a front end brought it."""

    def __init__(self, fd: int, offset: int, size: int, queues: int, queue_size: int) -> None:
        """Map it; `fd` stays the caller's. Raises `RemoteError` when it cannot be one."""
        if not 0 < queue_size <= 32768 or size < queues * split_bytes(queue_size):
            raise RemoteError(f"a record of {size} bytes for {queues} queues of {queue_size} descriptors")
        if offset % ALIGN:
            raise RemoteError(f"a record at {offset}: not aligned to {ALIGN}")
        self._file = MappedFile(fd, offset, size, "record of requests in flight")
        self.queues = queues
        self.queue_size = queue_size

    def queue(self, index: int) -> SplitInflight:
        """The part of one queue. Raises `RemoteError` when there is none, or it is of a version that is not known."""
        if index >= self.queues:
            raise RemoteError(f"the record of requests in flight has {self.queues} queues, and none for queue {index}")
        each = split_bytes(self.queue_size)
        return SplitInflight(self._file.view[index * each : (index + 1) * each], self.queue_size)

    def close(self) -> None:
        """Unmap it, when the last queue is gone too."""
        self._file.close()
