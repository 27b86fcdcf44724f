"""The virtio network driver without I/O: sessions, what was negotiated, commands (virtio 1.4, 5.1).

What moves frames is in `net_rings`. Whoever has frames for the device puts them into `transmit` of a queue pair and
calls `kick`; what the device brings goes to `fd`, a TAP, or to `on_frame`. Both begin with a virtio_net_hdr of
`header_bytes`, little-endian, whatever the device's is.

Frames may be lost, and each is counted, by reason. What the device had when a session ended is lost; the buffers are
the driver's again, and serve in the next one. Nothing that a device brings raises here: what cannot be a frame is
dropped. What the partition wants of the device (`mode`, `addresses`, `vlans`, the number of queue pairs, offloads) is
told to each server anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from powervio.drivers.net_rings import ALLOW_CSUM, ReceiveRing, ReceiveSlot, TransmitRing
from powervio.errors import LocalError, RemoteError
from powervio.virtio import features as feature
from powervio.virtio import net
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport

PAGE = 4096
LARGEST = 65535 + 14 + 8 + net.HEADER_BYTES
"""Bytes of the largest frame with its header."""
RECEIVE_BUFFERS = 64
"""Of a queue pair that may get large frames, each with room for one; of another, buffers of a page or more."""
TRANSMIT_BYTES = 1 << 20
"""Memory for frames that the device has, of each queue pair."""
_SMALL_TRANSMIT_BYTES = 256 * 1024
_COMMAND_BYTES = PAGE
_COMMANDS = 64
"""Commands that may wait."""
_TAGS_BYTES = 8

_HOST_LARGE = net.F_HOST_TSO4 | net.F_HOST_TSO6 | net.F_HOST_USO
_GUEST_LARGE = net.F_GUEST_TSO4 | net.F_GUEST_TSO6 | net.F_GUEST_USO4 | net.F_GUEST_USO6
_OFFLOADS = (
    net.F_CSUM | net.F_GUEST_CSUM | _HOST_LARGE | _GUEST_LARGE | net.F_HOST_ECN | net.F_GUEST_ECN
    | net.F_CTRL_GUEST_OFFLOADS
)  # fmt: skip
_CONTROL = net.F_CTRL_VQ | net.F_CTRL_RX | net.F_CTRL_VLAN | net.F_CTRL_MAC_ADDR | net.F_GUEST_ANNOUNCE | net.F_MQ
_WANTED = net.F_MAC | net.F_MTU | net.F_STATUS | net.F_MRG_RXBUF | net.F_SPEED_DUPLEX


@dataclass(frozen=True, slots=True)
class Link:
    """What the device is in this session, for who connects it to something."""

    mac: bytes
    """Zeros if the device does not say."""
    mtu: int
    """Bytes of the largest frame without its Ethernet header."""
    up: bool
    features: int
    """As negotiated: HOST_* bits are what may be sent unfinished, GUEST_* bits what may come so."""
    header_bytes: int
    """Of the header before each frame, either way."""


@dataclass(slots=True)
class _Command:
    kind: int
    command: int
    data: bytes
    done: Callable[[bool], None] | None


class QueuePair:
    """A receive queue and a transmit queue, in one session."""

    def __init__(self, receive: ReceiveRing, transmit: TransmitRing) -> None:
        self.receive = receive
        self.transmit = transmit


class NetDriver(Driver):
    """A network adapter. Everything is called in the partition's thread."""

    device_id = net.DEVICE_ID

    def __init__(self, *, offloads: bool = True, pairs: int = 1) -> None:
        """With `offloads` frames cross with partial checksums, and large ones unsegmented, as far as the device can.

        Up to `pairs` queue pairs are used.
        """
        self.pairs: list[QueuePair] = []
        """Of this session, the usable ones."""
        self.link: Link | None = None
        """None while there is no session."""
        self.on_link: Callable[[], None] | None = None
        """Called when `link` changed; `pairs` are those of the session then."""
        self.on_room: Callable[[int], None] | None = None
        """Called with the number of a pair whose transmit ring was `starved`, when it has room."""
        self.on_frame: Callable[[list[memoryview]], None] | None = None
        """What gets frames, in pieces, of a pair that has no descriptor; they are not to be kept."""
        self.on_announce: Callable[[], None] | None = None
        """Called when the device asks that the network be told where the partition is (5.1.6.5.4)."""
        self.sent = 0
        """Frames of sessions before this one that the device was given."""
        self.received = 0
        self.sent_bytes = 0
        self.received_bytes = 0
        self.lost: dict[str, int] = {}
        """Frames that were lost in sessions before this one, by reason."""
        self.refused_commands = 0
        self.promiscuous = False
        self.all_multicast = True
        self.vlans: set[int] | None = None
        """VLANs whose frames the device is to let through; None: all that it has."""
        self._offloads = offloads
        self._wanted_pairs = pairs
        self._transport: DriverTransport | None = None
        self._control: DriverQueue | None = None
        self._slots: list[list[ReceiveSlot]] = []
        self._slot_bytes = 0
        self._arenas: list[Buffer] = []
        self._command_buffer: Buffer | None = None
        self._commands: deque[_Command] = deque()
        self._running: _Command | None = None
        self._announcing = False

    # Sessions

    def select_features(self, offered: int) -> int:
        """See `Driver`. Whatever is taken is of use here; what depends on something else comes with it (5.1.3.1)."""
        wanted = _WANTED | _CONTROL
        if self._offloads:
            wanted |= _OFFLOADS
        if self._wanted_pairs < 2:
            wanted &= ~net.F_MQ
        if self.vlans is None:
            wanted &= ~net.F_CTRL_VLAN  # with it, the device lets no VLAN through that it was not told of
        return feature.without_incomplete(offered & wanted, net.DEVICE_ID)

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """The control queue comes after all pairs that the device has (5.1.2)."""
        return 2 * _pairs_of(features, config, byteorder) + bool(features & net.F_CTRL_VQ)

    def start(self, transport: DriverTransport) -> None:
        """See `Driver`. Raises `RemoteError` for a config that cannot be."""
        features = transport.features
        config = net.unpack_config(transport.config(), features, transport.byteorder)
        there = _pairs_of(features, transport.config(), transport.byteorder)
        usable = min(self._wanted_pairs, there)
        link = self._read_link(config, features)
        self._prepare(transport, link, usable)
        self._transport = transport
        self.pairs = [self._pair(transport, link, number) for number in range(usable)]
        self._control = transport.queues[2 * there] if features & net.F_CTRL_VQ else None
        self._announcing = False
        self.link = link
        if self.on_link is not None:
            self.on_link()
        for pair in self.pairs:
            pair.receive.lend(LARGEST if _large_come(features) else _room(link))
        self._tell_all()
        self.config_changed()

    def stop(self) -> None:
        """See `Driver`: what the device has of our frames is lost, and so are commands, which the next session gets
        anew."""
        for pair in self.pairs:
            self._count("session lost", pair.transmit.in_flight)
            for reason, count in pair.receive.dropped.items():
                self._count(reason, count)
            self.sent += pair.transmit.frames
            self.sent_bytes += pair.transmit.bytes_
            self.received += pair.receive.frames
            self.received_bytes += pair.receive.bytes_
        self.pairs = []
        self._transport = self._control = self._running = None
        self._commands.clear()
        self.link = None
        if self.on_link is not None:
            self.on_link()

    def completed(self, queue: DriverQueue) -> None:
        """See `Driver`."""
        if queue is self._control:
            self._answered(queue)
            return
        number, is_transmit = divmod(queue.index, 2)
        if number >= len(self.pairs):
            return  # it was given nothing
        pair = self.pairs[number]
        if not is_transmit:
            pair.receive.collect()
        elif pair.transmit.reap() and pair.transmit.starved:
            pair.transmit.starved = False
            if self.on_room is not None:
                self.on_room(number)

    def config_changed(self) -> None:
        """See `Driver`: the cable was plugged or unplugged, or the device asks for an announcement."""
        transport, link = self._transport, self.link
        if transport is None or link is None:
            return
        config = net.unpack_config(transport.config(), transport.features, transport.byteorder)
        try:
            now = self._read_link(config, transport.features)
        except RemoteError:
            now = link  # an MTU that cannot be: what was valid stays
        if now.mtu > link.mtu:
            now = link  # the buffers are for what was there at the start
        if now != link:
            self.link = now
            if self.on_link is not None:
                self.on_link()
        if transport.features & net.F_GUEST_ANNOUNCE and config.status & net.S_ANNOUNCE and not self._announcing:
            self._announcing = True
            if self.on_announce is not None:
                self.on_announce()
            self.command(net.CTRL_ANNOUNCE, net.ANNOUNCE_ACK, b"", self._announced)

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """See `Driver`."""
        for buffer in self._buffers():
            give_back(buffer)
        self._slots, self._arenas, self._command_buffer = [], [], None

    # Frames

    def send(self, frame: bytes | memoryview, header: bytes = bytes(net.HEADER_BYTES), pair: int = 0) -> bool:
        """Give the device one frame; `kick` tells it. False when it is lost, and counted.

        For callers that have frames and no TAP. Raises `LocalError` for one that is too long for the device.
        """
        if pair >= len(self.pairs):
            self._count("no session")
            return False
        try:
            if self.pairs[pair].transmit.send(header, frame):
                return True
        except RemoteError:
            self._count("session lost")
            return False
        self._count("no room")
        return False

    def kick(self) -> None:
        """Tell the device of what `transmit` rings were given."""
        for pair in self.pairs:
            pair.transmit.queue.kick()

    def report(self) -> dict[str, object]:
        """What became of frames since the driver was made."""
        lost = dict(self.lost)
        for pair in self.pairs:
            for reason, count in pair.receive.dropped.items():
                lost[reason] = lost.get(reason, 0) + count
        return {
            "sent": self.sent + sum(pair.transmit.frames for pair in self.pairs),
            "sent_bytes": self.sent_bytes + sum(pair.transmit.bytes_ for pair in self.pairs),
            "received": self.received + sum(pair.receive.frames for pair in self.pairs),
            "received_bytes": self.received_bytes + sum(pair.receive.bytes_ for pair in self.pairs),
            "lost": lost,
        }

    # Commands

    def set_mode(self, *, promiscuous: bool, all_multicast: bool) -> None:
        """Which frames to be given beside those to the partition's own address (5.1.6.5.1)."""
        self.promiscuous, self.all_multicast = promiscuous, all_multicast
        self._tell_mode()

    def set_vlan(self, vlan: int, wanted: bool) -> None:
        """Let the device bring frames of a VLAN, or not (5.1.6.5.3), if `vlans` is a set. Raises `LocalError`."""
        if self.vlans is None or not 0 <= vlan < 4096:
            raise LocalError(f"VLAN {vlan} of a driver that takes all; expected 0 to 4095, and `vlans`")
        (self.vlans.add if wanted else self.vlans.discard)(vlan)
        if self._has(net.F_CTRL_VLAN):
            self._vlan(vlan, net.VLAN_ADD if wanted else net.VLAN_DEL)

    def set_mac(self, mac: bytes) -> bool:
        """Tell the device another address of the partition (5.1.6.5.2); False when it cannot be told."""
        if not self._has(net.F_CTRL_MAC_ADDR):
            return False
        return self.command(net.CTRL_MAC, net.MAC_ADDR_SET, mac)

    def set_filter(self, unicast: list[bytes], multicast: list[bytes]) -> bool:
        """Further addresses whose frames to be given; False when the device cannot be told."""
        if not self._has(net.F_CTRL_RX):
            return False
        return self.command(net.CTRL_MAC, net.MAC_TABLE_SET, self._table(unicast) + self._table(multicast))

    def command(self, kind: int, command: int, data: bytes, done: Callable[[bool], None] | None = None) -> bool:
        """Give the device a command of a class; `done` is told whether it accepted, unless the session ends before.

        False when there is no control queue or too much waits.
        """
        if self._control is None or len(self._commands) >= _COMMANDS or len(data) > _COMMAND_BYTES - 3:
            return False
        self._commands.append(_Command(kind, command, data, done))
        self._next_command()
        return True

    def _has(self, bit: int) -> bool:
        return self._transport is not None and bool(self._transport.features & bit)

    def _table(self, addresses: list[bytes]) -> bytes:
        assert self._transport is not None
        return len(addresses).to_bytes(4, self._transport.byteorder) + b"".join(addresses)

    def _tell_all(self) -> None:
        """A session begins: what the partition wants of its device."""
        assert self._transport is not None
        if self._has(net.F_MQ):
            self.command(net.CTRL_MQ, net.MQ_VQ_PAIRS_SET, len(self.pairs).to_bytes(2, self._transport.byteorder))
        self._tell_mode()
        if self._has(net.F_CTRL_VLAN):
            for vlan in sorted(self.vlans or ()):
                self._vlan(vlan, net.VLAN_ADD)

    def _tell_mode(self) -> None:
        if self._has(net.F_CTRL_RX):
            self.command(net.CTRL_RX, net.RX_PROMISC, bytes([self.promiscuous]))
            self.command(net.CTRL_RX, net.RX_ALLMULTI, bytes([self.all_multicast]))

    def _vlan(self, vlan: int, command: int) -> None:
        assert self._transport is not None
        self.command(net.CTRL_VLAN, command, vlan.to_bytes(2, self._transport.byteorder))

    def _next_command(self) -> None:
        if self._running is not None or not self._commands or self._control is None or self._transport is None:
            return
        if self._command_buffer is None:
            self._command_buffer = self._transport.allocate(_COMMAND_BYTES, mapped=True)
        buffer, wanted = self._command_buffer, self._commands[0]
        length = 2 + len(wanted.data)
        buffer.view[:length] = bytes([wanted.kind, wanted.command]) + wanted.data
        buffer.view[_COMMAND_BYTES - 1] = net.CTRL_ERR
        try:
            if self._control.add(((buffer, 0, length),), ((buffer, _COMMAND_BYTES - 1, 1),), 0):
                self._running = self._commands.popleft()
                self._control.kick()
        except RemoteError:
            self._commands.clear()

    def _answered(self, queue: DriverQueue) -> None:
        while (used := queue.reap()) is not None:
            running, self._running = self._running, None
            if running is None or self._command_buffer is None:
                continue
            accepted = used[1] >= 1 and self._command_buffer.view[_COMMAND_BYTES - 1] == net.CTRL_OK
            if not accepted:
                self.refused_commands += 1
            if running.done is not None:
                running.done(accepted)
        self._next_command()

    def _announced(self, accepted: bool) -> None:
        self._announcing = False
        self.config_changed()  # it may have asked again

    # Memory

    def _read_link(self, config: net.NetConfig, features: int) -> Link:
        mtu = config.mtu if features & net.F_MTU else 1500
        if mtu < net.MIN_MTU:
            raise RemoteError(f"the device has an MTU of {mtu}; expected {net.MIN_MTU} or more (virtio 1.4, 5.1.4.1)")
        up = not features & net.F_STATUS or bool(config.status & net.S_LINK_UP)
        mac = config.mac if features & net.F_MAC else bytes(net.MAC_BYTES)
        return Link(mac, mtu, up, features, net.header_bytes(features))

    def _prepare(self, transport: DriverTransport, link: Link, pairs: int) -> None:
        """The memory that the session needs: what the last one had, if it is as long."""
        large = _large_come(link.features)
        size = LARGEST if large else _room(link)
        size += -size % PAGE
        wanted = min(transport.queues[0].size, RECEIVE_BUFFERS if large else transport.queues[0].size)
        sends_large = bool(link.features & _HOST_LARGE)
        least = TRANSMIT_BYTES if sends_large else max(_SMALL_TRANSMIT_BYTES, 8 * (_room(link) + 64))
        if size != self._slot_bytes:
            for slots in self._slots:
                for slot in slots:
                    transport.release(slot.buffer)
            self._slots = []
            self._slot_bytes = size
        for number in range(pairs):
            if number == len(self._slots):
                self._slots.append([])
            while len(self._slots[number]) < wanted:
                self._slots[number].append(ReceiveSlot(transport.allocate(size, mapped=True)))
            if number == len(self._arenas):
                self._arenas.append(transport.allocate(least, mapped=True))
            elif self._arenas[number].length < least:
                transport.release(self._arenas[number])
                self._arenas[number] = transport.allocate(least, mapped=True)

    def _pair(self, transport: DriverTransport, link: Link, number: int) -> QueuePair:
        features = link.features
        big_endian = transport.byteorder == "big"
        receive = ReceiveRing(
            transport.queues[2 * number],
            self._slots[number],
            link.header_bytes,
            merge=bool(features & net.F_MRG_RXBUF),
            big_endian=big_endian,
        )
        receive.allowed = _allowed(features)
        receive.longest = link.mtu + 14 + _TAGS_BYTES
        receive.on_frame = self._frame
        room = LARGEST if features & _HOST_LARGE else _room(link)
        transmit = TransmitRing(
            transport.queues[2 * number + 1], self._arenas[number], room, link.header_bytes, big_endian=big_endian
        )
        return QueuePair(receive, transmit)

    def _frame(self, pieces: list[memoryview]) -> None:
        if self.on_frame is not None:
            self.on_frame(pieces)

    def _buffers(self) -> list[Buffer]:
        found = [slot.buffer for slots in self._slots for slot in slots] + self._arenas
        return found if self._command_buffer is None else [*found, self._command_buffer]

    def _count(self, reason: str, count: int = 1) -> None:
        if count:
            self.lost[reason] = self.lost.get(reason, 0) + count


def _pairs_of(features: int, config: bytes, byteorder: ByteOrder) -> int:
    """How many queue pairs the device has."""
    if not features & (net.F_MQ | net.F_RSS):
        return 1
    return max(1, net.unpack_config(config, features, byteorder).max_virtqueue_pairs)


def _large_come(features: int) -> bool:
    return bool(features & _GUEST_LARGE)


def _room(link: Link) -> int:
    """Bytes of the longest frame that is no large one, with its header."""
    return link.header_bytes + link.mtu + 14 + _TAGS_BYTES


def _allowed(features: int) -> int:
    """What a frame of the device may leave to do, as `ReceiveRing.allowed`."""
    allowed = ALLOW_CSUM if features & net.F_GUEST_CSUM else 0
    for feature_bit, bit in (
        (net.F_GUEST_TSO4, 1 << net.GSO_TCPV4),
        (net.F_GUEST_TSO6, 1 << net.GSO_TCPV6),
        (net.F_GUEST_USO4 | net.F_GUEST_USO6, 1 << net.GSO_UDP_L4),
        (net.F_GUEST_ECN, net.GSO_ECN),
    ):
        if features & feature_bit:
            allowed |= bit
    return allowed
