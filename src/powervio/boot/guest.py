"""One guest from power on to its end: QEMU's process, what the guest's ports say, and how long that may take."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from powervio.boot import processes
from powervio.boot.qemu import Channels
from powervio.boot.root import DISKS_LIMIT
from powervio.boot.stream import Control, Marked, reason_of_end
from powervio.boot.transport import Watched
from powervio.boot.waiting import wait
from powervio.errors import LocalError, RemoteError

BOOT_LIMIT = 120.0
"""Seconds from power on until the guest's first process has started."""
END_LIMIT = 120.0
"""Seconds for the guest to write back what it has, and to power off."""
LEAVE_LIMIT = 15.0
"""Seconds for the same when the user does not want to wait for a shell's end."""
LOST_LIMIT = 5.0
"""Seconds for QEMU to end after something that it needs has: longer than between the two when a guest powers off."""
_PIECE = 65536
_PAUSE = 1.0
_END_OF_INPUT = b"\x04"
_ROOM = 4096  # a pipe that poll calls writable takes so much (PIPE_BUF)


class GuestFailed(LocalError):
    """The guest, or QEMU, did not do what it was started for; its console may say why."""


@dataclass(frozen=True, slots=True)
class Terminal:
    """Where the console of an interactive guest is."""

    reading: int
    """Descriptor of what is typed."""
    writing: int
    typed: Callable[[bytes], tuple[bytes, bool]] | None = None
    """Of a terminal: what of the typed bytes is for the guest, and whether the user wants to leave."""
    raw: Callable[[], AbstractContextManager[object]] = nullcontext
    """Makes the terminal hand on every key for as long as it is entered."""


