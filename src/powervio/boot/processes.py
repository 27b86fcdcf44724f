"""The processes of a guest: QEMU and a back end for each disk. None outlives this process, not even if it is killed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from powervio.boot.waiting import wait
from powervio.errors import LocalError

READY_LIMIT = 30.0
"""Seconds for a back end to serve its disk."""
END_LIMIT = 20.0
"""Seconds for a back end to flush its disk and end."""
_FORMATS = ("raw", "qcow2", "vmdk", "vhdx")


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk for a guest."""

    image: str
    """A file, a block device, or a URI of an NBD server."""
    read_only: bool = False
    format: str | None = None
    """None is raw."""

    @classmethod
    def parse(cls, text: str) -> Disk:
        """From FILE[,readonly][,format=FORMAT]; FILE may have commas. Raises `LocalError`.

        The name says the format of FILE.qcow2, FILE.vmdk and FILE.vhdx if nothing else does.
        """
        image, read_only, image_format = text, False, None
        while True:
            before, comma, option = image.rpartition(",")
            if comma and option == "readonly":
                read_only = True
            elif comma and option.startswith("format="):
                image_format = option.removeprefix("format=")
            else:
                break
            image = before
        if image_format is None:
            suffix = Path(image).suffix[1:].lower()
            image_format = suffix if suffix in _FORMATS[1:] else None
        if image_format not in (None, *_FORMATS):
            raise LocalError(f"disk {image}: unknown format {image_format!r}: expected {', '.join(_FORMATS)}")
        if not image.startswith(("nbd://", "nbd+unix://")) and not os.path.exists(image):
            raise LocalError(f"disk {image}: no such file")
        return cls(image, read_only, image_format)


def with_us(command: Sequence[str]) -> list[str]:
    """A command that is killed when this thread, and so this process, ends (PR_SET_PDEATHSIG)."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


def start(command: Sequence[str], *, pass_fds: Sequence[int], stderr: int) -> subprocess.Popen[bytes]:
    """Start a process that ends with us, and that Ctrl-C at the terminal does not reach."""
    return subprocess.Popen(
        with_us(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        pass_fds=pass_fds,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes], *numbers: signal.Signals, patience: float) -> int:
    """End a process by these signals, one after the other; its status."""
    for number in numbers:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(patience)
    return process.wait(patience)


def _status(process: subprocess.Popen[bytes]) -> str:
    with suppress(subprocess.TimeoutExpired):
        process.wait(1)
    status = process.returncode
    if status is None or status >= 0:
        return f"status {status}"
    return f"killed by {signal.Signals(-status).name}"


class BackEnd:
    """`powervio vhost-user block` for one disk, at one end of a socket pair."""

    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        ours, self.socket = socket.socketpair()
        """`socket` is for QEMU."""
        options = ["--image", disk.image, *(["--readonly"] if disk.read_only else [])]
        options += ["--format", disk.format] if disk.format else []
        command = [sys.executable, "-m", "powervio", "vhost-user", "block", "--fd", str(ours.fileno()), *options]
        try:
            self.process = start(command, pass_fds=(ours.fileno(),), stderr=subprocess.PIPE)
        except BaseException:
            self.socket.close()
            raise
        finally:
            ours.close()
        self._ended = os.pidfd_open(self.process.pid)
        self._said = b""

    def fileno(self) -> int:
        """Readable when it has ended."""
        return self._ended

    def wait_until_ready(self) -> None:
        """Wait until it serves; raises `LocalError` with what it said if it does not."""
        deadline = time.monotonic() + READY_LIMIT
        while b"serving at" not in self._said:
            left = deadline - time.monotonic()
            if left < 0:
                raise LocalError(f"disk {self.disk.image}: waited {READY_LIMIT:.0f} s for its back end to serve it")
            if not self._hear(left):
                raise LocalError(self._complaint())

    def finish(self) -> None:
        """It ends by itself when QEMU is gone. Raises `LocalError` if what was written is not stable."""
        self.socket.close()
        deadline = time.monotonic() + END_LIMIT
        while (left := deadline - time.monotonic()) > 0 and self._hear(left):
            pass
        status = end(self.process, signal.SIGTERM, signal.SIGKILL, patience=5) if left <= 0 else self.process.wait(5)
        if status:
            raise LocalError(self._complaint())

    def has_failed(self) -> bool:
        """Whether it has ended, and not well."""
        return bool(self.process.poll())

    def say_why(self) -> str:
        """Why it has ended, in its own words."""
        while self._hear(0.1) and self.process.poll() is None:
            pass
        return self._complaint()

    def close(self) -> None:
        """End it, whatever it does."""
        self.socket.close()
        with suppress(subprocess.TimeoutExpired):
            end(self.process, signal.SIGTERM, signal.SIGKILL, patience=5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        os.close(self._ended)

    def _hear(self, limit: float) -> bool:
        """Take what it says within a time; False when it has ended."""
        assert self.process.stderr is not None
        if not wait([self.process.stderr], [], limit)[0]:
            return True
        piece = os.read(self.process.stderr.fileno(), 65536)
        self._said = (self._said + piece)[-65536:]
        return bool(piece)

    def _complaint(self) -> str:
        said = self._said.decode(errors="replace").strip()
        lines = [line for line in said.splitlines() if "serving at" not in line]
        said = lines[-1].removeprefix("powervio: ") if lines else f"its back end ended, {_status(self.process)}"
        return said if self.disk.image in said else f"disk {self.disk.image}: {said}"
