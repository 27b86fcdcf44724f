# cython: language_level=3, annotation_typing=False
"""9P over a stream socket: messages of a `P9Core`, and a connection that comes again when the server does."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from powervio.attach.p9_link import P9Link, Patience
from powervio.drivers.p9_core import P9Core
from powervio.errors import LocalError, RemoteError

log = logging.getLogger(__name__)

HANDSHAKE = 10.0
"""Seconds that a server has to answer Tversion."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
MOST_BYTES = 1 << 20
Address: TypeAlias = tuple[int, str | tuple[str, int]]
"""A family, and what connect(2) of it takes."""


def parse_address(text: str) -> Address:
    """`unix:/PATH`, a path, or `tcp:HOST:PORT` (an IPv6 address in brackets). Raises `LocalError`."""
    kind, _, rest = text.partition(":")
    if kind == "tcp":
        host, colon, port = rest.rpartition(":")
        if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise LocalError(f"{text}: expected tcp:HOST:PORT")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        return family, (host.strip("[]"), int(port))
    return socket.AF_UNIX, rest if kind == "unix" else text


class SocketChannel:
    """A connected socket in the running loop."""

    def __init__(self, made: socket.socket, core: P9Core, on_lost: Callable[[str], None]) -> None:
        """`on_lost` is called once with a reason, never from within `send`."""
        self.most_bytes = MOST_BYTES
        self._socket = made
        self._core = core
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._backlog: deque[memoryview] = deque()
        self._space = memoryview(bytearray(2 * MOST_BYTES))
        self._start = 0
        self._end = 0
        self.closed = False
        self.heard = 0
        """Messages that came."""
        self._loop.add_reader(made, self._readable)

    def send(self, message: bytes, payload: memoryview | bytes | None) -> None:
        """See `p9_core.P9Channel`."""
        if self.closed:
            return
        parts = [memoryview(message)] if payload is None else [memoryview(message), memoryview(payload)]
        if self._backlog:
            self._backlog += parts
            return
        try:
            sent = self._socket.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._fail_soon(error.strerror or str(error))
            return
        for part in parts:
            if sent >= len(part):
                sent -= len(part)
            else:
                self._backlog.append(part[sent:])
                sent = 0
        if self._backlog:
            self._loop.add_writer(self._socket, self._writable)

    def _writable(self) -> None:
        try:
            sent = self._socket.sendmsg(list(self._backlog)[:64])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error.strerror or str(error))
            return
        while self._backlog and sent >= len(self._backlog[0]):
            sent -= len(self._backlog.popleft())
        if sent:
            self._backlog[0] = self._backlog[0][sent:]
        if not self._backlog:
            self._loop.remove_writer(self._socket)

    def _readable(self) -> None:
        space = self._space
        try:
            count = self._socket.recv_into(space[self._end :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.fail(error.strerror or str(error))
            return
        if not count:
            self.fail("the server closed the connection")
            return
        self._end += count
        core = self._core
        try:
            while not self.closed and self._end - self._start >= 4:
                start = self._start
                size = int.from_bytes(space[start : start + 4], "little")
                if not 7 <= size <= MOST_BYTES:
                    raise RemoteError(f"9P message of {size} bytes")
                if self._end - start < size:
                    break
                self._start = start + size
                self.heard += 1
                core.received(space[start : start + size])
        except RemoteError as error:
            self.fail(str(error))
            return
        left = self._end - self._start
        if not left:
            self._start = self._end = 0
        elif len(space) - self._start < MOST_BYTES:
            space[:left] = bytes(space[self._start : self._end])
            self._start, self._end = 0, left

    def _fail_soon(self, reason: str) -> None:
        self._loop.call_soon(self.fail, reason)

    def fail(self, reason: str) -> None:
        """The connection is of no use any more."""
        if not self.closed:
            self.close()
            self._on_lost(reason)

    def close(self) -> None:
        """Close the socket; nothing is called any more."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)
            self._socket.close()
            self._backlog.clear()


class P9Socket(P9Link):
    """Keeps a `P9Core` connected to the server at an address."""

    def __init__(self, core: P9Core, address: Address, *, patience: float = Patience.SECONDS) -> None:
        """`patience`: seconds that operations wait for a server that is not there, before they fail with EIO, and after
        which a server that answers nothing at all is left."""
        self.core = core
        self.address = address
        self.connections = 0
        """How many there were."""
        self._patience = Patience(core, patience)
        self._channel: SocketChannel | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> None:
        """Connect. Raises `LocalError` when there is no server, or one that speaks something else."""
        try:
            await self._connect()
        except OSError as error:
            raise LocalError(f"{self.place}: {error.strerror or error}") from error

    @property
    def place(self) -> str:
        """The address in words."""
        family, where = self.address
        return str(where) if family == socket.AF_UNIX else f"{where[0]} port {where[1]}"

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        made = socket.socket(self.address[0], socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            if self.address[0] != socket.AF_UNIX:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._patience.seconds * 1000))
                made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            async with asyncio.timeout(HANDSHAKE):
                await loop.sock_connect(made, self.address[1])
        except TimeoutError:
            made.close()
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT)) from None
        except BaseException:
            made.close()
            raise
        agreed: asyncio.Future[None] = loop.create_future()

        def lost(reason: str) -> None:
            if not agreed.done():
                agreed.set_exception(OSError(errno.ECONNABORTED, reason))
            else:
                self._lost(reason)

        def ready() -> None:
            if not agreed.done():
                agreed.set_result(None)

        channel = SocketChannel(made, self.core, lost)
        self._channel = channel
        self.core.connect(channel, ready)
        try:
            async with asyncio.timeout(HANDSHAKE):
                await agreed
        except TimeoutError:
            channel.close()
            self.core.lost()
            raise OSError(errno.ETIMEDOUT, "the server does not answer Tversion") from None
        except BaseException:
            channel.close()
            self.core.lost()
            raise
        self.connections += 1
        self._check(channel, 0, 0)

    def _check(self, channel: SocketChannel, heard: int, oldest: int) -> None:
        """Whether the server answered anything since the last look, if there was something to be answered."""
        if self._closed or channel is not self._channel or channel.closed:
            return
        now = self.core.oldest
        if oldest and oldest == now and channel.heard == heard:
            channel.fail("the server has not answered for a long time")
            return
        asyncio.get_running_loop().call_later(self._patience.seconds, self._check, channel, channel.heard, now)

    def _lost(self, reason: str) -> None:
        if self._closed:
            return
        log.warning("9P server at %s: %s; trying again", self.place, reason)
        self._task = asyncio.get_running_loop().create_task(self._again())
        self._patience.begin()
        self.core.lost()

    async def _again(self) -> None:
        pause = _FIRST_PAUSE
        while not self._closed:
            try:
                await self._connect()
            except OSError as error:
                log.debug("9P server at %s: %s", self.place, error.strerror)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_PAUSE)
            else:
                log.warning("9P server at %s is there again", self.place)
                self._patience.end()
                return

    async def close(self) -> None:
        """End the connection; every operation that waits fails."""
        self._closed = True
        self._patience.end()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if self._channel is not None:
            self._channel.close()
        self.core.close()
