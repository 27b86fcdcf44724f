"""The smallest device and driver there are: what the driver sends comes back. For tests of transports.

The device id is one that virtio does not use. Its config space is 8 bytes: a counter that the device may change
(u32), and a u32 that the driver may write.
"""

from __future__ import annotations

from powervio.errors import RemoteError
from powervio.virtio.device import Device
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport, Request

ECHO_DEVICE_ID = 63
ECHO_FEATURE = 1 << 3
"""A device-type feature bit without a meaning."""
MESSAGE_LIMIT = 1024
"""Bytes of one message."""


class EchoDevice(Device):
    """Copies the readable part of each request to the writable one; with `hold` set it waits for `release`."""

    device_id = ECHO_DEVICE_ID

    def __init__(self, *, queue_count: int = 1, queue_size: int = 128) -> None:
        super().__init__()
        self.queue_count = queue_count
        self.queue_size = queue_size
        self.counter = 7
        self.written = 0
        self.hold = False
        self.held: list[Request] = []
        self.failures: list[RemoteError] = []

    @property
    def features(self) -> int:
        """See `Device`."""
        return ECHO_FEATURE

    def config(self, byteorder: ByteOrder) -> bytes:
        """See `Device`."""
        return self.counter.to_bytes(4, byteorder) + self.written.to_bytes(4, byteorder)

    def write_config(self, offset: int, data: bytes, byteorder: ByteOrder) -> None:
        """See `Device`: the second word is writable."""
        if offset != 4 or len(data) != 4:
            raise RemoteError(f"echo config: {len(data)} bytes at {offset} are not writable; expected 4 at 4")
        self.written = int.from_bytes(data, byteorder)

    def reset(self) -> None:
        """See `Device`."""
        super().reset()
        self.held.clear()

    def queue_reset(self, index: int) -> None:
        """See `Device`."""
        self.held = [request for request in self.held if request.queue_index != index]

    def handle(self, request: Request) -> None:
        """See `Device`."""
        if self.hold:
            self.held.append(request)
            return
        self._echo(request)

    def release(self, queue_index: int = 0) -> None:
        """Serve what was held back."""
        held, self.held = self.held, []
        for request in held:
            self._echo(request)
        if self.session is not None:
            self.session.queues[queue_index].flush()

    def _echo(self, request: Request) -> None:
        self.requests += 1
        try:
            data = request.readable.read(0, min(request.readable.length, request.writable.length))
            request.writable.write(0, data)
        except RemoteError as error:
            self.failures.append(error)
            request.complete(0)
        else:
            request.complete(len(data))


class EchoDriver(Driver):
    """Sends messages and keeps the answers; unfinished ones are sent again in the next session."""

    device_id = ECHO_DEVICE_ID

    def __init__(self, *, queue_count: int = 1) -> None:
        self.transport: DriverTransport | None = None
        self.answers: list[tuple[bytes, bytes]] = []
        """Message and answer, in the order of completion."""
        self.starts = 0
        self.stops = 0
        self.resets = 0
        """Queues that came back from a reset."""
        self.config_changes = 0
        self._queue_count = queue_count
        self._buffers: list[tuple[Buffer, Buffer]] = []
        self._pending: list[tuple[bytes, int]] = []
        self._in_flight: dict[int, tuple[bytes, int, tuple[Buffer, Buffer]]] = {}
        self._tokens = 0

    def select_features(self, offered: int) -> int:
        """See `Driver`."""
        return offered & ECHO_FEATURE

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """See `Driver`."""
        return self._queue_count

    def start(self, transport: DriverTransport) -> None:
        """See `Driver`."""
        self.starts += 1
        self.transport = transport
        self._place()

    def stop(self) -> None:
        """See `Driver`."""
        self.stops += 1
        self.transport = None
        for message, queue, buffers in self._in_flight.values():
            self._pending.append((message, queue))
            self._buffers.append(buffers)
        self._in_flight.clear()

    def reset_queue(self, queue: int = 0) -> None:
        """Have a queue reset; what was in it is sent again."""
        assert self.transport is not None
        self.transport.reset_queue(self.transport.queues[queue], self._came_back)

    def _came_back(self, tokens: list[object]) -> None:
        self.resets += 1
        for token in tokens:
            assert isinstance(token, int)
            message, queue, buffers = self._in_flight.pop(token)
            self._pending.append((message, queue))
            self._buffers.append(buffers)
        self._place()

    def send(self, *messages: bytes, queue: int = 0) -> None:
        """Queue messages and kick once."""
        self._pending += [(message, queue) for message in messages]
        self._place()

    @property
    def unfinished(self) -> int:
        """Messages without an answer."""
        return len(self._pending) + len(self._in_flight)

    def _place(self) -> None:
        if self.transport is None:
            return
        touched: set[int] = set()
        while self._pending:
            message, index = self._pending[0]
            if not self._buffers:
                self._buffers.append((self.transport.allocate(MESSAGE_LIMIT), self.transport.allocate(MESSAGE_LIMIT)))
            out, back = self._buffers[-1]
            out.view[: len(message)] = message
            queue = self.transport.queues[index]
            if not queue.add([(out, 0, len(message))], [(back, 0, len(message))], self._tokens):
                break
            self._in_flight[self._tokens] = (message, index, self._buffers.pop())
            self._tokens += 1
            self._pending.pop(0)
            touched.add(index)
        for index in touched:
            self.transport.queues[index].kick()

    def completed(self, queue: DriverQueue) -> None:
        """See `Driver`."""
        while (result := queue.reap()) is not None:
            token, written = result
            assert isinstance(token, int)
            message, _, buffers = self._in_flight.pop(token)
            self.answers.append((message, bytes(buffers[1].view[:written])))
            self._buffers.append(buffers)
        self._place()

    def config_changed(self) -> None:
        """See `Driver`."""
        self.config_changes += 1
