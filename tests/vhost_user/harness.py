"""A back end in a thread of its own, for front ends of the tests; and a raw peer that sends what it likes."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from powervio.errors import PowervioError
from powervio.memory.area import MappedArea
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.connection import Connection
from powervio.transport.vhost_user.loop import Loop
from powervio.transport.vhost_user.protocol import FRONT_END_MESSAGES, FrontEnd, Message
from powervio.transport.vhost_user.server import Server
from powervio.virtio.device import Device, DeviceSession

LIMIT = 30.0


class Serving:
    """A server in its thread."""

    def __init__(self, path: Path, device: Device, options: BackEndOptions | None = None) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
        listener.listen()
        self.path = path
        self.device = device
        self.loop = Loop()
        self.server = Server(device, self.loop, listener, options)
        self._thread = threading.Thread(target=self.loop.run, daemon=True)
        self._thread.start()

    def call(self, function: Callable[[], object]) -> object:
        """Call in the server's thread, and wait for the result."""
        done = threading.Event()
        box: list[object] = []

        def work() -> None:
            try:
                box.append(function())
            finally:
                done.set()

        self.loop.call_soon_threadsafe(work)
        assert done.wait(LIMIT)
        return box[0]

    def close(self) -> None:
        self.call(self.server.close)
        self.loop.stop()
        self._thread.join(LIMIT)
        assert not self._thread.is_alive()
        self.loop.close()
        self.path.unlink()


@contextmanager
def serving(folder: Path, device: Device, options: BackEndOptions | None = None) -> Iterator[Serving]:
    made = Serving(folder / "vhost.sock", device, options)
    try:
        yield made
    finally:
        made.close()


def recorded_sessions(device: Device) -> list[int]:
    """The features of each session that the device will have."""
    sessions: list[int] = []
    start = device.start

    def remember(session: DeviceSession) -> None:
        sessions.append(session.features)
        start(session)

    device.start = remember  # type: ignore[method-assign]
    return sessions


async def until(condition: Callable[[], object], limit: float = LIMIT) -> None:
    """Let the loop run until something holds."""
    async with asyncio.timeout(limit):
        while not condition():
            await asyncio.sleep(0.002)


class RawFrontEnd:
    """Sends messages one by one, and waits for the answers it asks for."""

    def __init__(self, path: Path, protocol: int | None = None) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(path))
        self.connection = Connection(sock, FRONT_END_MESSAGES)
        self.protocol = 0
        if protocol is not None:
            assert self.get(FrontEnd.GET_FEATURES) & wire.F_PROTOCOL_FEATURES
            assert self.get(FrontEnd.GET_PROTOCOL_FEATURES) & protocol == protocol
            self.send(FrontEnd.SET_PROTOCOL_FEATURES, wire.U64(protocol))
            self.protocol = protocol

    def send(
        self, request: FrontEnd, payload: wire.Payload | None = None, fds: Sequence[int] = (), *, ack: bool = False
    ) -> None:
        self.connection.send(Message(request, payload, list(fds), need_reply=ack))

    def receive(self) -> Message:
        while (message := self.connection.receive()) is None:
            assert self.connection.wait(LIMIT), "no answer"
        return message

    def ask(self, request: FrontEnd, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> wire.Payload:
        self.send(request, payload, fds)
        reply = self.receive()
        assert reply.reply
        assert reply.request == request
        assert reply.payload is not None
        reply.close()
        return reply.payload

    def get(self, request: FrontEnd) -> int:
        answer = self.ask(request)
        assert isinstance(answer, wire.U64)
        return answer.value

    def done(self, request: FrontEnd, payload: wire.Payload | None = None, fds: Sequence[int] = ()) -> bool:
        """Whether the back end says that it did it (REPLY_ACK)."""
        self.send(request, payload, fds, ack=True)
        reply = self.receive()
        assert reply.request == request
        return reply.payload == wire.U64(0)

    def is_disconnected(self) -> bool:
        try:
            while self.connection.receive() is None:
                assert self.connection.wait(LIMIT), "still connected"
        except PowervioError:
            return True
        return False

    def close(self) -> None:
        self.connection.close()


def open_fds() -> int:
    gc.collect()  # other tests left theirs
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def memory(size: int = 1 << 20) -> Iterator[MappedArea]:
    area = MappedArea.create("test", size)
    try:
        yield area
    finally:
        area.close()
