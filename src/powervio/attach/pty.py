"""A program of a client partition on a terminal of its own, whose other end is a console port: getty's place.

The program runs from the start, and its output is there when an operator attaches. When it ends the port is closed,
which ends the operator's session; then it is started anew, as init would.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import pty
import shlex
import signal
import struct
import termios
from collections.abc import Callable, Sequence
from contextlib import suppress

from powervio.drivers.console import PortStream
from powervio.errors import LocalError

_log = logging.getLogger(__name__)

# A leader of a session without a terminal gets the first that it opens, so no code of ours runs between fork and exec.
_BEGIN = 'exec <>"$0" >&0 2>&0; exec "$@"'
_PAUSE = 1.0
"""Seconds between two starts."""
_LAST_WORDS = 0.5
"""Seconds for output that is still in the terminal when the program has ended."""
_KILL_AFTER = 2.0


class PtyProgram:
    """Runs `command` for as long as the port is there."""

    def __init__(self, command: str, stream: PortStream) -> None:
        """`command` is split into words as a shell does. Raises `LocalError` for one that has none."""
        try:
            self.words: Sequence[str] = shlex.split(command)
        except ValueError as error:
            raise LocalError(f"{command!r} is no command: {error}") from None
        if not self.words:
            raise LocalError("the command is empty")
        self.starts = 0
        self._stream = stream
        self._task: asyncio.Task[None] | None = None
        self._terminal = -1
        self._size = (0, 0)

    async def start(self) -> None:
        """Start it, now and whenever it ended."""
        self._stream.on_change = self._resize
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """End it: hang up, and kill what does not go."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        self._stream.on_change = None

    async def _run(self) -> None:
        port = self._stream.port
        with suppress(OSError):  # the console went away for good
            while True:
                port.set_open(True)
                pause = asyncio.ensure_future(asyncio.sleep(_PAUSE))
                try:
                    await self._once()
                    await self._stream.drain()
                    port.set_open(False)
                    await pause
                finally:
                    pause.cancel()

    async def _once(self) -> None:
        terminal, other_end = pty.openpty()
        os.set_blocking(terminal, False)
        self._terminal, self._size = terminal, (0, 0)
        self._resize()
        process: asyncio.subprocess.Process | None = None
        tasks: list[asyncio.Task[None]] = []
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                _BEGIN,
                os.ttyname(other_end),
                *self.words,
                start_new_session=True,
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "TERM": os.environ.get("TERM", "vt100")},
            )
            self.starts += 1
            tasks = [asyncio.ensure_future(task) for task in (self._inward(terminal), self._outward(terminal))]
            await process.wait()
            os.close(other_end)
            other_end = -1
            with suppress(TimeoutError, OSError):
                async with asyncio.timeout(_LAST_WORDS):
                    await asyncio.shield(tasks[1])
        finally:
            self._terminal = -1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            os.close(terminal)
            if other_end >= 0:
                os.close(other_end)
            if process is not None and process.returncode is None:
                await _end(process)

    def _resize(self) -> None:
        port = self._stream.port
        if self._terminal >= 0 and port.columns and port.rows and self._size != (port.columns, port.rows):
            self._size = (port.columns, port.rows)
            fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", port.rows, port.columns, 0, 0))

    async def _inward(self, terminal: int) -> None:
        while True:
            rest = await self._stream.read()
            while rest:
                try:
                    rest = rest[os.write(terminal, rest) :]
                except BlockingIOError:
                    await _ready(terminal, asyncio.get_running_loop().add_writer)

    async def _outward(self, terminal: int) -> None:
        while True:
            try:
                data = os.read(terminal, 4096)
            except BlockingIOError:
                await _ready(terminal, asyncio.get_running_loop().add_reader)
                continue
            except OSError:  # EIO: nobody has the other end open any more
                return
            if not data:
                return
            await self._stream.write(data)


async def _ready(fd: int, add: Callable[..., None]) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def ready() -> None:
        if not future.done():
            future.set_result(None)

    add(fd, ready)
    try:
        await future
    finally:
        (loop.remove_writer if add == loop.add_writer else loop.remove_reader)(fd)


async def _end(process: asyncio.subprocess.Process) -> None:
    for number in (signal.SIGHUP, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(TimeoutError):
            async with asyncio.timeout(_KILL_AFTER):
                await process.wait()
                return
