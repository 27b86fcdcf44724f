"""How much memory partitions need for their disks: upper bounds, so that a start never fails half-way for want of it.

The client has, for each disk, rings and request slots for every queue, indirect tables for what is in flight, and a
pool of data buffers; the server has shadows of the rings, and one bounce area for all. What is over goes to the pools.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

PAGE = 4096
BUFFER_SIZE = 256 * 1024
"""Bytes of one data buffer, and so of the largest request."""
FEWEST_BUFFERS = 4
MOST_BUFFERS = 64
_SMALL_AREAS = 16 * PAGE
"""Bytes: CRQ, header, config, queue addresses, Sub-CRQs."""
_PARTITION = 2 * PAGE
"""Bytes: the page that stays unused, and that for lists."""
_SERVER_BOUNCE = 256 * 1024
"""Bytes, once."""
_TABLES = 2 * MOST_BUFFERS
"""Indirect tables: one for each request in flight, with data or without."""


class QueueOptions(Protocol):
    """The options of a disk that decide how much memory it takes."""

    @property
    def queues(self) -> int: ...  # noqa: D102

    @property
    def queue_size(self) -> int: ...  # noqa: D102

    @property
    def indirect(self) -> str: ...  # noqa: D102

    @property
    def paths(self) -> int: ...  # noqa: D102


def client_need(disks: Sequence[QueueOptions]) -> int:
    """Bytes of memory without which a client with these disks cannot work."""
    return _PARTITION + sum(_fixed(disk) + FEWEST_BUFFERS * BUFFER_SIZE for disk in disks)


def server_need(disks: Sequence[QueueOptions]) -> int:
    """Bytes of memory without which a VIO server cannot serve these disks."""
    shadows = [disk.queues * _pages(disk.queue_size * (16 + 2 + 8 + 16) + 64) for disk in disks]
    crqs = [(1 + (disk.queues if disk.queues > 1 else 0)) * PAGE for disk in disks]
    return _PARTITION + _SERVER_BOUNCE + sum(shadows) + sum(crqs)


def buffers_of_each(memory: int, disks: Sequence[QueueOptions]) -> int:
    """How many data buffers each of a client's disks may have in a partition of `memory` bytes."""
    rest = memory - _PARTITION - sum(map(_fixed, disks))
    return max(FEWEST_BUFFERS, min(MOST_BUFFERS, rest // BUFFER_SIZE // max(1, len(disks))))


def _fixed(disk: QueueOptions) -> int:
    """Bytes beside the pool, which all paths share."""
    ring = _pages(disk.queue_size * (16 + 2 + 8) + 64)
    slots = _pages(disk.queues * disk.queue_size * 65 + 16)
    tables = 0 if disk.indirect == "never" else _TABLES * _pages(16 * disk.queue_size)
    return disk.paths * (disk.queues * ring + slots + tables + _SMALL_AREAS)


def _pages(length: int) -> int:
    return -(-length // PAGE) * PAGE
