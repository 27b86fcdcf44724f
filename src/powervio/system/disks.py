"""The disks of a running system: how they are made, by one VIO server or by several, and what `ps` shows of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from powervio.attach.nbd import NbdServer
from powervio.devices.block import BlockDevice
from powervio.drivers.block import BlockCore, BlockDriver
from powervio.drivers.multipath import CHECK_INTERVAL, Path
from powervio.drivers.multipath_disk import MultipathDriver
from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.phyp.adapter import VioAdapter
from powervio.storage.open import LOCK_WAIT, is_uri
from powervio.storage.share import ImageShare
from powervio.system.config import Disk
from powervio.system.guest_end import GuestDriver, GuestEnd
from powervio.system.plan import make_pair
from powervio.system.served import adapter_entry
from powervio.system.server_process import RemoteDiskEnd
from powervio.system.serving import DiskEnd, open_image, size_to_make
from powervio.system.sizing import BUFFER_SIZE
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel

if TYPE_CHECKING:
    from powervio.system.system import System

T = TypeVar("T")


@dataclasses.dataclass(slots=True)
class ServedPath:
    """One VIO server's way to a disk: both ends, and what they stand on."""

    vios: str
    server_adapter: VioAdapter
    client_adapter: VioAdapter
    client_driver: BlockCore | GuestDriver
    """Of the client's adapter: the disk's own, or one path's."""
    client_end: VirtioVio | GuestEnd
    server_end: DiskEnd | RemoteDiskEnd
    """Another one each time when the VIO server boots; closed while it does not run."""

    # What there is of a VIO server in this process.

    @property
    def image(self) -> Backing:
        """What the device stands on."""
        return self._end_here.image

    @property
    def device(self) -> BlockDevice:
        """The device."""
        return self._end_here.device

    @property
    def server(self) -> VirtioCrq:
        """The server's end of the connection."""
        return self._end_here.server

    @property
    def _end_here(self) -> DiskEnd:
        assert isinstance(self.server_end, DiskEnd)
        return self.server_end

    # What there is of a client of ours, which is no guest.

    @property
    def client(self) -> VirtioVio:
        """The client's end of the connection."""
        assert isinstance(self.client_end, VirtioVio)
        return self.client_end

    @property
    def driver(self) -> BlockCore:
        """The driver."""
        assert isinstance(self.client_driver, BlockCore)
        return self.client_driver


@dataclasses.dataclass(slots=True)
class ServedDisk:
    """One disk of a running system."""

    where: str
    """What messages call it: its path in the system file, or "disk" if it was attached later."""
    declared: Disk
    client_driver: BlockDriver | MultipathDriver | GuestDriver
    paths: list[ServedPath]
    """The preferred one first; there is always one."""
    share: ImageShare | None = None
    """The image's lock, if there are several paths."""
    nbd: NbdServer[Any] | None = None
    connected: bool = False
    """Whether the client's driver ever ran: then there may be something to flush."""

    @property
    def driver(self) -> BlockDriver | MultipathDriver:
        """The driver of a client of ours, which is no guest."""
        assert not isinstance(self.client_driver, GuestDriver)
        return self.client_driver

    # What a disk with one path has once; of several, the preferred path's.

    @property
    def image(self) -> Backing:
        """What the device stands on."""
        return self.paths[0].image

    @property
    def device(self) -> BlockDevice:
        """The VIO server's side."""
        return self.paths[0].device

    @property
    def server(self) -> VirtioCrq:
        """The VIO server's end."""
        return self.paths[0].server

    @property
    def client(self) -> VirtioVio:
        """The end of a client of ours."""
        return self.paths[0].client

    @property
    def server_adapter(self) -> VioAdapter:
        """The VIO server's adapter."""
        return self.paths[0].server_adapter

    @property
    def client_adapter(self) -> VioAdapter:
        """The client's adapter."""
        return self.paths[0].client_adapter

    @property
    def name(self) -> str:
        """The client's end, as in `ps`: partition and slot."""
        return f"{self.client_adapter.partition.name}/{self.client_adapter.slot}"

    @property
    def server_name(self) -> str:
        """The VIO server's end, as in `ps`."""
        return f"{self.server_adapter.partition.name}/{self.server_adapter.slot}"

    @property
    def names(self) -> list[str]:
        """Every end of every path, as in `ps`."""
        adapters = [adapter for path in self.paths for adapter in (path.client_adapter, path.server_adapter)]
        return [f"{adapter.partition.name}/{adapter.slot}" for adapter in adapters]

    def close(self) -> None:
        """Close what the VIO servers have open; nobody else gets the image before."""
        for path in self.paths:
            path.server_end.close()
        if self.share is not None:
            self.share.close()


