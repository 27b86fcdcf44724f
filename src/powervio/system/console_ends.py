"""The operator's end of a console that is served to a virtual machine: descriptors, a socket, or a program.

Everything here is in the thread of the back end's loop. Nobody waits: bytes stay in the port while the other side does
not take them, up to its limit, and then the guest, or the operator, is pushed back.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from functools import partial

from powervio.attach.unix_socket import UnixListener
from powervio.devices.console import ConsoleDevice, Port
from powervio.errors import LocalError
from powervio.transport.vhost_user.loop import Loop

_log = logging.getLogger(__name__)

_INPUT = 16 * 1024
_OUTPUT = 256
"""Bytes at once. A terminal that poll calls writable has room for so many, so nothing blocks, even where nobody made
the descriptor one that does not: it is shared with whoever started this process, and its flags are theirs."""
_PAUSE = 1.0
"""Seconds from the end of a program to its next start."""
_KILL_AFTER = 2.0
"""Seconds for a program that was told to hang up."""


class Exchange:
    """Bytes between a port and two descriptors, which may be one; the descriptors stay their owner's."""

    def __init__(
        self,
        loop: Loop,
        port: Port,
        source: int,
        sink: int,
        on_end: Callable[[], None],
        on_input_end: Callable[[], None] | None = None,
        take_in: Callable[[bytes], bytes] = bytes,
    ) -> None:
        """Attach to the port. Raises `LocalError` when somebody is there.

        `on_end` is called when the other side is gone, after this has left the port. `on_input_end` is called instead
        of it when there is no more to read; else that is the end too. `take_in` may change what was read.
        """
        port.attach()
        self._loop = loop
        self._port = port
        self._source = source
        self._sink = sink
        self._on_end = on_end
        self._on_input_end = on_input_end
        self._take_in = take_in
        self._writing = False
        self._rest = b""
        self._closed = False
        port.from_driver.on_data = self._has_output
        port.to_driver.on_room = self._read_on
        self._loop.add_reader(source, self._read)
        if port.from_driver:
            self._has_output()

    def _read(self) -> None:
        try:
            data = os.read(self._source, _INPUT)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._rest = self._take_in(data)
            self._pass_on()
            return
        self._loop.remove_reader(self._source)
        if self._on_input_end is not None:
            self._on_input_end()
        else:
            self._end()

    def _pass_on(self) -> None:
        self._rest = self._rest[self._port.to_driver.put(self._rest) :]
        if self._rest:
            self._loop.remove_reader(self._source)

    def _read_on(self) -> None:
        """The driver has taken some of what was too much."""
        if self._rest:
            self._pass_on()
            if not self._rest and not self._closed:
                self._loop.add_reader(self._source, self._read)

    def _has_output(self) -> None:
        if not self._writing:
            self._writing = True
            self._loop.add_writer(self._sink, self._write)

    def _write(self) -> None:
        output = self._port.from_driver
        try:
            output.consume(os.write(self._sink, output.peek(0, _OUTPUT)))
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        if not output and not self._closed:
            self._writing = False
            self._loop.remove_writer(self._sink)

    def _end(self) -> None:
        self.close()
        self._on_end()

    def close(self) -> None:
        """Leave the port. Harmless the second time."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)
        self._port.to_driver.on_room = None
        self._port.detach()


class SocketEnd:
    """Whoever connects to a Unix socket, one at a time."""

    def __init__(self, loop: Loop, port: Port, path: str) -> None:
        """Listen. Raises `LocalError`."""
        self._loop = loop
        self._port = port
        self._listener = UnixListener(path)
        self._connection: socket.socket | None = None
        self._exchange: Exchange | None = None
        loop.add_reader(self._listener.socket.fileno(), self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.socket.accept()
        except OSError as error:
            _log.error("%s: %s", self._listener.path, error.strerror)
            return
        if self._connection is not None:
            connection.close()
            return
        connection.setblocking(False)
        self._connection = connection
        self._exchange = Exchange(self._loop, self._port, connection.fileno(), connection.fileno(), self._left)

    def _left(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = self._exchange = None

    def close(self) -> None:
        """Stop listening, and hang up."""
        self._loop.remove_reader(self._listener.socket.fileno())
        self._listener.close()
        if self._exchange is not None:
            self._exchange.close()
        self._left()


class ProgramEnd:
    """A program that reads what the guest writes and writes what the guest reads; it is started again when it ends."""

    def __init__(self, loop: Loop, port: Port, command: str) -> None:
        """Start `command`, split into words as a shell does it. Raises `LocalError` if it cannot be started."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise LocalError(f"{command!r} is no command: {error}") from None
        if not self._words:
            raise LocalError("the command is empty")
        self._loop = loop
        self._port = port
        self._closed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._exchange: Exchange | None = None
        self._start()

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = subprocess.Popen(
                    self._words, stdin=theirs.fileno(), stdout=theirs.fileno(), start_new_session=True
                )
            except OSError as error:
                ours.close()
                raise LocalError(f"{self._words[0]} cannot be started ({error.strerror})") from error
        ours.setblocking(False)
        self._socket = ours
        self._exchange = Exchange(self._loop, self._port, ours.fileno(), ours.fileno(), self._ended)

    def _ended(self) -> None:
        """It closed its side: it has ended, or will."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._exchange = None
        if not self._closed:
            self._loop.call_later(_PAUSE, self._start_again)

    def _start_again(self) -> None:
        if self._closed:
            return
        try:
            if self._process is None or self._process.poll() is not None:
                self._start()
                return
        except LocalError as error:
            _log.error("%s", error)
        self._loop.call_later(_PAUSE, self._start_again)

    def _kill(self) -> None:
        """What is left of it hangs up, or is killed."""
        process, self._process = self._process, None
        if process is None:
            return
        for number in (signal.SIGHUP, signal.SIGKILL):
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_KILL_AFTER)

    def close(self) -> None:
        """End it."""
        self._closed = True
        if self._exchange is not None:
            self._exchange.close()
        self._ended()
        self._kill()


class ConsoleEnds:
    """A console and what is at the operator's end of its ports."""

    def __init__(self, *, listen: str | None, command: str | None, ports: Mapping[str, str]) -> None:
        """`listen` is a Unix socket and `command` a program for port 0; with neither it has
        standard input and output.

        `ports` are names of streams beside it with their Unix sockets. Raises `LocalError`.
        """
        self.device = ConsoleDevice(ports=tuple(ports), max_ports=1 + len(ports))
        self._listen = listen
        self._command = command
        self._ports = ports
        self._loop: Loop | None = None

    def attach(self, loop: Loop, undo: ExitStack, typed: Callable[[bytes], tuple[bytes, bool]] | None = None) -> None:
        """Make the ends, for `serve`. Raises `LocalError`.

        `typed` finds the wish to end in what is typed, and says what of it is for the guest.
        """
        self._loop = loop
        console, *others = self.device.ports.values()
        if self._listen is not None:
            undo.callback(SocketEnd(loop, console, self._listen).close)
        elif self._command is not None:
            undo.callback(ProgramEnd(loop, console, self._command).close)
        else:
            undo.callback(self._stdio(loop, console, typed).close)
        for port, path in zip(others, self._ports.values(), strict=True):
            undo.callback(SocketEnd(loop, port, path).close)

    def _stdio(self, loop: Loop, console: Port, typed: Callable[[bytes], tuple[bytes, bool]] | None) -> Exchange:
        def take_in(data: bytes) -> bytes:
            if typed is None:
                return data
            data, leave = typed(data)
            if leave:
                loop.stop()
            return data

        # nobody types or reads any more: the guest keeps its console; a terminal that hangs up is a signal
        return Exchange(loop, console, 0, 1, lambda: None, lambda: None, take_in)

    def resize(self, columns: int, rows: int) -> None:
        """The operator's terminal has this size now; from a signal handler, too."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(partial(self.device.ports[0].resize, columns, rows))
