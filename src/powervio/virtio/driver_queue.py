# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver side of one virtqueue as drivers see it, whatever ring and transport is below; part of `queue`.

This file is compiled (Cython pure mode) and also runs interpreted. What is not compiled derives from these classes too:
a queue written in Python is called by compiled drivers as any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import cython


@cython.final
@cython.cclass
class Buffer:
    """A piece of the driver's own memory that it may lend to the device."""

    view: memoryview
    address: cython.ulonglong
    length: cython.ulonglong
    is_mapped: cython.bint
    mapped_at: cython.ulonglong

    def __init__(self, view: memoryview, address: int, device_address: int | None) -> None:
        self.view = view
        """The bytes, writable."""
        self.address = address
        """Logical address in the driver's partition."""
        self.length = view.nbytes
        """Bytes."""
        self.is_mapped = device_address is not None
        """Whether it stays mapped; if not it is mapped for each request."""
        self.mapped_at = 0 if device_address is None else device_address
        """What the device calls it while it stays mapped."""

    @property
    def device_address(self) -> int | None:
        """What the device calls it while it stays mapped; None when it is mapped for each request."""
        return self.mapped_at if self.is_mapped else None


BufferSlice: TypeAlias = tuple[Buffer, int, int]
"""A part of a buffer: buffer, offset, length in bytes."""
Used: TypeAlias = tuple[object, int] | None
"""A buffer that came back: its token, and the bytes that the device wrote; None if there is none."""


@cython.cclass
class DriverQueue:
    """The driver side of one virtqueue, for the life of one session."""

    index: cython.uint
    size: cython.uint

    @cython.ccall
    @cython.exceptval(-1)
    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> cython.bint:
        """Make a buffer available; `kick` tells the device. False, and nothing done, when there is no room for it.

        Raises `RemoteError` when the session is about to end, and `LocalError` for what no device may be given.
        """
        raise NotImplementedError

    @cython.ccall
    def kick(self) -> cython.void:
        """Tell the device of everything added since the last kick, unless it said it does not want to know."""
        raise NotImplementedError

    @cython.ccall
    def reap(self) -> Used:
        """The next used buffer, which is the driver's own again."""
        raise NotImplementedError
