"""The back end's side of the conversation: one front end's messages in, replies and what they bring about out.

Nothing here reads a socket: `handle` takes a message and returns the reply to send, if there is one. What a front end
asks of rings goes by the table of `ring_state`; requests are `service`'s.

What is wrong with a message raises `RemoteError`. A front end that negotiated REPLY_ACK and asked for a reply is told
so and may go on; any other is disconnected, for it takes the message for done.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.transport.vhost_user import inflight_area
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.device_state import StateTransfer
from powervio.transport.vhost_user.inflight_area import InflightRecord
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.memory import MAX_SLOTS, GuestMemory, MappedFile
from powervio.transport.vhost_user.protocol import BackEndRequest, FrontEnd, Message, Payload, VringState
from powervio.transport.vhost_user.queue import VhostQueue
from powervio.transport.vhost_user.ring_state import Event, after
from powervio.transport.vhost_user.service import QueueService
from powervio.transport.vhost_user.translate import TranslationCache
from powervio.transport.vhost_user.vring import Vring, notification_fd
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.device import Device

_log = logging.getLogger(__name__)

PROTOCOL_FEATURES = (
    wire.P_MQ | wire.P_LOG_SHMFD | wire.P_REPLY_ACK | wire.P_BACKEND_REQ | wire.P_CONFIG | wire.P_INFLIGHT_SHMFD
    | wire.P_RESET_DEVICE | wire.P_CONFIGURE_MEM_SLOTS | wire.P_STATUS | wire.P_DEVICE_STATE
)  # fmt: skip
TRANSLATION_LIMIT = 5.0
"""Seconds for a front end to answer an IOTLB miss."""
_SOCKET_BITS = wire.F_LOG_ALL | wire.F_PROTOCOL_FEATURES
_RING_BITS = ~_SOCKET_BITS


@dataclass(frozen=True, slots=True)
class BackEndOptions:
    """What a back end offers and how it waits."""

    packed: bool = False
    """Whether packed rings are offered."""
    in_order: bool = False
    """Whether IN_ORDER is offered: a slow request then holds up those behind it."""
    indirect: bool = True
    """Whether INDIRECT_DESC is offered. In tables for packed rings DPDK's virtio-user (22.11) marks a frame's header as
    writable, which breaks the ring (virtio 1.4, 2.7.4.2); without tables it does it right."""
    platform: bool = False
    """Whether ACCESS_PLATFORM is offered: addresses go through the front end's IOMMU. A driver that accepts it needs
    a front end that sends translations."""
    spin: float = 0.0
    """Seconds of looking at an empty ring before sleeping."""

    @property
    def transport_features(self) -> int:
        """The ring and transport bits."""
        bits = feature.VERSION_1 | feature.EVENT_IDX | (feature.INDIRECT_DESC if self.indirect else 0)
        bits |= feature.RING_PACKED if self.packed else 0
        bits |= feature.IN_ORDER if self.in_order else 0
        return bits | (feature.ACCESS_PLATFORM if self.platform else 0)


class BackEnd:
    """One connection to one front end."""

    def __init__(
        self,
        device: Device,
        loop: Loop,
        options: BackEndOptions,
        ask: Callable[[Message, int], None] | None = None,
        translate: Callable[[], bool] | None = None,
    ) -> None:
        """`ask(message, fd)` sends a message to the front end over the socket of SET_BACKEND_REQ_FD.

        `translate` waits for IOTLB messages and hands them to `handle`; False when none came in time.
        """
        self.device = device
        self.options = options
        self.features = 0
        self.negotiated = False
        """Whether the front end has set features."""
        self.protocol_features = 0
        self.status = 0
        self.memory = GuestMemory()
        self.memory.miss = self._miss
        self.vrings = [Vring(index) for index in range(device.queue_count)]
        self.service = QueueService(loop, device, self.memory, self._ring_broken, options.spin)
        self.broken_rings = 0
        """Rings that the front end or its guest broke."""
        self._loop = loop
        self._ask = ask
        self._translate = translate
        self._translating = False
        self._channel = -1
        self._state = StateTransfer(device, loop)
        self._closed = False
        device.scheduler = loop
        device.on_config_change = self._config_changed

    @property
    def offered(self) -> int:
        """All feature bits of GET_FEATURES."""
        return (
            feature.offer(self.device.features, self.options.transport_features, self.device.device_id) | _SOCKET_BITS
        )

    @property
    def offered_protocol(self) -> int:
        """All feature bits of GET_PROTOCOL_FEATURES. QEMU complains of a config space of a device that has none."""
        bits = PROTOCOL_FEATURES if self.device.config("little") else PROTOCOL_FEATURES & ~wire.P_CONFIG
        return bits if self.device.repeatable else bits & ~wire.P_INFLIGHT_SHMFD

    # -- messages

    def handle(self, message: Message) -> Message | None:
        """Carry out a message, and close its descriptors that nobody took; returns the reply.

        Raises `RemoteError` when the connection has to end.
        """
        name = wire.name_of(wire.FRONT_END_MESSAGES, message.request)
        row = wire.FRONT_END_MESSAGES[message.request]
        try:
            if message.reply:
                raise RemoteError("a reply to nothing", Verdict.CLOSE)
            if row.needs & ~self.protocol_features:
                raise RemoteError("its protocol feature was not negotiated")
            reply = _HANDLERS[FrontEnd(message.request)](self, message)
        except RemoteError as error:
            if self._wants_ack(message) and row.reply is None and error.verdict is not Verdict.CLOSE:
                _log.error("%s: %s", name, error)
                return Message(message.request, wire.U64(1), reply=True)
            raise RemoteError(f"{name}: {error}", Verdict.CLOSE) from error
        finally:
            message.close()
        if isinstance(reply, Message):
            return reply
        if reply is not None:
            return Message(message.request, reply, reply=True)
        return Message(message.request, wire.U64(0), reply=True) if self._wants_ack(message) else None

    def _wants_ack(self, message: Message) -> bool:
        """Linux's virtio_uml asks for it with the very message that negotiates it, so this is looked at afterwards."""
        return message.need_reply and bool(self.protocol_features & wire.P_REPLY_ACK)

    def _get_features(self, message: Message) -> Payload:
        return wire.U64(self.offered)

    def _set_features(self, message: Message) -> None:
        wanted = _u64(message)
        if self.service.running and (wanted ^ self.features) & _RING_BITS:
            changed = ", ".join(feature.names((wanted ^ self.features) & _RING_BITS, self.device.device_id))
            raise RemoteError(f"{changed}: changed while rings are started")
        if wanted & ~self.offered:
            extra = ", ".join(feature.names(wanted & ~self.offered, self.device.device_id))
            raise RemoteError(f"{extra}: not offered")
        self.features = wanted
        self.negotiated = True
        self.service.features = wanted & _RING_BITS
        with self.service.still():
            self.memory.logging = bool(wanted & wire.F_LOG_ALL)
        if bool(wanted & feature.ACCESS_PLATFORM) is not (self.memory.iotlb is not None):
            self.memory.iotlb = TranslationCache() if wanted & feature.ACCESS_PLATFORM else None
        event = Event.SET_FEATURES if wanted & wire.F_PROTOCOL_FEATURES else Event.SET_FEATURES_PLAIN
        for vring in self.vrings:
            self._event(vring, event)

    def _get_protocol_features(self, message: Message) -> Payload:
        return wire.U64(self.offered_protocol)

    def _set_protocol_features(self, message: Message) -> None:
        wanted = _u64(message)
        if wanted & ~self.offered_protocol:
            raise RemoteError(f"protocol features {wanted & ~self.offered_protocol:#x} were not offered")
        self.protocol_features = wanted

    def _nothing(self, message: Message) -> None:
        """SET_OWNER says nothing, RESET_OWNER is not used any more, and nobody waits for the log's eventfd."""

    def _get_queue_num(self, message: Message) -> Payload:
        return wire.U64(len(self.vrings))

    # -- memory

    def _set_mem_table(self, message: Message) -> None:
        assert isinstance(message.payload, wire.MemoryTable)
        with self.service.still():
            self.memory.set_table(message.payload.regions, message.fds)
            self._regions_changed()

    def _get_max_mem_slots(self, message: Message) -> Payload:
        return wire.U64(MAX_SLOTS)

    def _add_mem_reg(self, message: Message) -> None:
        assert isinstance(message.payload, wire.SingleRegion)
        with self.service.still():
            self.memory.add(message.payload.region, message.fds[0])
            self._regions_changed()

    def _rem_mem_reg(self, message: Message) -> None:
        assert isinstance(message.payload, wire.SingleRegion)
        with self.service.still():
            self.memory.remove(message.payload.region)
            self._regions_changed()

    def _regions_changed(self) -> None:
        """A started ring goes on where it is, unless its addresses are other memory now: then it is set up anew."""
        for vring in self.vrings:
            if vring.queue is not None and self.service.moved(vring):
                self.service.stop(vring)
                self._start(vring)

    def _iotlb_msg(self, message: Message) -> None:
        part = message.payload
        assert isinstance(part, wire.IotlbMessage)
        iotlb = self.memory.iotlb
        if iotlb is None:
            raise RemoteError("ACCESS_PLATFORM was not negotiated")
        if part.kind == wire.Iotlb.UPDATE:
            iotlb.update(part.iova, part.size, part.user, part.access)
        elif part.kind == wire.Iotlb.INVALIDATE:
            iotlb.invalidate(part.iova, part.size)
            for vring in self.vrings:
                if vring.queue is not None and self._ring_is_in(vring, part.iova, part.size):
                    lost = partial(self._ring_lost, vring, vring.queue)
                    # not under the device's hands, while it waits for a translation
                    self._loop.call_soon_threadsafe(lost) if self._translating else lost()
        else:
            raise RemoteError(f"type {part.kind}; expected UPDATE or INVALIDATE")

    def _ring_lost(self, vring: Vring, queue: VhostQueue) -> None:
        """The addresses of a ring lead nowhere; what is there now, if anything, is learnt when it is kicked again."""
        if vring.queue is queue:
            self.service.stop(vring)
            self._wait_for_kick(vring)

    def _ring_is_in(self, vring: Vring, iova: int, size: int) -> bool:
        areas = vring.areas(self.service.features)
        return any(address < iova + size and iova < address + length for address, length, _, _ in areas)

    def _miss(self, iova: int, access: int) -> None:
        if self._ask is None or self._translate is None or self._channel < 0 or self.memory.iotlb is None:
            raise RemoteError(f"I/O virtual address {iova:#x} is not mapped, and there is no channel to ask")
        miss = wire.IotlbMessage(iova, 0, 0, access, wire.Iotlb.MISS)
        self._ask(Message(BackEndRequest.IOTLB_MSG, miss), self._channel)
        deadline = self._loop.clock() + TRANSLATION_LIMIT
        self._translating = True
        try:
            while not self.memory.iotlb.lookup(iova, access)[1]:
                if self._loop.clock() > deadline or not self._translate():
                    raise RemoteError(f"the front end did not translate I/O virtual address {iova:#x} in time")
        finally:
            self._translating = False

    def _set_log_base(self, message: Message) -> Payload:
        area = message.payload
        assert isinstance(area, wire.LogArea)
        self.memory.set_log(MappedFile(message.fds[0], area.offset, area.size, "log"))
        return wire.U64(0)

    # -- rings

    def _vring(self, index: int) -> Vring:
        if index >= len(self.vrings):
            raise RemoteError(f"ring {index}; there are {len(self.vrings)}")
        return self.vrings[index]

    def _stopped(self, index: int) -> Vring:
        vring = self._vring(index)
        if vring.queue is not None:
            raise RemoteError(f"ring {index} is started")
        return vring

    def _set_vring_num(self, message: Message) -> None:
        state = _state(message)
        largest = self.device.queue_size
        packed = self.features & feature.RING_PACKED
        if not 0 < state.value <= max(largest, 1024) or (not packed and state.value & (state.value - 1)):
            raise RemoteError(f"{state.value} entries; expected up to {max(largest, 1024)}, a power of two if split")
        self._stopped(state.index).size = state.value

    def _set_vring_addr(self, message: Message) -> None:
        address = message.payload
        assert isinstance(address, wire.VringAddress)
        vring = self._vring(address.index)
        # one that logs nothing may say anything: Linux's virtio_uml says -1
        if address.flags & wire.VRING_F_LOG and address.log >= 1 << 63:
            raise RemoteError(f"log address {address.log:#x}")
        old = vring.address
        if vring.queue is not None and old is not None:
            places = (old.descriptors, old.available, old.used)
            if (address.descriptors, address.available, address.used) != places:
                raise RemoteError(f"ring {address.index} is started: only its log can change")
        vring.address = address

    def _set_vring_base(self, message: Message) -> None:
        state = _state(message)
        self._stopped(state.index).base = state.value

    def _get_vring_base(self, message: Message) -> Payload:
        vring = self._vring(_state(message).index)
        self._event(vring, Event.GET_VRING_BASE)
        # as libvhost-user does: the descriptor of kicks goes with the stop, and a new one comes before the next start
        self._drop_kick(vring)
        return VringState(vring.index, vring.base)

    def _drop_kick(self, vring: Vring) -> None:
        self._unwatch(vring)
        vring.replace_fd("kick", -1)
        vring.polled = False

    def _set_vring_kick(self, message: Message) -> None:
        vring, fd = self._ring_fd(message, "kick")
        if vring.queue is not None:
            self.service.pause(vring)
        else:
            self._unwatch(vring)
        vring.replace_fd("kick", fd)
        vring.polled = fd < 0
        if vring.queue is not None:
            self.service.update(vring)
        elif fd >= 0:
            self._event(vring, Event.SET_VRING_KICK)
            self._wait_for_kick(vring)
        if fd < 0:
            self._event(vring, Event.SET_VRING_POLL)

    def _set_vring_call(self, message: Message) -> None:
        vring, fd = self._ring_fd(message, "call")
        with self.service.still([vring]):
            vring.replace_fd("call", fd)
            if vring.queue is not None:
                vring.queue.call = fd
                vring.signal("call")  # what went to the old one may have come after it was looked at for the last time

    def _set_vring_err(self, message: Message) -> None:
        vring, fd = self._ring_fd(message, "error")
        vring.replace_fd("error", fd)

    def _ring_fd(self, message: Message, what: str) -> tuple[Vring, int]:
        value = _u64(message)
        vring = self._vring(value & wire.INDEX_MASK)
        if bool(value & wire.NO_FD) is bool(message.fds):
            raise RemoteError(f"{len(message.fds)} descriptors with {value:#x}")
        if not message.fds:
            return vring, -1
        return vring, notification_fd(message.take_fd(), f"{what} of ring {vring.index}")

    def _set_vring_enable(self, message: Message) -> None:
        state = _state(message)
        # QEMU enables the rings of a network before it sets features for the first time
        if self.negotiated and not self.features & wire.F_PROTOCOL_FEATURES:
            raise RemoteError("PROTOCOL_FEATURES was not negotiated")
        if state.value > 1:
            raise RemoteError(f"{state.value}; expected 0 or 1")
        self._event(self._vring(state.index), Event.ENABLE if state.value else Event.DISABLE)

    def _event(self, vring: Vring, event: Event) -> None:
        """What has happened to a ring, by the table; and what follows from its new phase."""
        before, vring.phase = vring.phase, after(vring.phase, event)
        if not vring.phase.started:
            if event is Event.GET_VRING_BASE:
                self.service.stop(vring)
            else:
                self.service.abandon(vring)
            vring.broken = ""
            if event in (Event.STATUS_RESET, Event.RESET_DEVICE):
                vring.forgotten = True
            if before.started and vring.kick >= 0:
                self._wait_for_kick(vring)
        elif self._may_run(vring) and vring.queue is None:
            self._start(vring)
        elif before != vring.phase:
            self.service.update(vring)

    def _may_run(self, vring: Vring) -> bool:
        """With STATUS nothing is taken from a ring before DRIVER_OK (virtio 1.4, 2.1.2).

        FEATURES_OK without DRIVER is no driver's status. QEMU says that before it starts the rings, and of devices such
        as vhost-user-rng nothing more: then kicks have to do, as without STATUS.
        """
        done = self.status & device_status.DRIVER_OK
        half = self.status & (device_status.FEATURES_OK | device_status.DRIVER) == device_status.FEATURES_OK
        ready = not self.protocol_features & wire.P_STATUS or done or half
        allowed = vring.phase.enabled or self.device.discards
        return bool(ready) and vring.phase.started and allowed and not vring.broken

    def _start(self, vring: Vring) -> None:
        try:
            self._unwatch(vring)
            self.service.start(vring)
        except (RemoteError, LocalError) as error:
            self._ring_broken(vring, str(error))

    def _wait_for_kick(self, vring: Vring) -> None:
        if vring.kick >= 0:
            self.service.watch(vring, lambda: self._first_kick(vring))

    def _unwatch(self, vring: Vring) -> None:
        if vring.kick >= 0 and vring.queue is None:
            self.service.unwatch(vring)

    def _first_kick(self, vring: Vring) -> None:
        """The kick is left to be read by whoever serves; a ring that may not run yet is looked at when it may."""
        self._unwatch(vring)
        self._event(vring, Event.KICK)

    def _ring_broken(self, vring: Vring, why: str) -> None:
        """Only this ring ends; its front end is told by all ways that it has."""
        _log.error("ring %d is not served any more: %s", vring.index, why)
        vring.broken = why
        self.broken_rings += 1
        self.service.pause(vring)
        vring.signal("error")
        if self.protocol_features & wire.P_STATUS and not self.status & device_status.NEEDS_RESET:
            self.status |= device_status.NEEDS_RESET
            self._config_changed()

    # -- the device

    def _set_backend_req_fd(self, message: Message) -> None:
        fd = message.take_fd()
        os.set_blocking(fd, False)
        self._close_channel()
        self._channel = fd

    def _config_changed(self) -> None:
        if self._ask is not None and self._channel >= 0 and self.protocol_features & wire.P_CONFIG:
            try:
                self._ask(Message(BackEndRequest.CONFIG_CHANGE_MSG), self._channel)
            except RemoteError as error:
                _log.error("the front end cannot be told of the new config: %s", error)

    def _get_config(self, message: Message) -> Payload:
        part = message.payload
        assert isinstance(part, wire.ConfigSpace)
        if part.offset + part.size > wire.MAX_CONFIG:
            return wire.ConfigSpace(part.offset, 0, part.flags, b"")
        # a front end asks for what it knows of; what this device has not is 0 (virtio 1.4, 2.5.1)
        config = self.device.config("little")[part.offset : part.offset + part.size]
        return wire.ConfigSpace(part.offset, part.size, part.flags, config.ljust(part.size, b"\0"))

    def _set_config(self, message: Message) -> None:
        part = message.payload
        assert isinstance(part, wire.ConfigSpace)
        if part.size != len(part.data):
            raise RemoteError(f"{len(part.data)} bytes; its size is {part.size}")
        if part.flags == 1:
            return  # a migrated guest's: what can be written goes with the device's state
        try:
            self.device.write_config(part.offset, part.data, "little")
        except LocalError as error:
            raise RemoteError(str(error)) from error

    def _get_inflight_fd(self, message: Message) -> Payload | Message:
        wanted = message.payload
        assert isinstance(wanted, wire.Inflight)
        if not 0 < wanted.queues <= len(self.vrings) or not 0 < wanted.queue_size <= 32768:
            raise RemoteError(f"{wanted.queues} queues of {wanted.queue_size} entries; there are {len(self.vrings)}")
        packed = bool(self.features & feature.RING_PACKED)
        fd, size = inflight_area.create(wanted.queues, wanted.queue_size, packed=packed)
        reply = wire.Inflight(size, 0, wanted.queues, wanted.queue_size)
        return Message(message.request, reply, [fd], reply=True)

    def _set_inflight_fd(self, message: Message) -> None:
        area = message.payload
        assert isinstance(area, wire.Inflight)
        if self.service.running:
            raise RemoteError("rings are started")
        record = InflightRecord(message.fds[0], area.offset, area.size, area.queues, area.queue_size)
        self._close_inflight()
        self.service.inflight = record
        for vring in self.vrings:
            vring.forgotten = False

    def _reset_device(self, message: Message) -> None:
        for vring in self.vrings:
            self._event(vring, Event.RESET_DEVICE)
        self.status = 0

    def _set_status(self, message: Message) -> None:
        new = _u64(message)
        if new > 0xFF:
            raise RemoteError(f"status {new:#x}")
        if new == 0:
            for vring in self.vrings:
                self._event(vring, Event.STATUS_RESET)
            self.status = 0
            return
        missing = feature.missing_dependencies(self.service.features, self.device.device_id)
        if new & device_status.FEATURES_OK and missing:
            _log.error("features refused: %s", "; ".join(missing))
            new &= ~device_status.FEATURES_OK
        self.status = new & ~device_status.NEEDS_RESET | self.status & device_status.NEEDS_RESET
        for vring in self.vrings:
            if vring.queue is None and self._may_run(vring):
                self._start(vring)

    def _get_status(self, message: Message) -> Payload:
        return wire.U64(self.status)

    def _set_device_state_fd(self, message: Message) -> Payload:
        part = message.payload
        assert isinstance(part, wire.DeviceState)
        if part.phase != 0 or part.direction not in (wire.TransferDirection.SAVE, wire.TransferDirection.LOAD):
            _log.error("device state: direction %d, phase %d", part.direction, part.phase)
            return wire.U64(wire.NO_FD | 1)
        if self.service.running:
            _log.error("device state: asked for while rings are started")
            return wire.U64(wire.NO_FD | 1)
        if part.direction == wire.TransferDirection.SAVE:
            self._state.save(message.take_fd())
        else:
            self._state.load(message.take_fd())
        return wire.U64(wire.NO_FD)

    def _check_device_state(self, message: Message) -> Payload:
        return wire.U64(0 if self._state.finish() else 1)

    # -- the end

    def _close_channel(self) -> None:
        if self._channel >= 0:
            os.close(self._channel)
            self._channel = -1

    def _close_inflight(self) -> None:
        record, self.service.inflight = self.service.inflight, None
        if record is not None:
            record.close()

    def close(self) -> None:
        """The front end is gone: give up all that is its own. Harmless the second time."""
        if self._closed:
            return
        self._closed = True
        for vring in self.vrings:
            self._event(vring, Event.DISCONNECT)
            self._drop_kick(vring)
            vring.replace_fd("call", -1)
            vring.replace_fd("error", -1)
        self.device.on_config_change = None
        self._state.cancel()
        self._close_channel()
        self._close_inflight()
        self.memory.close()


