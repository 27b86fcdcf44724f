"""Interpreted stand-in for `guard.h`: nothing is guarded then, for Python runs no handler in the midst of an access.

Compiled modules call the inline C functions of `guard.h` through `guard.pxd`.
"""

from __future__ import annotations

from powervio.memory.hw import Pointer, pointer

_breaks = pointer(bytearray(8))


def guard_add(base: Pointer, length: int, grain: int) -> int:
    """Guard bytes of a mapping whose pages have `grain` bytes; a number, or 0 when there is no room, as here."""
    return 0


def guard_remove(number: int) -> None:
    """The range is about to be unmapped. 0 is none."""


def guard_breaks_at() -> Pointer:
    """Where there is a number that grows with each range that breaks."""
    return _breaks


def guard_is_broken(number: int) -> int:
    """Whether something of the range was missing before what this thread did last."""
    return 0
