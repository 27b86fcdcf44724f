"""The virtio console driver for asyncio: `ConsoleCore` with a stream to `await` for each port.

Everything runs in one event loop, which is the partition's thread.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

from powervio.drivers.console_core import PIECE, ConsoleCore, DriverPort
from powervio.virtio.stream import ByteQueue

__all__ = ["ConsoleCore", "ConsoleDriver", "DriverPort", "PortStream"]

_LAST_WORDS = 5.0
"""Seconds for what a program wrote before it left."""


class StreamPort(Protocol):
    """What a stream needs of a port; `DriverPort` has it, and a virtual terminal's end too."""

    incoming: ByteQueue
    outgoing: ByteQueue
    present: bool
    host_open: bool
    columns: int
    rows: int
    on_change: Callable[[], None] | None

    @property
    def drained(self) -> bool:
        """Whether everything that was written is confirmed."""

    def read(self, length: int) -> bytes:
        """Up to `length` bytes that have arrived."""

    def set_open(self, opened: bool) -> None:
        """A program opens or closes it."""


class PortStream:
    """A port for one program at a time. The stream goes on over sessions; only `shut` ends it."""

    def __init__(self, port: StreamPort) -> None:
        self.port = port
        self.on_change: Callable[[], None] | None = None
        """Called when the other side opened or closed, or its terminal has another size."""
        self._shut = False
        self._changed = asyncio.Event()
        port.incoming.on_data = port.outgoing.on_room = self._changed.set
        port.on_change = self._change

    def _change(self) -> None:
        self._changed.set()
        if self.on_change is not None:
            self.on_change()

    async def changed(self) -> None:
        """Wait until something is different. Raises `OSError` (ESHUTDOWN) when the port went away for good."""
        if self._shut:
            raise OSError(errno.ESHUTDOWN, "the console went away")
        self._changed.clear()
        await self._changed.wait()

    async def read(self, length: int = PIECE) -> bytes:
        """One byte or more, up to `length`. Raises `OSError` (ESHUTDOWN)."""
        while not (data := self.port.read(length)):
            await self.changed()
        return data

    async def write(self, data: bytes) -> None:
        """Hand over all of it, waiting for the device where it has no room. Raises `OSError` (ESHUTDOWN)."""
        rest = memoryview(data)
        while rest:
            taken = self.port.outgoing.put(rest)
            rest = rest[taken:]
            if rest:
                await self.changed()

    async def drain(self) -> None:
        """Wait until the device has confirmed everything. Raises `OSError` (ESHUTDOWN)."""
        while not self.port.drained:
            await self.changed()

    def wake(self) -> None:
        """Something is different: whoever waits looks again."""
        self._changed.set()

    def shut(self) -> None:
        """The port goes away for good: whoever waits gets ESHUTDOWN."""
        self._shut = True
        self._changed.set()


class ConsoleDriver(ConsoleCore):
    """A console whose ports are streams."""

    def __init__(self, *, max_ports: int = 32) -> None:
        super().__init__(max_ports=max_ports)
        self._streams: dict[int, PortStream] = {}

    def stream(self, number: int = 0) -> PortStream:
        """The stream of a port."""
        if number not in self._streams:
            self._streams[number] = PortStream(self.port(number))
        return self._streams[number]

    def close(self) -> None:
        """The console goes away for good."""
        for stream in self._streams.values():
            stream.shut()

    def server(self, number: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
        """`serve_stream` for a port."""
        return partial(serve_stream, self.stream(number))


async def serve_stream(stream: PortStream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A program on a socket of the partition, until it closes: what it writes goes out on the port, and back."""
    stream.port.set_open(True)
    tasks = [asyncio.ensure_future(task) for task in (_inward(stream, writer), _outward(stream, reader))]
    try:
        await tasks[1]
        with suppress(TimeoutError):  # what nobody reads stays in the port
            async with asyncio.timeout(_LAST_WORDS):
                await stream.drain()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        stream.port.set_open(False)


async def _inward(stream: PortStream, writer: asyncio.StreamWriter) -> None:
    while True:
        while not stream.port.incoming:
            await stream.changed()
        # Drained before it is taken: what a program did not take stays for the next one.
        await writer.drain()
        writer.write(stream.port.read(PIECE))


async def _outward(stream: PortStream, reader: asyncio.StreamReader) -> None:
    while data := await reader.read(PIECE):
        await stream.write(data)
