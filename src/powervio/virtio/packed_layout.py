# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Sizes of the packed virtqueue's areas (virtio 1.4, 2.8), in bytes, positions in the ring, and the check of memory.

A *position* names a place of the ring and how often the ring was gone round: bits 0-14 the slot, bit 15 the wrap
counter there, as virtio writes it in event suppression and notification data, and bits 16-31 the rounds (modulo 65536)
where a position crosses a transport that may deliver late. The wrap counter is 1 in even rounds.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython

from powervio.errors import LocalError
from powervio.memory.abstract import RingMemory

MAX_SIZE = 32768
"""Largest queue size (2.8), in descriptors; any number from 1 on is one."""
EVENT_BYTES = 4
"""Of an event suppression structure (2.8.14): position in 16 bits, flags in 16 bits."""
FIRST_POSITION = 0x8000
"""Where both sides of a new ring begin: slot 0, wrap counter 1 (2.8.1)."""
EVENT_ENABLE = 0
EVENT_DISABLE = 1
EVENT_DESC = 2
"""Flags of event suppression (2.8.10); the last needs EVENT_IDX."""

_DISABLE = cython.declare(cython.uint, EVENT_DISABLE)
_DESC = cython.declare(cython.uint, EVENT_DESC)


def ring_bytes(size: int) -> int:
    """Bytes of the descriptor ring of a queue of `size` (2.8.10.1)."""
    return 16 * size


def check_memory(size: int, memory: RingMemory) -> None:
    """Raise `LocalError` for a size that no packed queue has, and for an area that is too small for it.

    The areas are the descriptor ring, the driver's event suppression (`available`) and the device's (`used`).
    """
    if size < 1 or size > MAX_SIZE:
        raise LocalError(f"a packed queue has 1 to {MAX_SIZE} descriptors, not {size} (virtio 1.4, 2.8)")
    for name, area, wanted in (
        ("descriptor ring", memory.descriptors, ring_bytes(size)),
        ("driver event suppression", memory.available, EVENT_BYTES),
        ("device event suppression", memory.used, EVENT_BYTES),
    ):
        if area.nbytes < wanted:
            raise LocalError(f"the {name} of a queue of {size} needs {wanted} bytes and has {area.nbytes}")


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def position_of(slot: cython.uint, turn: cython.uint) -> cython.uint:
    """The position of a slot in a round, in 16 bits."""
    return slot if turn & 1 else slot | 0x8000


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def round_of(position: cython.uint) -> cython.uint:
    """The round of a position; one that was saved without rounds is in round 0 or 1."""
    return (position >> 16) & 0xFFFE | (0 if position & 0x8000 else 1)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def place_after(position: cython.uint, count: cython.uint, size: cython.uint) -> cython.uint:
    """The position `count` descriptors on, at most `size`, in 16 bits."""
    slot: cython.uint = (position & 0x7FFF) + count
    if slot < size:
        return slot | position & 0x8000
    return (slot - size) | (~position & 0x8000)


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def descriptors_between(position: cython.uint, start: cython.uint, size: cython.uint) -> cython.uint:
    """Descriptors from one position to another, which are at most `size` in a ring that is in order."""
    period: cython.uint = 2 * size
    here: cython.uint = (position & 0x7FFF) % size + (0 if position & 0x8000 else size)
    there: cython.uint = (start & 0x7FFF) % size + (0 if start & 0x8000 else size)
    return (here + period - there) % period


@cython.ccall
@cython.nogil
@cython.exceptval(check=False)
def event_is_due(
    event: cython.uint,
    event_idx: cython.bint,
    size: cython.uint,
    slot: cython.uint,
    turn: cython.uint,
    count: cython.uint,
) -> cython.bint:
    """Whether an event suppression structure (2.8.10) asks to be told of the last `count` descriptors before a place.

    `event` is the structure as one word. What is reserved, or no place of the ring, asks always: a notification too
    many does no harm.
    """
    flags: cython.uint = (event >> 16) & 3
    wanted: cython.uint = event & 0x7FFF
    period: cython.uint = 2 * size
    if flags == _DISABLE:
        return False
    if flags != _DESC or not event_idx or wanted >= size:
        return True
    if not event & 0x8000:
        wanted += size
    if turn & 1:
        slot += size
    return (slot + period - wanted - 1) % period < count
