"""The device's end of virtio over CRQ (virtio_crq): one `VirtioCrq` serves one device to one client adapter.

Here are sessions and the configuration messages; requests are served in `service`. What the client sends is checked
here or where it is used; the worst that it can do is to get a reply with an error status, a device that needs a reset,
or its own I/O failed.

One session lasts from PROBE to the next PROBE or the loss of the CRQ connection (P1.4); a RESET inside a session
returns the device to its state after PROBE (P5.9).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from powervio.errors import LocalError, PowervioError, RemoteError
from powervio.papr.codes import ReturnCode
from powervio.papr.crq import TransportEvent
from powervio.papr.nodes import VdeviceNode
from powervio.papr.vioctl import Vioctl
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.parts import DeviceParts, QueueParts
from powervio.transport.crq.protocol import (
    CARRIED,
    FLAG_BIG_ENDIAN,
    HEADERS,
    HIGHEST_REVISION,
    MAX_CONFIG_R0,
    MAX_QUEUE_SIZE_R0,
    MAX_QUEUES_R0,
    PROBE_FLAGS,
    REPLY,
    REVISION_1_ONLY,
    SERVER_TYPES,
    ChannelEntry,
    DeviceHeader,
    Message,
    QueueAddresses,
    Status,
    decode,
    encode,
)
from powervio.transport.crq.redirect import REDIRECT_MIN, Redirector
from powervio.transport.crq.remote import RemoteWindow
from powervio.transport.crq.service import QueueService
from powervio.vio.crq import CrqEnd, CrqState
from powervio.vio.dma import DmaSpace
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder
from powervio.virtio.status import StatusMachine

_log = logging.getLogger(__name__)

_PREPARE_MSEC = 10_000
"""How long requests in hand may take when the client's partition is to be suspended."""
_TRANSPORT_BITS = (
    feature.VERSION_1 | feature.ACCESS_PLATFORM | feature.NOTIFICATION_DATA | feature.RING_RESET | feature.SUSPEND
)
"""What revision 1 can carry beside the ring's own features (P4.3)."""
_OVER = device_status.FAILED | device_status.NEEDS_RESET


class _Later(Exception):
    """The reply to a message comes when something else has ended."""