async def make_disk(
    system: System,
    where: str,
    client_name: str,
    declared: Disk,
    adapters: Sequence[tuple[VioAdapter, VioAdapter]] = (),
) -> ServedDisk:
    """All ends of a disk, not started yet; `adapters` of server and client for each path, if they are there already.

    Raises `LocalError`, and leaves nothing then.
    """
    async with AsyncExitStack() as undo:
        to_make = size_to_make(declared)
        share = None
        if declared.paths > 1:
            share = await _share(declared, to_make)
            undo.push_async_callback(asyncio.to_thread, share.close)
        ends: list[DiskEnd | RemoteDiskEnd] = []
        for vios in declared.servers:
            ends.append(await open_end(system, vios, declared, share))
            undo.push_async_callback(asyncio.to_thread, ends[-1].close)
        if to_make is not None:
            undo.callback(os.unlink, declared.image)
        system.look_at_size(where, declared, ends[0].size, made=to_make is not None)
        driver = _make_driver(system, client_name, declared, ends[0].size)
        drivers: list[BlockCore | GuestDriver] = list(driver.paths) if isinstance(driver, MultipathDriver) else [driver]
        paths = []
        for number, (vios, end, core) in enumerate(zip(declared.servers, ends, drivers, strict=True)):
            if adapters:
                server_adapter, client_adapter = adapters[number]
            else:
                slot = None if number else declared.slot
                pair = make_pair(system.hypervisor, system.partitions, client_name, vios, slot)
                server_adapter, client_adapter = pair
                undo.callback(system.hypervisor.remove_pair, client_adapter)
            client = _make_client(system, client_name, declared, client_adapter, core)
            undo.callback(client.retire)
            await system.in_partition(vios, serving(system, vios, end, server_adapter))
            paths.append(ServedPath(vios, server_adapter, client_adapter, core, client, end))
        undo.pop_all()
    return ServedDisk(where, declared, driver, paths, share)


def _make_client(
    system: System, client_name: str, declared: Disk, adapter: VioAdapter, driver: BlockCore | GuestDriver
) -> VirtioVio | GuestEnd:
    if isinstance(driver, GuestDriver):
        return GuestEnd(adapter)
    return VirtioVio(
        system.kernels[client_name],
        adapter.node,
        driver,
        revision=declared.revision,
        big_endian=declared.byteorder == "big",
        indirect=declared.indirect,
        event_idx=declared.event_idx,
        packed=declared.ring == "packed",
        lazy_unmapping=declared.unmapping == "lazy",
    )


async def open_end(
    system: System, vios: str | None, declared: Disk, share: ImageShare | None
) -> DiskEnd | RemoteDiskEnd:
    """What a VIO server has of a disk, with the image open and nothing else; of none it is in this process. Raises
    `LocalError`.

    Elsewhere than in the loop: a predecessor may still have it, a server may be slow.
    """
    folder = None if declared.format in (None, "raw") else system.private_folder()
    process = None if vios is None else system.processes.get(vios)
    if process is not None:
        there = process
        return await _opened(lambda: there.open(declared, folder, share))
    return await _opened(lambda: _open_here(declared, folder, share))


def _open_here(declared: Disk, folder: str | None, share: ImageShare | None) -> DiskEnd:
    image = open_image(declared, folder) if share is None else share.open(direct=declared.direct)
    try:
        return DiskEnd(declared, image)
    except BaseException:
        image.close()
        raise


def serving(
    system: System, vios: str, end: DiskEnd | RemoteDiskEnd, adapter: VioAdapter, kernel: PartitionKernel | None = None
) -> Callable[[], None]:
    """What has a VIO server serve a disk at an adapter, where its objects live; `kernel` is another one than now."""
    if isinstance(end, RemoteDiskEnd):
        return partial(end.serve, adapter.unit_address)
    return partial(end.serve, kernel or system.kernels[vios], adapter.node)


async def flush_image(system: System, disk: ServedDisk) -> None:
    """Make what the disk completed stable, though its client cannot ask for it now. Raises `OSError`, `LocalError`."""
    for path in disk.paths:
        if system.servers.runs(path.vios):
            await asyncio.to_thread(path.server_end.flush)
            return
    # All VIO servers are away, and their images closed. What is flushed is the file, not what had it open.
    end = await open_end(system, None, disk.declared, disk.share)
    try:
        await asyncio.to_thread(end.flush)
    finally:
        await asyncio.to_thread(end.close)


def capacity_of(system: System, disk: ServedDisk) -> int:
    """Bytes that the disk has at its VIO servers; what the client knows if none of them runs."""
    running = [path.server_end.capacity for path in disk.paths if system.servers.runs(path.vios)]
    return running[0] if running else disk.client_driver.capacity