class Guest:
    """A running guest. `make_command` makes QEMU's command line; `pass_fds` is what QEMU inherits beside channels."""

    def __init__(
        self,
        make_command: Callable[[Channels], list[str]],
        *,
        pass_fds: Sequence[int],
        watched: Sequence[Watched],
        token: bytes,
        log: Path,
    ) -> None:
        self._undo = ExitStack()
        try:
            self._log: IO[bytes] = self._undo.enter_context(log.open("wb", buffering=0))
            self._complaints: IO[bytes] = self._undo.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            self._console, console = self._pair()
            self._port, port = self._pair()
            self._output, output = self._pair()
            self._errors, errors = self._pair()
            theirs = [console, port, output, errors]
            command = make_command(Channels(*(end.fileno() for end in theirs)))
            self._process = processes.start(
                command, pass_fds=[*pass_fds, *(end.fileno() for end in theirs)], stderr=self._complaints.fileno()
            )
            self._undo.callback(self._kill)
            for end in theirs:
                end.close()
        except BaseException:
            self._undo.close()
            raise
        self._watched = watched
        self._lost: tuple[float, Watched] | None = None
        self._open = {self._console, self._port, self._output, self._errors}
        self._marked = {self._output: Marked(token), self._errors: Marked(token)}
        self._control = Control()
        self._typing = bytearray()
        self._log_path = log
        self._began = time.monotonic()

    def _pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        self._undo.callback(ours.close)
        self._undo.callback(theirs.close)
        ours.setblocking(False)
        return ours, theirs

    def close(self) -> None:
        """Let nothing of it be left."""
        self._undo.close()

    def _kill(self) -> None:
        with suppress(subprocess.TimeoutExpired):
            processes.end(self._process, signal.SIGKILL, patience=10)

    def wait_until_up(self, timeout: float | None) -> float:
        """Wait until its first process has started; the seconds that it took. Raises `GuestFailed`."""
        limit = BOOT_LIMIT if timeout is None else min(BOOT_LIMIT, timeout)
        while not self._control.ready:
            self._turn(self._began + limit, f"waited {limit:g} s for the guest to start")
            if not self._open:
                raise self._died("before it had started")
        return time.monotonic() - self._began

    def run(self, output: int, errors: int, timeout: float | None) -> int:
        """Hand on what its command writes; the command's exit status. `timeout` is from power on.

        Raises `GuestFailed`.
        """
        limit = None if timeout is None else self._began + timeout
        targets = {self._output: output, self._errors: errors}
        while self._control.status is None or not all(stream.ended for stream in self._marked.values()):
            self._turn(limit, f"the command did not end within {timeout or 0:g} s", targets)
            if not self._open:
                raise self._died("before its command had ended")
        self._tell(b"end\n")
        self._wait_for_end(END_LIMIT)
        return self._control.status

    def converse(self, terminal: Terminal, timeout: float | None) -> None:
        """Join its console to a terminal until it powers off or the user leaves. Raises `GuestFailed`."""
        before = signal.signal(signal.SIGWINCH, lambda *_: self._set_size(terminal.writing))
        try:
            self._set_size(terminal.writing)
            with terminal.raw():
                self._converse(terminal, timeout)
        finally:
            signal.signal(signal.SIGWINCH, before)
        self._reap()

    def _converse(self, terminal: Terminal, timeout: float | None) -> None:
        limit = None if timeout is None else self._began + timeout
        late = f"the guest did not end within {timeout or 0:g} s"
        targets = {self._console: terminal.writing}
        at_end = False
        while self._open:
            # at a terminal what is typed is looked at even if the guest takes nothing: the user may want to leave
            is_full = terminal.typed is None and bool(self._typing)
            reading = None if at_end or is_full else terminal.reading
            if not self._turn(limit, late, targets, reading, waiting=not at_end):
                if at_end and not self._typing:
                    self._typing += _END_OF_INPUT  # who reads then ends, at last the shell, and with it the guest
                continue
            typed, leave = _read(terminal.reading), False
            if not typed:
                at_end, leave = True, terminal.typed is not None
            elif terminal.typed is not None:
                typed, leave = terminal.typed(typed)
            self._typing += typed
            if leave:
                self._tell(b"end\n")
                self._wait_for_end(LEAVE_LIMIT, targets)

    # -- moving bytes

    def _turn(
        self,
        limit: float | None,
        late: str,
        targets: dict[socket.socket, int] | None = None,
        typed: int | None = None,
        *,
        waiting: bool = True,
    ) -> bool:
        """Wait for something, for a second at most if not `waiting`, and take it; whether there is more at `typed`."""
        if self._lost is not None and (limit is None or limit > self._lost[0]):
            limit = self._lost[0]
            late = self._lost[1].say_why()
        left = None if limit is None else max(limit - time.monotonic(), 0)
        if not waiting and left != 0:
            left = _PAUSE if left is None else min(left, _PAUSE)
        watched: list[socket.socket | int] = [*self._open, *([] if typed is None else [typed])]
        if self._lost is None:
            watched += [other.fileno() for other in self._watched]
        sending = [self._console] if self._typing and self._console in self._open else []
        readable, writable = wait(watched, sending, left)
        if left == 0 or (waiting and not readable and not writable):
            raise self._failed(late)
        if writable:
            with suppress(OSError):  # it is gone: the next read says so
                del self._typing[: self._console.send(self._typing)]
        for other in self._watched if self._lost is None else ():
            if other.fileno() in readable:
                self._lost = (time.monotonic() + LOST_LIMIT, other)
        for channel in [channel for channel in self._open if channel in readable]:
            try:
                piece = channel.recv(_PIECE)
            except ConnectionResetError:
                piece = b""
            if not piece:
                self._open.discard(channel)
            self._take(channel, piece, targets or {}, limit, late)
        return typed in readable

    def _take(
        self, channel: socket.socket, piece: bytes, targets: dict[socket.socket, int], limit: float | None, late: str
    ) -> None:
        if channel is self._console:
            self._log.write(piece)
        elif channel is self._port:
            try:
                self._control.feed(piece)
            except RemoteError as error:
                raise self._failed(str(error)) from error
            if self._control.disks is not None:
                raise self._failed(
                    f"waited {DISKS_LIMIT} s for the guest to have its disks; it has {self._control.disks}"
                )
        else:
            marked = self._marked[channel]
            piece = marked.feed(piece) if piece else marked.close()
        if channel in targets:
            self._write(targets[channel], piece, limit, late)

    def _write(self, fd: int, data: bytes, limit: float | None, late: str) -> None:
        while data:
            left = None if limit is None else max(limit - time.monotonic(), 0)
            if not wait([], [fd], left)[1]:
                raise self._failed(f"{late}: its output is not read")
            with suppress(BlockingIOError):
                data = data[os.write(fd, data[:_ROOM]) :]

    def _tell(self, line: bytes) -> None:
        with suppress(OSError):  # what it does not take in it does not miss
            self._port.send(line)

    def _set_size(self, fd: int) -> None:
        try:
            size = os.get_terminal_size(fd)
        except OSError:
            self._tell(b"none\n")
        else:
            self._tell(b"size %d %d\n" % (size.lines, size.columns))

    # -- the end

    def _wait_for_end(self, patience: float, targets: dict[socket.socket, int] | None = None) -> None:
        limit = time.monotonic() + patience
        late = f"the guest did not power off within {patience:g} s; its file systems may be unclean"
        while self._open:
            self._turn(limit, late, targets)
        self._reap()

    def _reap(self) -> None:
        """QEMU has closed its sockets: it ends. Raises `GuestFailed` if not as it should."""
        try:
            status = self._process.wait(10)
        except subprocess.TimeoutExpired:
            raise self._failed("QEMU did not end within 10 s of its guest") from None
        if status:
            raise self._died("")

    def _died(self, when: str) -> GuestFailed:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        reason = reason_of_end(self._log_path.read_bytes())
        if reason is not None:
            return GuestFailed(f"the guest died {when}: {reason}".replace(" :", ":"))
        for other in self._watched:
            if other.has_failed():
                return GuestFailed(other.say_why())
        self._complaints.seek(0)
        said = [line for line in self._complaints.read().decode(errors="replace").splitlines() if line.strip()]
        if self._process.returncode:
            complaint = said[-1] if said else "it said nothing"
            return GuestFailed(f"QEMU ended with status {self._process.returncode}: {complaint}")
        return GuestFailed(f"the guest powered off {when}".strip())

    def _failed(self, what: str) -> GuestFailed:
        reason = reason_of_end(self._log_path.read_bytes())
        return GuestFailed(what if reason is None else f"{what}: {reason}")


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, _ROOM)
    except OSError:
        return b""
