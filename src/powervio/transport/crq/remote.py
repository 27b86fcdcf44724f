# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The client's memory as the server reaches it: by remote DMA through the second pane, in as few calls as possible.

`RemoteWindow` wraps the RDMA hcalls, `RdmaPayload` is the data of one request; the memory of virtqueues is in
`remote_ring`. Every call here crosses the hypervisor once; nothing of the client is ever mapped.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import pointer

from powervio.errors import RemoteError
from powervio.memory.abstract import Backing, Payload
from powervio.papr.codes import ReturnCode
from powervio.papr.nodes import VdeviceNode
from powervio.papr.port import HcallPort
from powervio.vio.dma import DmaMemory, DmaSpace
from powervio.virtio.queue import DeviceQueue

BOUNCE_SIZE = 256 * 1024
"""Bytes of the server's own memory through which copied payloads pass, one request at a time of all its adapters."""
_WRITE_LIMIT = 48
"""Bytes that H_WRITE_RDMA carries in registers (papr-vio 4.2)."""
_READ_LIMIT = 72
"""Bytes that H_READ_RDMA carries in registers (papr-vio 4.3)."""
_NO_LIMIT = 1 << 62
_REGISTER = 0xFFFF_FFFF_FFFF_FFFF
"""What of a sum of addresses arrives at the hypervisor."""


@cython.final
@cython.cclass
class RemoteWindow:
    """RDMA between the partner's window and local DMA memory of one server adapter."""

    bounce: Any
    base: cython.p_uchar
    _port: Any
    _local: Any
    _remote: Any
    _limit: cython.ulonglong
    _dma: Any

    def __init__(self, port: HcallPort, node: VdeviceNode, dma: DmaSpace) -> None:
        self._port = port
        self._local = dma.liobn
        self._remote = node.windows[1].liobn
        self._limit = port.max_virtual_dma_size or _NO_LIMIT
        self._dma = dma
        self.bounce: DmaMemory = dma.share(BOUNCE_SIZE)
        self.base = pointer(self.bounce.view)
        """The bounce area's first byte."""

    def release(self) -> None:
        """Give back the bounce area; the window is not used afterwards."""
        self._dma.unshare(self.bounce)

    def _check(self, code: int, address: int, length: int, what: str) -> None:
        if code:
            name = ReturnCode(code).name if code in ReturnCode._value2member_map_ else str(code)
            raise RemoteError(
                f"{what} of {length} bytes at I/O address {address:#x} failed: {name}; expected addresses that the"
                " client has mapped, with the access the request needs"
            )

    def fetch(self, address: int, length: int, memory: DmaMemory, offset: int = 0) -> None:
        """Copy from the partner into local DMA memory; one call unless the platform limits the length of one."""
        self.copy_in(address & _REGISTER, length, memory.ioba + offset)

    def store(self, address: int, length: int, memory: DmaMemory, offset: int = 0) -> None:
        """Copy from local DMA memory to the partner; one call unless the platform limits the length of one."""
        self.copy_out(address & _REGISTER, length, memory.ioba + offset)

    @cython.ccall
    @cython.exceptval(-1)
    def copy_in(self, address: cython.ulonglong, length: cython.ulonglong, local: cython.ulonglong) -> cython.int:
        """As `fetch`, to an I/O address of this side."""
        part: cython.ulonglong = length
        while True:
            if length > self._limit:
                part = self._limit
            code = self._port.copy_rdma(part, self._remote, address, self._local, local)
            if code:
                self._check(code, address, part, "reading")
            if part == length:
                return 0
            address += part
            local += part
            length -= part
            part = length

    @cython.ccall
    @cython.exceptval(-1)
    def copy_out(self, address: cython.ulonglong, length: cython.ulonglong, local: cython.ulonglong) -> cython.int:
        """As `store`, from an I/O address of this side."""
        part: cython.ulonglong = length
        while True:
            if length > self._limit:
                part = self._limit
            code = self._port.copy_rdma(part, self._local, local, self._remote, address)
            if code:
                self._check(code, address, part, "writing")
            if part == length:
                return 0
            address += part
            local += part
            length -= part
            part = length

    @cython.ccall
    @cython.exceptval(-1)
    def copy_across(
        self, address: cython.ulonglong, length: cython.ulonglong, other: RemoteWindow, to: cython.ulonglong
    ) -> cython.int:
        """Copy from this partner's memory into that of another adapter's partner (papr-vio 4.1: any two panes of the
        caller's)."""
        part: cython.ulonglong = length
        while True:
            if length > self._limit:
                part = self._limit
            code = self._port.copy_rdma(part, self._remote, address, other._remote, to)
            if code:
                self._check(code, address, part, f"copying to {to:#x} of another adapter's client")
            if part == length:
                return 0
            address += part
            to += part
            length -= part
            part = length

    def read(self, address: int, length: int) -> bytes:
        """A piece of the partner's memory as bytes, at most the bounce area's size."""
        if length <= _READ_LIMIT:
            code, data = self._port.read_rdma(self._remote, address, length)
            if code:
                self._check(code, address, length, "reading")
            found: bytes = data
            return found
        if length > BOUNCE_SIZE:
            raise RemoteError(f"a block of {length} bytes is too long; expected at most {BOUNCE_SIZE}")
        self.fetch(address, length, self.bounce)
        return bytes(self.bounce.view[:length])

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the partner's memory."""
        length = len(data)
        if length <= _WRITE_LIMIT:
            self.put(address & _REGISTER, data)
            return
        for at in range(0, length, BOUNCE_SIZE):
            piece = data[at : at + BOUNCE_SIZE]
            self.bounce.view[: len(piece)] = piece
            self.store(address + at, len(piece), self.bounce)

    @cython.ccall
    @cython.exceptval(-1)
    def put(self, address: cython.ulonglong, data: bytes) -> cython.int:
        """As `write`, of up to 48 bytes: one call; 8 of them at a multiple of 8 are stored at once."""
        code = self._port.write_rdma(self._remote, address, data)
        if code:
            self._check(code, address, len(data), "writing")
        return 0


