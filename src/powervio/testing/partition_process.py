"""A partition in a process of its own, for tests: `python -m powervio.testing.partition_process ROLE DOOR ...`.

    serve DOOR IMAGE    a VIO server: serves the image to each adapter that it has
    disk DOOR           a client with one disk; does what it reads from standard input, a line of answer for each
    lan DOOR            a logical LAN adapter that sends each frame back to where it came from

Lines for `disk`: `write FIRST COUNT SEED DEPTH` and `check FIRST COUNT SEED DEPTH` of blocks of 4 KiB, whose content
follows from seed and number; `read BLOCK` of one, told as a hash. Lines for `lan`: `counts`, answered with frames
received and sent, and those that found no buffer. All print `ready` when they have begun, and end when the hypervisor
has gone or standard input ends.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
from collections.abc import Callable
from pathlib import Path

from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockRequest
from powervio.drivers.block_core import BlockCore
from powervio.errors import LocalError
from powervio.gateway.remote_port import RemotePort
from powervio.native.lan_client import LanPort
from powervio.network.port import Frame, Offload
from powervio.storage.image import open_image
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk

BLOCK = 4096
LIMIT = 60.0
"""Seconds that one line may take."""


def content(seed: int, number: int) -> bytes:
    """What `write` writes to a block."""
    return random.Random(seed << 32 | number).randbytes(BLOCK)


class Disk:
    """The disk of a client partition, driven by one thread."""

    def __init__(self, kernel: PartitionKernel) -> None:
        self.kernel = kernel
        self.core = BlockCore()
        node = next(iter(kernel.port.nodes.values()))
        self.end = VirtioVio(kernel, node, self.core)
        self.end.start()

    def run(self, kind: int, first: int, count: int, depth: int, seed: int) -> list[str]:
        """Blocks written or checked, `depth` in flight; what went wrong."""
        wrong: list[str] = []
        free = [self.end.allocate(BLOCK, mapped=False) for _ in range(depth)]
        everything = list(free)
        left = list(range(first, first + count))[::-1]
        done = 0

        def submit() -> None:
            number, buffer = left.pop(), free.pop()
            if kind == blk.T_OUT:
                buffer.view[:] = content(seed, number)

            def completed(request: BlockRequest) -> None:
                nonlocal done
                done += 1
                if request.error is not None:
                    wrong.append(f"block {number}: {request.error}")
                elif kind == blk.T_IN and buffer.view != content(seed, number):
                    wrong.append(f"block {number} has other content")
                free.append(buffer)

            self.core.submit(BlockRequest(kind, number * BLOCK, BLOCK, ((buffer, 0, BLOCK),), completed))

        end = self.kernel.clock() + LIMIT
        while done < count:
            while left and free:
                submit()
            self.core.kick()
            if not self.kernel.poll():
                self.kernel.wait(0.05)
            if self.kernel.clock() > end:
                return [*wrong, f"{count - done} requests have not ended within {LIMIT:g} s"]
        for buffer in everything:
            self.end.release(buffer)
        return wrong

    def read(self, number: int) -> str:
        """The hash of one block."""
        buffer = self.end.allocate(BLOCK, mapped=False)
        ended: list[BlockRequest] = []
        self.core.submit(BlockRequest(blk.T_IN, number * BLOCK, BLOCK, ((buffer, 0, BLOCK),), ended.append))
        self.core.kick()
        end = self.kernel.clock() + LIMIT
        while not ended and self.kernel.clock() < end:
            if not self.kernel.poll():
                self.kernel.wait(0.05)
        found = hashlib.sha256(buffer.view).hexdigest()
        self.end.release(buffer)
        return found if ended and ended[0].error is None else f"failed: {ended[0].error if ended else 'no answer'}"


def serve(port: RemotePort, image: Path) -> None:
    """Be a VIO server until the hypervisor has gone."""
    with open_image(image) as backing:
        kernel = PartitionKernel(port)
        ends = [VirtioCrq(kernel, node, BlockDevice(backing)) for node in port.nodes.values()]
        for end in ends:
            end.start()
        print("ready", flush=True)
        kernel.add_reader(port.connection_fd, lambda: None)
        while port.check():
            if not kernel.poll():
                kernel.wait()


class Echo:
    """A logical LAN adapter whose frames go back."""

    def __init__(self, kernel: PartitionKernel) -> None:
        self.port = LanPort(kernel, next(iter(kernel.port.nodes.values())))
        self.port.on_arrival = self._arrived
        self.port.start()
        self.port.take(Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN)

    def _arrived(self) -> None:
        while (frame := self.port.receive()) is not None:
            data = bytes(frame.data)
            back = data[6:12] + self.port.mac + data[12:]
            self.port.send(Frame(back, frame.partial, frame.valid, frame.gso, frame.gso_size, frame.header_bytes))

    def counts(self) -> str:
        """What became of frames."""
        return f"{self.port.received} {self.port.sent} {self.port.no_buffer}"


def disk(port: RemotePort) -> None:
    """Be a client with a disk until standard input ends."""
    kernel = PartitionKernel(port)
    made = Disk(kernel)
    _obey(port, kernel, lambda line: _answer(made, line))


def lan(port: RemotePort) -> None:
    """Be an echo until standard input ends."""
    kernel = PartitionKernel(port)
    made = Echo(kernel)
    _obey(port, kernel, lambda _: made.counts())


def _obey(port: RemotePort, kernel: PartitionKernel, answer: Callable[[str], str]) -> None:
    lines: list[bytes] = []
    open_ended = True

    def hear() -> None:
        nonlocal open_ended
        line = sys.stdin.buffer.readline()
        open_ended = bool(line)
        lines.append(line)

    print("ready", flush=True)
    kernel.add_reader(sys.stdin.fileno(), hear)
    kernel.add_reader(port.connection_fd, lambda: None)
    while open_ended and port.check():
        if not kernel.poll():
            kernel.wait()
        if lines and lines[0].strip():
            print(answer(lines.pop(0).decode()), flush=True)


def _answer(made: Disk, line: str) -> str:
    command, *rest = line.split()
    numbers = [int(number) for number in rest]
    if command == "read":
        return made.read(numbers[0])
    first, count, seed, depth = numbers
    kind = blk.T_OUT if command == "write" else blk.T_IN
    return "; ".join(made.run(kind, first, count, depth, seed)) or "good"


def main() -> int:
    """The program."""
    parser = argparse.ArgumentParser(prog="partition_process")
    parser.add_argument("role", choices=("serve", "disk", "lan"))
    parser.add_argument("door")
    parser.add_argument("image", nargs="?", type=Path)
    parser.add_argument("--limit", type=float, default=1.0, help="seconds that an hcall may take")
    given = parser.parse_args()
    try:
        port = RemotePort.connect(given.door, limit=given.limit)
    except LocalError as error:
        print(f"failed: {error}", flush=True)
        return 1
    if given.role == "serve":
        serve(port, given.image)
    elif given.role == "lan":
        lan(port)
    else:
        disk(port)
    print(f"ended: {port.lost or 'standard input ended'}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
