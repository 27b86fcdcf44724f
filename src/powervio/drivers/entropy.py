"""The virtio entropy driver: `EntropyCore` without I/O, and `EntropyDriver` to `await`.

Nothing is kept in stock: bytes are asked for when somebody wants them, handed to one caller, and overwritten in the
memory that the device has seen. Requests that a session took with it are made anew in the next one.
"""

from __future__ import annotations

import asyncio
import errno
from collections import deque
from collections.abc import Callable

from powervio.virtio import entropy
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, DriverQueue, DriverTransport

BUFFER_SIZE = 4096
"""Bytes of one request."""
MOST_IN_FLIGHT = 8
_EMPTY_LIMIT = 16
"""Buffers in a row that may come back empty before the device is held to be broken."""


class EntropyRequest:
    """So many bytes that somebody wants; `done` is called once, with them or with None when there will be none."""

    def __init__(self, length: int, done: Callable[[bytes | None], None]) -> None:
        self.missing = length
        self.done = done
        self.data = bytearray()


class EntropyCore(Driver):
    """Requests are served in the order in which they came; each byte of the device goes to one of them."""

    device_id = entropy.DEVICE_ID

    def __init__(self) -> None:
        self.requests = 0
        """Buffers that came back."""
        self.bytes_received = 0
        self.empty = 0
        """Buffers that came back without a byte, which a device must not do."""
        self.broken = False
        """Whether the device gave nothing too often; the next session gets another chance."""
        self.closed = False
        self._transport: DriverTransport | None = None
        self._wanted: deque[EntropyRequest] = deque()
        self._idle: list[Buffer] = []
        self._in_flight: dict[int, Buffer] = {}
        self._asked = 0
        self._tokens = 0
        self._empty_in_a_row = 0

    def select_features(self, offered: int) -> int:
        """There are none."""
        return 0

    def start(self, transport: DriverTransport) -> None:
        """See `Driver`."""
        self._transport = transport
        self.broken = False
        self._empty_in_a_row = 0
        self._ask()

    def stop(self) -> None:
        """See `Driver`."""
        self._transport = None
        self._idle += self._in_flight.values()
        self._in_flight.clear()
        self._asked = 0

    def completed(self, queue: DriverQueue) -> None:
        """See `Driver`."""
        while (used := queue.reap()) is not None:
            token, written = used
            assert isinstance(token, int)
            buffer = self._in_flight.pop(token)
            self._asked -= buffer.length
            self.requests += 1
            data = bytes(buffer.view[:written])
            buffer.view[:written] = bytes(written)
            self._idle.append(buffer)
            self._received(data)
        self._ask()

    def request(self, length: int, done: Callable[[bytes | None], None]) -> EntropyRequest:
        """Ask for `length` bytes, one or more."""
        made = EntropyRequest(length, done)
        if self.closed or self.broken:
            done(None)
        else:
            self._wanted.append(made)
            self._ask()
        return made

    def withdraw(self, request: EntropyRequest) -> None:
        """Nobody waits for it any more."""
        if request in self._wanted:
            self._wanted.remove(request)

    def close(self) -> None:
        """The source goes away for good: nobody gets anything any more."""
        self.closed = True
        self._fail()

    def _received(self, data: bytes) -> None:
        self.bytes_received += len(data)
        if data:
            self._empty_in_a_row = 0
        else:
            self.empty += 1
            self._empty_in_a_row += 1
            if self._empty_in_a_row >= _EMPTY_LIMIT:
                self.broken = True
                self._fail()
        at = 0
        while self._wanted and at < len(data):
            first = self._wanted[0]
            part = data[at : at + first.missing]
            at += len(part)
            first.data += part
            first.missing -= len(part)
            if not first.missing:
                self._wanted.popleft()
                first.done(bytes(first.data))

    def _fail(self) -> None:
        wanted, self._wanted = self._wanted, deque()
        for request in wanted:
            request.done(None)

    def _ask(self) -> None:
        if self._transport is None or self.broken:
            return
        queue = self._transport.queues[0]
        missing = sum(request.missing for request in self._wanted)
        added = False
        while missing > self._asked and len(self._in_flight) < MOST_IN_FLIGHT:
            buffer = self._idle.pop() if self._idle else self._transport.allocate(BUFFER_SIZE, mapped=True)
            length = min(BUFFER_SIZE, missing - self._asked)
            if not queue.add((), ((buffer, 0, length),), self._tokens):
                self._idle.append(buffer)
                break
            self._in_flight[self._tokens] = buffer
            self._tokens += 1
            self._asked += buffer.length
            added = True
        if added:
            queue.kick()


class EntropyDriver(EntropyCore):
    """A source of randomness to `await`, in the event loop that is the partition's thread."""

    async def read(self, length: int) -> bytes:
        """`length` random bytes. Raises `OSError`: EIO when the device gives none, ESHUTDOWN when it goes away."""
        if length <= 0:
            return b""
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()

        def done(data: bytes | None) -> None:
            if not future.done():
                future.set_result(data)

        request = self.request(length, done)
        try:
            data = await future
        except asyncio.CancelledError:
            self.withdraw(request)
            raise
        if data is None:
            code = errno.ESHUTDOWN if self.closed else errno.EIO
            raise OSError(code, "the entropy device went away" if self.closed else "the entropy device gives nothing")
        return data

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A program of the partition: it gets random bytes for as long as it takes them."""
        while not reader.at_eof():
            writer.write(await self.read(BUFFER_SIZE))
            await writer.drain()
