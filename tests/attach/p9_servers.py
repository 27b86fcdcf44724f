"""9P servers for tests: Debian's diod, which does not know us, and our own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path


class Server:
    """A server of a folder on a Unix socket, in a process of its own; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir()
        self.socket = folder / "socket"
        self.address = f"unix:{self.socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def name(self) -> str:
        """What clients attach to."""
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> None:
        with suppress(FileNotFoundError):
            self.socket.unlink()
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        limit = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < limit, "the server does not listen"
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            time.sleep(0.01)

    def _answers(self) -> bool:
        """Whether it listens; its socket's path is there a little earlier."""
        with socket.socket(socket.AF_UNIX) as made:
            return made.connect_ex(str(self.socket)) == 0

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None


class Diod(Server):
    """diod."""

    @property
    def name(self) -> str:
        return str(self.share)

    def command(self) -> list[str]:
        return ["diod", "-f", "-n", "-N", "-e", str(self.share), "-l", str(self.socket), "-L", "stderr"]


class Ours(Server):
    """`powervio serve-9p`."""

    name = ""

    def command(self) -> list[str]:
        return [sys.executable, "-m", "powervio", "serve-9p", str(self.share), "--listen", self.address]
