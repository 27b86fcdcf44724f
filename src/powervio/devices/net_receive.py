"""From a frame to the receive buffers of one queue (virtio 1.4, 5.1.6.4).

A turn's frames are planned first: which buffers each goes to, under which header. Then all bytes are moved together,
which a transport that pays for each copy does with few of them, and the driver sees all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from powervio.devices.net_counters import Counters
from powervio.devices.net_transmit import fits
from powervio.errors import RemoteError
from powervio.memory.abstract import Payload
from powervio.network.port import ETHERNET_BYTES, Frame
from powervio.network.segment import fitted
from powervio.virtio import net
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request

Part = tuple[Payload, int, "bytes | memoryview"]
"""Bytes for a payload, from an offset on."""
Placed = tuple[list[tuple[Request, int]], int]
"""The buffers of a frame, each with what of it is used, and the frame's bytes."""

_AT_ONCE = 256 * 1024
"""Bytes that are moved together at most."""
_PENDING = 256
"""Frames that wait for one of several queues."""
_NUM_BUFFERS = net.LEGACY_HEADER_BYTES
"""Offset in the header."""


class HeaderWriter:
    """What stands before a frame (5.1.6)."""

    def __init__(self, features: int, byteorder: ByteOrder) -> None:
        self.length = net.header_bytes(features)
        self.mergeable = bool(features & net.F_MRG_RXBUF)
        self._partial = bool(features & net.F_GUEST_CSUM)
        self._fields = net.HEADER[byteorder]
        self._byteorder: ByteOrder = byteorder
        plain = bytes(self.length)
        if self.length > _NUM_BUFFERS:  # 1 without MRG_RXBUF, too (5.1.6.4.1)
            plain = plain[:_NUM_BUFFERS] + (1).to_bytes(2, byteorder)
        self._plain = plain

    def header(self, frame: Frame, buffers: int) -> bytes:
        """For a frame that goes into so many buffers."""
        header = self._plain
        if buffers > 1:
            header = header[:_NUM_BUFFERS] + buffers.to_bytes(2, self._byteorder)
        if self._partial and (frame.partial is not None or frame.valid):
            flags = net.H_DATA_VALID if frame.partial is None else net.H_NEEDS_CSUM
            begin, offset = frame.partial or (0, 0)
            fields = self._fields.pack(flags, frame.gso, frame.header_bytes, frame.gso_size, begin, offset)
            header = fields + header[_NUM_BUFFERS:]
        return header


def wanted_parts(frame: Frame, taken: int, mtu: int, counters: Counters) -> Sequence[Frame]:
    """What a driver gets of a frame, who takes some as they are (`taken`, bits of `Offload`); counts what it must not
    see."""
    if len(frame.data) < ETHERNET_BYTES:
        counters.drop("too short")
        return ()
    parts = fitted(frame, taken)
    if not parts:
        counters.drop("segmentation")
    if len(parts) == 1 and not parts[0].gso and not fits(parts[0].data, mtu):
        counters.drop("too long")  # the driver must not see it (5.1.4.1)
        return ()
    return parts


