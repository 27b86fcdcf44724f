# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a disk is and can do as its driver knows it, and whether it can be given a request (virtio 1.4, 5.2).

The same for a disk behind one device and for one that several serve (`multipath`). This file is compiled (Cython pure
mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

import cython
from cython.cimports.powervio.drivers.block_request import BlockRequest

from powervio.drivers.block_request import KINDS, failure
from powervio.errors import LocalError
from powervio.virtio import block as blk

SECTOR = 512
"""Bytes of a sector, the unit of positions on the wire whatever the block size (virtio 1.4, 5.2.4)."""

_CHANGES = frozenset({blk.T_OUT, blk.T_DISCARD, blk.T_WRITE_ZEROES, blk.T_SECURE_ERASE})
_T_IN = cython.declare(cython.longlong, blk.T_IN)
_T_OUT = cython.declare(cython.longlong, blk.T_OUT)
_IN_SECTOR = cython.declare(cython.longlong, SECTOR - 1)
_MOST = 1 << 62


@cython.cclass
class BlockLimits:
    """A disk's size, units and abilities. Before the first session they are placeholders."""

    features: int
    started: cython.bint
    block_size: cython.longlong
    physical_block_size: cython.longlong
    size_max: cython.longlong
    seg_max: cython.longlong
    max_discard: cython.longlong
    discard_alignment: cython.longlong
    max_write_zeroes: cython.longlong
    max_secure_erase: cython.longlong
    on_resize: Callable[[], None] | None
    _closed: str | None
    _capacity: int
    _end: cython.longlong

    def __init__(self) -> None:
        self.features = 0
        """Negotiated in this session, or in the last one."""
        self.started = False
        """Whether there ever was a session; before, the limits are placeholders."""
        self._capacity = 0
        self._end = 0
        self.block_size = SECTOR
        """The device's logical block in bytes; requests need whole sectors only."""
        self.physical_block_size = SECTOR
        self.size_max = (1 << 32) - 1
        """Bytes of the largest slice."""
        self.seg_max = 126
        """Most slices in one request."""
        self.max_discard = 0
        """Bytes of the largest discard; 0 when there is none."""
        self.discard_alignment = SECTOR
        """Bytes that the edges of a discard should be multiples of."""
        self.max_write_zeroes = 0
        """Bytes of the largest write of zeroes; 0 when there is none."""
        self.max_secure_erase = 0
        """Bytes of the largest secure erase; 0 when there is none."""
        self.on_resize = None
        """Called when `capacity` changed."""
        self._closed = None
        """Why the disk has gone away for good."""

    @property
    def capacity(self) -> int:
        """Bytes; a device may tell of more than can be reached."""
        return self._capacity

    @capacity.setter
    def capacity(self, capacity: int) -> None:
        self._capacity = capacity
        self._end = min(capacity, _MOST)

    @property
    def read_only(self) -> bool:
        """Whether the device refuses writes."""
        return bool(self.features & blk.F_RO)

    @property
    def can_discard(self) -> bool:
        """Whether the device takes discards."""
        return bool(self.features & blk.F_DISCARD) and not self.read_only

    @property
    def can_write_zeroes(self) -> bool:
        """Whether the device writes zeroes by itself."""
        return bool(self.features & blk.F_WRITE_ZEROES) and not self.read_only

    @property
    def can_secure_erase(self) -> bool:
        """Whether the device erases for good."""
        return bool(self.features & blk.F_SECURE_ERASE) and not self.read_only

    @property
    def needs_flush(self) -> bool:
        """Whether a completed write may still be volatile; without FLUSH it is stable (virtio 1.4, 5.2.6.2)."""
        return bool(self.features & blk.F_FLUSH)

    def check(self, request: BlockRequest) -> None:
        """Raise `BlockError` for what this disk cannot do and `LocalError` for what no request can be."""
        if not self.is_usual(request):
            self._check(request)

    @cython.cfunc
    @cython.exceptval(-1)
    def is_usual(self, request: BlockRequest) -> cython.bint:
        """Whether it is a read or write of one slice with nothing wrong: nearly all are, so this is asked first."""
        position: cython.longlong = request.position
        length: cython.longlong = request.length
        sliced: cython.longlong
        if not self.started or self._closed is not None or request.order >= 0 or len(request.slices) != 1:
            return False
        sliced = request.slices[0][2]
        return (
            sliced == length
            and 0 < length <= self.size_max
            and 0 <= position <= self._end - length
            and (position | length) & _IN_SECTOR == 0
            and (request.kind == _T_IN or (request.kind == _T_OUT and not self.read_only))
        )

    def _check(self, request: BlockRequest) -> None:
        if self._closed is not None:
            raise failure(request, errno.ESHUTDOWN, self._closed)
        if request.order >= 0:
            raise LocalError(f"{request} was submitted before")
        kind, length = request.kind, request.length
        if kind not in KINDS:
            raise LocalError(f"{request}: unknown kind of request")
        if (request.position | length) % SECTOR or request.position < 0 or length < 0:
            raise failure(request, errno.EINVAL, f"not in whole sectors of {SECTOR} bytes")
        slices = request.slices
        if kind in (blk.T_IN, blk.T_OUT):
            if sum(part[2] for part in slices) != length:
                raise LocalError(f"{request}: its slices have {sum(part[2] for part in slices)} bytes")
            if not length:
                raise LocalError(f"{request}: no data")
        elif slices:
            raise LocalError(f"{request} takes no data")
        if not self.started:
            return
        if len(slices) > self.seg_max or any(part[2] > self.size_max for part in slices):
            raise LocalError(f"{request}: {len(slices)} slices; at most {self.seg_max} of {self.size_max} bytes each")
        if request.position + length > self.capacity:
            raise failure(request, errno.EINVAL, f"the disk has {self.capacity} bytes")
        if kind in _CHANGES:
            self._check_change(request)

    def _check_change(self, request: BlockRequest) -> None:
        if self.read_only:
            raise failure(request, errno.EROFS, "the disk is read-only")
        if request.kind == blk.T_OUT:
            return
        limit = {
            blk.T_DISCARD: self.max_discard,
            blk.T_WRITE_ZEROES: self.max_write_zeroes,
            blk.T_SECURE_ERASE: self.max_secure_erase,
        }[request.kind]
        if not limit:
            raise failure(request, errno.ENOTSUP, "the device does not offer it")
        if request.length > limit:
            raise LocalError(f"{request}: at most {limit} bytes in one request")
