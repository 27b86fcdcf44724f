"""A device type of your own, whole: a program sends a line, the VIO server answers it in capitals.

docs/new-device.md walks through it. Try it:

    powervio up --types examples/upper.py examples/upper.toml
    echo hello | nc -NU upper.sock
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from powervio.errors import RemoteError
from powervio.system.types import DeviceType, register
from powervio.virtio.device import Device
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport, Request

DEVICE_ID = 0x3F
"""A number that virtio has not given to anybody."""
LONGEST = 1024


# devices/upper.py: what the VIO server does with a request


class UpperDevice(Device):
    device_id = DEVICE_ID

    @property
    def features(self) -> int:
        return 0

    def config(self, byteorder: ByteOrder) -> bytes:
        return LONGEST.to_bytes(4, byteorder)

    def handle(self, request: Request) -> None:
        self.requests += 1
        try:
            text = request.readable.read(0, min(request.readable.length, LONGEST))
            answer = text.upper()[: request.writable.length]
            request.writable.write(0, answer)
        except RemoteError:  # memory that the client has not mapped: this request fails, nothing else
            answer = b""
        request.complete(len(answer))


# drivers/upper.py: how a program of the client partition uses it


class UpperDriver(Driver):
    device_id = DEVICE_ID

    def __init__(self) -> None:
        self._transport: DriverTransport | None = None
        self._spare: list[Buffer] = []
        self._waiting: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._in_flight: dict[int, tuple[bytes, asyncio.Future[bytes], Buffer]] = {}
        self._token = 0

    def select_features(self, offered: int) -> int:
        return 0

    def start(self, transport: DriverTransport) -> None:
        self._transport = transport
        self._submit()

    def stop(self) -> None:
        """The session is over: what it did not finish is for the next one."""
        self._transport = None
        for text, future, buffer in reversed(self._in_flight.values()):
            self._spare.append(buffer)
            self._waiting.appendleft((text, future))
        self._in_flight.clear()

    def completed(self, queue: DriverQueue) -> None:
        while (used := queue.reap()) is not None:
            token, written = used
            assert isinstance(token, int)
            _, future, buffer = self._in_flight.pop(token)
            self._spare.append(buffer)
            if not future.done():
                future.set_result(bytes(buffer.view[LONGEST : LONGEST + written]))
        self._submit()

    def _submit(self) -> None:
        while self._transport is not None and self._waiting:
            text, future = self._waiting[0]
            buffer = self._spare.pop() if self._spare else self._transport.allocate(2 * LONGEST, mapped=True)
            buffer.view[: len(text)] = text
            queue = self._transport.queues[0]
            if not queue.add([(buffer, 0, len(text))], [(buffer, LONGEST, len(text))], self._token):
                self._spare.append(buffer)
                return  # the queue is full; `completed` comes back here
            self._waiting.popleft()
            self._in_flight[self._token] = (text, future, buffer)
            self._token += 1
            queue.kick()

    async def upper(self, text: bytes) -> bytes:
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting.append((text, future))
        self._submit()
        return await future

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.read(LONGEST):
            writer.write(await self.upper(line))
            await writer.drain()


# the row


def _device(options: Any) -> Device:
    return UpperDevice()


def _driver(options: Any) -> Driver:
    return UpperDriver()


register(DeviceType(section="upper", name="upper", device=_device, driver=_driver))
