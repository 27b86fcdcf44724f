"""A VIO server and a client, or several, with virtio disks between them, in this process: what demo and benchmarks
run on.

The clients' code runs in the calling thread. The VIO server has a thread of its own (`threaded`), or both partitions
take turns in the calling thread; then every run makes the same hypervisor calls in the same order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Protocol, TypeVar

from powervio.bench.folder import signals_wait
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.ledger import CostLedger, Costs
from powervio.phyp.partition import Partition
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

_T = TypeVar("_T")

LIMIT = 20.0
"""Seconds without any progress after which a wait is given up."""


class Recorder(Protocol):
    """Who is told of the steps of a handshake."""

    def watch(self, costs: Callable[[], tuple[Costs, Costs]]) -> None:
        """`costs` gives what the client's and the server's adapter have cost so far; called before the start."""

    def client(self, name: str) -> None:
        """The client made a step; called in its partition's thread."""

    def server(self, name: str) -> None:
        """The server made a step; called in its partition's thread."""


class Disk:
    """One adapter pair: device and server end in the VIO server, client end and driver in the client."""

    def __init__(
        self,
        rig: Rig,
        backing: Backing,
        driver: BlockDriver,
        options: BlockOptions | None,
        revision: int,
        packed: bool,
        in_order: bool,
        recorder: Recorder | None,
        client: int,
    ) -> None:
        self.rig = rig
        self.client_partition = rig.client_partitions[client]
        self.driver = driver
        self.device = BlockDevice(backing, options)
        self.server_adapter: VioAdapter
        self.client_adapter: VioAdapter
        self.server_adapter, self.client_adapter = rig.hypervisor.create_pair(
            rig.server_partition, self.client_partition
        )
        self.server = VirtioCrq(
            rig.server_kernel,
            self.server_adapter.node,
            self.device,
            in_order=in_order,
            redirect_min=rig.redirect_min,
            trace=None if recorder is None else recorder.server,
        )
        self.client = VirtioVio(
            rig.client_kernels[client],
            self.client_adapter.node,
            driver,
            revision=revision,
            packed=packed,
            in_order=in_order,
            trace=None if recorder is None else recorder.client,
        )
        if recorder is not None:
            ledgers = self.client_adapter.ledger, self.server_adapter.ledger
            recorder.watch(lambda: (ledgers[0].snapshot(), ledgers[1].snapshot()))

    def costs(self) -> Costs:
        """What the two adapters and their partitions have cost so far.

        The partitions' own counters are in it for H_XIRR that found nothing: they belong to this disk when it is the
        only one.
        """
        ledgers = (
            self.server_adapter.ledger,
            self.client_adapter.ledger,
            self.rig.server_partition.ledger,
            self.client_partition.ledger,
        )
        return costs_of(ledgers)


def costs_of(ledgers: Iterable[CostLedger]) -> Costs:
    """What they have counted so far, together."""
    return sum((ledger.snapshot() for ledger in ledgers), start=CostLedger().snapshot())


