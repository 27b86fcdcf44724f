"""A managed system in this process: built from its declaration, started, looked at, stopped.

The client partitions run in the event loop, because who uses their disks (NBD) is there too. A VIO server partition
runs in the same loop, or in a thread of its own when its declaration says so.

What is begun is undone in the opposite order, on `stop` and when `start` fails half-way: the sockets close first,
what is in a disk's cache is flushed, then the clients end, then the servers, and the images are closed when nothing
can touch them any more. An undoing that fails is told at the end and keeps nothing else from being undone.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from powervio.attach.block import BlockDisk
from powervio.attach.nbd import NbdServer
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.throttle import Limits
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.storage.image import Image
from powervio.storage.nbd_backing import NbdBacking
from powervio.storage.open import is_uri, open_disk
from powervio.system import volumes
from powervio.system.config import Config, Disk, Lpar
from powervio.system.rundir import private_folder
from powervio.system.sizing import BUFFER_SIZE, buffers_of_each
from powervio.transport.crq.client import ClientState, VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

_log = logging.getLogger(__name__)

CONNECT_LIMIT = 15.0
"""Seconds for a client to reach its VIO server and settle with it."""
FLUSH_LIMIT = 30.0
"""Seconds for a disk's last flush."""
RESIZE_LIMIT = 2.0
"""Seconds for a client to learn of its disk's new size before its NBD server tells new clients of it."""
STOP_LIMIT = 15.0
"""Seconds for a VIO server to end what it is doing with an image."""


@dataclasses.dataclass(slots=True)
class ServedDisk:
    """One disk of a running system: both ends, and what they stand on."""

    where: str
    """Its path in the system file."""
    declared: Disk
    image: Backing
    server_adapter: VioAdapter
    client_adapter: VioAdapter
    device: BlockDevice
    driver: BlockDriver
    server: VirtioCrq
    client: VirtioVio
    nbd: NbdServer[Any] | None = None


