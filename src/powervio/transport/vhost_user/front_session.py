"""One connection to a vhost-user back end, as its front end sees it: the messages, and the order they are sent in.

`FrontSession` connects, negotiates, shares memory and rings and starts them. There is no event loop and no driver
here: a call sends its messages and waits for the answers, at most `REPLY_LIMIT` seconds each, so the back end has to be
in another thread or process::

    session = FrontSession(path, memory)
    offered = session.greet()
    session.accept(chosen)
    session.share_memory()
    session.set_up_queue(queue)
    session.start([queue])
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Sequence

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.area import PAGE_SIZE
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.connection import Connection
from powervio.transport.vhost_user.driver_memory import GUEST_BASE, IOVA_BASE, DriverMemory, VhostDriverQueue
from powervio.transport.vhost_user.protocol import BACK_END_MESSAGES, FRONT_END_MESSAGES, Message
from powervio.transport.vhost_user.protocol import FrontEnd as Request
from powervio.virtio import features as feature
from powervio.virtio import status as device_status
from powervio.virtio.packed_driver import PackedDriverRing

REPLY_LIMIT = 10.0
"""Seconds for a back end to answer."""
PROTOCOL_FEATURES = (
    wire.P_MQ | wire.P_LOG_SHMFD | wire.P_REPLY_ACK | wire.P_BACKEND_REQ | wire.P_CONFIG | wire.P_INFLIGHT_SHMFD
    | wire.P_RESET_DEVICE | wire.P_CONFIGURE_MEM_SLOTS | wire.P_STATUS | wire.P_DEVICE_STATE
)  # fmt: skip
"""What is accepted by default."""


class FrontSession:
    """See the module's text. What fails raises `RemoteError`, and `LocalError` when nobody listens."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        memory: DriverMemory,
        *,
        protocol_features: int = PROTOCOL_FEATURES,
        config_size: int = 60,
        config_changed: Callable[[], None] = lambda: None,
    ) -> None:
        """Connect. `protocol_features` are accepted where they are offered.

        `config_size` is how much of the config space is asked for: some back ends refuse more than they have.
        `config_changed` is called while messages of the back end are handled: it sends none itself.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(os.fspath(path))
        except OSError as error:
            sock.close()
            raise LocalError(f"no back end at {os.fspath(path)}: {error.strerror}") from error
        self.memory = memory
        self.connection = Connection(sock, FRONT_END_MESSAGES)
        self.channel: Connection | None = None
        """For requests of the back end, where it has any."""
        self.features = 0
        """Negotiated."""
        self.protocol_features = 0
        self._wanted_protocol = protocol_features
        self._config_size = config_size
        self._config_changed = config_changed

    def close(self) -> None:
        """Disconnect; harmless the second time."""
        self.connection.close()
        if self.channel is not None:
            self.channel.close()

    # -- negotiation

    def greet(self) -> int:
        """Settle the protocol features and own the device; returns the features that are offered."""
        offered = self._get(Request.GET_FEATURES)
        if offered & wire.F_PROTOCOL_FEATURES:
            protocol = self._get(Request.GET_PROTOCOL_FEATURES) & self._wanted_protocol
            self._send(Request.SET_PROTOCOL_FEATURES, wire.U64(protocol))
            self.protocol_features = protocol
        self._send(Request.SET_OWNER)
        if self.protocol_features & wire.P_BACKEND_REQ:
            self._open_channel()
        return offered

    def accept(self, features: int, *, logging: bool = False) -> None:
        """Choose among the features offered. Memory gets its addresses by them."""
        self.features = features
        self.memory.device_base = IOVA_BASE if features & feature.ACCESS_PLATFORM else GUEST_BASE
        self.send_features(logging=logging)
        if self.protocol_features & wire.P_STATUS:
            self._set_status(0)
            self._set_status(device_status.ACKNOWLEDGE | device_status.DRIVER)
            status = self._set_status(device_status.ACKNOWLEDGE | device_status.DRIVER | device_status.FEATURES_OK)
            if not status & device_status.FEATURES_OK:
                raise RemoteError("the device refused its own features", Verdict.CLOSE)

    def send_features(self, *, logging: bool) -> None:
        """Say the features again, with logging of what the device writes or without."""
        bits = self.features | (wire.F_LOG_ALL if logging else 0)
        self._send(Request.SET_FEATURES, wire.U64(bits | (wire.F_PROTOCOL_FEATURES if self.protocol_features else 0)))

    def _set_status(self, status: int) -> int:
        self._send(Request.SET_STATUS, wire.U64(status))
        return self._get(Request.GET_STATUS)

    def most_queues(self) -> int | None:
        """How many queues the back end has, if it says so."""
        return self._get(Request.GET_QUEUE_NUM) if self.protocol_features & wire.P_MQ else None

    def share_memory(self) -> None:
        """Give the back end the driver's memory."""
        region, fd = self.memory.region, self.memory.area.fd
        if self.protocol_features & wire.P_CONFIGURE_MEM_SLOTS:
            single = wire.SingleRegion(0, region.guest, region.size, region.user, region.offset)
            self._send(Request.ADD_MEM_REG, single, [fd])
        else:
            self._send(Request.SET_MEM_TABLE, wire.MemoryTable((region,)), [fd])

    def new_inflight(self, queues: int, size: int) -> tuple[wire.Inflight, int] | None:
        """Memory for a record of requests in flight, and its descriptor, which is the caller's; None: there is none."""
        reply = self._request(Request.GET_INFLIGHT_FD, wire.Inflight(0, 0, queues, size))
        try:
            area = reply.payload
            assert isinstance(area, wire.Inflight)
            return (area, reply.take_fd()) if area.size and reply.fds else None
        finally:
            reply.close()

    def use_inflight(self, area: wire.Inflight, fd: int) -> None:
        """Have the back end go by this record, and keep it."""
        self._send(Request.SET_INFLIGHT_FD, area, [fd])

    # -- rings

    def set_up_queue(self, queue: VhostDriverQueue, *, logging: bool = False) -> None:
        """Tell all about a queue, at the end that it is kicked."""
        index = queue.index
        state = wire.VringState
        self._send(Request.SET_VRING_NUM, state(index, queue.size))
        self._send(Request.SET_VRING_BASE, state(index, self._base(queue)))
        self.send_address(queue, logging=logging)
        for request, fd in (
            (Request.SET_VRING_CALL, queue.call_fd),
            (Request.SET_VRING_ERR, queue.error_fd),
            (Request.SET_VRING_KICK, queue.kick_fd),
        ):
            self._send(request, wire.U64(index), [fd])

    def _base(self, queue: VhostDriverQueue) -> int:
        """Where the back end begins: a split ring where its used ring ends, for what is not there is on record.

        Of a packed ring only the record says where a back end that died was: this is how far the driver has seen it.
        """
        if isinstance(queue.ring, PackedDriverRing):
            return queue.ring.last_used << 16 | queue.ring.last_used
        return int.from_bytes(queue.memory.used[2:4], "little")

    def send_address(self, queue: VhostDriverQueue, *, logging: bool) -> None:
        """Say where a ring is, and whether writes to it are logged."""
        flags = wire.VRING_F_LOG if logging else 0
        self._send(Request.SET_VRING_ADDR, queue.memory.address(queue.index, flags, self.features))

    def start(self, queues: Sequence[VhostDriverQueue]) -> None:
        """Enable the rings. Each starts with its first kick."""
        if self.protocol_features:
            for queue in queues:
                self._send(Request.SET_VRING_ENABLE, wire.VringState(queue.index, 1))
        if self.protocol_features & wire.P_STATUS:
            self._set_status(
                device_status.ACKNOWLEDGE | device_status.DRIVER | device_status.FEATURES_OK | device_status.DRIVER_OK
            )

    def stop(self, queues: Sequence[VhostDriverQueue]) -> list[int]:
        """Disable and stop the rings; where each stands."""
        if self.protocol_features:
            for queue in queues:
                self._send(Request.SET_VRING_ENABLE, wire.VringState(queue.index, 0))
        bases = []
        for queue in queues:
            reply = self._request(Request.GET_VRING_BASE, wire.VringState(queue.index, 0)).payload
            assert isinstance(reply, wire.VringState)
            bases.append(reply.value)
        return bases

    # -- config and dirty log

    def read_config(self) -> bytes:
        """The config space, as far as `config_size`; `RemoteError` when the back end has none."""
        wanted = wire.ConfigSpace(0, self._config_size, 0, bytes(self._config_size))
        reply = self._request(Request.GET_CONFIG, wanted).payload
        assert isinstance(reply, wire.ConfigSpace)
        if not reply.data:
            raise RemoteError("the back end has no config space", Verdict.CLOSE)
        return reply.data[: self._config_size]

    def write_config(self, offset: int, data: bytes) -> None:
        """Write a field of the config space; `RemoteError` when that is refused."""
        self._send(Request.SET_CONFIG, wire.ConfigSpace(offset, len(data), 0, data))

    def set_log(self, size: int, fd: int) -> None:
        """Give the back end memory of `size` bytes for the dirty log."""
        self._request(Request.SET_LOG_BASE, wire.LogArea(size, 0), [fd])

    # -- messages

    def _get(self, request: Request) -> int:
        reply = self._request(request).payload
        assert isinstance(reply, wire.U64)
        return reply.value

    def _send(self, request: Request, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> None:
        """Send what has no answer of its own; with REPLY_ACK, wait until it is done."""
        ack = bool(self.protocol_features & wire.P_REPLY_ACK)
        self.connection.send(Message(request, payload, list(fds), need_reply=ack))
        if ack:
            reply = self._await(request)
            reply.close()
            if reply.payload != wire.U64(0):
                raise RemoteError(f"the back end refused {request.name}")

    def _request(self, request: Request, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> Message:
        self.connection.send(Message(request, payload, list(fds)))
        return self._await(request)

    def _await(self, request: Request) -> Message:
        """The reply; what the back end asks meanwhile is answered."""
        poller = select.poll()
        poller.register(self.connection.fileno(), select.POLLIN)
        if self.channel is not None:
            poller.register(self.channel.fileno(), select.POLLIN)
        deadline = time.monotonic() + REPLY_LIMIT
        while True:
            reply = self.connection.receive()
            if reply is not None:
                if reply.request == request and reply.reply:
                    return reply
                reply.close()
                raise RemoteError(f"an answer to {reply.request}; expected one to {request.name}", Verdict.CLOSE)
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise RemoteError(f"no answer to {request.name} within {REPLY_LIMIT} s", Verdict.CLOSE)
            self.serve_channel()

    def expect_nothing(self) -> None:
        """The connection can be read although nothing was asked: raise what that means."""
        message = self.connection.receive()
        if message is not None:
            message.close()
            raise RemoteError("a message that nobody asked for", Verdict.CLOSE)

    # -- what the back end asks

    def _open_channel(self) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Connection(ours, BACK_END_MESSAGES)
        with theirs:
            self._send(Request.SET_BACKEND_REQ_FD, None, [theirs.fileno()])

    def serve_channel(self) -> None:
        """Answer what the back end asked."""
        channel = self.channel
        while channel is not None and not channel.closed:
            message = channel.receive()
            if message is None:
                return
            part = message.payload
            message.close()
            if message.request == wire.BackEndRequest.CONFIG_CHANGE_MSG:
                self._config_changed()
            elif isinstance(part, wire.IotlbMessage) and part.kind == wire.Iotlb.MISS:
                self._translate(part)

    def _translate(self, miss: wire.IotlbMessage) -> None:
        page = miss.iova - miss.iova % PAGE_SIZE
        user = self.memory.translate(page)
        if user is not None:
            update = wire.IotlbMessage(page, PAGE_SIZE, user, 3, wire.Iotlb.UPDATE)
            self.connection.send(Message(Request.IOTLB_MSG, update))
