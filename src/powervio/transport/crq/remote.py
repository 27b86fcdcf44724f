"""The client's memory as the server reaches it: by remote DMA through the second pane, in as few calls as possible.

`RemoteWindow` wraps the RDMA hcalls, `RemoteRing` is the memory of one virtqueue, `RdmaPayload` the data of one
request. Every call here crosses the hypervisor once; nothing of the client is ever mapped.
"""

from __future__ import annotations

from typing import ClassVar

from powervio.errors import RemoteError, Verdict
from powervio.memory.abstract import Backing, Payload, RingMemory
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


class RemoteWindow:
    """RDMA between the partner's window and local DMA memory of one server adapter."""

    def __init__(self, port: HcallPort, node: VdeviceNode, dma: DmaSpace) -> None:
        self._port = port
        self._local = dma.liobn
        self._remote = node.windows[1].liobn
        self._limit = port.max_virtual_dma_size or _NO_LIMIT
        self._dma = dma
        self.bounce = dma.share(BOUNCE_SIZE)

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
        local = memory.ioba + offset
        while length > self._limit:
            self._check(
                self._port.copy_rdma(self._limit, self._remote, address, self._local, local),
                address,
                self._limit,
                "reading",
            )
            address += self._limit
            local += self._limit
            length -= self._limit
        code = self._port.copy_rdma(length, self._remote, address, self._local, local)
        if code:
            self._check(code, address, length, "reading")

    def store(self, address: int, length: int, memory: DmaMemory, offset: int = 0) -> None:
        """Copy from local DMA memory to the partner; one call unless the platform limits the length of one."""
        local = memory.ioba + offset
        while length > self._limit:
            self._check(
                self._port.copy_rdma(self._limit, self._local, local, self._remote, address),
                address,
                self._limit,
                "writing",
            )
            address += self._limit
            local += self._limit
            length -= self._limit
        code = self._port.copy_rdma(length, self._local, local, self._remote, address)
        if code:
            self._check(code, address, length, "writing")

    def read(self, address: int, length: int) -> bytes:
        """A piece of the partner's memory as bytes, at most the bounce area's size."""
        if length <= _READ_LIMIT:
            code, data = self._port.read_rdma(self._remote, address, length)
            if code:
                self._check(code, address, length, "reading")
            return data
        if length > BOUNCE_SIZE:
            raise RemoteError(f"a block of {length} bytes is too long; expected at most {BOUNCE_SIZE}")
        self.fetch(address, length, self.bounce)
        return bytes(self.bounce.view[:length])

    def write(self, address: int, data: bytes) -> None:
        """Put bytes into the partner's memory."""
        length = len(data)
        if length <= _WRITE_LIMIT:
            code = self._port.write_rdma(self._remote, address, data)
            if code:
                self._check(code, address, length, "writing")
            return
        for at in range(0, length, BOUNCE_SIZE):
            piece = data[at : at + BOUNCE_SIZE]
            self.bounce.view[: len(piece)] = piece
            self.store(address + at, len(piece), self.bounce)