class System:
    """A managed system; used in one event loop, started and stopped once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.hypervisor = Hypervisor()
        self.disks: list[ServedDisk] = []
        self._kernels: dict[str, PartitionKernel] = {}
        self._partitions: dict[str, Partition] = {}
        self._undo = AsyncExitStack()
        self._problems: list[str] = []
        self._private: str | None = None
        self._since = time.monotonic()

    async def start(self) -> None:
        """Build everything and wait until it serves. Raises `LocalError`; nothing is left then, nor when cancelled."""
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise

    async def stop(self) -> None:
        """Undo everything; what was acknowledged is in the images then.

        Raises `LocalError` with all that went wrong on the way, after everything was tried.
        """
        await self._undo.aclose()
        problems, self._problems = self._problems, []
        if problems:
            raise LocalError("\n".join(problems))

    async def _start(self) -> None:
        self._later("the hypervisor", self.hypervisor.close)
        for vios in self.config.vios:
            self._make_partition(vios.name, vios.memory)
        for lpar in self.config.lpar:
            self._make_partition(lpar.name, lpar.memory)
        for where, lpar, declared in self.config.disks():
            try:
                image = await self._open(declared)
                self.disks.append(self._make_disk(where, lpar, declared, image))
            except LocalError as error:
                raise self._at(where, error) from error
        for vios in self.config.vios:
            self._run_server(vios.name, thread=vios.thread)
        for lpar in self.config.lpar:
            self._run_client(lpar.name)
        for disk in self.disks:
            await self._connected(disk)
            self._later(f"flushing {disk.declared.image}", self._flush, disk)
        for disk in self.disks:
            if disk.declared.nbd is not None:
                await self._export(disk, disk.declared.nbd)

    def _make_partition(self, name: str, memory: int) -> None:
        try:
            partition = self.hypervisor.create_partition(name, memory)
        except OSError as error:
            raise LocalError(f"{memory} bytes of memory for partition {name}: {error.strerror}") from error
        kernel = PartitionKernel(partition.port)
        self._partitions[name] = partition
        self._kernels[name] = kernel
        self._later(f"the kernel of partition {name}", kernel.close)

    async def _open(self, declared: Disk) -> Backing:
        """Open a disk's image, elsewhere than in the loop: a predecessor may still have it, a server may be slow."""
        folder = None
        if declared.format not in (None, "raw"):
            folder = self._folder()
        opening = asyncio.ensure_future(
            asyncio.to_thread(
                open_disk,
                declared.image,
                image_format=declared.format,
                read_only=declared.readonly,
                direct=declared.direct,
                create_size=_size_to_make(declared),
                folder=folder,
            )
        )
        try:
            image = await asyncio.shield(opening)
        except asyncio.CancelledError:
            with contextlib.suppress(LocalError):
                (await opening).close()
            raise
        self._later(f"closing {declared.image}", asyncio.to_thread, image.close)
        return image

    def _folder(self) -> str:
        """A private folder for sockets between this process and its helpers, made when it is first needed."""
        if self._private is None:
            self._private = private_folder()
            self._later(f"removing {self._private}", shutil.rmtree, self._private, True)
        return self._private

    def _make_disk(self, where: str, lpar: Lpar, declared: Disk, image: Backing) -> ServedDisk:
        block_size = declared.block_size or image.block_size
        if image.size % block_size:
            raise LocalError(f"image {declared.image} has {image.size} bytes; expected whole blocks of {block_size}")
        server_adapter, client_adapter = self.hypervisor.create_pair(
            self._partitions[declared.vios], self._partitions[lpar.name], client_slot=declared.slot
        )
        options = BlockOptions(
            serial=declared.serial,
            read_only=declared.readonly,
            queues=declared.queues,
            queue_size=declared.queue_size,
            block_size=declared.block_size,
            writeback=declared.write_cache,
            discard=declared.discard,
            limits=_limits(declared),
        )
        device = BlockDevice(image, options)
        buffers = buffers_of_each(lpar.memory, lpar.disk)
        driver = BlockDriver(max_queues=declared.queues, buffers=buffers, buffer_size=BUFFER_SIZE)
        return ServedDisk(
            where=where,
            declared=declared,
            image=image,
            server_adapter=server_adapter,
            client_adapter=client_adapter,
            device=device,
            driver=driver,
            server=VirtioCrq(self._kernels[declared.vios], server_adapter.node, device),
            client=VirtioVio(
                self._kernels[lpar.name],
                client_adapter.node,
                driver,
                revision=declared.revision,
                big_endian=declared.byteorder == "big",
                indirect=declared.indirect,
                event_idx=declared.event_idx,
            ),
        )

    def _run_server(self, name: str, *, thread: bool) -> None:
        kernel = self._kernels[name]
        disks = [disk for disk in self.disks if disk.declared.vios == name]
        for disk in disks:
            disk.server.start()
        if thread:
            kernel.start()
        else:
            kernel.attach(asyncio.get_running_loop())

        async def stop() -> None:
            def stop_all() -> None:
                for disk in disks:
                    disk.server.stop()

            # Elsewhere than in the loop, for a thread that waits for a slow disk must not keep everything else waiting.
            await (asyncio.to_thread(kernel.call, stop_all, STOP_LIMIT) if thread else _now(stop_all))
            if not await asyncio.to_thread(kernel.stop, STOP_LIMIT):
                raise LocalError(f"its thread did not end within {STOP_LIMIT:.0f} s")

        self._later(f"VIO server {name}", stop)

    def _run_client(self, name: str) -> None:
        kernel = self._kernels[name]
        disks = [disk for disk in self.disks if disk.client_adapter.partition.name == name]
        kernel.attach(asyncio.get_running_loop())

        def stop() -> None:
            for disk in disks:
                disk.driver.fail_all("the system stops")
                disk.client.stop()

        self._later(f"client {name}", stop)
        for disk in disks:
            disk.client.start()

    async def _connected(self, disk: ServedDisk) -> None:
        """Wait until the client's driver runs."""
        client = disk.client
        changed = asyncio.Event()
        client.on_state = lambda state: changed.set()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                while not client.running:
                    if client.state is ClientState.FAILED:
                        raise LocalError(f"{self._place(disk.where)}: {client.failure}")
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            reason = f": {client.failure}" if client.failure else ""
            raise LocalError(
                f"{self._place(disk.where)}: waited {CONNECT_LIMIT:g} s for {disk.declared.vios} to serve it;"
                f" the client is {client.state.value}, the server {disk.server.state}{reason}"
            ) from None
        finally:
            client.on_state = None

    async def _export(self, disk: ServedDisk, path: str) -> None:
        try:
            server = NbdServer(
                BlockDisk(disk.driver),
                path,
                name=disk.client_adapter.partition.name,
                description=f"{disk.client_adapter.node.location_code} served by {disk.declared.vios}",
            )
            await server.start()
        except LocalError as error:
            raise self._at(f"{disk.where}.nbd", error) from error
        disk.nbd = server
        self._later(f"the NBD server at {path}", server.close)

    async def resize_disk(self, disk: ServedDisk, size: int) -> None:
        """Give a served raw image another size; its client is told by a change of its config.

        Raises `LocalError`. Data that a smaller size cuts off are gone.
        """
        image, device = disk.image, disk.device
        if not isinstance(image, Image):
            raise LocalError(f"{disk.declared.image} is not a raw image; only those are resized here")

        def resize() -> None:
            if size < image.size:
                device.resize(size)  # first nobody reaches what goes
                image.resize(size)
            else:
                image.resize(size)
                device.resize(size)

        await self.call_server(disk, resize)
        if disk.nbd is not None:
            deadline = time.monotonic() + RESIZE_LIMIT
            while disk.driver.capacity != size and disk.client.running and time.monotonic() < deadline:
                await asyncio.sleep(0.005)
            disk.nbd.resized(disk.driver.capacity)

    async def call_server(self, disk: ServedDisk, function: Callable[[], None]) -> None:
        """Call in the thread of the VIO server that serves this disk."""
        name = disk.declared.vios
        if next(vios.thread for vios in self.config.vios if vios.name == name):
            await asyncio.to_thread(self._kernels[name].call, function, STOP_LIMIT)
        else:
            function()

    async def pool(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The control request `pool`: see `volumes`."""
        return await volumes.answer(self, arguments)

    async def _flush(self, disk: ServedDisk) -> None:
        if disk.image.read_only:
            return
        if not disk.client.running:
            # the way of the client is broken; what it was told is done is with the image already
            await asyncio.to_thread(disk.image.flush)
            return
        try:
            async with asyncio.timeout(FLUSH_LIMIT):
                await disk.driver.flush()
        except TimeoutError:
            raise LocalError(f"not done within {FLUSH_LIMIT:.0f} s") from None

    # -- undoing

    def _later(self, what: str, function: Callable[..., Awaitable[None] | None], *arguments: Any) -> None:
        """Remember how to undo what was just begun; `what` names it if that fails."""

        async def attempt() -> None:
            try:
                result = function(*arguments)
                if result is not None:
                    await result
            except Exception as error:
                reason = error if isinstance(error, (LocalError, OSError)) else repr(error)
                _log.debug("stopping: %s failed", what, exc_info=True)
                self._problems.append(f"{what}: {reason}")

        self._undo.push_async_callback(attempt)

    def _place(self, where: str) -> str:
        return f"{self.config.file}: {where}"

    def _at(self, where: str, error: LocalError) -> LocalError:
        return LocalError(f"{self._place(where)}: {error}")

    # -- looking

    def report(self) -> dict[str, Any]:
        """What `powervio ps --json` prints: plain values. Each end of each adapter pair has an entry."""
        adapters: list[dict[str, Any]] = []
        for disk in self.disks:
            adapters += (_client_entry(disk), _server_entry(disk))
        return {
            "system": {
                "name": self.config.name,
                "file": os.path.abspath(self.config.file),
                "pid": os.getpid(),
                "seconds": round(time.monotonic() - self._since, 3),
            },
            "vios": [{"name": vios.name, "memory": vios.memory, "thread": vios.thread} for vios in self.config.vios],
            "lpar": [{"name": lpar.name, "memory": lpar.memory} for lpar in self.config.lpar],
            "adapters": adapters,
        }


def _adapter_entry(disk: ServedDisk, adapter: VioAdapter) -> dict[str, Any]:
    partner = adapter.partner
    costs = adapter.ledger.snapshot()
    return {
        "partition": adapter.partition.name,
        "type": "block",
        "role": "server" if adapter.node.is_server else "client",
        "slot": adapter.slot,
        "unit_address": adapter.unit_address,
        "location_code": adapter.node.location_code,
        "partner": None if partner is None else {"partition": partner.partition.name, "slot": partner.slot},
        "image": disk.declared.image,
        "format": None if is_uri(disk.declared.image) else disk.declared.format or "raw",
        "nbd": disk.declared.nbd,
        "readonly": disk.declared.readonly,
        **costs,
        "hcalls": {"H_SEND_CRQ": 0, **costs["hcalls"]},
    }


def _client_entry(disk: ServedDisk) -> dict[str, Any]:
    client, driver = disk.client, disk.driver
    return {
        **_adapter_entry(disk, disk.client_adapter),
        "state": client.state.value,
        "revision": client.revision,
        "failure": client.failure,
        "capacity": driver.capacity,
        "requests": driver.requests,
        "failed": driver.failed,
        "resubmitted": driver.resubmitted,
        "in_flight": driver.in_flight,
        "pending": driver.pending,
        "sessions": client.sessions,
        "rejected": client.rejected,
        "nbd_clients": 0 if disk.nbd is None else disk.nbd.clients,
    }


def _server_entry(disk: ServedDisk) -> dict[str, Any]:
    return {
        **_adapter_entry(disk, disk.server_adapter),
        "state": disk.server.state,
        "revision": disk.server.revision,
        "capacity": disk.image.size,
        "requests": disk.device.requests,
        "rejected": disk.server.rejected,
        "counters": {
            **dataclasses.asdict(disk.device.counters),
            "throttled_seconds": round(disk.device.counters.throttled_seconds, 3),
        },
        "limits": None if disk.device.options.limits is None else dataclasses.asdict(disk.device.options.limits),
        "delayed": disk.device.delayed,
        "reconnections": disk.image.reconnections if isinstance(disk.image, NbdBacking) else 0,
    }


def _limits(declared: Disk) -> Limits | None:
    if declared.bytes_per_second is None and declared.requests_per_second is None:
        return None
    return Limits(
        declared.bytes_per_second, declared.requests_per_second, declared.burst_bytes, declared.burst_requests
    )


def _size_to_make(declared: Disk) -> int | None:
    """`size` makes an image that is not there; one that is there may have any size."""
    return None if declared.size is None or os.path.exists(declared.image) else int(declared.size)


async def _now(function: Callable[[], None]) -> None:
    function()
