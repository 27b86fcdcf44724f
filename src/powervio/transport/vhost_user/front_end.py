"""The driver's side of vhost-user: what a hypervisor does for its guest, done for a `Driver` of ours.

`FrontEnd` connects to a back end, negotiates, shares memory and rings, and runs one driver in an asyncio loop::

    front_end = FrontEnd(path, BlockDriver())
    await front_end.start()

When the back end goes away it connects again. If the back end keeps a record of requests in flight (INFLIGHT_SHMFD),
the rings stay as they are and the driver notices nothing but the pause; if not, the driver is stopped and started, and
submits again what had not completed.

Control messages are exchanged in the loop's thread, and it waits for replies, at most `REPLY_LIMIT` seconds each: the
back end has to be in another thread or process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import select
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

from powervio.errors import LocalError, PowervioError, RemoteError, Verdict
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.connection import Connection
from powervio.transport.vhost_user.driver_memory import GUEST_BASE, IOVA_BASE, DriverMemory, VhostDriverQueue
from powervio.transport.vhost_user.protocol import BACK_END_MESSAGES, FRONT_END_MESSAGES, Message
from powervio.transport.vhost_user.protocol import FrontEnd as Request
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport

_log = logging.getLogger(__name__)

REPLY_LIMIT = 10.0
"""Seconds for a back end to answer."""
_PAUSES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Seconds before each try to connect again; the last one for all that follow."""
RING_FEATURES = feature.VERSION_1 | feature.INDIRECT_DESC | feature.EVENT_IDX
"""What is accepted by default."""
PROTOCOL_FEATURES = (
    wire.P_MQ | wire.P_LOG_SHMFD | wire.P_REPLY_ACK | wire.P_BACKEND_REQ | wire.P_CONFIG | wire.P_INFLIGHT_SHMFD
    | wire.P_RESET_DEVICE | wire.P_CONFIGURE_MEM_SLOTS | wire.P_STATUS | wire.P_DEVICE_STATE
)  # fmt: skip


class _Transport(DriverTransport):
    """One session as the driver sees it."""

    def __init__(self, front_end: FrontEnd, features: int, queues: Sequence[DriverQueue]) -> None:
        self.features = features
        self.byteorder: ByteOrder = "little"
        self.queues = queues
        self._front_end = front_end

    def config(self) -> bytes:
        return self._front_end.read_config()

    def write_config(self, offset: int, data: bytes) -> None:
        self._front_end.write_config(offset, data)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        return self._front_end.memory.allocate(length)

    def release(self, buffer: Buffer) -> None:
        self._front_end.memory.release(buffer)


