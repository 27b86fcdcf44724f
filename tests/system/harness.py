"""Whole systems under `powervio up`, as a user runs them, and the programs that use their disks."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from powervio.storage.image import open_image
from powervio.system.load import load
from powervio.system.system import System

SOURCES = str(Path(__file__).parents[2] / "src")
START = 30.0
"""Seconds."""


class House:
    """A folder with images and system files, and a run folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run_folder = folder / "powervio"
        self.environment = {**os.environ, "PYTHONPATH": SOURCES, "XDG_RUNTIME_DIR": str(folder)}
        self._started: list[subprocess.Popen[str]] = []

    def image(self, name: str, size: int, *, random: bool = False) -> Path:
        path = self.folder / name
        if random:
            path.write_bytes(os.urandom(size))
        else:
            with path.open("wb") as file:
                file.truncate(size)
        return path

    def declare(self, name: str = "one", image: str = "disk.img", more: str = "", vios: str = "") -> str:
        """A system file with one disk at the socket NAME.sock; the file's name."""
        file = f"{name}.toml"
        (self.folder / file).write_text(
            f'[[vios]]\nname = "vios1"\n{vios}\n[[lpar]]\nname = "client1"\nmemory = "64M"\n'
            f'[[lpar.disk]]\nvios = "vios1"\nimage = "{image}"\nnbd = "{name}.sock"\n{more}\n'
        )
        return file

    def uri(self, name: str = "one") -> str:
        return f"nbd+unix:///?socket={self.folder / f'{name}.sock'}"

    def run(self, *words: str, timeout: float = 60, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `powervio` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "powervio", *words],
            cwd=self.folder,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )

    def ok(self, *words: str) -> str:
        result = self.run(*words)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def refused(self, *words: str) -> str:
        """Run `powervio`, which must refuse with one line for people; what it says."""
        result = self.run(*words)
        assert result.returncode == 1, result
        assert not result.stdout
        (line,) = result.stderr.splitlines()
        assert line.startswith("powervio: ")
        return line.removeprefix("powervio: ")

    def use_kernels(self, boot_cache: Path) -> None:
        """Let guests boot from the kernels that all tests share."""
        folder = self.folder / "powervio-cache" / "powervio"
        folder.mkdir(parents=True)
        (folder / "boot").symlink_to(boot_cache)
        self.environment["XDG_CACHE_HOME"] = str(folder.parent)

    def up(self, file: str) -> subprocess.Popen[str]:
        """`powervio up FILE` in the foreground; returns when it says that it is up."""
        process = subprocess.Popen(
            [sys.executable, "-m", "powervio", "up", file],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._started.append(process)
        assert process.stdout is not None
        for line in process.stdout:
            if " is up" in line:
                return process
        assert process.stderr is not None
        raise AssertionError(f"up ended with {process.wait(START)}: {process.stderr.read()}")

    def end(self, process: subprocess.Popen[str], how: signal.Signals = signal.SIGTERM) -> str:
        """End a foreground system; it must end well. What it wrote to stderr."""
        process.send_signal(how)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        return errors

    def ps(self, *words: str) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.ok("ps", "--json", *words))
        return report

    def client(self, *words: str) -> dict[str, Any]:
        """The client's end of the first disk in `ps`."""
        return next(adapter for adapter in self.ps(*words)["adapters"] if adapter["role"] == "client")

    def leftovers(self) -> list[str]:
        """Sockets and locks that are still there."""
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.suffix in (".sock", ".lock")
        )

    def close(self) -> None:
        """End whatever still runs."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for lock in self.run_folder.glob("*.lock"):
            self.run("down", lock.stem)


def program(*words: str, timeout: float = 90, env: Mapping[str, str] | None = None) -> str:
    """Run a program that must succeed; its output."""
    result = subprocess.run(
        words, capture_output=True, text=True, errors="replace", timeout=timeout, check=False, env=env
    )
    assert result.returncode == 0, f"{' '.join(words)}: {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def wait_for(condition: Any, timeout: float = 40) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


Scenario = Callable[[System], Awaitable[None]]


def held() -> tuple[int, list[str]]:
    """What this process holds: open files, and threads."""
    gc.collect()
    names = sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("partition-"))
    return len(os.listdir("/proc/self/fd")), names


def run(file: Path, scenario: Scenario) -> None:
    """Run it with a system of this file; nothing of it may be left afterwards, and the images are free."""

    async def whole() -> None:
        system = System(load(file))
        await system.start()
        try:
            await scenario(system)
        finally:
            await system.stop()

    before = held()
    asyncio.run(asyncio.wait_for(whole(), 60))
    assert held() == before
    assert not list(file.parent.glob("*.sock"))
    for image in file.parent.glob("*.img"):
        open_image(image).close()  # raises if it is still locked


class PlainNbd:
    """A minimal NBD client of our own: when a write was acknowledged is known here to the byte."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(20)
        self.socket.connect(str(path))
        self.file = self.socket.makefile("rb")
        assert self.file.read(18)[:8] == b"NBDMAGIC"
        # flags 3: fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with an empty name
        self.socket.sendall(struct.pack(">IQII", 3, 0x49484156454F5054, 1, 0))
        self.size, self.flags = struct.unpack(">QH", self.file.read(10))

    def write(self, position: int, data: bytes) -> bool:
        """Whether the write was acknowledged."""
        try:
            self.socket.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 1, position, position, len(data)) + data)
            reply = self.file.read(16)
        except OSError:
            return False
        if len(reply) < 16:
            return False
        magic, error, cookie = struct.unpack(">IIQ", reply)
        assert (magic, cookie) == (0x67446698, position)
        return bool(error == 0)

    def close(self) -> None:
        self.file.close()
        self.socket.close()
