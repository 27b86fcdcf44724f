"""The configuration messages at the device's end: one handler each, in a table (docs/protocol.md, P5).

A handler checks its message, changes the session, and returns what the reply carries: `(value, data)`. One that raises
has changed nothing (P2.5); `server` hands the messages up and answers them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from powervio.errors import PowervioError, RemoteError
from powervio.papr.codes import ReturnCode
from powervio.transport.crq.channels import Channels
from powervio.transport.crq.protocol import (
    CARRIED,
    FLAG_BIG_ENDIAN,
    HEADERS,
    MAX_CONFIG_R0,
    MAX_QUEUE_SIZE_R0,
    MAX_QUEUES_R0,
    PROBE_FLAGS,
    ChannelEntry,
    DeviceHeader,
    Message,
    QueueAddresses,
    Status,
)
from powervio.transport.crq.remote import RemoteWindow
from powervio.transport.crq.server_session import Later, Refused, ServerSession
from powervio.transport.crq.service import QueueService
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.status import StatusMachine

_log = logging.getLogger(__name__)

_TRANSPORT_BITS = (
    feature.VERSION_1
    | feature.ACCESS_PLATFORM
    | feature.RING_PACKED
    | feature.NOTIFICATION_DATA
    | feature.RING_RESET
    | feature.SUSPEND
)
"""What revision 1 can carry beside INDIRECT_DESC, EVENT_IDX and IN_ORDER (P4.3)."""


class Configuration:
    """The session of one server adapter, and what each message of the client does to it."""

    def __init__(
        self,
        where: str,
        device: Device,
        window: RemoteWindow,
        service: QueueService,
        channels: Channels,
        *,
        highest_revision: int,
        event_idx: bool,
        in_order: bool,
        use_channels: bool,
        reply: Callable[[int, int, Status], None],
        on_broken: Callable[[str], None],
        trace: Callable[[str], None],
    ) -> None:
        """`where` names the adapter in the log; `reply(kind, session number, status)` answers a message whose handler
        raised `Later`; `on_broken` is told when only a reset can help. The others are as in `VirtioCrq`.
        """
        self.session: ServerSession | None = None
        self._where = where
        self._device = device
        self._window = window
        self._service = service
        self._channels = channels
        self._highest_revision = highest_revision
        self._event_idx = event_idx
        self._in_order = in_order
        self._use_channels = use_channels
        self._reply = reply
        self._on_broken = on_broken
        self._trace = trace

    def end(self) -> None:
        """The session is over: nothing of the client is touched any more."""
        self._service.end()
        self._channels.close()
        self.session = None

    def current(self) -> ServerSession:
        """The session, where there has to be one."""
        assert self.session is not None  # without one no other message than PROBE is taken
        return self.session

    def _queue_count(self, revision: int) -> int:
        return self._device.queue_count if revision else min(self._device.queue_count, MAX_QUEUES_R0)

    def _queue_size(self, revision: int) -> int:
        return self._device.queue_size if revision else min(self._device.queue_size, MAX_QUEUE_SIZE_R0)

    def offered(self, revision: int) -> int:
        """The feature bits that a client of this revision is offered (P4.2, P4.3)."""
        ring = feature.INDIRECT_DESC | (feature.EVENT_IDX if self._event_idx else 0)
        if revision and self._in_order:
            ring |= feature.IN_ORDER
        carried = ring | (_TRANSPORT_BITS if revision else feature.ANY_LAYOUT)
        return feature.offer(self._device.features, carried, self._device.device_id)

    def add_queue(self, session: ServerSession, entry: QueueAddresses, reached: tuple[int, int] | None = None) -> None:
        """Make a queue of the session live; `reached` says how far it is when it is taken over from another server."""
        self._service.add(
            entry,
            session.number,
            session.accepted,
            channels=self._channels,
            big_endian=session.big_endian,
            reached=reached,
        )

    def start_device(self, session: ServerSession) -> None:
        """Start the device on the queues that were added."""
        self._service.start(DeviceSession(session.accepted, session.byteorder, self._service.queues))

    # -- from PROBE to DRIVER_OK

    def _probe(self, message: dict[str, int]) -> tuple[int, int]:
        """PROBE: settle the revision and describe the device (P5.1)."""
        revision = min(message["revision"], self._highest_revision)
        number = message["session"] if revision else 0
        if message["flags"] & ~PROBE_FLAGS:
            raise Refused(Status.BAD_VALUE, f"PROBE flags {message['flags']:#x} are not defined")
        big_endian = bool(message["flags"] & FLAG_BIG_ENDIAN)
        if revision and big_endian:
            raise Refused(Status.BAD_VALUE, "revision 1 is little-endian as virtio 1 is; big-endian rings need 0")
        if revision and not number:
            raise Refused(Status.BAD_VALUE, "session numbers of revision 1 begin with 1 (P1.4)")
        codec = HEADERS[revision]
        if message["length"] < codec.size:
            raise Refused(
                Status.BAD_LENGTH,
                f"{message['length']} bytes are mapped for the header; revision {revision} needs {codec.size}",
            )
        offered = self.offered(revision)
        session = ServerSession(
            number=number,
            revision=revision,
            big_endian=big_endian,
            header_address=message["address"],
            header_length=message["length"],
            status=StatusMachine(legacy=revision == 0),
            offered=offered,
        )
        config = self._device.config(session.byteorder)
        header = DeviceHeader(
            device_type=self._device.device_id,
            queue_count=self._queue_count(revision),
            queue_size=self._queue_size(revision),
            device_features=offered,
            config_length=len(config) if revision else min(len(config), MAX_CONFIG_R0),
            config_generation=self._device.config_generation,
        )
        session.config_length = header.config_length
        self._window.write(session.header_address, codec.pack(header))
        self.end()
        self.session = session
        self._trace("RDMA_HEADER")
        return revision, 0

    def _acknowledge(self, message: dict[str, int]) -> tuple[int, int]:
        """ACKNOWLEDGE: where the config space is to be; it is written at once (P5.2)."""
        session = self.current()
        if message["length"] < session.config_length:
            raise Refused(
                Status.BAD_LENGTH, f"{message['length']} bytes of config are mapped; expected {session.config_length}"
            )
        session.step_status(device_status.ACKNOWLEDGE)
        session.config_address = message["address"]
        return self._write_config_space()

    def _write_config_space(self) -> tuple[int, int]:
        session = self.current()
        config = self._device.config(session.byteorder)[: session.config_length]
        if config:
            self._window.write(session.config_address, config)
        self._trace("RDMA_CONFIG")
        return len(config), self._device.config_generation & 0xFFFF_FFFF

    def _config_read(self, message: dict[str, int]) -> tuple[int, int]:
        """CONFIG_READ: write the config space again (P5.7)."""
        session = self.current()
        if not session.status.status & device_status.ACKNOWLEDGE:
            raise Refused(Status.BAD_STATE, "CONFIG_READ before ACKNOWLEDGE: no config address is known")
        return self._write_config_space()

    def _config_write(self, message: dict[str, int]) -> tuple[int, int]:
        """CONFIG_WRITE: up to 4 bytes at an offset, left-aligned in the last doubleword (P5.8)."""
        session = self.current()
        offset, length = message["offset"], message["length"]
        settled = session.status.status & (device_status.FEATURES_OK | device_status.DRIVER_OK)
        if not settled and not self._device.early_config(offset, length):
            raise Refused(Status.BAD_STATE, "config must not be written before features are settled")
        if length not in (1, 2, 4) or offset + length > session.config_length:
            raise Refused(
                Status.BAD_LENGTH,
                f"config write of {length} bytes at {offset}; expected 1, 2 or 4 within {session.config_length}",
            )
        data = message["data"].to_bytes(8, "big")[:length]
        try:
            self._service.touched = True  # reset the device with the session, started or not (P5.9)
            self._device.write_config(offset, data, session.byteorder)
        except PowervioError as error:
            raise Refused(Status.BAD_VALUE, str(error)) from None
        return 0, self._device.config_generation & 0xFFFF_FFFF

    def _driver(self, message: dict[str, int]) -> tuple[int, int]:
        """DRIVER: a driver was found on the client's side (P5.3)."""
        self.current().step_status(device_status.DRIVER)
        return 0, 0

    def _fetch_features(self) -> None:
        session = self.current()
        codec = HEADERS[session.revision]
        raw = self._window.read(session.header_address + codec.driver_features_offset, codec.driver_features_size)
        self._trace("RDMA_FEATURES")
        accepted = int.from_bytes(raw, "big")
        try:
            feature.check_accepted(session.offered, accepted, self._device.device_id)
            if session.revision and not accepted & feature.ACCESS_PLATFORM:
                raise RemoteError("ACCESS_PLATFORM was not accepted, but all addresses here are I/O addresses")
        except RemoteError as error:
            raise Refused(Status.BAD_FEATURES, str(error)) from None
        session.accepted = accepted

    def _features_ok(self, message: dict[str, int]) -> tuple[int, int]:
        """FEATURES_OK: copy in and check what the driver accepted (P5.4, revision 1)."""
        session = self.current()
        session.step_status(device_status.FEATURES_OK)
        try:
            self._fetch_features()
        except Refused:
            session.status.refuse_features()
            raise
        session.status.suspend_negotiated = bool(session.accepted & feature.SUSPEND)
        return 0, 0

    def _find_vqs(self, message: dict[str, int]) -> tuple[int, int]:
        """FIND_VQS: where the queues are (P5.5). Nothing of a ring is touched yet, unless it follows a queue reset."""
        session = self.current()
        count, length = message["count"], message["length"]
        ready = device_status.FEATURES_OK if session.revision else device_status.DRIVER
        live = bool(session.status.status & (device_status.DRIVER_OK | device_status.SUSPEND))
        if not session.status.status & ready:
            raise Refused(Status.BAD_STATE, "FIND_VQS before features are settled")
        if live and not session.accepted & feature.RING_RESET:
            raise Refused(Status.BAD_STATE, "FIND_VQS of a running device without RING_RESET negotiated")
        largest = self._queue_count(session.revision)
        if not 1 <= count <= largest or length != count * QueueAddresses.SIZE:
            raise Refused(
                Status.BAD_LENGTH,
                f"a block of {length} bytes for {count} queues; expected 1 to {largest} entries of"
                f" {QueueAddresses.SIZE} bytes",
            )
        block = self._window.read(message["address"], length)
        entries = [
            QueueAddresses.unpack(block[at : at + QueueAddresses.SIZE]) for at in range(0, length, QueueAddresses.SIZE)
        ]
        if len({entry.index for entry in entries}) != count:
            raise Refused(Status.BAD_QUEUE, "a queue is named twice in one FIND_VQS")
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
                self.add_queue(session, entry)
                added.append(entry.index)
        except Exception:
            for index in added:
                self._service.reset(index)
            raise

    def _check_queue(self, session: ServerSession, entry: QueueAddresses, live: bool) -> None:
        where = f"queue {entry.index}"
        largest = self._queue_size(session.revision)
        if entry.index >= self._queue_count(session.revision):
            raise Refused(Status.BAD_QUEUE, f"{where}: the device has {self._queue_count(session.revision)}")
        if live and entry.index in self._service:
            raise Refused(Status.BAD_QUEUE, f"{where} is in use; it has to be reset before it gets new addresses")
        packed = session.accepted & feature.RING_PACKED
        if not 0 < entry.size <= largest or (entry.size & (entry.size - 1) and not packed):
            kind = "1" if packed else "a power of two"
            raise Refused(Status.BAD_QUEUE, f"{where}: size {entry.size}; expected {kind} up to {largest}")
        if session.revision == 0 and entry.size != largest:
            raise Refused(Status.BAD_QUEUE, f"{where}: size {entry.size}; revision 0 has vqs_size {largest} for all")
        alignment = 4 if packed else 2
        if entry.descriptors % 16 or entry.available % alignment or entry.used % 4:
            raise Refused(
                Status.BAD_QUEUE,
                f"{where}: areas need alignment 16, {alignment} and 4 bytes (virtio 1.4, 2.7, 2.8.10.1), got {entry}",
            )

    def _driver_ok(self, message: dict[str, int]) -> tuple[int, int]:
        """DRIVER_OK: the device lives (P5.6). In revision 0 the driver's features are copied in now."""
        session = self.current()
        if session.status.status & device_status.SUSPEND:
            raise Refused(Status.BAD_STATE, "DRIVER_OK of a suspended device; RESUME wakes it")
        if session.revision == 0 and session.status.status == device_status.ACKNOWLEDGE | device_status.DRIVER:
            self._fetch_features()
        session.step_status(device_status.DRIVER_OK)
        for entry in session.queues.values():
            self.add_queue(session, entry)
        self.start_device(session)
        return 0, 0

    def _open_channels(self, message: dict[str, int]) -> tuple[int, int]:
        """CHANNELS: exchange the cookies of the Sub-CRQs that are to carry the queues (P5.13)."""
        session = self.current()
        count, length = message["count"], message["length"]
        if not self._use_channels:
            raise Refused(Status.UNSUPPORTED, "this server uses no Sub-CRQs; kicks go over the CRQ")
        status = session.status.status
        if not status & device_status.FEATURES_OK or status & (device_status.DRIVER_OK | device_status.SUSPEND):
            raise Refused(Status.BAD_STATE, "CHANNELS belongs between FIND_VQS and DRIVER_OK")
        if self._channels.ends:
            raise Refused(Status.BAD_STATE, "CHANNELS for the second time")
        if not 1 <= count <= self._queue_count(session.revision) or length != count * ChannelEntry.SIZE:
            raise Refused(Status.BAD_LENGTH, f"a block of {length} bytes for the channels of {count} queues")
        block = self._window.read(message["address"], length)
        entries = [
            ChannelEntry.unpack(block[at : at + ChannelEntry.SIZE]) for at in range(0, length, ChannelEntry.SIZE)
        ]
        if len({entry.queue for entry in entries}) != count or any(e.queue not in session.queues for e in entries):
            raise Refused(Status.BAD_QUEUE, "CHANNELS names a queue twice, or one that FIND_VQS did not set up")
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
                raise Refused(Status.UNSUPPORTED, f"this platform has no Sub-CRQs (H_REG_SUB_CRQ: {code})")
            if code not in (ReturnCode.H_SUCCESS, ReturnCode.H_CLOSED):
                return replace(entry, status=0, server=0)
            end.partner = entry.client
        self._channels.carry(entry.queue, end, session.number, entry.generation)
        return replace(entry, status=CARRIED, server=end.cookie)

    # -- once it runs

    def _reset(self, message: dict[str, int]) -> tuple[int, int]:
        """RESET: back to where PROBE left it; the PROBE stays valid (P5.9)."""
        session = self.current()
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
        self.current().step_status(device_status.FAILED)
        return 0, 0

    def _queue_reset(self, message: dict[str, int]) -> tuple[int, int]:
        """QUEUE_RESET: the device forgets one queue; FIND_VQS may set it up again (P5.11)."""
        session = self.current()
        index = message["queue"]
        if not session.accepted & feature.RING_RESET:
            raise Refused(Status.BAD_FEATURES, "QUEUE_RESET without RING_RESET negotiated")
        if index not in self._service:
            raise Refused(Status.BAD_QUEUE, f"queue {index} is not in use")
        self._channels.queue_was_reset(index)
        del session.queues[index]
        self._service.reset(index)
        return 0, 0

    def _suspend(self, message: dict[str, int]) -> tuple[int, int]:
        """SUSPEND: finish what is in flight, then touch nothing until RESUME (P5.12)."""
        session = self.current()
        if not session.accepted & feature.SUSPEND:
            raise Refused(Status.BAD_FEATURES, "SUSPEND without the feature negotiated")
        if not session.status.running:
            raise Refused(Status.BAD_STATE, "SUSPEND of a device that is not running")
        self._service.serve()
        if not session.status.running:
            raise Refused(Status.BAD_STATE, "a ring broke while the device was being suspended")
        self._service.paused = True
        try:
            self._device.suspend()
        except Exception:
            _log.exception("adapter %s: the device failed to suspend", self._where)
            self._on_broken("the device failed to suspend")
        if not session.status.running:
            raise Refused(Status.DEVICE_ERROR, "the device broke while it was being suspended")
        if self._service.in_hand:
            self._service.on_idle = self._suspended
            raise Later
        session.step_status(device_status.SUSPEND)
        return 0, 0

    def _suspended(self) -> None:
        """The device has finished what it had in hand: now the SUSPEND that waited for it takes effect."""
        self.current().step_status(device_status.SUSPEND)
        self._reply(Message.SUSPEND, self.current().number, Status.OK)

    def give_up_suspend(self) -> None:
        """A SUSPEND that waits for the device takes no effect: serve again."""
        self._service.on_idle = None
        self._service.paused = False
        self._service.kick_all()

    def _resume(self, message: dict[str, int]) -> tuple[int, int]:
        """RESUME: serve again, starting with what was made available meanwhile (P5.12)."""
        session = self.current()
        if not session.status.status & device_status.SUSPEND:
            raise Refused(Status.BAD_STATE, "RESUME of a device that is not suspended")
        session.step_status(device_status.DRIVER_OK)
        self._service.paused = False
        self._service.kick_all()
        return 0, 0


HANDLERS: dict[int, Callable[[Configuration, dict[str, int]], tuple[int, int]]] = {
    Message.PROBE: Configuration._probe,
    Message.ACKNOWLEDGE: Configuration._acknowledge,
    Message.DRIVER: Configuration._driver,
    Message.FEATURES_OK: Configuration._features_ok,
    Message.FIND_VQS: Configuration._find_vqs,
    Message.CHANNELS: Configuration._open_channels,
    Message.DRIVER_OK: Configuration._driver_ok,
    Message.CONFIG_WRITE: Configuration._config_write,
    Message.CONFIG_READ: Configuration._config_read,
    Message.RESET: Configuration._reset,
    Message.FAILED: Configuration._failed,
    Message.QUEUE_RESET: Configuration._queue_reset,
    Message.SUSPEND: Configuration._suspend,
    Message.RESUME: Configuration._resume,
}
"""By message type; PROBE alone is handled without a session."""