class Rig:
    """Hypervisor, the partitions vios1 and client1, client2 and so on, and their disks. Use as a context manager."""

    def __init__(
        self, *, threaded: bool, clients: int = 1, memory: int = 64 << 20, redirect_min: int | None = None
    ) -> None:
        """`memory` is the size of each partition in bytes.

        With `redirect_min` the VIO server has a physical adapter, and transfers of so many bytes or more go by it.
        """
        self.threaded = threaded
        self.hypervisor = Hypervisor()
        self.server_partition = self.hypervisor.create_partition("vios1", memory)
        self.client_partitions: list[Partition] = [
            self.hypervisor.create_partition(f"client{number + 1}", memory) for number in range(clients)
        ]
        self.redirect_min = redirect_min
        if redirect_min is not None:
            self.hypervisor.create_physical_adapter(self.server_partition)
        self.server_kernel = PartitionKernel(self.server_partition.port)
        self.client_kernels = [PartitionKernel(partition.port) for partition in self.client_partitions]
        self.disks: list[Disk] = []
        if threaded:
            self.server_kernel.start()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def add_disk(
        self,
        backing: Backing,
        driver: BlockDriver | None = None,
        options: BlockOptions | None = None,
        *,
        revision: int = 1,
        packed: bool = False,
        in_order: bool = False,
        recorder: Recorder | None = None,
        client: int = 0,
    ) -> Disk:
        """Serve `backing` to a client and wait until its driver runs. Raises `LocalError` if it does not.

        `packed` is the client's (`VirtioVio`), `in_order` both ends'; `recorder` is told of the handshake's steps;
        `client` counts from 0.
        """
        disk = Disk(self, backing, driver or BlockDriver(), options, revision, packed, in_order, recorder, client)
        self.disks.append(disk)
        self.server_kernel.call(disk.server.start)
        disk.client.start()
        self.wait_until(lambda: disk.client.running, "the configuration handshake", lambda: disk.client.failure)
        return disk

    def turn(self) -> bool:
        """Let the partitions that run in this thread do what they can do now."""
        worked = False
        for kernel in self.client_kernels:
            worked = kernel.poll() or worked
        if not self.threaded:
            worked = self.server_kernel.poll() or worked
        return worked

    def wait_until(
        self, done: Callable[[], bool], what: str, why: Callable[[], str] | None = None, limit: float = LIMIT
    ) -> None:
        """Run the clients until `done`; `why` may add what went wrong.

        Raises `LocalError` when there was nothing to do for `limit` seconds.
        """
        deadline = time.monotonic() + limit
        while not done():
            if self.turn():
                deadline = time.monotonic() + limit
                continue
            left = deadline - time.monotonic()
            if left <= 0:
                reason = f"; {why()}" if why is not None and why() else ""
                raise LocalError(f"{what} did not end: nothing happened for {limit:.0f} s{reason}")
            # In one thread only a timer can bring news; with several clients only one is heard while this sleeps.
            alone = self.threaded and len(self.client_kernels) == 1
            self.client_kernels[0].wait(min(left, 0.5 if alone else 0.01))

    def run(self, work: Coroutine[Any, Any, _T], limit: float = LIMIT) -> _T:
        """Run a coroutine that awaits the drivers, with this thread's partitions in its event loop.

        An operation that the device does not answer cannot be cancelled, for the device has its buffer. So when no
        request completes for `limit` seconds, the disks are taken away, which ends all operations with an error.
        """
        running: list[Callable[[], object]] = []

        async def cancellable() -> _T:
            task = asyncio.current_task()
            assert task is not None
            running.append(partial(asyncio.get_running_loop().call_soon_threadsafe, task.cancel))
            return await self._run(work, limit)

        def cancel() -> None:
            for act in running:
                with suppress(RuntimeError):  # the loop is closed
                    act()

        # A signal that raised in the loop would end all tasks at once, and the guard with them.
        with signals_wait(cancel):
            return asyncio.run(cancellable())

    async def _run(self, work: Coroutine[Any, Any, _T], limit: float) -> _T:
        loop = asyncio.get_running_loop()
        kernels = self.client_kernels if self.threaded else [*self.client_kernels, self.server_kernel]
        for kernel in kernels:
            kernel.attach(loop)
        guard = loop.create_task(self._guard(limit))
        try:
            return await work
        finally:
            # what the device has comes back to these tasks as long as the kernels run
            rest = asyncio.all_tasks() - {guard, asyncio.current_task()}
            for task in rest:
                task.cancel()
            await asyncio.gather(*rest, return_exceptions=True)
            guard.cancel()
            for kernel in kernels:
                kernel.detach()

    async def _guard(self, limit: float) -> None:
        last: list[int] = []
        since = time.monotonic()
        while True:
            await asyncio.sleep(limit / 10)
            now = [disk.driver.requests for disk in self.disks]
            waiting = any(disk.driver.in_flight or disk.driver.pending for disk in self.disks)
            if now != last or not waiting:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > limit:
                for disk in self.disks:
                    disk.driver.fail_all(f"no request completed for {limit:.0f} s")
                    disk.client.stop()

    def close(self) -> None:
        """Stop both ends of every disk, then the partitions. Backings are their owner's to close."""
        for disk in self.disks:
            disk.client.stop()
            self.server_kernel.call(disk.server.stop)
        for kernel in self.client_kernels:
            kernel.close()
        self.server_kernel.close()
        self.hypervisor.close()
