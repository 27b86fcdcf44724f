"""A hypervisor with a gateway in this process, and partitions in processes of their own; nothing outlives its test."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from powervio.devices.block import BlockDevice
from powervio.gateway.server import Door, Gateway
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.storage.image import open_image
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

MIB = 1 << 20
LIMIT = 60.0


class Process:
    """`powervio.testing.partition_process`, talked to by lines."""

    def __init__(self, *arguments: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "powervio.testing.partition_process", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._rest = b""

    def line(self, limit: float = LIMIT) -> str:
        """The next line that it says; "" when it has ended."""
        assert self.popen.stdout is not None
        end = time.monotonic() + limit
        while b"\n" not in self._rest:
            ready = select.poll()  # a number from 1024 on is too large for `select`
            ready.register(self.popen.stdout, select.POLLIN)
            assert ready.poll(1000 * max(0.0, end - time.monotonic())), "it says nothing"
            piece = os.read(self.popen.stdout.fileno(), 65536)
            if not piece:
                return ""
            self._rest += piece
        line, self._rest = self._rest.split(b"\n", 1)
        return line.decode()

    def tell(self, line: str) -> None:
        """Give it a line without waiting for what it answers."""
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()

    def ask(self, line: str) -> str:
        self.tell(line)
        return self.line()

    def kill(self) -> None:
        """As by kill -9."""
        self.popen.kill()
        self.popen.wait()

    def close(self) -> None:
        if self.popen.poll() is None:
            self.kill()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                pipe.close()


class House:
    """Doors for a VIO server and a client partition with one adapter pair."""

    def __init__(self, folder: Path, *, memory: int = 16 * MIB, turn: int = 64) -> None:
        self.folder = folder
        self.hypervisor = Hypervisor()
        self.server = self.hypervisor.create_partition("vios1", memory)
        self.client = self.hypervisor.create_partition("client1", memory)
        self.server_adapter, self.client_adapter = self.hypervisor.create_pair(self.server, self.client)
        self.gateway = Gateway(turn=turn)
        self._ends: list[Callable[[], object]] = []

    def __enter__(self) -> House:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.gateway.stop()
        for end in reversed(self._ends):
            end()
        self.gateway.close()
        self.hypervisor.close()

    def door(self, partition: Partition, vectors: int = 2) -> Door:
        return self.gateway.add(partition, str(self.folder / f"{partition.name}.door"), vectors=vectors)

    def process(self, role: str, door: Door, *arguments: str) -> Process:
        """A process that has begun."""
        made = Process(role, door.path, *arguments)
        self._ends.append(made.close)
        assert made.line() == "ready"
        return made

    def at_end(self, call: Callable[[], object]) -> None:
        self._ends.append(call)

    def serve(self, image: Path) -> None:
        """Run the VIO server in a thread of this process."""
        opened = open_image(image)
        kernel = PartitionKernel(self.server.port)
        VirtioCrq(kernel, self.server_adapter.node, BlockDevice(opened)).start()
        kernel.start()
        self._ends += [opened.close, kernel.close]


def wait_until(true: Callable[[], bool], what: str, limit: float = LIMIT) -> None:
    end = time.monotonic() + limit
    pause = threading.Event()
    while not true():
        assert time.monotonic() < end, what
        pause.wait(0.005)
