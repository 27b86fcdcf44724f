"""The virtio network device (virtio 1.4, 5.1): frames between a driver and a `Port`, one pair of queues.

Frames may be lost, and each that is lost is counted, by reason. What holds:

* A receive buffer is taken only when there is a frame for it. With MRG_RXBUF a frame that needs more buffers than there
  are waits, with those that were taken, for the driver to bring more; they become visible all at once.
* While the driver gives no buffers nothing is read from the port, whose own queue is bounded. What arrived before the
  driver was there is dropped when it comes.
* Whatever the driver sends, its buffer comes back, with a length of 0, for the device writes nothing there. A frame
  does not go on if its header asks for what was not negotiated, or places a checksum outside of it.
* A checksum that is partial goes on as it is to who takes it so, and is finished here for a driver that does not.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field
from typing import Any

from powervio.errors import LocalError, RemoteError
from powervio.network.checksum import finished
from powervio.network.port import ETHERNET_BYTES, MAX_TAGS, TAG_BYTES, Frame, Offload, Port, header_length
from powervio.virtio import net
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request

_log = logging.getLogger(__name__)

_TURN = 64
"""Frames that a driver gets before others of the partition get their turn."""
_STALE = 4096
"""Frames that are dropped at most when a driver comes, so that a flood does not keep it waiting."""
_NUM_BUFFERS = net.LEGACY_HEADER_BYTES
"""Offset in the header."""


@dataclass(slots=True)
class Counters:
    """Of one direction."""

    frames: int = 0
    bytes: int = 0
    """Without the headers of virtio."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Frames that were lost, by reason."""

    def drop(self, reason: str, count: int = 1) -> None:
        """Count lost frames."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    @property
    def lost(self) -> int:
        """Frames that were lost, for whatever reason."""
        return sum(self.dropped.values())


def random_mac() -> bytes:
    """An address that nobody was given: locally administered, of one device."""
    mac = bytearray(os.urandom(net.MAC_BYTES))
    mac[0] = mac[0] & 0xFC | 2
    return bytes(mac)


class NetDevice(Device):
    """A network adapter of a client partition, at one port."""

    device_id = net.DEVICE_ID
    queue_count = 2
    discards = True

    def __init__(self, port: Port, *, mac: bytes | None = None, mtu: int | None = None) -> None:
        """The port is the device's from now on. `mtu` is the port's if not given. Raises `LocalError`."""
        super().__init__()
        self.port = port
        self.mac = random_mac() if mac is None else mac
        self.mtu = port.mtu if mtu is None else mtu
        if not net.MIN_MTU <= self.mtu <= net.MAX_MTU:
            raise LocalError(f"an MTU of {self.mtu}; expected {net.MIN_MTU} to {net.MAX_MTU} (virtio 1.4, 5.1.4.1)")
        if len(self.mac) != net.MAC_BYTES or self.mac[0] & 1:
            raise LocalError(f"{self.mac!r} is no MAC address of one device")
        self.link_up = True
        self.from_driver = Counters()
        """Frames that the port took of the driver's, and those that it did not get."""
        self.to_driver = Counters()
        """Frames that the driver was shown, and those that came and that it was not."""
        self.bad_buffers = 0
        """Receive buffers that no frame could go to; they went back empty."""
        self._longest = self.mtu + ETHERNET_BYTES + MAX_TAGS * TAG_BYTES
        self._features = 0
        self._byteorder: ByteOrder = "little"
        self._header = b""
        self._frame: Frame | None = None
        """What could not be placed yet."""
        self._held: list[Request] = []
        """Buffers that were taken for it."""
        self._watching = False
        self._useless = False
        """Whether the port has failed."""
        port.on_arrival = self._arrived

    # -- what the driver sees

    @property
    def features(self) -> int:
        """Device-type bits (5.1.3)."""
        return net.F_CSUM | net.F_GUEST_CSUM | net.F_MTU | net.F_MAC | net.F_MRG_RXBUF | net.F_STATUS

    def config(self, byteorder: ByteOrder) -> bytes:
        """The config space (5.1.4)."""
        status = net.S_LINK_UP if self.link_up else 0
        return net.pack_config(net.NetConfig(mac=self.mac, status=status, mtu=self.mtu), self.features, byteorder)

    def start(self, session: DeviceSession) -> None:
        """The driver is there; what came before is too old."""
        super().start(session)
        self._features = session.features
        self._byteorder = session.byteorder
        self._header = bytes(net.header_bytes(session.features))
        if len(self._header) > _NUM_BUFFERS:  # 1 without MRG_RXBUF, too (5.1.6.4.1)
            self._header = self._header[:_NUM_BUFFERS] + (1).to_bytes(2, session.byteorder)
        self.port.take(Offload.CSUM if session.features & net.F_GUEST_CSUM else Offload(0))
        for _ in range(_STALE):
            if self._next() is None:
                break
            self.to_driver.drop("no driver")

    def reset(self) -> None:
        """The driver is gone, with its buffers and the frame that waited for them."""
        super().reset()
        self.queue_reset(net.RECEIVE)

    def queue_reset(self, index: int) -> None:
        """See `Device`."""
        if index == net.RECEIVE:
            self._unwatch()
            self._held.clear()
            if self._frame is not None:
                self._frame = None
                self.to_driver.drop("no driver")

    def suspend(self) -> None:
        """Buffers that wait for more go back empty, and their frame is dropped."""
        if not self._held:
            return
        self._give_back()
        self._frame = None
        self.to_driver.drop("no buffers")
        if self.session is not None and net.RECEIVE in self.session.queues:
            self.session.queues[net.RECEIVE].flush()

    # -- what the operator does

    def set_link(self, up: bool) -> None:
        """Plug or unplug the cable; from any thread. While it is unplugged all frames are dropped."""
        if self.scheduler is None:
            self._set_link(up)
        else:
            self.scheduler.call_soon_threadsafe(lambda: self._set_link(up))

    def _set_link(self, up: bool) -> None:
        if up != self.link_up:
            self.link_up = up
            self.config_changed()
            if not up:
                self.suspend()

    def report(self) -> list[str]:
        """What became of frames, a line for each direction."""
        lines = []
        for name, counters in (("from", self.from_driver), ("to", self.to_driver)):
            lost = ", ".join(f"{count} {reason}" for reason, count in sorted(counters.dropped.items()))
            line = f"{name} the driver: {counters.frames} frames, {counters.bytes} bytes; "
            lines.append(line + (f"lost {counters.lost}: {lost}" if lost else "none lost"))
        return lines

    def close(self) -> None:
        """The device is gone with its partition."""
        self._unwatch()
        self.port.on_arrival = None
        self.port.close()

    # -- frames that arrive

    def _watch(self) -> None:
        fd = self.port.fileno()
        if fd >= 0 and not self._watching and not self._useless and self.scheduler is not None:
            self._watching = True
            self.scheduler.add_reader(fd, self._arrived)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            assert self.scheduler is not None
            self.scheduler.remove_reader(self.port.fileno())

    def _arrived(self) -> None:
        """Ask for a turn, once: a queue that gets none now, for it is disabled or suspended, must not be asked for
        again and again."""
        self._unwatch()
        session = self.session
        queue = None if session is None else session.queues.get(net.RECEIVE)
        if queue is not None:
            queue.wake()

    def _next(self) -> Frame | None:
        try:
            return self.port.receive()
        except OSError as error:
            _log.error("port %s is of no use any more: %s", self.port.name, error.strerror)
            self._useless = True
            self._set_link(False)
            return None

    # -- queues

    def process(self, queue: DeviceQueue) -> None:
        """One queue's turn."""
        if queue.index == net.TRANSMIT:
            self._take(queue)
        else:
            self._give(queue)

    def discard(self, queue: DeviceQueue) -> None:
        """A disabled queue: what is sent is taken and goes nowhere (vhost-user, "Ring states")."""
        if queue.index != net.TRANSMIT:
            return
        while (request := queue.pop()) is not None:
            self.from_driver.drop("disabled")
            request.complete(0)
            self.requests += 1

    def _fits(self, frame: bytes | memoryview) -> bool:
        excess = len(frame) - self.mtu
        return excess <= ETHERNET_BYTES or excess <= header_length(frame)

    def _take(self, queue: DeviceQueue) -> None:
        """Transmit queue: all frames that there are."""
        counters = self.from_driver
        while (request := queue.pop()) is not None:
            frame = self._read(request)
            if isinstance(frame, str):
                counters.drop(frame)
            elif self.port.send(frame):
                counters.frames += 1
                counters.bytes += len(frame.data)
            else:
                counters.drop("port")
            request.complete(0)
            self.requests += 1

    def _read(self, request: Request) -> Frame | str:
        """The frame in a transmit buffer, or why there is none that may go on."""
        length = request.readable.length
        start = len(self._header)
        if request.writable.length or length < start:
            return "malformed"
        if length < start + ETHERNET_BYTES:
            return "too short"
        if length > start + self._longest:
            return "too long"
        if not self.link_up:
            return "link down"
        try:
            data = memoryview(request.readable.read(0, length))
        except RemoteError:
            return "memory"
        frame = data[start:]
        if not self._fits(frame):
            return "too long"
        flags, gso = data[0], data[1]
        if not flags & net.H_NEEDS_CSUM and gso == net.GSO_NONE:  # other flags are ignored (5.1.6.2.2)
            return Frame(frame)
        if gso != net.GSO_NONE or not self._features & net.F_CSUM:
            return "not negotiated"
        _, _, _, _, begin, offset = net.HEADER[self._byteorder].unpack_from(data)
        if begin + offset + 2 > len(frame):
            return "checksum outside"
        return Frame(frame, (begin, offset))

    def _give(self, queue: DeviceQueue) -> None:
        """Receive queue: frames into the driver's buffers, which else stay where they are."""
        frames = count = 0
        for _ in range(_TURN):
            if self._frame is None:
                if not queue.available:  # what the port has waits there
                    break
                frame = self._next()
                if frame is None:
                    self._watch()
                    break
                reason = self._check(frame)
                if reason:
                    self.to_driver.drop(reason)
                    continue
                self._frame = frame if self._features & net.F_GUEST_CSUM else finished(frame)
            frame = self._frame
            if not self._collect(frame, queue):
                break
            self._frame = None
            if self._held and self._place(frame, queue):
                frames += 1
                count += len(frame.data)
        else:
            queue.wake()
        if not frames:
            return  # what went back empty is shown by the transport
        if queue.flush():
            self.to_driver.frames += frames
            self.to_driver.bytes += count
        else:
            self.to_driver.drop("no driver", frames)

    def _check(self, frame: Frame) -> str:
        if not self.link_up:
            return "link down"
        return "" if self._fits(frame.data) else "too long"  # the driver must not see it (5.1.4.1)

    def _collect(self, frame: Frame, queue: DeviceQueue) -> bool:
        """Take buffers for a frame. False when there are too few yet; none are held when it cannot be placed."""
        held = self._held
        needed = len(self._header) + len(frame.data)
        least = len(self._header) if self._features & net.F_MRG_RXBUF else needed
        room = sum(request.writable.length for request in held) if held else 0
        while room < needed:
            request = queue.pop()
            if request is None:
                if len(held) < queue.ring.size:
                    return False
                self._give_back()  # all that the driver has room to bring is here
                self.to_driver.drop("no room")
                return True
            self.requests += 1
            length = request.writable.length
            if request.readable.length or length < least:
                request.complete(0)
                self.bad_buffers += 1
                if least == needed:
                    self.to_driver.drop("no room")
                    return True
            else:
                held.append(request)
                room += length
        return True

    def _give_back(self) -> None:
        held, self._held = self._held, []
        for request in held:
            request.complete(0)

    def _place(self, frame: Frame, queue: DeviceQueue) -> bool:
        """Put a frame into the buffers that are held for it; the driver sees all of them by the next flush, or none."""
        held, self._held = self._held, []
        data = self._with_header(frame, len(held))
        lengths = []
        at = 0
        try:
            for request in held:
                part = data[at : at + request.writable.length]
                request.writable.write(0, part)
                lengths.append(len(part))
                at += len(part)
        except RemoteError:
            lengths = [0] * len(held)  # not a part of a frame
            self.to_driver.drop("memory")
        if len(held) == 1:
            held[0].complete(lengths[0])
        else:
            queue.complete_together(list(zip(held, lengths, strict=True)))
        return lengths[0] > 0

    def _with_header(self, frame: Frame, buffers: int) -> bytes:
        header = self._header
        if buffers > 1:
            header = header[:_NUM_BUFFERS] + buffers.to_bytes(2, self._byteorder)
        if self._features & net.F_GUEST_CSUM and (frame.partial is not None or frame.valid):
            flags = net.H_DATA_VALID if frame.partial is None else net.H_NEEDS_CSUM
            begin, offset = frame.partial or (0, 0)
            fields = net.HEADER[self._byteorder].pack(flags, net.GSO_NONE, 0, 0, begin, offset)
            header = fields + header[_NUM_BUFFERS:]
        return b"".join((header, frame.data))

    # -- moving to another server

    def state(self) -> dict[str, object]:
        """The address and whether the cable is plugged; frames are not kept."""
        return {"mac": self.mac.hex(), "link": self.link_up}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Device`."""
        try:
            mac, link = bytes.fromhex(state["mac"]), bool(state["link"])
        except (KeyError, TypeError, ValueError) as error:
            raise LocalError(f"not the state of a network device: {error!r}") from None
        if len(mac) != net.MAC_BYTES:
            raise LocalError(f"a MAC address of {len(mac)} bytes")
        self.mac, self.link_up = mac, link
