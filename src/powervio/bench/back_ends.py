"""Back ends of vhost-user as processes of their own, to be measured: ours, and QEMU's storage daemon as the peer.

Each serves one image over one socket, to one `VhostUserDisk` (`BackEnd`) or to a guest's QEMU (`GuestBackEnd`), from
`__init__` to `close`.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from powervio.bench.load_vhost_user import VhostUserDisk
from powervio.errors import LocalError
from powervio.storage.qemu_daemon import PACKAGE, PROGRAM, dying_with_us

_T = TypeVar("_T")

START_LIMIT = 20.0
"""Seconds for a back end to listen."""
STOP_LIMIT = 5.0
"""Seconds between SIGTERM and SIGKILL."""
EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "memory_disk.py"
"""It is there in a checkout only."""
_PAUSE = 0.02
_CPUCLOCK_SCHED = 2


@dataclass(frozen=True, slots=True)
class Image:
    """What a back end is to serve."""

    path: Path
    writable: bool = False
    direct: bool = False
    """Around the page cache."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A program with its options."""

    name: str
    command: Callable[[Image, Path], list[str]]
    """Of an image and the path of the socket."""


def ours(*options: str, name: str = "powervio") -> Kind:
    """`powervio vhost-user block` with these options."""

    def command(image: Image, socket: Path) -> list[str]:
        words = [sys.executable, "-m", "powervio", "vhost-user", "block", *options]
        words += ["--socket-path", str(socket), "--image", str(image.path)]
        words += [] if image.writable else ["--readonly"]
        return words + (["--direct"] if image.direct else [])

    return Kind(name, command)


def memory_disk() -> Kind:
    """The example of a device of 30 lines, which has its image in its memory."""
    return Kind(EXAMPLE.name, lambda image, socket: [sys.executable, str(EXAMPLE), str(socket), str(image.path)])


def peers(*, direct: bool) -> tuple[Kind, ...]:
    """All configurations of `qemu-storage-daemon` among which the best is to be found. Raises `LocalError`."""
    program = find_peer()
    engines = ("threads", "io_uring", "native") if direct else ("threads", "io_uring")
    return tuple(_peer(program, engine, iothread) for engine in engines for iothread in (False, True))


def find_peer() -> str:
    """Where `qemu-storage-daemon` is. Raises `LocalError` that says which package it is in."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise LocalError(f"{PROGRAM}, the peer that is measured beside ours, is missing: apt-get install {PACKAGE}")
    return program


def peer_version() -> str:
    """The first line of what it says."""
    result = subprocess.run(
        [find_peer(), "--version"], capture_output=True, text=True, timeout=START_LIMIT, check=False
    )
    return result.stdout.partition("\n")[0]


def _peer(program: str, engine: str, iothread: bool) -> Kind:
    def command(image: Image, socket: Path) -> list[str]:
        disk = {
            "driver": "file",
            "node-name": "disk",
            "filename": str(image.path),
            "aio": engine,
            "read-only": not image.writable,
            "locking": "off",  # ours has the file open, too
            "cache": {"direct": image.direct},
        }
        export = {
            "type": "vhost-user-blk",
            "id": "export",
            "node-name": "disk",
            "writable": image.writable,
            "addr": {"type": "unix", "path": str(socket)},
        }
        words = [program, "--blockdev", json.dumps(disk)]
        if iothread:
            words += ["--object", "iothread,id=thread"]
            export["iothread"] = "thread"
        return [*words, "--export", json.dumps(export)]

    return Kind(f"{engine}{'+iothread' if iothread else ''}", command)


class _Running:
    """A back end's process."""

    def __init__(self, kind: Kind, image: Image, folder: Path, cpus: Sequence[int] | None = None) -> None:
        self.kind = kind
        self.socket = folder / f"{kind.name}.sock"
        self.command = kind.command(image, self.socket)
        self._words = folder / f"{kind.name}.log"
        before = os.sched_getaffinity(0)
        if cpus is not None:
            os.sched_setaffinity(0, cpus)  # it is inherited, by every thread that there will be
        try:
            with open(self._words, "wb") as words:
                self._process = subprocess.Popen(
                    dying_with_us(self.command), stdin=subprocess.DEVNULL, stdout=words, stderr=words
                )
        finally:
            os.sched_setaffinity(0, before)

    def _reach(self, connect: Callable[[Path], _T]) -> _T:
        """What `connect` returns of the socket as soon as somebody listens there; else the process is ended."""
        try:
            return self._connect(connect)
        except BaseException:
            self._end()
            raise

    def _connect(self, connect: Callable[[Path], _T]) -> _T:
        deadline = time.monotonic() + START_LIMIT
        while self._process.poll() is None:
            if self.socket.exists():
                try:
                    return connect(self.socket)
                except LocalError as error:
                    if not isinstance(error.__cause__, (FileNotFoundError, ConnectionRefusedError)):
                        raise
            if time.monotonic() > deadline:
                raise LocalError(f"{self.kind.name} does not listen after {START_LIMIT:g} s: {self._said()}")
            time.sleep(_PAUSE)
        raise LocalError(f"{self.kind.name} ended with status {self._process.returncode}: {self._said()}")

    def _said(self) -> str:
        text = self._words.read_text(errors="replace").strip()
        return text[-500:] or "it said nothing"

    def cpu_ns(self) -> int:
        """Processor time of all its threads so far, also of those that have ended, in nanoseconds.

        The kernel's own workers that work for it (io_uring's) are threads of it.
        """
        return time.clock_gettime_ns((~self._process.pid << 3) | _CPUCLOCK_SCHED)  # what clock_getcpuclockid gives

    def failed(self) -> str:
        """Why it is not there any more; empty while it is."""
        status = self._process.poll()
        return "" if status is None else f"{self.kind.name} ended with status {status}: {self._said()}"

    def _end(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class BackEnd(_Running):
    """A running back end, and its only client."""

    def __init__(self, kind: Kind, image: Image, folder: Path, cpus: Sequence[int] | None = None) -> None:
        """Start it, on these processors only if any are given, and connect. `folder` is for its socket and its words.

        Raises `LocalError` with what it said when it does not serve.
        """
        super().__init__(kind, image, folder, cpus)
        self.disk = self._reach(VhostUserDisk)

    def close(self) -> None:
        """Disconnect and end it."""
        self.disk.close()
        self._end()


class GuestBackEnd(_Running):
    """A running back end that a guest cannot go on without (`boot.transport.Watched`)."""

    def __init__(self, kind: Kind, image: Image, folder: Path) -> None:
        """Start it. Raises `LocalError` as `BackEnd` does."""
        super().__init__(kind, image, folder)
        self.connection = self._reach(_connected)
        """For QEMU."""
        self._ended = os.pidfd_open(self._process.pid)

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._ended

    def has_failed(self) -> bool:
        """Whether it has ended: it does not by itself."""
        return self._process.poll() is not None

    def say_why(self) -> str:
        """In its own words."""
        return self.failed()

    def close(self) -> None:
        """Disconnect and end it."""
        self.connection.close()
        self._end()
        os.close(self._ended)


def _connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.connect(str(path))
    except OSError as error:
        made.close()
        raise LocalError(f"{path}: {error.strerror}") from error
    return made
