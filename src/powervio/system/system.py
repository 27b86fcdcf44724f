"""A managed system in this process: built from its declaration, started, looked at, stopped.

The client partitions run in the event loop, because who uses their disks (NBD) is there too. A VIO server partition
runs in a thread of its own, or in the same loop when its declaration says `thread = false`.

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
from typing import Any, TypeVar, cast

from powervio.attach.block import BlockDisk
from powervio.attach.nbd import NbdServer
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.throttle import Limits
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.vterm import Vty, VtyServer
from powervio.storage.nbd_backing import NbdBacking
from powervio.storage.open import is_uri, open_disk
from powervio.system import volumes
from powervio.system.config import Config, Disk, Lpar, devices_of, show_size
from powervio.system.descriptors import make_room
from powervio.system.hotplug import HotPlug
from powervio.system.moves import Moves
from powervio.system.operator import OperatorPort
from powervio.system.plan import make_device_pair, make_pair, make_partition, tree_of_running
from powervio.system.rundir import private_folder
from powervio.system.served import ServedDevice, adapter_entry
from powervio.system.sizing import BUFFER_SIZE, CLIENT_DEVICE, buffers_of_each
from powervio.system.types import AdapterSection, DeviceType
from powervio.system.vterm import ServedVterm
from powervio.transport.crq.client import ClientState, VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

T = TypeVar("T")
_log = logging.getLogger(__name__)

CONNECT_LIMIT = 15.0
"""Seconds for a client to reach its VIO server and settle with it."""
FLUSH_LIMIT = 30.0
"""Seconds for a disk's last flush."""
STOP_LIMIT = 15.0
"""Seconds for a VIO server to end what it is doing with an image."""


@dataclasses.dataclass(slots=True)
class ServedDisk:
    """One disk of a running system: both ends, and what they stand on."""

    where: str
    """What messages call it: its path in the system file, or "disk" if it was attached later."""
    declared: Disk
    image: Backing
    server_adapter: VioAdapter
    client_adapter: VioAdapter
    device: BlockDevice
    driver: BlockDriver
    server: VirtioCrq
    client: VirtioVio
    nbd: NbdServer[Any] | None = None
    connected: bool = False
    """Whether the client's driver ever ran: then there may be something to flush."""

    @property
    def name(self) -> str:
        """The client's end, as in `ps`: partition and slot."""
        return f"{self.client_adapter.partition.name}/{self.client_adapter.slot}"

    @property
    def server_name(self) -> str:
        """The VIO server's end, as in `ps`."""
        return f"{self.server_adapter.partition.name}/{self.server_adapter.slot}"


