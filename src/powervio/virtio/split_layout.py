"""Sizes of the split virtqueue's areas (virtio 1.4, 2.7), in bytes, and the check of a ring's memory."""

from __future__ import annotations

from powervio.errors import LocalError
from powervio.memory.abstract import RingMemory

MAX_SIZE = 32768
"""Largest queue size (2.7), in descriptors."""


def descriptors_bytes(size: int) -> int:
    """Bytes of the descriptor table of a queue of `size` (2.7)."""
    return 16 * size


def available_bytes(size: int) -> int:
    """Bytes of the available ring of a queue of `size`, with used_event (2.7)."""
    return 6 + 2 * size


def used_bytes(size: int) -> int:
    """Bytes of the used ring of a queue of `size`, with avail_event (2.7)."""
    return 6 + 8 * size


def check_memory(size: int, memory: RingMemory) -> None:
    """Raise `LocalError` for a size that no split queue has, and for an area that is too small for it."""
    if size < 1 or size > MAX_SIZE or size & (size - 1):
        raise LocalError(f"a split queue has a power of two up to {MAX_SIZE} descriptors, not {size} (virtio 1.4, 2.7)")
    for name, area, wanted in (
        ("descriptors", memory.descriptors, descriptors_bytes(size)),
        ("available", memory.available, available_bytes(size)),
        ("used", memory.used, used_bytes(size)),
    ):
        if area.nbytes < wanted:
            raise LocalError(f"the {name} area of a queue of {size} needs {wanted} bytes and has {area.nbytes}")
