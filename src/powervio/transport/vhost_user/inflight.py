"""The record of requests in flight, which survives this process: it is in memory that the front end keeps.

A back end notes each buffer that it takes, and takes the note back after the buffer is in the used ring. A successor
finds what was taken and not given back, and takes it again, in the order in which it was taken. Source: QEMU,
docs/interop/vhost-user.rst, "Inflight I/O tracking", split virtqueue. Integers are in the host's byte order. For each
queue of N descriptors, aligned to 64 bytes::

    u64 features (0)   u16 version (1)   u16 desc_num   u16 last_batch_head   u16 used_idx
    N times: u8 inflight   5 bytes unused   u16 next   u64 counter

The order of stores, and why nothing is lost or done twice:

1. A buffer is noted (counter, then inflight) before its data are touched.
2. Completed buffers are chained by `next` from `last_batch_head` before used.idx shows them.
3. After used.idx shows them their notes are taken back, and then `used_idx` follows used.idx.

A death between 2 and 3 leaves `used_idx` behind: the buffers of the last batch are noted though they are done. They
are told apart by *both* accounts: a buffer is done if it is in that chain and in the used ring from `used_idx` on. The
chain alone does not do: a record that was never used says that buffer 0 is its last batch, and after a migration, where
a new record meets a ring whose used.idx is not 0, buffer 0 would be dropped although it is in flight. A chain that
repeats itself, or is longer than the queue, is no batch. For the same reason `used_idx` is set when a queue starts.

The memory is the front end's too: what is read there is a number within bounds, and never a length or an address. Only
split rings are recorded: for a packed one a front end that asks is told that there is no record (size 0).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from powervio.errors import RemoteError
from powervio.memory import hw
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user.memory import MappedFile

VERSION = 1
ALIGN = 64
_HEAD = 16
_ENTRY = 16
_VERSION_AT, _COUNT_AT, _BATCH_AT, _USED_AT = 8, 10, 12, 14
_NEXT_AT, _COUNTER_AT = 6, 8


def queue_bytes(size: int) -> int:
    """Bytes of the record of one queue of `size` descriptors."""
    return (_HEAD + _ENTRY * size + ALIGN - 1) & ~(ALIGN - 1)


def create(queues: int, queue_size: int) -> tuple[int, int]:
    """A new record, for a front end to keep: its file descriptor, and its size in bytes."""
    size = queues * queue_bytes(queue_size)
    area = MappedArea.create("inflight", size)
    for index in range(queues):
        at = index * queue_bytes(queue_size)
        hw.st16(area.view, at + _COUNT_AT, queue_size)
        hw.st16(area.view, at + _VERSION_AT, VERSION)
    fd = os.dup(area.fd)
    area.close()
    return fd, size


class InflightRecord:
    """The record of all queues, as a front end brought it."""

    def __init__(self, fd: int, offset: int, size: int, queues: int, queue_size: int) -> None:
        """Map it; `fd` stays the caller's. Raises `RemoteError` when it cannot be one."""
        if not 0 < queue_size <= 32768 or size < queues * queue_bytes(queue_size):
            raise RemoteError(f"a record of {size} bytes for {queues} queues of {queue_size} descriptors")
        self._file = MappedFile(fd, offset, size, "record of requests in flight")
        self.queues = queues
        self.queue_size = queue_size

    def queue(self, index: int) -> InflightQueue:
        """The part of one queue. Raises `RemoteError` when there is none, or it is of a version that is not known."""
        if index >= self.queues:
            raise RemoteError(f"the record of requests in flight has {self.queues} queues, and none for queue {index}")
        each = queue_bytes(self.queue_size)
        return InflightQueue(self._file.view[index * each : (index + 1) * each], self.queue_size)

    def close(self) -> None:
        """Unmap it."""
        self._file.close()


class InflightQueue:
    """The record of one queue."""

    def __init__(self, view: memoryview, size: int) -> None:
        """Raises `RemoteError` for a record of another version or size."""
        version, count = hw.ld16(view, _VERSION_AT), hw.ld16(view, _COUNT_AT)
        if version == 0:  # never used
            hw.st16(view, _COUNT_AT, size)
            hw.st16(view, _VERSION_AT, VERSION)
        elif version != VERSION or count != size:
            raise RemoteError(
                f"a record of requests in flight, version {version} for {count} descriptors; "
                f"expected version {VERSION} for {size}"
            )
        self._view = view
        self._size = size
        self._counter = 0
        self._completed: list[int] = []

    def recover(self, used_index: int, used_ring: Sequence[int]) -> list[int]:
        """The heads that a predecessor had in flight, in the order in which it took them; the record is put in order.

        `used_ring` are the ids in the used ring, oldest slot first (slot 0), and `used_index` is used.idx.
        """
        view, size = self._view, self._size
        for head in self._last_batch(used_index, used_ring):
            hw.st8(view, self._entry(head), 0)
        hw.st16(view, _USED_AT, used_index)
        found = []
        for head in range(size):
            at = self._entry(head)
            if hw.ld8(view, at):
                found.append((hw.ld64(view, at + _COUNTER_AT), head))
        found.sort()
        self._counter = found[-1][0] + 1 & 0xFFFF_FFFF_FFFF_FFFF if found else 0
        return [head for _, head in found]

    def _last_batch(self, used_index: int, used_ring: Sequence[int]) -> list[int]:
        """What is noted although the used ring shows it."""
        count = (used_index - hw.ld16(self._view, _USED_AT)) & 0xFFFF
        if not 0 < count <= min(self._size, len(used_ring)):
            return []
        shown = {used_ring[(used_index - 1 - back) % len(used_ring)] for back in range(count)}
        chain: list[int] = []
        head = hw.ld16(self._view, _BATCH_AT)
        # a buffer that the ring itself gave back (its table could not be fetched) is in the used ring and not here
        while len(chain) < count and head < self._size and head in shown:
            if head in chain:
                return []
            chain.append(head)
            head = hw.ld16(self._view, self._entry(head) + _NEXT_AT)
        return chain

    @staticmethod
    def _entry(head: int) -> int:
        return _HEAD + _ENTRY * head

    def begin(self, head: int) -> None:
        """A buffer is taken."""
        at = self._entry(head)
        hw.st64(self._view, at + _COUNTER_AT, self._counter)
        self._counter = (self._counter + 1) & 0xFFFF_FFFF_FFFF_FFFF
        hw.st8(self._view, at, 1)

    def complete(self, head: int) -> None:
        """A buffer is in the used ring, which does not show it yet."""
        view = self._view
        hw.st16(view, self._entry(head) + _NEXT_AT, hw.ld16(view, _BATCH_AT))
        hw.st16(view, _BATCH_AT, head)
        self._completed.append(head)

    def published(self, used_index: int) -> None:
        """used.idx shows what was completed."""
        for head in self._completed:
            hw.st8(self._view, self._entry(head), 0)
        self._completed.clear()
        hw.st16(self._view, _USED_AT, used_index)