class Receiver:
    """One receive queue's frames."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.bad_buffers = 0
        """Buffers that no frame could go to; they went back empty."""
        self.frame: Frame | None = None
        """What more buffers are needed for than there are."""
        self.held: list[Request] = []
        """Buffers that were taken for it."""
        self.pending: deque[Frame] = deque()
        """Frames that are for this queue, behind that."""
        self._writer = HeaderWriter(0, "little")
        self._parts: list[Part] = []
        self._bytes = 0
        self._planned: list[Placed] = []
        self.ready: list[Placed] = []
        """What was placed and not shown to the driver yet."""

    def start(self, writer: HeaderWriter) -> None:
        """A session begins."""
        self._writer = writer

    def put(self, frame: Frame) -> bool:
        """Let a frame wait for this queue's turn; False when too many do."""
        if len(self.pending) >= _PENDING:
            return False
        self.pending.append(frame)
        return True

    def next(self, queue: DeviceQueue) -> Frame | None:
        """The frame that is to be placed first, which is taken; None when there is none or no buffer for it."""
        if not queue.available:
            return None
        if self.frame is not None:
            frame, self.frame = self.frame, None
            return frame
        return self.pending.popleft() if self.pending else None

    def forget(self) -> int:
        """The buffers are the driver's again; how many frames are lost with them."""
        lost = len(self.pending) + (self.frame is not None) + len(self.ready)
        self.pending.clear()
        self.ready.clear()
        self.held.clear()
        self.frame = None
        return lost

    def give_back(self) -> None:
        """Buffers that wait for more go back empty."""
        held, self.held = self.held, []
        for request in held:
            request.complete(0)

    def plan(self, frame: Frame, queue: DeviceQueue) -> bool:
        """Take buffers for a frame, which `move` fills; False when there are too few yet: then the frame waits here."""
        writer = self._writer
        held = self.held
        size = len(frame.data)
        needed = writer.length + size
        room = 0
        for request in held:
            room += request.writable.length
        least = writer.length if writer.mergeable else needed
        while room < needed:
            popped = queue.pop()
            if popped is None:
                if len(held) < queue.ring.size:
                    self.frame = frame
                    return False
                self.give_back()  # all that the driver has room to bring is here
                self.counters.drop("no room")
                return True
            length = popped.writable.length
            if popped.readable.length or length < least:
                popped.complete(0)
                self.bad_buffers += 1
                if least == needed:
                    self.counters.drop("no room")
                    return True
            else:
                held.append(popped)
                room += length
        self._place(frame, size, needed)
        return True

    def _place(self, frame: Frame, size: int, needed: int) -> None:
        """Which bytes go where; the header is in the first buffer as a whole."""
        held, self.held = self.held, []
        header = self._writer.header(frame, len(held))
        start = len(header)
        parts = self._parts
        if len(held) == 1:
            payload = held[0].writable
            parts.append((payload, 0, header))
            parts.append((payload, start, frame.data))
            used = [(held[0], needed)]
        else:
            data = memoryview(frame.data)
            used = []
            at = -start
            for request in held:
                payload = request.writable
                end = min(size, at + payload.length)
                if at < 0:
                    parts.append((payload, 0, header))
                    parts.append((payload, start, data[:end]))
                else:
                    parts.append((payload, 0, data[at:end]))
                used.append((request, end - at))
                at = end
        self._planned.append((used, size))
        self._bytes += needed

    @property
    def is_full(self) -> bool:
        """Whether `move` should come before another frame is planned."""
        return self._bytes >= _AT_ONCE

    def move(self, queue: DeviceQueue) -> None:
        """Move what was planned: it is `ready` then, or was dropped."""
        if not self._planned:
            return
        parts, planned = self._parts, self._planned
        self._parts, self._planned, self._bytes = [], [], 0
        batch = queue.batch
        written = write_each(parts) if batch is None else batch.write(parts)
        if all(written):
            self.ready += planned
            return
        at = 0
        for used, size in planned:
            count = len(used) + 1  # the header is a part of its own
            if all(written[at : at + count]):
                self.ready.append((used, size))
            else:  # not a part of a frame
                self.counters.drop("memory")
                self.ready.append(([(request, 0) for request, _ in used], -1))
            at += count

    def show(self, queue: DeviceQueue) -> tuple[int, int]:
        """Let the driver see what is ready, by the next flush; frames and bytes of it."""
        frames = count = 0
        ready, self.ready = self.ready, []
        for used, size in ready:
            if len(used) == 1:
                request, length = used[0]
                request.complete(length)
            else:
                queue.complete_together(used)
            if size >= 0:
                frames += 1
                count += size
        return frames, count


def write_each(parts: list[Part]) -> list[bool]:
    """Write parts one by one; which of them there was memory for."""
    written = []
    for payload, offset, data in parts:
        try:
            payload.write(offset, data)  # type: ignore[arg-type]
        except RemoteError:
            written.append(False)
        else:
            written.append(True)
    return written


def read_each(payloads: list[Payload]) -> list[bytes | None]:
    """Read payloads one by one; None for one that there was no memory for."""
    found: list[bytes | None] = []
    for payload in payloads:
        try:
            found.append(payload.read(0, payload.length))
        except RemoteError:
            found.append(None)
    return found