class System:
    """A managed system; used in one event loop, started and stopped once."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.notes: list[str] = []
        """What whoever started it should know."""
        self.hypervisor = Hypervisor()
        self.disks: list[ServedDisk] = []
        self.devices: list[ServedDevice | ServedVterm] = []
        """What the table of device types declares."""
        self.kernels: dict[str, PartitionKernel] = {}
        """By the name of the partition."""
        self.partitions: dict[str, Partition] = {}
        self.plug = HotPlug(self)
        self.moves = Moves(self)
        self._undo = AsyncExitStack()
        self._problems: list[str] = []
        self._has_started = False
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
        make_room(self.config)
        self._later("the hypervisor", self.hypervisor.close)
        self._undo.push_async_callback(self._close_kernels)
        for vios in self.config.vios:
            self._make_partition(vios.name, vios.memory, engine=vios.redirect)
        for lpar in self.config.lpar:
            self._make_partition(lpar.name, lpar.memory)
        self._later("removing the private folder", self._remove_folder)
        self._later_each("closing {0.declared.image}", lambda disk: asyncio.to_thread(disk.image.close))
        for where, lpar, declared in self.config.disks():
            place = f"{self.config.file}: {where}"
            try:
                self.disks.append(await self.make_disk(place, lpar.name, declared))
            except LocalError as error:
                raise LocalError(f"{place}: {error}") from error
        for where, lpar, row, section in self.config.devices():
            place = f"{self.config.file}: {where}"
            try:
                self.devices.append(self._make_device(place, lpar, row, section))
            except LocalError as error:
                raise LocalError(f"{place}: {error}") from error
        for vios in self.config.vios:
            self._run_server(vios.name, thread=vios.thread)
        for lpar in self.config.lpar:
            self.run_client(lpar.name)
        self._undo.push_async_callback(self._stop_clients)
        self._later_each("flushing {0.declared.image}", self.flush)
        self._later_each("the NBD server at {0.declared.nbd}", _close_export)
        for disk in self.disks:
            await self.connected(disk)
        for disk in self.disks:
            await self.export(disk)
        self._undo.push_async_callback(self._close_attachments)
        for device in self.devices:
            await self.connected(device)
            await self.attach_programs(device)
        self._later("partitions that come and go", self.moves.close)
        self._later("disks that come and go", self.plug.close)
        self.plug.open()
        self.moves.open()
        self._has_started = True

    def _make_partition(self, name: str, memory: int, *, engine: bool = False) -> None:
        partition = make_partition(self.hypervisor, name, memory, engine=engine)
        self.partitions[name] = partition
        self.kernels[name] = PartitionKernel(partition.port)

    async def _close_kernels(self) -> None:
        for name, kernel in reversed(self.kernels.items()):
            await self._attempt(f"the kernel of partition {name}", kernel.close)

    async def attach_programs(self, device: ServedDevice | ServedVterm) -> None:
        """Let programs use a device. Raises `LocalError`."""
        for attachment in device.attachments:
            try:
                await attachment.start()
            except LocalError as error:
                raise LocalError(f"{device.where}: {error}") from error

    async def _close_attachments(self) -> None:
        for device in reversed(self.devices):
            for attachment in reversed(device.attachments):
                await self._attempt(f"what uses {device.where}", attachment.close)

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
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            with contextlib.suppress(LocalError):
                image = await opening
                await asyncio.to_thread(image.close)
            raise

    def _folder(self) -> str:
        """A private folder for sockets between this process and its helpers, made when it is first needed."""
        if self._private is None:
            self._private = private_folder()
        return self._private

    def _remove_folder(self) -> None:
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def buffers_of(self, client: str) -> int:
        """How many data buffers each disk of a client may have as it is declared now."""
        lpar = next(lpar for lpar in self.config.lpar if lpar.name == client)
        others = sum(1 for _ in devices_of(lpar))
        return buffers_of_each(lpar.memory - others * CLIENT_DEVICE, lpar.disk)

    async def make_disk(
        self,
        where: str,
        client_name: str,
        declared: Disk,
        adapters: tuple[VioAdapter, VioAdapter] | None = None,
    ) -> ServedDisk:
        """Both ends of a disk, not started yet, with these adapters of server and client if they are there already.

        Raises `LocalError`, and leaves nothing then.
        """
        async with AsyncExitStack() as undo:
            size_to_make = _size_to_make(declared)
            image = await self._open(declared)
            if size_to_make is not None:
                undo.callback(os.unlink, declared.image)
            undo.push_async_callback(asyncio.to_thread, image.close)
            self._look_at_size(where, declared, image.size, made=size_to_make is not None)
            block_size = declared.block_size or image.block_size
            if image.size % block_size:
                raise LocalError(
                    f"image {declared.image} has {image.size} bytes; expected whole blocks of {block_size}"
                )
            if adapters is None:
                adapters = make_pair(self.hypervisor, self.partitions, client_name, declared)
                undo.callback(self.hypervisor.remove_pair, adapters[1])
            server_adapter, client_adapter = adapters
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
            driver = BlockDriver(
                max_queues=declared.queues, buffers=self.buffers_of(client_name), buffer_size=BUFFER_SIZE
            )
            client = VirtioVio(
                self.kernels[client_name],
                client_adapter.node,
                driver,
                revision=declared.revision,
                big_endian=declared.byteorder == "big",
                indirect=declared.indirect,
                event_idx=declared.event_idx,
            )
            undo.callback(client.retire)
            server = await self.in_partition(
                declared.vios, lambda: VirtioCrq(self.kernels[declared.vios], server_adapter.node, device)
            )
            undo.pop_all()
        return ServedDisk(
            where, declared, image, server_adapter, client_adapter, device, driver, server=server, client=client
        )

    def _make_device(
        self, where: str, lpar: Lpar, row: DeviceType, declared: AdapterSection
    ) -> ServedDevice | ServedVterm:
        return self.make_device(
            where, lpar, row, declared, make_device_pair(self.hypervisor, self.partitions, lpar.name, declared)
        )

    def make_device(
        self,
        where: str,
        lpar: Lpar,
        row: DeviceType,
        declared: AdapterSection,
        adapters: tuple[VirtualAdapter, VirtualAdapter],
    ) -> ServedDevice | ServedVterm:
        """Both ends of a device behind its adapters, not started yet; where the server's objects live.

        Raises `LocalError`.
        """
        kernels = self.kernels[declared.vios], self.kernels[lpar.name]
        server, client = adapters
        if isinstance(server, VtyServer) and isinstance(client, Vty):
            return ServedVterm(row, where, declared, server, client, *kernels)
        return ServedDevice(row, where, declared, server, client, *kernels)

    async def in_partition(self, name: str, function: Callable[[], T]) -> T:
        """Call a function where a partition's objects live. Raises `TimeoutError` if its thread does not answer."""
        kernel = self.kernels[name]
        if kernel.threaded:
            # Elsewhere than in the loop: a thread that waits for a slow disk must not keep everything else waiting.
            return cast(T, await asyncio.to_thread(kernel.call, function, STOP_LIMIT))
        return function()

    def _look_at_size(self, where: str, declared: Disk, size: int, *, made: bool) -> None:
        """An image that was made goes again if the system does not start; of one that was there, tell another size."""
        if made and not self._has_started:
            self._later(f"removing {declared.image}", self._remove_unless_started, declared.image)
        elif not made and declared.size is not None and size != declared.size:
            self.notes.append(
                f"{where}.size: {declared.image} exists and keeps its {show_size(size)};"
                f" size = {show_size(declared.size)} would only make it"
            )

    def _remove_unless_started(self, path: str) -> None:
        if not self._has_started:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _run_server(self, name: str, *, thread: bool) -> None:
        kernel = self.kernels[name]
        for end in self._served_by(name):
            end.server.start()
        if thread:
            kernel.start()
        else:
            kernel.attach(asyncio.get_running_loop())

        async def stop() -> None:
            def stop_all() -> None:
                for end in self._served_by(name):
                    end.server.stop()

            await self.in_partition(name, stop_all)
            if not await asyncio.to_thread(kernel.stop, STOP_LIMIT):
                raise LocalError(f"its thread did not end within {STOP_LIMIT:.0f} s")

        self._later(f"VIO server {name}", stop)

    def run_client(self, name: str) -> None:
        """Let a client partition run: it connects to its servers."""
        self.kernels[name].attach(asyncio.get_running_loop())
        for disk in self.disks_of(name):
            disk.client.start()
        for device in self.devices_of(name):
            device.client.start()

    async def _stop_clients(self) -> None:
        for lpar in reversed(self.config.lpar):
            await self._attempt(f"client {lpar.name}", self._stop_client, lpar.name)

    def _stop_client(self, name: str) -> None:
        for disk in self.disks_of(name):
            disk.driver.fail_all("the system stops")
            disk.client.stop()
        for device in self.devices_of(name):
            device.stop_client()

    def _served(self) -> list[ServedDisk | ServedDevice | ServedVterm]:
        return [*self.disks, *self.devices]

    def _served_by(self, vios: str) -> list[ServedDisk | ServedDevice | ServedVterm]:
        return [end for end in self._served() if end.declared.vios == vios]

    def disks_of(self, client: str) -> list[ServedDisk]:
        """The disks of a client partition now."""
        return [disk for disk in self.disks if disk.client_adapter.partition.name == client]

    def devices_of(self, client: str) -> list[ServedDevice | ServedVterm]:
        """Its devices of the table of types."""
        return [device for device in self.devices if device.client_adapter.partition.name == client]

    async def connected(self, disk: ServedDisk | ServedDevice | ServedVterm) -> None:
        """Wait until the client's driver runs."""
        client = disk.client
        changed = asyncio.Event()
        client.on_state = lambda state: changed.set()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                while not client.running:
                    if client.state in (ClientState.FAILED, ClientState.GONE):
                        raise LocalError(f"{disk.where}: {client.failure}")
                    changed.clear()
                    await changed.wait()
            if isinstance(disk, ServedDisk):
                disk.connected = True
        except TimeoutError:
            reason = f": {client.failure}" if client.failure else ""
            raise LocalError(
                f"{disk.where}: waited {CONNECT_LIMIT:g} s for {disk.declared.vios} to serve it;"
                f" the client is {client.state.value}, the server {disk.server.state}{reason}"
            ) from None
        finally:
            client.on_state = None

    async def export(self, disk: ServedDisk) -> None:
        """Make the disk usable by programs, if its declaration says where. Raises `LocalError`."""
        path = disk.declared.nbd
        if path is None:
            return
        try:
            server = NbdServer(
                BlockDisk(disk.driver),
                path,
                name=disk.client_adapter.partition.name,
                description=f"{disk.client_adapter.node.location_code} served by {disk.declared.vios}",
            )
            await server.start()
        except LocalError as error:
            raise LocalError(f"{disk.where}.nbd: {error}") from error
        disk.nbd = server

    async def pool(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The control request `pool`: see `volumes`."""
        return await volumes.answer(self, arguments)

    async def flush(self, disk: ServedDisk) -> None:
        """Make what the disk was told to write stable. Raises `OSError`, `LocalError`."""
        if disk.image.read_only or not disk.connected:
            return
        if not disk.client.running:
            # the way of the client is broken; what it was told is done is with the image already
            await asyncio.to_thread(disk.image.flush)
            return
        # Not a timeout around it: a driver's operation that is cancelled still waits for the device.
        flushing = asyncio.ensure_future(disk.driver.flush())
        flushing.add_done_callback(lambda done: done.cancelled() or done.exception())
        if not (await asyncio.wait({flushing}, timeout=FLUSH_LIMIT))[0]:
            raise LocalError(f"not done within {FLUSH_LIMIT:g} s")
        flushing.result()

    # -- undoing

    def _later(self, what: str, function: Callable[..., Awaitable[None] | None], *arguments: Any) -> None:
        """Remember how to undo what was just begun; `what` names it if that fails."""

        self._undo.push_async_callback(self._attempt, what, function, *arguments)

    def _later_each(self, what: str, function: Callable[[ServedDisk], Awaitable[None] | None]) -> None:
        """Remember what is to be done for every disk that is there then; `what` is a format of it."""

        async def each() -> None:
            for disk in reversed(self.disks):
                await self._attempt(what.format(disk), function, disk)

        self._undo.push_async_callback(each)

    async def _attempt(self, what: str, function: Callable[..., Awaitable[None] | None], *arguments: Any) -> None:
        try:
            result = function(*arguments)
            if result is not None:
                await result
        except Exception as error:
            reason = error if isinstance(error, (LocalError, OSError)) else repr(error)
            _log.debug("stopping: %s failed", what, exc_info=True)
            self._problems.append(f"{what}: {reason}")

    # -- looking

    def console(self, client: str, port: str) -> OperatorPort:
        """The operator's side of a port of a client partition's console. Raises `LocalError`."""
        if not any(lpar.name == client for lpar in self.config.lpar):
            names = ", ".join(lpar.name for lpar in self.config.lpar) or "none"
            raise LocalError(f'there is no client partition "{client}"; there are: {names}')
        for device in self.devices:
            if device.row.section == "console" and device.client_adapter.partition.name == client:
                found: OperatorPort = device.find_port(port)
                return found
        raise LocalError(f"{client} has no console; [[lpar.console]] declares one")

    def device_tree(self, name: str) -> bytes:
        """The flattened device tree of a partition. Raises `LocalError`."""
        return tree_of_running(self.hypervisor, self.partitions, name)

    def report(self) -> dict[str, Any]:
        """What `powervio ps --json` prints: plain values. Each end of each adapter pair has an entry."""
        adapters: list[dict[str, Any]] = []
        for disk in self.disks:
            adapters += (_client_entry(disk), _server_entry(disk))
        for device in self.devices:
            adapters += device.entries()
        return {
            "system": {
                "name": self.config.name,
                "file": self.config.path,
                "pid": os.getpid(),
                "seconds": round(time.monotonic() - self._since, 3),
            },
            "vios": [
                {"name": vios.name, "memory": vios.memory, "thread": vios.thread, "redirect": vios.redirect}
                for vios in self.config.vios
            ],
            "lpar": [{"name": lpar.name, "memory": lpar.memory} for lpar in self.config.lpar],
            "adapters": adapters,
        }


def _adapter_entry(disk: ServedDisk, adapter: VioAdapter) -> dict[str, Any]:
    return {
        **adapter_entry("block", adapter),
        "image": disk.declared.image,
        "format": None if is_uri(disk.declared.image) else disk.declared.format or "raw",
        "nbd": disk.declared.nbd,
        "readonly": disk.declared.readonly,
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


async def _close_export(disk: ServedDisk) -> None:
    if disk.nbd is not None:
        await disk.nbd.close()
