"""9P servers for tests: Debian's diod, which does not know us."""

from __future__ import annotations

import subprocess
import time
from contextlib import suppress
from pathlib import Path


class Diod:
    """diod on a Unix socket; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.share = folder / "share"
        self.share.mkdir()
        self.socket = folder / "socket"
        self.address = f"unix:{self.socket}"
        self.name = str(self.share)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with suppress(FileNotFoundError):
            self.socket.unlink()
        with (self.folder / "diod.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["diod", "-f", "-n", "-N", "-e", self.share, "-l", self.socket, "-L", "stderr"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        limit = time.monotonic() + 10
        while not self.socket.exists():
            assert time.monotonic() < limit, "diod does not listen"
            time.sleep(0.01)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None