class RdmaPayload(Payload):
    """The readable or writable part of a request, moved by H_COPY_RDMA through the adapter's bounce area.

    It lives no longer than its queue: after a reset the same addresses may be something else (P1.5, P5.9, P5.11).
    """

    __slots__ = ("_queue", "_segments", "_window", "length")

    def __init__(self, window: RemoteWindow, queue: DeviceQueue, segments: list[tuple[int, int]]) -> None:
        self._window = window
        self._queue = queue
        self._segments = segments
        total = 0
        end = -1
        follows = False
        for address, length in segments:
            total += length
            if address == end:
                follows = True
            end = address + length
        self.length = total
        if follows:  # Linux cuts at every page what has consecutive I/O addresses: one piece is one call
            self._segments = _joined(segments)

    @property
    def segments(self) -> list[tuple[int, int]]:
        """All of it, as `(I/O address, bytes)`."""
        return self._segments

    def pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        """The parts of segments that make up a range, as `(I/O address, bytes)`."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"bytes {offset} to {offset + length} are outside a payload of {self.length} bytes")
        if not self._queue.live:
            raise RemoteError(f"queue {self._queue.index} was reset: its requests do not reach the client any more")
        pieces: list[tuple[int, int]] = []
        for address, size in self._segments:
            if offset >= size:
                offset -= size
                continue
            room = size - offset
            if length <= room:  # nearly always at once: a header, the data, the status are one segment each
                if length:
                    pieces.append((address + offset, length))
                break
            pieces.append((address + offset, room))
            length -= room
            offset = 0
        return pieces

    def read(self, offset: int, length: int) -> bytes:
        """See `Payload`."""
        pieces = self.pieces(offset, length)
        if len(pieces) == 1:
            return self._window.read(*pieces[0])
        return b"".join([self._window.read(address, part) for address, part in pieces])

    def write(self, offset: int, data: bytes) -> None:
        """See `Payload`."""
        at = 0
        for address, part in self.pieces(offset, len(data)):
            self._window.write(address, data[at : at + part])
            at += part

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`: the backing is read into the bounce area, which is copied out segment by segment."""
        window = self._window
        bounce = window.bounce
        while length:
            chunk = min(length, BOUNCE_SIZE)
            pieces = self.pieces(offset, chunk)
            backing.read_into(position, bounce.view[:chunk])
            at = 0
            for address, part in pieces:
                window.store(address, part, bounce, at)
                at += part
            position += chunk
            offset += chunk
            length -= chunk

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`: copied into the bounce area segment by segment, written to the backing from there."""
        window = self._window
        bounce = window.bounce
        while length:
            chunk = min(length, BOUNCE_SIZE)
            at = 0
            for address, part in self.pieces(offset, chunk):
                window.fetch(address, part, bounce, at)
                at += part
            backing.write_from(position, bounce.view[:chunk])
            position += chunk
            offset += chunk
            length -= chunk


def _joined(segments: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes in as few segments as there can be."""
    joined: list[tuple[int, int]] = []
    start = length = 0
    end = -1
    for address, size in segments:
        if address == end:
            length += size
        else:
            if end >= 0:
                joined.append((start, length))
            start, length = address, size
        end = start + length
    joined.append((start, length))
    return joined
