"""A whole system in one process and one thread: hypervisor, VIO server, client, one device and its driver.

Nothing runs by itself: `settle` gives both partitions a turn until neither has anything to do, so every run of a test
is the same. `run_threaded` is there for tests of the real concurrency.
"""

from __future__ import annotations

from collections.abc import Callable

from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.clock import Clock
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.driver_queue import IndirectPolicy
from powervio.transport.crq.redirect import REDIRECT_MIN
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio.device import Device
from powervio.virtio.driver import Driver


class NotSettled(AssertionError):
    """The partitions were still busy after the allowed number of turns: something goes round in circles."""


class PartitionPair:
    """A VIO server and a client partition with one virtio adapter pair between them."""

    def __init__(
        self,
        device: Device,
        driver: Driver,
        *,
        revision: int = 1,
        server_revision: int = 1,
        big_endian: bool = False,
        indirect: IndirectPolicy = "auto",
        event_idx: bool = False,
        packed: bool = False,
        in_order: bool = False,
        lazy_unmapping: bool = False,
        channels: bool | None = None,
        server_channels: bool = True,
        redirect: bool = False,
        redirect_min: int = REDIRECT_MIN,
        memory: int = 16 << 20,
        hypervisor: Hypervisor | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`memory` is the size of each partition in bytes.

        With `redirect` the server has a physical adapter, and transfers of `redirect_min` bytes or more go by it.
        """
        self.clock = Clock()
        self.hypervisor = hypervisor or Hypervisor()
        self.server_partition = self.hypervisor.create_partition("vios1", memory)
        self.client_partition = self.hypervisor.create_partition("client1", memory)
        self.server_adapter, self.client_adapter = self.hypervisor.create_pair(
            self.server_partition, self.client_partition
        )
        if redirect:
            self.hypervisor.create_physical_adapter(self.server_partition)
        self.steps: list[str] = []
        self.server_kernel = PartitionKernel(self.server_partition.port, clock=clock or self.clock)
        self.client_kernel = PartitionKernel(self.client_partition.port, clock=clock or self.clock)
        self.device = device
        self.driver = driver
        self.server = VirtioCrq(
            self.server_kernel,
            self.server_adapter.node,
            device,
            highest_revision=server_revision,
            in_order=in_order,
            channels=server_channels,
            redirect_min=redirect_min,
            trace=self.steps.append,
        )
        self.client = VirtioVio(
            self.client_kernel,
            self.client_adapter.node,
            driver,
            revision=revision,
            big_endian=big_endian,
            indirect=indirect,
            event_idx=event_idx,
            packed=packed,
            in_order=in_order,
            lazy_unmapping=lazy_unmapping,
            channels=channels,
            trace=self.steps.append,
        )

    def start(self) -> PartitionPair:
        """Start both ends and let them negotiate."""
        self.server.start()
        self.client.start()
        self.settle()
        return self

    def settle(self, turns: int = 10_000) -> None:
        """Run both partitions until neither has anything to do now (timers wait for `advance`)."""
        for _ in range(turns):
            worked = self.server_kernel.poll()
            worked = self.client_kernel.poll() or worked
            if not worked:
                return
        raise NotSettled(f"still busy after {turns} turns")

    def advance(self, seconds: float) -> None:
        """Let time pass, firing timers on the way, and settle."""
        end = self.clock.now + seconds
        self.settle()
        while True:
            deadlines = [d for d in (self.server_kernel.next_deadline(), self.client_kernel.next_deadline()) if d]
            if not deadlines or min(deadlines) > end:
                break
            self.clock.now = max(self.clock.now, min(deadlines))
            self.settle()
        self.clock.now = end
        self.settle()

    def close(self) -> None:
        """Release everything."""
        self.server_kernel.close()
        self.client_kernel.close()
        self.hypervisor.close()
