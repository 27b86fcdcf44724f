"""The operator's terminal on a running system: frames on a control connection, and the port of a console.

After the request `console` has been answered the connection carries frames both ways: a byte for the kind, two for the
length (big-endian), then that many bytes. `DATA` goes both ways; `RESIZE` (columns and rows, two bytes each) and `EOF`
(the operator has no more to say) go to the system, `CLOSED` (the client's side was closed; why, in words) comes back.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from powervio.errors import LocalError
from powervio.virtio.stream import ByteQueue

DATA = 0
RESIZE = 1
CLOSED = 2
EOF = 3
QUIET = 2.0
"""Seconds without output after which an operator without input is let go, where the client cannot close."""
PIECE = 16 * 1024
HEADER = struct.Struct(">BH")
SIZE = struct.Struct(">HH")


def frame(kind: int, data: bytes = b"") -> bytes:
    """One frame; at most 65535 bytes of data."""
    return HEADER.pack(kind, len(data)) + data


class OperatorPort(Protocol):
    """What a console's port looks like from the operator's side; in any thread."""

    to_driver: ByteQueue
    from_driver: ByteQueue
    closings: int
    removed: bool
    on_change: Callable[[], None] | None

    @property
    def can_close(self) -> bool:
        """Whether the client's side can close it. Else an operator whose input has ended is let go when it is quiet."""

    def attach(self) -> None:
        """Raises `LocalError` when somebody is there already."""

    def detach(self) -> None:
        """Leave."""

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has this size now."""


async def operate(port: OperatorPort, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Carry frames until the operator leaves or the client's side closes; the port is attached, and is detached."""
    loop = asyncio.get_running_loop()
    changed = asyncio.Event()

    def tell() -> None:
        with suppress(RuntimeError):  # the loop is closed: the system ends
            loop.call_soon_threadsafe(changed.set)

    closings = port.closings
    port.from_driver.on_data = port.on_change = tell

    async def outward() -> None:
        while True:
            changed.clear()
            closed = port.closings != closings or port.removed
            if data := port.from_driver.take(PIECE):
                writer.write(frame(DATA, data))
                await writer.drain()
            elif closed:
                why = b"nobody is there any more" if port.removed else b"the client closed it"
                writer.write(frame(CLOSED, why))
                await writer.drain()
                return
            elif port.can_close or not ended.is_set():
                await changed.wait()
            else:
                try:
                    async with asyncio.timeout(QUIET):
                        await changed.wait()
                except TimeoutError:
                    writer.write(frame(CLOSED, b"it is quiet, and there is no more input"))
                    await writer.drain()
                    return

    room = asyncio.Event()
    ended = asyncio.Event()

    async def inward() -> None:
        while True:
            kind, length = HEADER.unpack(await reader.readexactly(HEADER.size))
            data = await reader.readexactly(length)
            if kind == RESIZE and length == SIZE.size:
                port.resize(*SIZE.unpack(data))
            elif kind == DATA:
                while data:
                    room.clear()
                    data = data[port.to_driver.put(data) :]
                    if data:
                        await room.wait()
            elif kind == EOF:
                ended.set()
                changed.set()
            else:
                raise LocalError(f"frame of kind {kind} with {length} bytes")

    def have_room() -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(room.set)

    port.to_driver.on_room = have_room
    tasks = [asyncio.ensure_future(outward()), asyncio.ensure_future(inward())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        port.to_driver.on_room = None
        port.detach()
