"""The virtio network device (virtio 1.4, 5.1): frames between a driver and a `Port`.

Frames may be lost, and each that is lost is counted, by reason. What holds:

* A receive buffer is taken only when there is a frame for it. With MRG_RXBUF a frame that needs more buffers than there
  are waits, with those that were taken, for the driver to bring more; they become visible all at once.
* While the driver gives no buffers nothing is read from the port, whose own queue is bounded. What arrived before the
  driver was there is dropped when it comes.
* Whatever the driver sends, its buffer comes back, with a length of 0, for the device writes nothing there. A frame
  does not go on if its header asks for what was not negotiated, or says of the frame what is not so.
* What is left to do with a frame, its checksum and its segmentation, is left as it is for who takes it so, and done
  here for a driver that does not: a large frame crosses as one.

With several pairs of queues each frame to the driver goes to one of them: as the driver's RSS says, or to the pair that
its flow was last sent on (`net_rules.Steering`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from powervio.devices.net_control import Control
from powervio.devices.net_counters import Counters
from powervio.devices.net_loop import Forwarder
from powervio.devices.net_notifier import Notifier
from powervio.devices.net_queue_loop import NetLoop, NetLoops
from powervio.devices.net_receive import HeaderWriter, Receiver, read_each, wanted_parts
from powervio.devices.net_relay import Relay
from powervio.devices.net_relay_end import RelayEnd
from powervio.devices.net_transmit import FrameReader
from powervio.errors import LocalError, RemoteError
from powervio.network.port import Frame, Port
from powervio.network.switch import SwitchPort
from powervio.virtio import net
from powervio.virtio.device import Device, DeviceSession, QueueLoop
from powervio.virtio.device_queue import MappedQueue
from powervio.virtio.queue import ByteOrder, DeviceQueue, Request

__all__ = ["Counters", "NetDevice", "random_mac"]

_log = logging.getLogger(__name__)

_TURN = 64
"""Frames that a driver gets before others of the partition get their turn, and that are taken of it together."""
_TURN_BYTES = 512 * 1024
_STALE = 4096
"""Frames that are dropped at most when a driver comes, so that a flood does not keep it waiting."""
UNKNOWN_SPEED = 0xFFFF_FFFF
_FULL_DUPLEX = 1

_OFFERED = (
    net.F_CSUM | net.F_HOST_TSO4 | net.F_HOST_TSO6 | net.F_HOST_ECN | net.F_HOST_USO
    | net.F_GUEST_CSUM | net.F_GUEST_TSO4 | net.F_GUEST_TSO6 | net.F_GUEST_ECN | net.F_GUEST_USO4 | net.F_GUEST_USO6
    | net.F_MRG_RXBUF | net.F_MTU | net.F_MAC | net.F_STATUS | net.F_SPEED_DUPLEX
    | net.F_CTRL_VQ | net.F_CTRL_RX | net.F_CTRL_RX_EXTRA | net.F_CTRL_VLAN | net.F_CTRL_MAC_ADDR
    | net.F_CTRL_GUEST_OFFLOADS | net.F_GUEST_ANNOUNCE
)  # fmt: skip
_COALESCING = net.F_NOTF_COAL | net.F_VQ_NOTF_COAL


def random_mac() -> bytes:
    """An address that nobody was given: locally administered, of one device."""
    mac = bytearray(os.urandom(net.MAC_BYTES))
    mac[0] = mac[0] & 0xFC | 2
    return bytes(mac)


class NetDevice(Device):
    """A network adapter of a client partition, at one port."""

    device_id = net.DEVICE_ID
    discards = True

    def __init__(
        self,
        port: Port,
        *,
        mac: bytes | None = None,
        mtu: int | None = None,
        pairs: int = 1,
        speed: int = UNKNOWN_SPEED,
        coalescing: bool = True,
        forwarder: Forwarder | None = None,
        relay: Relay | None = None,
    ) -> None:
        """The port is the device's from now on. `mtu` is the port's if not given; `pairs` of queues are offered;
        `speed` is Mbit/s, for the driver to show. `coalescing`: whether the driver may say how often it wants to be
        notified. `forwarder`, of the switch that the port is of, serves mapped queues; there is no coalescing then.
        `relay`, of that switch too, takes frames to other devices that are served in the same thread.
        Raises `LocalError`.
        """
        super().__init__()
        self.port = port
        self.mtu = port.mtu if mtu is None else mtu
        if not net.MIN_MTU <= self.mtu <= net.MAX_MTU:
            raise LocalError(f"an MTU of {self.mtu}; expected {net.MIN_MTU} to {net.MAX_MTU} (virtio 1.4, 5.1.4.1)")
        own = random_mac() if mac is None else mac
        if len(own) != net.MAC_BYTES or own[0] & 1:
            raise LocalError(f"{own!r} is no MAC address of one device")
        if not 1 <= pairs <= net.MAX_PAIRS:
            raise LocalError(f"{pairs} pairs of queues; expected 1 to {net.MAX_PAIRS} (virtio 1.4, 5.1.4.1)")
        self.pairs = pairs
        """Pairs of queues that the driver may use."""
        self.queue_count = 2 * pairs + 1
        self.control = Control(own, pairs)
        """What the driver has said on its control queue."""
        self.link_up = True
        self._from_driver = Counters()
        self._to_driver = Counters()
        self._loops = NetLoops(forwarder if isinstance(port, SwitchPort) else None)
        self._speed = speed
        self._offered = _OFFERED | (net.F_MQ | net.F_RSS if pairs > 1 else 0) | (_COALESCING if coalescing else 0)
        self._features = 0
        self._reader = FrameReader(0, "little", self.mtu)
        self._receivers = [Receiver(self._to_driver) for _ in range(pairs)]
        self._notifier = Notifier(self, self.control, self._receivers, self._to_driver)
        self._relay: Relay | None = None
        self._end: RelayEnd | None = None
        if relay is not None and isinstance(port, SwitchPort) and pairs == 1:
            self._relay = relay
            self._end = RelayEnd(self, port, self._receivers[0], self._from_driver, self._to_driver)
            relay.add(self._end)
        self._control_queue: int | None = None
        self._taken = 0
        """Bits of `Offload`."""
        self._restored: dict[str, Any] | None = None
        self._watching = False
        self._useless = False
        """Whether the port has failed."""
        self.control.on_offloads = self._take_offloads
        self.control.on_pairs = self._pairs_changed
        port.on_arrival = self._arrived

    # -- what the driver sees

    @property
    def from_driver(self) -> Counters:
        """Frames that the port took of the driver's, and those that it did not get."""
        return self._loops.counted(self._from_driver, net.TRANSMIT)

    @property
    def to_driver(self) -> Counters:
        """Frames that the driver was shown, and those that came and that it was not."""
        return self._loops.counted(self._to_driver, net.RECEIVE)

    @property
    def mac(self) -> bytes:
        """The adapter's address now."""
        return self.control.mac

    @property
    def bad_buffers(self) -> int:
        """Receive buffers that no frame could go to; they went back empty."""
        return sum(receiver.bad_buffers for receiver in self._receivers)

    @property
    def features(self) -> int:
        """Device-type bits (5.1.3)."""
        return self._offered

    def config(self, byteorder: ByteOrder) -> bytes:
        """The config space (5.1.4)."""
        status = (net.S_LINK_UP if self.link_up else 0) | (net.S_ANNOUNCE if self.control.announcing else 0)
        values = net.NetConfig(
            mac=self.mac,
            status=status,
            max_virtqueue_pairs=self.pairs,
            mtu=self.mtu,
            speed=self._speed,
            duplex=_FULL_DUPLEX,
            rss_max_key_size=net.RSS_KEY_BYTES,
            rss_max_indirection_table_length=net.RSS_TABLE_ENTRIES,
            supported_hash_types=net.HASH_TYPES,
        )
        return net.pack_config(values, self._offered, byteorder)

    def start(self, session: DeviceSession) -> None:
        """The driver is there; what came before is too old."""
        super().start(session)
        self._features = session.features
        self._reader = FrameReader(session.features, session.byteorder, self.mtu)
        writer = HeaderWriter(session.features, session.byteorder)
        for receiver in self._receivers:
            receiver.start(writer)
        if self._end is not None and session.byteorder == "little":
            mergeable = bool(session.features & net.F_MRG_RXBUF)
            self._end.begin(session.features, self.mtu, self._reader.header_bytes, mergeable=mergeable)
        self._control_queue = net.control_queue(session.features, self.pairs)
        self.control.start(session.features, session.byteorder)
        restored, self._restored = self._restored, None
        if restored is not None:
            self.control.restore(restored)
        self._take_offloads()
        for _ in range(_STALE):
            if self._next() is None:
                break
            self._to_driver.drop("no driver")

    def reset(self) -> None:
        """The driver is gone, with its buffers and the frames that waited for them."""
        session = self.session
        if self._end is not None:
            self._end.end()
        super().reset()
        for index in range(self.queue_count - 1):
            self.queue_reset(index)
        self._restored = None
        if session is not None:
            self.control.reset()

    def queue_reset(self, index: int) -> None:
        """See `Device`."""
        if index == self._control_queue or index >= 2 * self.pairs:
            return
        self._notifier.forget(index)
        if index & 1:
            return
        if self._end is not None:
            self._end.receive = None
        if self._receive_queue() is None:
            self._unwatch()
        lost = self._receivers[index >> 1].forget()
        if lost:
            self._to_driver.drop("no driver", lost)

    def suspend(self) -> None:
        """Buffers that wait for more go back empty, and their frames are dropped; all others go back as they are."""
        session = self.session
        if session is None:
            return
        if self._end is not None:
            self._end.receive = None
        for index, queue in list(session.queues.items()):
            if index == self._control_queue or index >= 2 * self.pairs:
                continue
            if not index & 1:
                receiver = self._receivers[index >> 1]
                if receiver.held:
                    receiver.give_back()
                    receiver.frame = None
                    self._to_driver.drop("no buffers")
            self._notifier.show(queue)
            queue.flush()

    # -- what the operator does

    def set_link(self, up: bool) -> None:
        """Plug or unplug the cable; from any thread. While it is unplugged all frames are dropped."""
        self._in_thread(lambda: self._set_link(up))

    def _set_link(self, up: bool) -> None:
        if up != self.link_up:
            with self._loops.still():
                self.link_up = up
                self._loops.set_link(up)
                if self._end is not None:
                    self._end.link_up = up
                if not up:
                    self.suspend()
            self.config_changed()

    def announce(self) -> None:
        """Have the driver tell the network where it is (5.1.6.5.4), if it can; from any thread."""
        self._in_thread(self._announce)

    def _announce(self) -> None:
        if self.session is not None and self._features & net.F_GUEST_ANNOUNCE and self.link_up:
            self.control.announcing = True
            self.config_changed()

    def _in_thread(self, call: Any) -> None:
        if self.scheduler is None:
            call()
        else:
            self.scheduler.call_soon_threadsafe(call)

    def report(self) -> list[str]:
        """What became of frames, a line for each direction."""
        return [f"from the driver: {self.from_driver.line()}", f"to the driver: {self.to_driver.line()}"]

    def close(self) -> None:
        """The device is gone with its partition."""
        self._unwatch()
        if self._relay is not None and self._end is not None:
            self._relay.remove(self._end)
        self.port.on_arrival = None
        self.port.close()

    # -- frames that arrive

    def _receive_queue(self) -> DeviceQueue | None:
        """A receive queue that is in use."""
        session = self.session
        if session is None:
            return None
        for pair in range(self.pairs):
            queue = session.queues.get(2 * pair)
            if queue is not None and queue.enabled and self._control_queue != 2 * pair:
                return queue
        return None

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
        queue = self._receive_queue()
        if queue is not None:
            self._wake(queue.index)

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
        index = queue.index
        if index == self._control_queue:
            self._obey(queue)
        elif index >= 2 * self.pairs:
            return  # nobody's, without a control queue
        elif index & 1:
            self._take(queue)
        else:
            self._give(queue)

    def discard(self, queue: DeviceQueue) -> None:
        """A disabled queue: what is sent is taken and goes nowhere (vhost-user, "Ring states")."""
        if not queue.index & 1 or queue.index == self._control_queue:
            return
        while (request := queue.pop()) is not None:
            self._from_driver.drop("disabled")
            request.complete(0)
            self.requests += 1

    def _take(self, queue: DeviceQueue) -> None:
        """Transmit queue: all frames that there are."""
        relay, end = self._relay, self._end
        if relay is not None and end is not None and not self.control.coalescing and relay.take(end, queue):
            return
        full = True
        while full:
            requests: list[Request] = []
            count = 0
            try:
                while len(requests) < _TURN and count < _TURN_BYTES:
                    request = queue.pop()
                    if request is None:
                        full = False
                        break
                    requests.append(request)
                    count += request.readable.length
            except RemoteError:
                self.take_these(requests, queue)
                raise
            self.take_these(requests, queue)

    def take_these(self, requests: list[Request], queue: DeviceQueue) -> None:
        """Let frames that were taken of a transmit queue go on, and give their buffers back."""
        counters, reader, rules = self._from_driver, self._reader, self.control.rules
        wanted: list[Request] = []
        for request in requests:
            reason = reader.refusal(request) or ("" if self.link_up else "link down")
            if reason:
                counters.drop(reason)
            else:
                wanted.append(request)
        payloads = [request.readable for request in wanted]
        batch = queue.batch
        found = read_each(payloads) if batch is None else batch.read(payloads)
        for data in found:
            frame = "memory" if data is None else reader.read(data)
            if isinstance(frame, str):
                counters.drop(frame)
                continue
            if self.pairs > 1:
                rules.learn(frame.data, queue.index >> 1)
            if self.port.send(frame):
                counters.frames += 1
                counters.bytes += len(frame.data)
            else:
                counters.drop("port")
        self.requests += len(requests)
        self._notifier.sent(queue, requests)

    def _give(self, queue: DeviceQueue) -> None:
        """Receive queue: frames into the driver's buffers, which else stay where they are."""
        receiver = self._receivers[queue.index >> 1]
        if self._end is not None:
            self._end.receive = queue
        if self.pairs > 1:
            self._distribute(queue)
        for _ in range(_TURN):
            frame = receiver.next(queue)
            if frame is None:
                if self.pairs > 1 or not queue.available or not self._fetch(receiver):
                    break
                continue
            if not receiver.plan(frame, queue):
                break
            if receiver.is_full:
                receiver.move(queue)
        else:
            queue.wake()
        receiver.move(queue)
        if receiver.ready and not self._notifier.defers(queue, len(receiver.ready)):
            self._notifier.show(queue)

    def _fetch(self, receiver: Receiver) -> bool:
        """Give the only queue the port's next frame, or what of it the driver gets; False when there is none."""
        frame = self._next()
        if frame is None:
            self._watch()
            return False
        rules = self.control.rules
        for part in self._checked(frame):
            if not rules.filter.promiscuous and rules.place(part.data) < 0:
                self._to_driver.drop("filtered")
            else:
                receiver.pending.append(part)
        return True

    def _distribute(self, queue: DeviceQueue) -> None:
        """Give each queue its frames of the port, while any of them has buffers."""
        for _ in range(_TURN):
            if not self._has_room():
                return
            frame = self._next()
            if frame is None:
                self._watch()
                return
            for part in self._checked(frame):
                pair = self._pair_of(part)
                if pair < 0:
                    self._to_driver.drop("filtered")
                elif not self._receivers[pair].put(part):
                    self._to_driver.drop("queue full")
                elif 2 * pair != queue.index:
                    self._wake(2 * pair)
        queue.wake()

    def _has_room(self) -> bool:
        """Whether any receive queue has buffers."""
        session = self.session
        assert session is not None
        for index, queue in session.queues.items():
            if not index & 1 and index != self._control_queue and queue.enabled and queue.available:
                return True
        return False

    def _checked(self, frame: Frame) -> Sequence[Frame]:
        """What the driver gets of a frame."""
        if not self.link_up:
            self._to_driver.drop("link down")
            return ()
        return wanted_parts(frame, self._taken, self.mtu, self._to_driver)

    def _pair_of(self, frame: Frame) -> int:
        """The pair of queues for a frame; -1 when the driver does not want it."""
        if self._control_queue is None and self.pairs > 1:
            # the front end has the control queue, and tells by enabling queues
            self.control.rules.steering.set_automatic(self._enabled_pairs())
        pair = self.control.rules.place(frame.data)
        return pair if pair < 0 or self._is_usable(pair) else 0

    def _is_usable(self, pair: int) -> bool:
        session = self.session
        assert session is not None
        queue = session.queues.get(2 * pair)
        return queue is not None and queue.enabled

    def _enabled_pairs(self) -> int:
        pairs = 1
        while pairs < self.pairs and self._is_usable(pairs):
            pairs += 1
        return pairs

    def _wake(self, index: int) -> None:
        if self._loops.arrived(index):
            return
        session = self.session
        queue = None if session is None else session.queues.get(index)
        if queue is not None:
            queue.wake()

    # -- loops

    def loop(self, queue: MappedQueue, spin: float) -> QueueLoop | None:
        """See `Device`: the switch's forwarder serves the queue."""
        port, session, index = self.port, self.session, queue.index
        if self._loops.forwarder is None or session is None or session.byteorder != "little":
            return None
        if index == self._control_queue or index >= 2 * self.pairs:
            return None
        assert isinstance(port, SwitchPort)
        if not index & 1 and not port.options.line.perfect:
            return None
        return self._loops.begin(
            self, port, queue, features=self._features, header_bytes=self._reader.header_bytes, taken=self._taken
        )

    def loop_ended(self, loop: QueueLoop) -> None:
        """See `Device`."""
        assert isinstance(loop, NetLoop)
        self._loops.end(loop)
        loop.add_to(self._from_driver if loop.queue.queue.index & 1 else self._to_driver)

    def take_apart(self, queue: MappedQueue) -> None:
        """For a loop, in its thread: the frame that it took last is not as usual."""
        self.take_these([queue.request()], queue)

    def give_apart(self, queue: MappedQueue) -> bool:
        """The same: the port has frames that come from no ring. True when some wait for buffers."""
        counters = self._to_driver
        before = -1
        while before != counters.frames + counters.lost:
            before = counters.frames + counters.lost
            queue.ring.refresh()
            self._give(queue)
            queue.flush()
        receiver = self._receivers[queue.index >> 1]
        assert isinstance(self.port, SwitchPort)
        return receiver.frame is not None or bool(receiver.pending) or self.port.waiting > 0

    # -- commands

    def _obey(self, queue: DeviceQueue) -> None:
        """Control queue: all commands that there are."""
        while (request := queue.pop()) is not None:
            self.requests += 1
            announcing = self.control.announcing
            if self.control.answer(request, self._loops.still) and announcing != self.control.announcing:
                self.config_changed()

    def _take_offloads(self) -> None:
        """Have the port leave undone what the driver takes so."""
        taken = self.control.taken
        self._taken = int(taken)
        self._loops.take(self._taken)
        if self._end is not None:
            self._end.taken = self._taken
        self.port.take(taken)

    def _pairs_changed(self) -> None:
        """Frames that wait for a pair that is not used any more go to another."""
        for pair, receiver in enumerate(self._receivers):
            if pair < self.control.rules.steering.pairs or not receiver.pending:
                continue
            pending = list(receiver.pending)
            receiver.pending.clear()
            for frame in pending:
                target = max(0, self._pair_of(frame))
                if not self._receivers[target].put(frame):
                    self._to_driver.drop("queue full")
                self._wake(2 * target)

    # -- moving to another server

    def state(self) -> dict[str, object]:
        """What the driver has said, the address, and whether the cable is plugged; frames are not kept."""
        return {"mac": self.control.own.hex(), "link": self.link_up, "control": self.control.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Device`. The driver goes on in the session that begins next."""
        try:
            mac, link = bytes.fromhex(state["mac"]), bool(state["link"])
            control = state.get("control")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LocalError(f"not the state of a network device: {error!r}") from None
        if len(mac) != net.MAC_BYTES:
            raise LocalError(f"a MAC address of {len(mac)} bytes")
        if control is not None:
            Control(mac, self.pairs).restore(control)  # whether it fits has to be known now
        self.control.own = mac
        self.control.mac = mac if control is None else bytes.fromhex(control["mac"])
        self._restored = control
        self.link_up = link
