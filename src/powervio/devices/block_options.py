"""How a block device is to be, and what it counts."""

from __future__ import annotations

from dataclasses import dataclass, field

from powervio.devices.throttle import Limits
from powervio.errors import LocalError

SECTOR = 512
"""Bytes of a sector, whatever the logical block is (virtio 1.4, 5.2.4)."""
ID_BYTES = 20
"""Bytes of the answer to GET_ID."""


@dataclass(frozen=True, slots=True)
class BlockOptions:
    """How a block device presents its backing; each field that is None follows the backing."""

    serial: str = ""
    """What GET_ID answers: up to 20 bytes of ASCII."""
    read_only: bool = False
    """Refuse writes though the backing would take them."""
    queues: int = 1
    """Request queues; more than one offers MQ."""
    queue_size: int = 128
    """Largest size of each queue, in descriptors."""
    block_size: int | None = None
    """Logical block in bytes, a power of two from 512: the unit that drivers should use (not more than that)."""
    physical_block_size: int = 4096
    """Bytes that the medium writes without reading first, told as TOPOLOGY; at least the logical block."""
    optimal_io_size: int = 0
    """Bytes of a request that suits best, a multiple of the logical block; 0 says nothing."""
    writeback: bool = True
    """Whether the device starts with a volatile write cache; without, each write is flushed before it completes."""
    config_wce: bool = True
    """Whether the driver may switch the cache (CONFIG_WCE)."""
    size_max: int = 512 << 10
    """Largest data segment in bytes."""
    max_request: int = 64 << 20
    """Largest request in bytes. More than `size_max` times `seg_max`, so that it is met only by a driver that ignores
    them: one request must not hold up the other disks of a VIO server for long."""
    seg_max: int | None = None
    """Most data segments of a request; None is what a queue holds beside header and status."""
    discard: bool | None = None
    """Whether to offer DISCARD."""
    max_discard_sectors: int = 1 << 21
    """Largest discard in sectors of 512 bytes."""
    max_write_zeroes_sectors: int = 1 << 17
    """Largest write of zeroes in sectors of 512 bytes; where the host has no fast way it takes as long as a write."""
    max_secure_erase_sectors: int = 1 << 17
    """Largest secure erase in sectors of 512 bytes."""
    max_segments: int = 16
    """Most ranges in one discard, write of zeroes or secure erase."""
    limits: Limits | None = None
    """How much the driver may do; what is over waits."""


@dataclass(slots=True)
class BlockCounters:
    """What a block device has done since it was made."""

    reads: int = 0
    """Successful IN requests."""
    writes: int = 0
    """Successful OUT requests."""
    flushes: int = 0
    discards: int = 0
    write_zeroes: int = 0
    secure_erases: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    throttled: int = 0
    """Requests that had to wait because of the limits."""
    throttled_seconds: float = 0.0
    """Their waiting times together."""
    errors: dict[str, int] = field(default_factory=dict)
    """Failed requests by kind: `malformed`, `range`, `read-only`, `unsupported`, `backing`, `memory`, `no status`."""

    def count(self, kind: str, failed: int = 1) -> None:
        """So many more requests failed in this way; none changes nothing."""
        if failed:
            self.errors[kind] = self.errors.get(kind, 0) + failed


def check_options(options: BlockOptions, block_size: int) -> bytes:
    """The serial as GET_ID answers it. Raises `LocalError` for options that make no device."""
    for name, value in (("block_size", block_size), ("physical_block_size", options.physical_block_size)):
        if value < SECTOR or value & (value - 1) or value > 1 << 20:
            raise LocalError(f"{name} {value}: expected a power of two from {SECTOR} to {1 << 20}")
    if options.optimal_io_size % block_size or options.optimal_io_size < 0:
        raise LocalError(f"optimal_io_size {options.optimal_io_size} is no multiple of the block size {block_size}")
    if not 1 <= options.queues <= 0xFFFF:
        raise LocalError(f"{options.queues} queues: expected 1 to 65535")
    # A request has three parts: header, data, status.
    if not 4 <= options.queue_size <= 32768 or options.queue_size & (options.queue_size - 1):
        raise LocalError(f"queue_size {options.queue_size}: expected a power of two from 4 to 32768")
    if options.seg_max is not None and not 1 <= options.seg_max <= options.queue_size - 2:
        raise LocalError(f"seg_max {options.seg_max}: expected 1 to {options.queue_size - 2}, the queue's size less 2")
    if not SECTOR <= options.size_max <= 0xFFFF_FFFF:
        raise LocalError(f"size_max {options.size_max}: expected {SECTOR} to {0xFFFF_FFFF}")
    for name, value in (
        ("max_discard_sectors", options.max_discard_sectors),
        ("max_write_zeroes_sectors", options.max_write_zeroes_sectors),
        ("max_secure_erase_sectors", options.max_secure_erase_sectors),
        ("max_segments", options.max_segments),
    ):
        if not 1 <= value <= 0xFFFF_FFFF:
            raise LocalError(f"{name} {value}: expected 1 to {0xFFFF_FFFF}")
    try:
        serial = options.serial.encode("ascii")
    except UnicodeEncodeError:
        raise LocalError(f"serial {options.serial!r} is not ASCII") from None
    if len(serial) > ID_BYTES:
        raise LocalError(f"serial {options.serial!r} has {len(serial)} bytes; {ID_BYTES} fit")
    return serial.ljust(ID_BYTES, b"\0")