class RemoteRing(RingMemory):
    """A split virtqueue in the client's memory, worked on in shadows of the server's own.

    The shadow areas follow one another as the client's usually do, so that descriptors and available ring come in one
    copy when they are adjacent there too.
    """

    remote: ClassVar[bool] = True

    def __init__(
        self,
        window: RemoteWindow,
        dma: DmaSpace,
        size: int,
        descriptors: int,
        available: int,
        used: int,
        *,
        fresh: bool = True,
    ) -> None:
        """`size` entries; the three I/O addresses are the client's. The shadows live until `release`."""
        self._window = window
        self._dma = dma
        self._size = size
        self._addresses = (descriptors, available, used)
        self._available_at = 16 * size
        self._used_at = (self._available_at + 6 + 2 * size + 7) & ~7
        self._table_at = (self._used_at + 6 + 8 * size + 15) & ~15
        self._shadow = dma.allocate(self._table_at + 16 * size)
        view = self._shadow.view
        self.descriptors = view[: self._available_at]
        self.available = view[self._available_at : self._available_at + 6 + 2 * size]
        self.used = view[self._used_at : self._used_at + 6 + 8 * size]
        self._table = view[self._table_at :]
        self._adjacent = available == descriptors + 16 * size
        # What the client's memory has: a new ring is all zeroes, of one that is taken over nothing is known.
        self._suppression = (bytes(2), bytes(2)) if fresh else (b"", b"")

    def release(self) -> None:
        """Give back the shadows; the ring is not used afterwards."""
        self.descriptors.release()
        self.available.release()
        self.used.release()
        self._table.release()
        self._dma.release(self._shadow)

    def fetch_available(self) -> None:
        """See `RingMemory`: one copy."""
        self._ring_copy(self._addresses[1], 6 + 2 * self._size, self._available_at, fetch=True)

    def fetch_descriptors(self) -> None:
        """See `RingMemory`: one copy when the client's areas are adjacent, else two."""
        if self._adjacent:
            self._ring_copy(self._addresses[0], 16 * self._size + 6 + 2 * self._size, 0, fetch=True)
        else:
            self._ring_copy(self._addresses[0], 16 * self._size, 0, fetch=True)
            self.fetch_available()

    def fetch_table(self, address: int, length: int) -> memoryview:
        """See `RingMemory`: one copy; a table longer than the queue is refused (virtio 1.4, 2.7.5.3.1)."""
        if length > len(self._table):
            raise RemoteError(
                f"an indirect table of {length} bytes is longer than the queue ({len(self._table)} bytes)"
            )
        self._window.fetch(address, length, self._shadow, self._table_at)
        return self._table[:length]

    def store_used(self, first: int, count: int) -> None:
        """See `RingMemory`: elements (two copies where they wrap), then the index in a copy of its own, because no
        order is promised inside one copy (papr-vio 4.1)."""
        used = self._addresses[2]
        until_end = min(count, self._size - first)
        self._ring_copy(used + 4 + 8 * first, 8 * until_end, self._used_at + 4 + 8 * first, fetch=False)
        if count > until_end:
            self._ring_copy(used + 4, 8 * (count - until_end), self._used_at + 4, fetch=False)
        self._ring_copy(used + 2, 2, self._used_at + 2, fetch=False)

    def store_suppression(self) -> None:
        """See `RingMemory`: only what changed since the last time."""
        event_at = 4 + 8 * self._size
        flags, event = bytes(self.used[:2]), bytes(self.used[event_at : event_at + 2])
        if flags != self._suppression[0]:
            self._ring_copy(self._addresses[2], 2, self._used_at, fetch=False)
        if event != self._suppression[1]:
            self._ring_copy(self._addresses[2] + event_at, 2, self._used_at + event_at, fetch=False)
        self._suppression = (flags, event)

    def _ring_copy(self, address: int, length: int, offset: int, *, fetch: bool) -> None:
        try:
            if fetch:
                self._window.fetch(address, length, self._shadow, offset)
            else:
                self._window.store(address, length, self._shadow, offset)
        except RemoteError as error:
            # without its ring a queue cannot even fail a request
            raise RemoteError(f"virtqueue memory: {error}", Verdict.NEEDS_RESET) from None


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
        for _, length in segments:
            total += length
        self.length = total

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
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
        pieces = self._pieces(offset, length)
        if len(pieces) == 1:
            return self._window.read(*pieces[0])
        return b"".join([self._window.read(address, part) for address, part in pieces])

    def write(self, offset: int, data: bytes) -> None:
        """See `Payload`."""
        at = 0
        for address, part in self._pieces(offset, len(data)):
            self._window.write(address, data[at : at + part])
            at += part

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """See `Payload`: the backing is read into the bounce area, which is copied out segment by segment."""
        window = self._window
        bounce = window.bounce
        while length:
            chunk = min(length, BOUNCE_SIZE)
            pieces = self._pieces(offset, chunk)
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
            for address, part in self._pieces(offset, chunk):
                window.fetch(address, part, bounce, at)
                at += part
            backing.write_from(position, bounce.view[:chunk])
            position += chunk
            offset += chunk
            length -= chunk