class _Refused(Exception):
    """A configuration message is answered with an error status; the reason goes to the log."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(slots=True)
class ServerSession:
    """What a server knows of its client since PROBE."""

    number: int
    revision: int
    big_endian: bool
    header_address: int
    header_length: int
    status: StatusMachine
    offered: int
    accepted: int = 0
    config_address: int = 0
    config_length: int = 0
    queues: dict[int, QueueAddresses] = field(default_factory=dict)

    @property
    def byteorder(self) -> ByteOrder:
        """Of rings, config space and device structures."""
        return "big" if self.big_endian else "little"


class VirtioCrq:
    """A virtio device behind one server adapter, in the thread of its VIO server partition."""

    def __init__(
        self,
        kernel: PartitionKernel,
        node: VdeviceNode,
        device: Device,
        *,
        highest_revision: int = HIGHEST_REVISION,
        event_idx: bool = True,
        channels: bool = True,
        redirect_min: int | None = REDIRECT_MIN,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        """`highest_revision` limits what is settled with the client; `trace` is told of each handshake step.

        Without `channels` all queues stay on the CRQ, as with a platform that has no Sub-CRQs. Transfers of
        `redirect_min` bytes or more go by redirected DMA if the partition has a physical adapter and the backing is a
        file; None copies all.
        """
        self.node = node
        self.device = device
        self._refused = 0
        self._retired = False
        self._kernel = kernel
        self._highest_revision = highest_revision
        self._event_idx = event_idx
        self._use_channels = channels
        self._trace = trace or (lambda step: None)
        self._dma = DmaSpace(kernel.port, kernel.pages, node.windows[0])
        self._window = RemoteWindow(kernel.port, node, self._dma)
        self._session: ServerSession | None = None
        device.on_config_change = self._config_changed
        device.scheduler = kernel
        self.crq = CrqEnd(
            kernel,
            node,
            self._dma,
            on_message=self._message,
            on_open=lambda: None,
            on_lost=self._lost,
            on_drained=self._serve,
            on_event=self._suspension,
            prepare_msec=_PREPARE_MSEC,
        )
        self._channels = Channels(
            kernel,
            node,
            self._dma,
            self.crq,
            Message.KICK,
            on_hint=self._kicked,
            on_drained=self._channel_drained,
        )
        redirector = None
        if kernel.engine is not None and redirect_min is not None:
            redirector = Redirector(kernel.port, node, kernel.engine, kernel.pages, redirect_min)
        self._service = QueueService(kernel, self._dma, self._window, device, self._needs_reset, redirector)

    # -- life

    def start(self) -> None:
        """Register with the hypervisor and wait for a client."""
        self._kernel.unwatch_tree(self._tree_changed)
        self._kernel.watch_tree(self._tree_changed)
        self.crq.register()

    def stop(self) -> None:
        """End the service: requests that were popped are completed or forgotten, nothing touches the client after."""
        self._kernel.unwatch_tree(self._tree_changed)
        self.crq.close()

    def retire(self) -> None:
        """Stop for good and give all memory back; the adapter may be unplugged then, or was before.

        Harmless when it was done already.
        """
        if self._retired:
            return
        self.stop()  # may raise while the hypervisor is busy with the CRQ; after unplugging it does not
        self._retired = True
        self.device.on_config_change = None
        self.crq.release()
        self._window.release()

    def _tree_changed(self) -> None:
        """Our node may have gone: then the client's went with it, and there is nobody to serve any more."""
        if self.crq.gone:
            self._kernel.unwatch_tree(self._tree_changed)
            self.crq.abandon()
            self._lost()

    def reset(self) -> None:
        """Start anew from this side: the client gets FF02, then C001, and negotiates again."""
        self.crq.reset()

    @property
    def session(self) -> ServerSession | None:
        """What is known of the client since PROBE, for traces and people."""
        return self._session

    @property
    def rejected(self) -> int:
        """Messages, kicks and requests of the client that were refused."""
        return self._refused + self._service.rejected + self._channels.rejected

    @property
    def channels(self) -> int:
        """How many queues are carried by Sub-CRQs."""
        return len(self._channels)

    @property
    def revision(self) -> int | None:
        """What was settled with the client; None while there is none."""
        return self._session.revision if self._session else None

    @property
    def state(self) -> str:
        """In one word, for people: closed, waiting, initializing, probed, negotiating, running, needs-reset."""
        session = self._session
        if session is None:
            return self.crq.state.value
        if session.status.status & device_status.NEEDS_RESET:
            return "needs-reset"
        if session.status.status & device_status.DRIVER_OK:
            return "running"
        return "negotiating" if session.status.status else "probed"

    def _serve(self) -> None:
        self._service.serve()

    def _kicked(self, queue: int, index: int) -> None:
        if self._session is not None and self._session.status.running:
            self._service.kick(queue, index)
        else:
            self._refused += 1

    def _channel_drained(self) -> None:
        """Kicks came through a Sub-CRQ: what was sent on the CRQ before them counts first (P5.16)."""
        self.crq.drain()
        if self.crq.waiting:
            self._kernel.call_soon(self._channel_drained)
        else:
            self._serve()

    def _suspension(self, event: TransportEvent) -> None:
        """FF09: finish what is in hand, begin nothing, and say so; FF0A: go on (P1.8)."""
        if event == TransportEvent.PREPARE_FOR_SUSPEND:
            self._service.freeze(self._ready_for_suspend)
        elif self._service.frozen:
            self._service.thaw()

    def _ready_for_suspend(self) -> None:
        code = self._kernel.port.vioctl(self.node.unit_address, Vioctl.READY_FOR_SUSPEND)[0]
        if code != ReturnCode.H_SUCCESS:
            _log.warning("adapter %s: READY_FOR_SUSPEND returned %d", self.node.location_code, code)

    def _lost(self) -> None:
        self._service.end()
        self._channels.close()
        self._session = None

    # -- moving to another server

    def parts(self) -> DeviceParts:
        """The state of the session as one value, from which `adopt` of another server goes on.

        Raises `LocalError` when there is no session, or a request is in the device's hands.
        """
        session = self._session
        if session is None:
            raise LocalError(f"adapter {self.node.location_code} has no session to hand over ({self.state})")
        indices = self._service.indices()
        return DeviceParts(
            device_id=self.device.device_id,
            offered_features=session.offered,
            driver_features=session.accepted,
            status=session.status.status,
            revision=session.revision,
            session=session.number,
            big_endian=session.big_endian,
            header=(session.header_address, session.header_length),
            config=(session.config_address, session.config_length),
            queues=[QueueParts(entry, *indices.get(index, (0, 0))) for index, entry in session.queues.items()],
            device=self.device.state(),
        )

    def adopt(self, parts: DeviceParts) -> None:
        """Go on where another server stopped; the client does not notice. The CRQ connection has to be open.

        Raises `LocalError` when the device here is another, or does not offer what the client accepted.
        """
        offered = self._offered(parts.revision)
        if parts.device_id != self.device.device_id or parts.driver_features & ~offered:
            missing = ", ".join(feature.names(parts.driver_features & ~offered, parts.device_id))
            raise LocalError(
                f"a device of type {parts.device_id} that needs {missing or 'nothing more'} cannot go on as type"
                f" {self.device.device_id}"
            )
        if self.crq.state is not CrqState.OPEN:
            raise LocalError(f"adapter {self.node.location_code} has no client to go on with ({self.crq.state.value})")
        self._lost()
        session = ServerSession(
            number=parts.session,
            revision=parts.revision,
            big_endian=parts.big_endian,
            header_address=parts.header[0],
            header_length=parts.header[1],
            status=StatusMachine(legacy=parts.revision == 0),
            offered=parts.offered_features,
            accepted=parts.driver_features,
            config_address=parts.config[0],
            config_length=parts.config[1],
            queues={queue.addresses.index: queue.addresses for queue in parts.queues},
        )
        session.status.status = parts.status
        session.status.suspend_negotiated = bool(parts.driver_features & feature.SUSPEND)
        self._session = session
        if parts.status & (device_status.DRIVER_OK | device_status.SUSPEND):
            self.device.restore(parts.device)
            for queue in parts.queues:
                self._add_queue(session, queue.addresses, queue.last_available, queue.used_index)
            self._start_device(session)
            self._service.paused = bool(parts.status & device_status.SUSPEND)
            self._service.kick_all()
            self._kernel.call_soon(self._service.serve)

    # -- messages

    def _message(self, high: int, low: int) -> None:
        session = self._session
        number = (high >> 32) & 0xFFFF
        kind = (high >> 48) & 0xFF
        if kind == Message.KICK:
            # the hot one: remembered here, served when the CRQ is empty, so that kicks of one burst become one
            if session is None or number != session.number or not session.status.running:
                self._refused += 1  # also before DRIVER_OK: survived, not served (virtio 1.4, 3.1.1)
            else:
                self._service.kick((high >> 16) & 0xFFFF, high & 0xFFFF)
            return
        stale = kind != Message.PROBE and (session is None or number != session.number)
        if stale or kind >= SERVER_TYPES:
            # late messages of an older session have nobody who waits for a reply (P1.4); a server's type answered
            # would look like an event (P2.3)
            self._refused += 1
            return
        if self._service.on_idle is not None:
            self._give_up_suspend()
        handler = _HANDLERS.get(kind)
        if handler is None or (session is not None and session.revision == 0 and kind in REVISION_1_ONLY):
            self._refuse(kind, number, Status.UNSUPPORTED, f"type {kind:#04x} does not exist in this revision (P2.3)")
            return
        if session is not None and session.status.status & _OVER and kind not in (Message.PROBE, Message.RESET):
            shown = device_status.names(session.status.status)
            self._refuse(kind, number, Status.BAD_STATE, f"device status {shown}: only RESET or PROBE lead on (P5.10)")
            return
        before = session.status.status if session is not None else 0
        try:
            value, data = handler(self, decode(high, low))
        except _Later:
            pass
        except _Refused as refused:
            self._refuse(kind, number, refused.status, str(refused))
        except RemoteError as error:
            self._undo(session, before)
            self._refuse(kind, number, Status.BAD_ADDRESS, str(error))
        except Exception:
            _log.exception("adapter %s: message %s failed here", self.node.location_code, Message(kind).name)
            self._undo(session, before)
            self._reply(kind, number, Status.DEVICE_ERROR)
        else:
            self._reply(kind, self._session.number if self._session else number, Status.OK, value, data)

    def _undo(self, session: ServerSession | None, status: int) -> None:
        """A message that failed has changed nothing (P2.5)."""
        if session is not None and session is self._session:
            if not status & (device_status.DRIVER_OK | device_status.SUSPEND):
                self._service.end()
            session.status.status = status

    def _refuse(self, kind: int, number: int, status: Status, reason: str) -> None:
        self._refused += 1
        _log.info("adapter %s: message %#04x refused (%s): %s", self.node.location_code, kind, status.name, reason)
        self._reply(kind, number, status)

    def _reply(self, kind: int, number: int, status: Status, value: int = 0, data: int = 0) -> None:
        session = self._session
        shown = session.status.status if session else 0
        # an unknown type has no layout of its own; the reply's layout is that of every reply (P2.5)
        high, low = encode(Message.PROBE | REPLY, number, status=status, device_status=shown, value=value, data=data)
        high = (high & ~(0xFF << 48)) | ((kind | REPLY) & 0xFF) << 48
        self.crq.post(high, low)

    def _current(self) -> ServerSession:
        assert self._session is not None  # `_message` hands no other message than PROBE up without a session
        return self._session

    def _step_status(self, bit: int) -> None:
        """The driver adds a status bit; what may follow what is the status machine's table."""
        machine = self._current().status
        if machine.status & bit:
            raise _Refused(
                Status.BAD_STATE, f"device status {device_status.names(machine.status)} has this bit already"
            )
        try:
            machine.write(machine.status | bit)
        except LocalError as error:
            raise _Refused(Status.BAD_STATE, str(error)) from None

    def _probe(self, message: dict[str, int]) -> tuple[int, int]:
        """PROBE: settle the revision and describe the device (P5.1)."""
        revision = min(message["revision"], self._highest_revision)
        number = message["session"] if revision else 0
        if message["flags"] & ~PROBE_FLAGS:
            raise _Refused(Status.BAD_VALUE, f"PROBE flags {message['flags']:#x} are not defined")
        big_endian = bool(message["flags"] & FLAG_BIG_ENDIAN)
        if revision and big_endian:
            raise _Refused(Status.BAD_VALUE, "revision 1 is little-endian as virtio 1 is; big-endian rings need 0")
        if revision and not number:
            raise _Refused(Status.BAD_VALUE, "session numbers of revision 1 begin with 1 (P1.4)")
        codec = HEADERS[revision]
        if message["length"] < codec.size:
            raise _Refused(
                Status.BAD_LENGTH,
                f"{message['length']} bytes are mapped for the header; revision {revision} needs {codec.size}",
            )
        offered = self._offered(revision)
        session = ServerSession(
            number=number,
            revision=revision,
            big_endian=big_endian,
            header_address=message["address"],
            header_length=message["length"],
            status=StatusMachine(legacy=revision == 0),
            offered=offered,
        )
        config = self.device.config(session.byteorder)
        header = DeviceHeader(
            device_type=self.device.device_id,
            queue_count=self._queue_count(revision),
            queue_size=self._queue_size(revision),
            device_features=offered,
            config_length=len(config) if revision else min(len(config), MAX_CONFIG_R0),
            config_generation=self.device.config_generation,
        )
        session.config_length = header.config_length
        self._window.write(session.header_address, codec.pack(header))
        self._lost()
        self._session = session
        self._trace("RDMA_HEADER")
        return revision, 0

    def _queue_count(self, revision: int) -> int:
        return self.device.queue_count if revision else min(self.device.queue_count, MAX_QUEUES_R0)

    def _queue_size(self, revision: int) -> int:
        return self.device.queue_size if revision else min(self.device.queue_size, MAX_QUEUE_SIZE_R0)

    def _offered(self, revision: int) -> int:
        ring = feature.INDIRECT_DESC | (feature.EVENT_IDX if self._event_idx else 0)
        carried = ring | (_TRANSPORT_BITS if revision else feature.ANY_LAYOUT)
        return feature.offer(self.device.features, carried, self.device.device_id)

    def _acknowledge(self, message: dict[str, int]) -> tuple[int, int]:
        """ACKNOWLEDGE: where the config space is to be; it is written at once (P5.2)."""
        session = self._current()
        if message["length"] < session.config_length:
            raise _Refused(
                Status.BAD_LENGTH, f"{message['length']} bytes of config are mapped; expected {session.config_length}"
            )
        self._step_status(device_status.ACKNOWLEDGE)
        session.config_address = message["address"]
        return self._write_config_space()

    def _write_config_space(self) -> tuple[int, int]:
        session = self._current()
        config = self.device.config(session.byteorder)[: session.config_length]
        if config:
            self._window.write(session.config_address, config)
        self._trace("RDMA_CONFIG")
        return len(config), self.device.config_generation & 0xFFFF_FFFF

    def _config_read(self, message: dict[str, int]) -> tuple[int, int]:
        """CONFIG_READ: write the config space again (P5.7)."""
        session = self._current()
        if not session.status.status & device_status.ACKNOWLEDGE:
            raise _Refused(Status.BAD_STATE, "CONFIG_READ before ACKNOWLEDGE: no config address is known")
        return self._write_config_space()

    def _config_write(self, message: dict[str, int]) -> tuple[int, int]:
        """CONFIG_WRITE: up to 4 bytes at an offset, left-aligned in the last doubleword (P5.8)."""
        session = self._current()
        offset, length = message["offset"], message["length"]
        settled = session.status.status & (device_status.FEATURES_OK | device_status.DRIVER_OK)
        if not settled and not self.device.early_config(offset, length):
            raise _Refused(Status.BAD_STATE, "config must not be written before features are settled")
        if length not in (1, 2, 4) or offset + length > session.config_length:
            raise _Refused(
                Status.BAD_LENGTH,
                f"config write of {length} bytes at {offset}; expected 1, 2 or 4 within {session.config_length}",
            )
        data = message["data"].to_bytes(8, "big")[:length]
        try:
            self._service.touched = True  # reset the device with the session, started or not (P5.9)
            self.device.write_config(offset, data, session.byteorder)
        except PowervioError as error:
            raise _Refused(Status.BAD_VALUE, str(error)) from None
        return 0, self.device.config_generation & 0xFFFF_FFFF

    def _driver(self, message: dict[str, int]) -> tuple[int, int]:
        """DRIVER: a driver was found on the client's side (P5.3)."""
        self._step_status(device_status.DRIVER)
        return 0, 0

    def _fetch_features(self) -> None:
        session = self._current()
        codec = HEADERS[session.revision]
        raw = self._window.read(session.header_address + codec.driver_features_offset, codec.driver_features_size)
        self._trace("RDMA_FEATURES")
        accepted = int.from_bytes(raw, "big")
        try:
            feature.check_accepted(session.offered, accepted, self.device.device_id)
            if session.revision and not accepted & feature.ACCESS_PLATFORM:
                raise RemoteError("ACCESS_PLATFORM was not accepted, but all addresses here are I/O addresses")
        except RemoteError as error:
            raise _Refused(Status.BAD_FEATURES, str(error)) from None
        session.accepted = accepted

    def _features_ok(self, message: dict[str, int]) -> tuple[int, int]:
        """FEATURES_OK: copy in and check what the driver accepted (P5.4, revision 1)."""
        session = self._current()
        self._step_status(device_status.FEATURES_OK)
        try:
            self._fetch_features()
        except _Refused:
            session.status.refuse_features()
            raise
        session.status.suspend_negotiated = bool(session.accepted & feature.SUSPEND)
        return 0, 0

    def _find_vqs(self, message: dict[str, int]) -> tuple[int, int]:
        """FIND_VQS: where the queues are (P5.5). Nothing of a ring is touched yet, unless it follows a queue reset."""
        session = self._current()
        count, length = message["count"], message["length"]
        ready = device_status.FEATURES_OK if session.revision else device_status.DRIVER
        live = bool(session.status.status & (device_status.DRIVER_OK | device_status.SUSPEND))
        if not session.status.status & ready:
            raise _Refused(Status.BAD_STATE, "FIND_VQS before features are settled")
        if live and not session.accepted & feature.RING_RESET:
            raise _Refused(Status.BAD_STATE, "FIND_VQS of a running device without RING_RESET negotiated")
        largest = self._queue_count(session.revision)
        if not 1 <= count <= largest or length != count * QueueAddresses.SIZE:
            raise _Refused(
                Status.BAD_LENGTH,
                f"a block of {length} bytes for {count} queues; expected 1 to {largest} entries of"
                f" {QueueAddresses.SIZE} bytes",
            )
        block = self._window.read(message["address"], length)
        entries = [
            QueueAddresses.unpack(block[at : at + QueueAddresses.SIZE]) for at in range(0, length, QueueAddresses.SIZE)
        ]
        if len({entry.index for entry in entries}) != count:
            raise _Refused(Status.BAD_QUEUE, "a queue is named twice in one FIND_VQS")
        for entry in entries:
            self._check_queue(session, entry, live)
        if not live:
            self._channels.close()
            session.queues.clear()  # a queue that the last FIND_VQS does not name does not exist (P5.5)
        if live:
            self._add_live(session, entries)
        session.queues.update((entry.index, entry) for entry in entries)
        return count, 0

    def _add_live(self, session: ServerSession, entries: list[QueueAddresses]) -> None:
        added: list[int] = []
        try:
            for entry in entries:
                self._add_queue(session, entry)
                added.append(entry.index)
        except Exception:
            for index in added:
                self._service.reset(index)
            raise

    def _check_queue(self, session: ServerSession, entry: QueueAddresses, live: bool) -> None:
        where = f"queue {entry.index}"
        largest = self._queue_size(session.revision)
        if entry.index >= self._queue_count(session.revision):
            raise _Refused(Status.BAD_QUEUE, f"{where}: the device has {self._queue_count(session.revision)}")
        if live and entry.index in self._service:
            raise _Refused(Status.BAD_QUEUE, f"{where} is in use; it has to be reset before it gets new addresses")
        if not 0 < entry.size <= largest or entry.size & (entry.size - 1):
            raise _Refused(Status.BAD_QUEUE, f"{where}: size {entry.size}; expected a power of two up to {largest}")
        if session.revision == 0 and entry.size != largest:
            raise _Refused(Status.BAD_QUEUE, f"{where}: size {entry.size}; revision 0 has vqs_size {largest} for all")
        if entry.descriptors % 16 or entry.available % 2 or entry.used % 4:
            raise _Refused(
                Status.BAD_QUEUE, f"{where}: areas need alignment 16, 2 and 4 bytes (virtio 1.4, 2.7), got {entry}"
            )

    def _driver_ok(self, message: dict[str, int]) -> tuple[int, int]:
        """DRIVER_OK: the device lives (P5.6). In revision 0 the driver's features are copied in now."""
        session = self._current()
        if session.status.status & device_status.SUSPEND:
            raise _Refused(Status.BAD_STATE, "DRIVER_OK of a suspended device; RESUME wakes it")
        if session.revision == 0 and session.status.status == device_status.ACKNOWLEDGE | device_status.DRIVER:
            self._fetch_features()
        self._step_status(device_status.DRIVER_OK)
        for entry in session.queues.values():
            self._add_queue(session, entry)
        self._start_device(session)
        return 0, 0

    def _add_queue(self, session: ServerSession, entry: QueueAddresses, available: int = 0, used: int = 0) -> None:
        self._service.add(
            entry,
            session.number,
            session.accepted,
            channels=self._channels,
            big_endian=session.big_endian,
            available=available,
            used=used,
        )

    def _start_device(self, session: ServerSession) -> None:
        self._service.start(DeviceSession(session.accepted, session.byteorder, self._service.queues))

    def _reset(self, message: dict[str, int]) -> tuple[int, int]:
        """RESET: back to where PROBE left it; the PROBE stays valid (P5.9)."""
        session = self._current()
        self._service.end()
        self._channels.close()
        session.status = StatusMachine(legacy=session.revision == 0)
        session.accepted = 0
        session.config_address = 0
        session.queues.clear()
        return 0, 0

    def _failed(self, message: dict[str, int]) -> tuple[int, int]:
        """FAILED: the driver gave up; only a reset leads on (P5.10)."""
        self._service.end()
        self._step_status(device_status.FAILED)
        return 0, 0

    def _queue_reset(self, message: dict[str, int]) -> tuple[int, int]:
        """QUEUE_RESET: the device forgets one queue; FIND_VQS may set it up again (P5.11)."""
        session = self._current()
        index = message["queue"]
        if not session.accepted & feature.RING_RESET:
            raise _Refused(Status.BAD_FEATURES, "QUEUE_RESET without RING_RESET negotiated")
        if index not in self._service:
            raise _Refused(Status.BAD_QUEUE, f"queue {index} is not in use")
        self._channels.queue_was_reset(index)
        del session.queues[index]
        self._service.reset(index)
        return 0, 0

    def _suspend(self, message: dict[str, int]) -> tuple[int, int]:
        """SUSPEND: finish what is in flight, then touch nothing until RESUME (P5.12)."""
        session = self._current()
        if not session.accepted & feature.SUSPEND:
            raise _Refused(Status.BAD_FEATURES, "SUSPEND without the feature negotiated")
        if not session.status.running:
            raise _Refused(Status.BAD_STATE, "SUSPEND of a device that is not running")
        self._service.serve()
        if not session.status.running:
            raise _Refused(Status.BAD_STATE, "a ring broke while the device was being suspended")
        self._service.paused = True
        try:
            self.device.suspend()
        except Exception:
            _log.exception("adapter %s: the device failed to suspend", self.node.location_code)
            self._needs_reset("the device failed to suspend")
        if not session.status.running:
            raise _Refused(Status.DEVICE_ERROR, "the device broke while it was being suspended")
        if self._service.in_hand:
            self._service.on_idle = self._suspended
            raise _Later
        self._step_status(device_status.SUSPEND)
        return 0, 0

    def _suspended(self) -> None:
        """The device has finished what it had in hand: now the SUSPEND that waited for it takes effect."""
        self._step_status(device_status.SUSPEND)
        self._reply(Message.SUSPEND, self._current().number, Status.OK)

    def _give_up_suspend(self) -> None:
        """Another message came first; replies are in the order of messages (P2.4), so SUSPEND is answered now."""
        self._service.on_idle = None
        self._service.paused = False
        self._service.kick_all()
        self._refuse(Message.SUSPEND, self._current().number, Status.BAD_STATE, "interrupted by another message")

    def _resume(self, message: dict[str, int]) -> tuple[int, int]:
        """RESUME: serve again, starting with what was made available meanwhile (P5.12)."""
        session = self._current()
        if not session.status.status & device_status.SUSPEND:
            raise _Refused(Status.BAD_STATE, "RESUME of a device that is not suspended")
        self._step_status(device_status.DRIVER_OK)
        self._service.paused = False
        self._service.kick_all()
        return 0, 0

    def _open_channels(self, message: dict[str, int]) -> tuple[int, int]:
        """CHANNELS: exchange the cookies of the Sub-CRQs that are to carry the queues (P5.13)."""
        session = self._current()
        count, length = message["count"], message["length"]
        if not self._use_channels:
            raise _Refused(Status.UNSUPPORTED, "this server uses no Sub-CRQs; kicks go over the CRQ")
        status = session.status.status
        if not status & device_status.FEATURES_OK or status & (device_status.DRIVER_OK | device_status.SUSPEND):
            raise _Refused(Status.BAD_STATE, "CHANNELS belongs between FIND_VQS and DRIVER_OK")
        if self._channels.ends:
            raise _Refused(Status.BAD_STATE, "CHANNELS for the second time")
        if not 1 <= count <= self._queue_count(session.revision) or length != count * ChannelEntry.SIZE:
            raise _Refused(Status.BAD_LENGTH, f"a block of {length} bytes for the channels of {count} queues")
        block = self._window.read(message["address"], length)
        entries = [
            ChannelEntry.unpack(block[at : at + ChannelEntry.SIZE]) for at in range(0, length, ChannelEntry.SIZE)
        ]
        if len({entry.queue for entry in entries}) != count or any(e.queue not in session.queues for e in entries):
            raise _Refused(Status.BAD_QUEUE, "CHANNELS names a queue twice, or one that FIND_VQS did not set up")
        try:
            answer = [self._open_channel(session, entry) for entry in entries]
            self._window.write(message["address"], b"".join(entry.pack() for entry in answer))
        except Exception:
            self._channels.close()  # what is answered with an error has changed nothing (P2.5)
            raise
        self._trace("RDMA_CHANNELS")
        return len(self._channels), 0

    def _open_channel(self, session: ServerSession, entry: ChannelEntry) -> ChannelEntry:
        """One Sub-CRQ here for each one there; a queue for which there is none left stays on the CRQ."""
        end = next((end for end in self._channels.ends if end.partner == entry.client), None)
        if end is None:
            code, end = self._channels.open()
            if code in (ReturnCode.H_FUNCTION, ReturnCode.H_PARAMETER):
                raise _Refused(Status.UNSUPPORTED, f"this platform has no Sub-CRQs (H_REG_SUB_CRQ: {code})")
            if code not in (ReturnCode.H_SUCCESS, ReturnCode.H_CLOSED):
                return replace(entry, status=0, server=0)
            end.partner = entry.client
        self._channels.carry(entry.queue, end, session.number, entry.generation)
        return replace(entry, status=CARRIED, server=end.cookie)

    # -- what the device has to say

    def _needs_reset(self, reason: str) -> None:
        """The shared state is broken: say so and touch nothing until the driver resets (virtio 1.4, 2.1.2)."""
        session = self._current()
        self._refused += 1
        _log.warning("adapter %s needs a reset: %s", self.node.location_code, reason)
        suspending = self._service.on_idle is not None
        self._service.end()
        session.status.need_reset()
        if suspending:
            self._reply(Message.SUSPEND, session.number, Status.DEVICE_ERROR)
        status_address = session.header_address + HEADERS[session.revision].status_offset
        # the event says it too; a client that unmapped its header has itself to blame
        with contextlib.suppress(RemoteError):
            self._window.write(status_address, bytes((session.status.status,)))
        self._announce_config()

    def _config_changed(self) -> None:
        session = self._session
        if session is not None and session.status.status & device_status.ACKNOWLEDGE:
            self._announce_config()  # also before DRIVER: the client has a copy from ACKNOWLEDGE on (P5.14)

    def _announce_config(self) -> None:
        session = self._current()
        self.crq.post(
            *encode(
                Message.CONFIG_CHANGED,
                session.number,
                device_status=session.status.status,
                value=session.config_length,
                data=self.device.config_generation & 0xFFFF_FFFF,
            )
        )


_HANDLERS: dict[int, Callable[[VirtioCrq, dict[str, int]], tuple[int, int]]] = {
    Message.PROBE: VirtioCrq._probe,
    Message.ACKNOWLEDGE: VirtioCrq._acknowledge,
    Message.DRIVER: VirtioCrq._driver,
    Message.FEATURES_OK: VirtioCrq._features_ok,
    Message.FIND_VQS: VirtioCrq._find_vqs,
    Message.DRIVER_OK: VirtioCrq._driver_ok,
    Message.CONFIG_WRITE: VirtioCrq._config_write,
    Message.CONFIG_READ: VirtioCrq._config_read,
    Message.RESET: VirtioCrq._reset,
    Message.FAILED: VirtioCrq._failed,
    Message.QUEUE_RESET: VirtioCrq._queue_reset,
    Message.SUSPEND: VirtioCrq._suspend,
    Message.RESUME: VirtioCrq._resume,
    Message.CHANNELS: VirtioCrq._open_channels,
}