def _u64(message: Message) -> int:
    assert isinstance(message.payload, wire.U64)
    return message.payload.value


def _state(message: Message) -> VringState:
    assert isinstance(message.payload, VringState)
    return message.payload


_HANDLERS: Mapping[FrontEnd, Callable[[BackEnd, Message], Payload | Message | None]] = {
    FrontEnd.GET_FEATURES: BackEnd._get_features,
    FrontEnd.SET_FEATURES: BackEnd._set_features,
    FrontEnd.SET_OWNER: BackEnd._nothing,
    FrontEnd.RESET_OWNER: BackEnd._nothing,
    FrontEnd.SET_MEM_TABLE: BackEnd._set_mem_table,
    FrontEnd.SET_LOG_BASE: BackEnd._set_log_base,
    FrontEnd.SET_LOG_FD: BackEnd._nothing,
    FrontEnd.SET_VRING_NUM: BackEnd._set_vring_num,
    FrontEnd.SET_VRING_ADDR: BackEnd._set_vring_addr,
    FrontEnd.SET_VRING_BASE: BackEnd._set_vring_base,
    FrontEnd.GET_VRING_BASE: BackEnd._get_vring_base,
    FrontEnd.SET_VRING_KICK: BackEnd._set_vring_kick,
    FrontEnd.SET_VRING_CALL: BackEnd._set_vring_call,
    FrontEnd.SET_VRING_ERR: BackEnd._set_vring_err,
    FrontEnd.GET_PROTOCOL_FEATURES: BackEnd._get_protocol_features,
    FrontEnd.SET_PROTOCOL_FEATURES: BackEnd._set_protocol_features,
    FrontEnd.GET_QUEUE_NUM: BackEnd._get_queue_num,
    FrontEnd.SET_VRING_ENABLE: BackEnd._set_vring_enable,
    FrontEnd.SET_BACKEND_REQ_FD: BackEnd._set_backend_req_fd,
    FrontEnd.IOTLB_MSG: BackEnd._iotlb_msg,
    FrontEnd.GET_CONFIG: BackEnd._get_config,
    FrontEnd.SET_CONFIG: BackEnd._set_config,
    FrontEnd.GET_INFLIGHT_FD: BackEnd._get_inflight_fd,
    FrontEnd.SET_INFLIGHT_FD: BackEnd._set_inflight_fd,
    FrontEnd.RESET_DEVICE: BackEnd._reset_device,
    FrontEnd.GET_MAX_MEM_SLOTS: BackEnd._get_max_mem_slots,
    FrontEnd.ADD_MEM_REG: BackEnd._add_mem_reg,
    FrontEnd.REM_MEM_REG: BackEnd._rem_mem_reg,
    FrontEnd.SET_STATUS: BackEnd._set_status,
    FrontEnd.GET_STATUS: BackEnd._get_status,
    FrontEnd.SET_DEVICE_STATE_FD: BackEnd._set_device_state_fd,
    FrontEnd.CHECK_DEVICE_STATE: BackEnd._check_device_state,
}