async def resize_images(system: System, disk: ServedDisk, size: int) -> None:
    """Let the image and every device that runs have another size: the file first when it grows, last when it shrinks.

    Raises `LocalError`, `TimeoutError`.
    """
    paths = [path for path in disk.paths if system.servers.runs(path.vios)]
    if not paths:
        raise LocalError(f"{disk.name}: none of its VIO servers runs ({', '.join(disk.declared.servers)})")
    if not all(path.server_end.is_raw for path in paths):
        raise LocalError(f"{disk.declared.image} is not a raw image; only those are resized here")
    first, *others = paths

    async def images_follow() -> None:
        for path in others:
            await system.in_partition(path.vios, partial(path.server_end.image_resized, size))

    async def devices_follow() -> None:
        for path in paths:
            await system.in_partition(path.vios, partial(path.server_end.resize_device, size))

    if size > capacity_of(system, disk):
        await system.in_partition(first.vios, partial(first.server_end.resize_image, size))
        await images_follow()
        await devices_follow()
    else:  # the drivers hear of it before the bytes are gone, and no image takes the others' end for a loss
        await devices_follow()
        await images_follow()
        await system.in_partition(first.vios, partial(first.server_end.resize_image, size))


async def _share(declared: Disk, to_make: int | None) -> ImageShare:
    return await _opened(
        lambda: ImageShare(declared.image, read_only=declared.readonly, create_size=to_make, wait=LOCK_WAIT)
    )


async def _opened(open_it: Callable[[], T]) -> T:
    """Open something in a thread; when the caller is cancelled meanwhile it is closed again."""
    opening = asyncio.ensure_future(asyncio.to_thread(open_it))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        with contextlib.suppress(LocalError):
            made: Any = await opening
            await asyncio.to_thread(made.close)
        raise


def _make_driver(
    system: System, client_name: str, declared: Disk, capacity: int
) -> BlockDriver | MultipathDriver | GuestDriver:
    if system.is_guest(client_name):
        return GuestDriver(capacity)
    buffers = system.buffers_of(client_name)
    if declared.paths == 1:
        return BlockDriver(max_queues=declared.queues, buffers=buffers, buffer_size=BUFFER_SIZE)
    return MultipathDriver(
        declared.servers,
        system.kernels[client_name],
        policy=declared.policy or "failover",
        check_interval=declared.check_interval or CHECK_INTERVAL,
        max_queues=declared.queues,
        buffers=buffers,
        buffer_size=BUFFER_SIZE,
    )


# -- looking


def entries(system: System, disk: ServedDisk) -> list[dict[str, Any]]:
    """What `ps --json` prints: both ends of each path."""
    found = []
    for path in disk.paths:
        runs = system.servers.runs(path.vios)
        found += [_client_entry(disk, path, runs=runs), _server_entry(disk, path, runs=runs)]
    return found


def _adapter_entry(disk: ServedDisk, adapter: VioAdapter) -> dict[str, Any]:
    return {
        **adapter_entry("block", adapter),
        "image": disk.declared.image,
        "format": None if is_uri(disk.declared.image) else disk.declared.format or "raw",
        "nbd": disk.declared.nbd,
        "readonly": disk.declared.readonly,
    }


def _client_entry(disk: ServedDisk, path: ServedPath, *, runs: bool) -> dict[str, Any]:
    client, driver = path.client_end, path.client_driver
    entry = _adapter_entry(disk, path.client_adapter)
    if isinstance(client, GuestEnd):
        return {**entry, **_guest_entry(path, client, runs=runs)}
    assert isinstance(driver, BlockCore)
    return {
        **entry,
        "state": client.state.value,
        "revision": client.revision,
        "failure": client.failure,
        "capacity": driver.capacity,
        "requests": driver.requests - (driver.checks if isinstance(driver, Path) else 0),
        "failed": driver.failed,
        "resubmitted": driver.resubmitted,
        "in_flight": driver.in_flight,
        "pending": driver.pending,
        "sessions": client.sessions,
        "rejected": client.rejected,
        "nbd_clients": 0 if disk.nbd is None else disk.nbd.clients,
        "path": _path_entry(disk, path),
    }


def _guest_entry(path: ServedPath, end: GuestEnd, *, runs: bool) -> dict[str, Any]:
    """What is known of a guest's end: what its server has seen of it."""
    facts = path.server_end.facts()
    return {
        "state": end.state(facts["state"] if runs else "waiting"),
        "revision": facts["revision"],
        "failure": None,
        "capacity": path.client_driver.capacity,
        "requests": facts["requests"],
        "nbd_clients": 0,
        "path": None,
    }


def _path_entry(disk: ServedDisk, path: ServedPath) -> dict[str, Any] | None:
    """None for a disk with one path. `waiting`, of the whole disk, is requests that no path can take now."""
    whole, one = disk.client_driver, path.client_driver
    if not isinstance(whole, MultipathDriver) or not isinstance(one, Path):
        return None
    return {
        "disk": disk.name,
        "policy": whole.policy,
        "preferred": path is disk.paths[0],
        "state": one.state.value,
        "reason": one.reason,
        "checks": one.checks,
        "failures": one.failures,
        "waiting": whole.waiting,
    }


def _server_entry(disk: ServedDisk, path: ServedPath, *, runs: bool) -> dict[str, Any]:
    entry = {**_adapter_entry(disk, path.server_adapter), **path.server_end.facts()}
    return entry if runs else {**entry, "state": "closed", "revision": None}
