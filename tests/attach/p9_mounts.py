"""A share mounted by the command of the project, for tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path


class Mounted:
    """`powervio mount-9p` in a process of its own."""

    def __init__(self, server: str, path: Path, *options: str) -> None:
        self.path = path
        with suppress(FileExistsError):  # a dead mount, too
            os.mkdir(path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "powervio", "mount-9p", server, path, *options],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
        )
        assert self.process.stderr is not None
        line = self.process.stderr.readline().decode()
        if "mounted at" not in line:
            self.process.kill()
            raise AssertionError(line + self.process.communicate(timeout=10)[1].decode())
        assert is_mounted(path)

    def close(self) -> int:
        """Ask it to end; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate(timeout=10)
        return self.process.returncode


def is_mounted(path: Path) -> bool:
    return any(line.split()[4] == str(path) for line in Path("/proc/self/mountinfo").read_text().splitlines())
