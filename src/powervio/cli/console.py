"""`powervio console`: the terminal attached to a client partition's console, as mkvterm does it."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from powervio.system import control
from powervio.system.operator import CLOSED, DATA, EOF, HEADER, RESIZE, SIZE, frame

_INPUT = 4096


@click.command()
@click.argument("client")
@click.option("--port", default="0", show_default=True, help="Which port: its name or number; 0 is the console.")
@click.option("--system", "name", help="The system's name, if several run.")
def console(client: str, port: str, name: str | None) -> int:
    """Attach to the console of CLIENT; `~.` at the start of a line, or Ctrl-], detaches.

    What is not a terminal works too: input is sent as it is, and after its end output goes on until the client's side
    closes. Exit status: 0 detached or closed by the client, 1 the system ended.
    """
    connection = control.converse(control.choose(name), "console", {"client": client, "port": port})
    with connection, raw_terminal() as is_terminal:
        if is_terminal:
            click.echo(f"attached to {client}; ~. at the start of a line, or Ctrl-], detaches\r", err=True)
        return _Session(connection, is_terminal).run()


@contextmanager
def raw_terminal() -> Iterator[bool]:
    """The terminal in raw mode, and as it was afterwards, whatever happens; whether there is one."""
    fd = sys.stdin.fileno()
    if not os.isatty(fd):
        yield False
        return
    before = termios.tcgetattr(fd)

    def ended(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    handlers = {number: signal.signal(number, ended) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        tty.setraw(fd, termios.TCSANOW)  # what was typed ahead is for the client
        yield True
    finally:
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(fd, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class Keys:
    """Finds the wish to detach in what is typed: Ctrl-], or `~.` at the start of a line; `~~` there is one `~`."""

    def __init__(self) -> None:
        self._at_start = True
        self._tilde = False

    def pass_on(self, typed: bytes) -> tuple[bytes, bool]:
        """What is for the client, and whether to detach."""
        out = bytearray()
        for key in typed:
            if self._tilde:
                self._tilde = False
                if key == ord("."):
                    return bytes(out), True
                if key != ord("~"):
                    out += b"~"
            elif self._at_start and key == ord("~"):
                self._tilde = True
                self._at_start = False
                continue
            if key == 0x1D:
                return bytes(out), True
            out.append(key)
            self._at_start = key in b"\r\n"
        return bytes(out), False


class _Session:
    """Moves bytes between terminal and system until one of them ends it."""

    def __init__(self, connection: socket.socket, is_terminal: bool) -> None:
        self._connection = connection
        self._is_terminal = is_terminal
        self._keys = Keys() if is_terminal else None
        self._received = bytearray()
        self._sending = bytearray()
        self._input_open = True

    def run(self) -> int:
        waker, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = signal.signal(signal.SIGWINCH, lambda *_: None)
        before_fd = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._connection.setblocking(False)
        try:
            self._resize()
            while True:
                status = self._turn(waker)
                if status is not None:
                    return status
        finally:
            signal.set_wakeup_fd(before_fd)
            signal.signal(signal.SIGWINCH, before)
            os.close(waker)
            os.close(wake)

    def _turn(self, waker: int) -> int | None:
        reading: list[int] = [waker, self._connection.fileno()]
        if self._input_open and not self._sending:  # the system takes no more for now: neither do we
            reading.append(sys.stdin.fileno())
        readable, writable, _ = select.select(reading, [self._connection.fileno()] if self._sending else [], [])
        if waker in readable:
            os.read(waker, 4096)
            self._resize()
        if sys.stdin.fileno() in readable and self._typed():
            return 0
        if writable or self._sending:
            self._send()
        if self._connection.fileno() in readable:
            return self._receive()
        return None

    def _resize(self) -> None:
        for stream in (sys.stdin, sys.stdout):
            with suppress(OSError):
                size = os.get_terminal_size(stream.fileno())
                self._sending += frame(RESIZE, SIZE.pack(size.columns, size.lines))
                return

    def _typed(self) -> bool:
        """Whether the user wants to detach."""
        try:
            typed = os.read(sys.stdin.fileno(), _INPUT)
        except OSError:
            typed = b""
        if not typed:
            self._input_open = False
            self._sending += frame(EOF)
            return self._is_terminal  # the terminal hung up
        detach = False
        if self._keys is not None:
            typed, detach = self._keys.pass_on(typed)
        if typed:
            self._sending += frame(DATA, typed)
        if detach:
            self._connection.setblocking(True)
            with suppress(OSError):
                self._connection.sendall(self._sending)
        return detach

    def _send(self) -> None:
        with suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            del self._sending[: self._connection.send(self._sending)]

    def _receive(self) -> int | None:
        try:
            piece = self._connection.recv(65536)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            piece = b""
        if not piece:
            click.echo("powervio: the system ended\r" if self._is_terminal else "powervio: the system ended", err=True)
            return 1
        self._received += piece
        while len(self._received) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._received)
            if len(self._received) < HEADER.size + length:
                return None
            data = bytes(self._received[HEADER.size : HEADER.size + length])
            del self._received[: HEADER.size + length]
            if kind == DATA:
                _write_all(sys.stdout.fileno(), data)
            elif kind == CLOSED:
                if self._is_terminal:
                    click.echo(f"\r\npowervio: {data.decode(errors='replace')}\r", err=True)
                return 0
        return None


def _write_all(fd: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(fd, data) :]
        except BlockingIOError:
            select.select([], [fd], [])
