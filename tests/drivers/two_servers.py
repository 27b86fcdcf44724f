"""A client partition whose disk two VIO servers serve, in one thread: everybody runs when the test says so."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockRequest
from powervio.drivers.multipath import MultipathCore, Policy
from powervio.phyp.hypervisor import Hypervisor
from powervio.storage.image import Image
from powervio.storage.share import ImageShare
from powervio.testing.clock import Clock
from powervio.testing.pair import NotSettled
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer

BLOCK = 4096
SIZE = 1 << 20
INTERVAL = 5.0


class Server:
    """One VIO server with its way to the disk; `hangs` while its thread is stuck in something."""

    def __init__(self, rig: TwoServers, number: int, options: BlockOptions) -> None:
        self.rig = rig
        self.options = options
        self.hangs = False
        self.partition = rig.hypervisor.create_partition(f"vios{number}", 4 << 20)
        self.adapter, self.client_adapter = rig.hypervisor.create_pair(self.partition, rig.client_partition)
        self.kernel: PartitionKernel | None = None

    def boot(self, image: Image | None = None) -> None:
        self.hangs = False
        self.image = image or self.rig.share.open()
        self.device = BlockDevice(self.image, self.options)
        self.kernel = PartitionKernel(self.partition.port, clock=self.rig.clock)
        self.end = VirtioCrq(self.kernel, self.adapter.node, self.device)
        self.end.start()

    def die(self) -> None:
        """In the order that `system.servers` keeps: nothing of it is at work when its partner hears of it."""
        assert self.kernel is not None
        self.image.close()
        self.rig.hypervisor.fail(self.partition)
        self.kernel.close()
        self.kernel = None

    def poll(self) -> bool:
        return self.kernel is not None and not self.hangs and self.kernel.poll()


class TwoServers:
    def __init__(
        self,
        folder: Path,
        *,
        policy: Policy = "failover",
        options: tuple[BlockOptions, BlockOptions] | None = None,
        other_image: Image | None = None,
    ) -> None:
        self.clock = Clock()
        self.hypervisor = Hypervisor()
        self.share = ImageShare(folder / "disk.img", create_size=SIZE)
        self.client_partition = self.hypervisor.create_partition("client1", 16 << 20)
        self.client_kernel = PartitionKernel(self.client_partition.port, clock=self.clock)
        self.servers = [Server(self, number, (options or (BlockOptions(),) * 2)[number - 1]) for number in (1, 2)]
        self.disk = MultipathCore(["vios1", "vios2"], self.client_kernel, policy=policy, check_interval=INTERVAL)
        self.paths = self.disk.paths
        self.clients = [
            VirtioVio(self.client_kernel, server.client_adapter.node, path)
            for server, path in zip(self.servers, self.paths, strict=True)
        ]
        self.done: list[BlockRequest] = []
        self.servers[0].boot()
        self.servers[1].boot(other_image)
        for client in self.clients:
            client.start()
        self.settle()

    def settle(self, turns: int = 10_000) -> None:
        for _ in range(turns):
            worked = [server.poll() for server in self.servers]
            if not (self.client_kernel.poll() or any(worked)):
                return
        raise NotSettled(f"still busy after {turns} turns")

    def advance(self, seconds: float) -> None:
        """Let time pass, in steps in which every timer gets its turn."""
        for _ in range(int(seconds / 0.25)):
            self.clock.now += 0.25
            self.settle()

    def submit(self, kind: int, block: int = 0, content: bytes | None = None, count: int = 1) -> BlockRequest:
        """One request; a write has `content`, a read room for `count` blocks."""
        slices = []
        length = len(content) if content is not None else count * BLOCK
        if kind in (blk.T_IN, blk.T_OUT):
            buffer = self.buffer(content or bytes(length))
            slices = [(buffer, 0, length)]
        request = BlockRequest(
            kind, block * BLOCK, length if slices else 0, slices, self.done.append, context=slices and slices[0][0]
        )
        self.disk.submit(request)
        self.disk.kick()
        return request

    def buffer(self, content: bytes) -> Buffer:
        address = self.client_kernel.pages.allocate(len(content))
        view = self.client_kernel.pages.memory[address : address + len(content)]
        view[:] = content
        return Buffer(view, address, None)

    def write_all(self, count: int = 32) -> list[bytes]:
        """Submit so many writes of a block each; what they write."""
        contents = [os.urandom(BLOCK) for _ in range(count)]
        for block, content in enumerate(contents):
            self.submit(blk.T_OUT, block, content)
        return contents

    def on_medium(self, count: int) -> bytes:
        with self.share.open() as image:
            back = bytearray(count * BLOCK)
            image.read_into(0, memoryview(back))
        return bytes(back)

    @property
    def states(self) -> list[str]:
        return [path.state.value for path in self.paths]

    def close(self) -> None:
        for server in self.servers:
            if server.kernel is not None:
                server.kernel.close()
                server.image.close()
        self.client_kernel.close()
        self.hypervisor.close()
        self.share.close()


Make = Callable[..., TwoServers]