class FrontEnd:
    """One driver, one back end."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        driver: Driver,
        *,
        ring_features: int = RING_FEATURES,
        protocol_features: int = PROTOCOL_FEATURES,
        queue_size: int = 128,
        memory: int = 256 << 20,
        config_size: int = 60,
        reconnect: bool = True,
    ) -> None:
        """`ring_features` and `protocol_features` are accepted where they are offered. `memory` is bytes.

        `config_size` is how much of the config space is asked for: some back ends refuse more than they have.
        """
        self.path = os.fspath(path)
        self.driver = driver
        self.memory = DriverMemory(memory)
        self.features = 0
        """Negotiated."""
        self.protocol_features = 0
        self.queues: list[VhostDriverQueue] = []
        self.sessions = 0
        """Connections that came as far as running rings."""
        self.failure = ""
        """Why the last connection ended or could not be made."""
        self.broken: set[int] = set()
        """Queues of which the back end said that it cannot serve them."""
        self._ring_features = ring_features
        self._wanted_protocol = protocol_features
        self._queue_size = queue_size
        self._config_size = config_size
        self._reconnect = reconnect
        self._connection: Connection | None = None
        self._channel: Connection | None = None
        self._inflight: tuple[wire.Inflight, int] | None = None
        self._driving = False
        self._log_area: MappedArea | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._tries = 0
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- life

    async def start(self) -> None:
        """Connect and begin. Raises `PowervioError` when that cannot be done now; it is not tried again then."""
        self._loop = asyncio.get_running_loop()
        try:
            self._connect()
        except PowervioError:
            self._disconnect()
            raise

    async def close(self) -> None:
        """Stop the rings, then the driver, and give everything back."""
        if self._closed:
            return
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
        if self._connection is not None:
            with suppress(PowervioError):
                self.stop_rings()
        self._disconnect()
        self._end_driving()
        self._drop_inflight()
        self.driver.release(self.memory.release)
        if self._log_area is not None:
            self._log_area.close()
        self.memory.close()

    @property
    def connected(self) -> bool:
        """Whether the rings run."""
        return self._connection is not None

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(self.path)
        except OSError as error:
            sock.close()
            raise LocalError(f"no back end at {self.path}: {error.strerror}") from error
        self._connection = Connection(sock, FRONT_END_MESSAGES)
        count, new = self._negotiate()
        self._share_memory()
        if new:
            self._make_queues(count)
        self._set_up_inflight(len(self.queues), new)
        for queue in self.queues:
            self._set_up_queue(queue)
        self._go()
        self.sessions += 1
        self._tries = 0
        self._watch()
        if new:
            self.driver.start(_Transport(self, self.features, self.queues))
        for queue in self.queues:
            queue.ring_the_bell()  # starts the ring; what is in it already, of before, is seen too
            self._completed(queue)

    # -- negotiation

    def _negotiate(self) -> tuple[int, bool]:
        """How many queues there are to be, and whether the driver begins anew."""
        offered = self._get(Request.GET_FEATURES)
        self.protocol_features = 0
        if offered & wire.F_PROTOCOL_FEATURES:
            protocol = self._get(Request.GET_PROTOCOL_FEATURES) & self._wanted_protocol
            self._send(Request.SET_PROTOCOL_FEATURES, wire.U64(protocol))
            self.protocol_features = protocol
        self._send(Request.SET_OWNER)
        if self.protocol_features & wire.P_BACKEND_REQ:
            self._open_channel()
        wanted = self.driver.select_features(offered) | self._ring_features
        features = feature.choose(offered, wanted, self.driver.device_id)
        recorded = self.protocol_features & wire.P_INFLIGHT_SHMFD and self._inflight is not None
        new = not self._driving or not recorded or features != self.features
        if self._driving and new:
            self._end_driving()
        self.features = features
        self.memory.device_base = IOVA_BASE if features & feature.ACCESS_PLATFORM else GUEST_BASE
        self._send_features(logging=self._log_area is not None)
        if self.protocol_features & wire.P_STATUS:
            self._set_status(0)
            self._set_status(device_status.ACKNOWLEDGE | device_status.DRIVER)
            status = self._set_status(device_status.ACKNOWLEDGE | device_status.DRIVER | device_status.FEATURES_OK)
            if not status & device_status.FEATURES_OK:
                raise RemoteError("the device refused its own features", Verdict.CLOSE)
        config = self.read_config() if self.protocol_features & wire.P_CONFIG else b""
        count = self.driver.queue_count(features, config, "little")
        most = self._get(Request.GET_QUEUE_NUM) if self.protocol_features & wire.P_MQ else max(count, 1)
        return min(count, most), new

    def _send_features(self, *, logging: bool) -> None:
        bits = self.features | (wire.F_LOG_ALL if logging else 0)
        self._send(Request.SET_FEATURES, wire.U64(bits | (wire.F_PROTOCOL_FEATURES if self.protocol_features else 0)))

    def _set_status(self, status: int) -> int:
        self._send(Request.SET_STATUS, wire.U64(status))
        return self._get(Request.GET_STATUS)

    def _share_memory(self) -> None:
        region, fd = self.memory.region, self.memory.area.fd
        if self.protocol_features & wire.P_CONFIGURE_MEM_SLOTS:
            single = wire.SingleRegion(0, region.guest, region.size, region.user, region.offset)
            self._send(Request.ADD_MEM_REG, single, [fd])
        else:
            self._send(Request.SET_MEM_TABLE, wire.MemoryTable((region,)), [fd])

    def _make_queues(self, count: int) -> None:
        self.queues = [VhostDriverQueue(index, self._queue_size, self.memory, self.features) for index in range(count)]
        self.broken.clear()
        self._driving = True

    def _set_up_inflight(self, count: int, new: bool) -> None:
        if not self.protocol_features & wire.P_INFLIGHT_SHMFD:
            self._drop_inflight()
            return
        if new or self._inflight is None:
            self._drop_inflight()
            reply = self._request(Request.GET_INFLIGHT_FD, wire.Inflight(0, 0, count, self._queue_size))
            area = reply.payload
            assert isinstance(area, wire.Inflight)
            if not area.size or not reply.fds:
                reply.close()
                return
            self._inflight = (area, reply.take_fd())
            reply.close()
        area, fd = self._inflight
        self._send(Request.SET_INFLIGHT_FD, area, [fd])

    def _drop_inflight(self) -> None:
        if self._inflight is not None:
            os.close(self._inflight[1])
            self._inflight = None

    def _set_up_queue(self, queue: VhostDriverQueue) -> None:
        index = queue.index
        state = wire.VringState
        self._send(Request.SET_VRING_NUM, state(index, queue.size))
        self._send(Request.SET_VRING_BASE, state(index, self._base(queue)))
        self._send_address(queue)
        for request, fd in (
            (Request.SET_VRING_CALL, queue.call_fd),
            (Request.SET_VRING_ERR, queue.error_fd),
            (Request.SET_VRING_KICK, queue.kick_fd),
        ):
            self._send(request, wire.U64(index), [fd])

    def _base(self, queue: VhostDriverQueue) -> int:
        """Where the back end begins: a split ring where its used ring ends, for what is not there is on record."""
        if self.features & feature.RING_PACKED:
            return 0x8000_8000
        return int.from_bytes(queue.memory.used[2:4], "little")

    def _send_address(self, queue: VhostDriverQueue) -> None:
        flags = wire.VRING_F_LOG if self._log_area is not None else 0
        self._send(Request.SET_VRING_ADDR, queue.memory.address(queue.index, flags, self.features))

    def _go(self) -> None:
        if self.protocol_features:
            for queue in self.queues:
                self._send(Request.SET_VRING_ENABLE, wire.VringState(queue.index, 1))
        if self.protocol_features & wire.P_STATUS:
            self._set_status(
                device_status.ACKNOWLEDGE | device_status.DRIVER | device_status.FEATURES_OK | device_status.DRIVER_OK
            )

    def stop_rings(self) -> list[int]:
        """Disable and stop all rings; where each stands. `start` of another front end goes on there."""
        for queue in self.queues:
            if self.protocol_features:
                self._send(Request.SET_VRING_ENABLE, wire.VringState(queue.index, 0))
        bases = []
        for queue in self.queues:
            reply = self._request(Request.GET_VRING_BASE, wire.VringState(queue.index, 0)).payload
            assert isinstance(reply, wire.VringState)
            bases.append(reply.value)
        return bases

    # -- config

    def read_config(self) -> bytes:
        """The config space, as far as `config_size`. Raises `RemoteError` when the back end has none."""
        wanted = wire.ConfigSpace(0, self._config_size, 0, bytes(self._config_size))
        reply = self._request(Request.GET_CONFIG, wanted).payload
        assert isinstance(reply, wire.ConfigSpace)
        if not reply.data:
            raise RemoteError("the back end has no config space", Verdict.CLOSE)
        return reply.data[: self._config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the config space. Raises `RemoteError` when that is refused."""
        self._send(Request.SET_CONFIG, wire.ConfigSpace(offset, len(data), 0, data))

    # -- dirty log

    def start_log(self) -> memoryview:
        """Have everything that the device writes marked, as at a migration; the log, a bit for each 4 KiB."""
        size = (GUEST_BASE + self.memory.area.size) // PAGE_SIZE // 8
        self._log_area = MappedArea.create("log", size + -size % PAGE_SIZE)
        area = wire.LogArea(self._log_area.size, 0)
        self._request(Request.SET_LOG_BASE, area, [self._log_area.fd])
        self._send_features(logging=True)
        for queue in self.queues:
            self._send_address(queue)
        return self._log_area.view

    # -- messages

    def _get(self, request: Request) -> int:
        reply = self._request(request).payload
        assert isinstance(reply, wire.U64)
        return reply.value

    def _send(self, request: Request, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> None:
        """Send what has no answer of its own; with REPLY_ACK, wait until it is done. Raises `RemoteError`."""
        connection = self._need()
        ack = bool(self.protocol_features & wire.P_REPLY_ACK)
        connection.send(Message(request, payload, list(fds), need_reply=ack))
        if ack:
            reply = self._await(request)
            reply.close()
            if reply.payload != wire.U64(0):
                raise RemoteError(f"the back end refused {request.name}")

    def _request(self, request: Request, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> Message:
        self._need().send(Message(request, payload, list(fds)))
        return self._await(request)

    def _need(self) -> Connection:
        if self._connection is None:
            raise RemoteError("there is no connection to a back end", Verdict.CLOSE)
        return self._connection

    def _await(self, request: Request) -> Message:
        """The reply; what the back end asks meanwhile is answered."""
        connection = self._need()
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        if self._channel is not None:
            poller.register(self._channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + REPLY_LIMIT
        while True:
            reply = connection.receive()
            if reply is not None:
                if reply.request == request and reply.reply:
                    return reply
                reply.close()
                raise RemoteError(f"an answer to {reply.request}; expected one to {request.name}", Verdict.CLOSE)
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise RemoteError(f"no answer to {request.name} within {REPLY_LIMIT} s", Verdict.CLOSE)
            self._serve_channel()

    # -- what the back end asks

    def _open_channel(self) -> None:
        ours, theirs = socket.socketpair()
        self._channel = Connection(ours, BACK_END_MESSAGES)
        with theirs:
            self._send(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def _serve_channel(self) -> None:
        channel = self._channel
        while channel is not None and not channel.closed:
            message = channel.receive()
            if message is None:
                return
            part = message.payload
            message.close()
            if message.request == wire.BackEndRequest.CONFIG_CHANGE_MSG:
                assert self._loop is not None
                self._loop.call_soon(self._config_changed)
            elif isinstance(part, wire.IotlbMessage) and part.kind == wire.Iotlb.MISS:
                self._translate(part)

    def _config_changed(self) -> None:
        if self.connected and self._driving:
            with self._losing():
                self.driver.config_changed()

    def _translate(self, miss: wire.IotlbMessage) -> None:
        page = miss.iova - miss.iova % PAGE_SIZE
        user = self.memory.translate(page)
        if user is not None:
            update = wire.IotlbMessage(page, PAGE_SIZE, user, 3, wire.Iotlb.UPDATE)
            self._need().send(Message(Request.IOTLB_MSG, update))

    # -- events

    def _watch(self) -> None:
        loop, connection = self._loop, self._connection
        assert loop is not None
        assert connection is not None
        loop.add_reader(connection.fileno(), self._connection_readable)
        if self._channel is not None:
            loop.add_reader(self._channel.fileno(), self._channel_readable)
        for queue in self.queues:
            loop.add_reader(queue.call_fd, self._called, queue)
            loop.add_reader(queue.error_fd, self._queue_failed, queue)

    def _losing(self) -> _Losing:
        return _Losing(self)

    def _connection_readable(self) -> None:
        with self._losing():
            message = self._need().receive()
            if message is not None:
                message.close()
                raise RemoteError("a message that nobody asked for", Verdict.CLOSE)

    def _channel_readable(self) -> None:
        with self._losing():
            self._serve_channel()

    def _called(self, queue: VhostDriverQueue) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(queue.call_fd)
        self._completed(queue)

    def _completed(self, queue: VhostDriverQueue) -> None:
        with self._losing():
            self.driver.completed(queue)
            while not queue.ending and queue.ring.enable_interrupts():
                self.driver.completed(queue)

    def _queue_failed(self, queue: VhostDriverQueue) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(queue.error_fd)
        self.broken.add(queue.index)

    def lost(self, why: str) -> None:
        """The back end is gone, or did what it must not: leave it, and connect again."""
        if self._closed or self._connection is None:
            return
        self.failure = why
        _log.info("back end %s: %s", self.path, why)
        self._disconnect()
        if self._inflight is None:
            self._end_driving()
        if self._reconnect:
            self._try_later()
        else:
            self._end_driving()

    def _try_later(self) -> None:
        assert self._loop is not None
        pause = _PAUSES[min(self._tries, len(_PAUSES) - 1)]
        self._tries += 1
        self._retry = self._loop.call_later(pause, self._try)

    def _try(self) -> None:
        self._retry = None
        try:
            self._connect()
        except PowervioError as error:
            self.failure = str(error)
            self._disconnect()
            self._try_later()

    def _disconnect(self) -> None:
        loop = self._loop
        for connection in (self._connection, self._channel):
            if connection is not None:
                if loop is not None:
                    loop.remove_reader(connection.fileno())
                connection.close()
        self._connection = self._channel = None
        if loop is not None:
            for queue in self.queues:
                loop.remove_reader(queue.call_fd)
                loop.remove_reader(queue.error_fd)

    def _end_driving(self) -> None:
        """The driver's session is over; what it had in flight is its own again."""
        if not self._driving:
            return
        self._driving = False
        for queue in self.queues:
            queue.ending = True
        self.driver.stop()
        for queue in self.queues:
            queue.release()
        self.queues = []


class _Losing:
    """Around what may find that the back end is gone."""

    def __init__(self, front_end: FrontEnd) -> None:
        self._front_end = front_end

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, at: object) -> bool:
        if isinstance(error, RemoteError):
            self._front_end.lost(str(error))
            return True
        return False
