"""Client partitions that leave for a file, and go on from one: `powervio save` and `restore`.

What is in the file: the partition's memory and what the hypervisor knows of it (`phyp/saved.py`), its section of the
system file, and of each device what the device and the driver keep outside of that memory. The images stay where they
are; how each was left is noted, so that a partition is not restored onto a disk that somebody wrote to since.

Saving goes through these steps; until the file is complete and on disk each of them can be undone, and the partition
goes on as if nothing had been asked:

1. The NBD servers begin nothing further, and what they began ends: nothing is in flight. Clients see a slow disk.
2. The disks are flushed.
3. The partition is suspended (FF09, FF06): its servers have ended what they did for it.
4. Its state is taken and the file is written.
5. The partition ends. NBD connections close without an answer to what was not begun; a client that reconnects (QEMU
   with `reconnect-delay`, for one) sends that again to the restored partition.

The operating system of a client partition here is objects of this process and not in the partition's memory. So a
restored partition boots anew in the memory it had, as a kernel does after kexec: the CRQs and mappings that the
hypervisor restored are met, freed and made again (`PartitionKernel.take_over`), and drivers take over their part.
Programs that ran on its terminals are started again.
"""

from __future__ import annotations

import asyncio
import datetime
import os
import stat
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec
from msgspec.structs import replace

from powervio import __version__
from powervio.errors import LocalError
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.partition import Partition
from powervio.phyp.saved import SavedAdapter, restore_partition, save_partition
from powervio.phyp.vterm import Vty, VtyServer, remove_vterm
from powervio.storage.open import is_uri
from powervio.system import saved_file
from powervio.system.config import Disk, Lpar
from powervio.system.control import Handler
from powervio.system.disks import ServedDisk, make_disk
from powervio.system.load import with_lpar, without_lpar
from powervio.system.plan import is_vterm, make_device_pair, make_pair, make_partition
from powervio.system.saved_file import Manifest, SavedDevice, SavedFile, SavedImage
from powervio.system.section import AdapterSection
from powervio.system.types import TYPES
from powervio.vio.kernel import PartitionKernel

if TYPE_CHECKING:
    from powervio.system.served import ServedDevice
    from powervio.system.system import System
    from powervio.system.vterm import ServedVterm

T = TypeVar("T")
Ends: TypeAlias = tuple[VirtualAdapter, VirtualAdapter]
"""Adapters of a server and a client."""

DISK = "disk"
"""The section of disks, which stand beside the table of device types."""
QUIET_LIMIT = 10.0
"""Seconds for what is in flight to end, before a partition is saved."""
_LOOK = 0.005
"""Seconds between two looks at whether it has."""


class _Save(msgspec.Struct, forbid_unknown_fields=True):
    client: str
    path: str


class _Restore(msgspec.Struct, forbid_unknown_fields=True):
    path: str
    force: bool = False


class Moves:
    """What the control socket may do with whole client partitions of a running system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._open = False
        self._busy: set[str] = set()
        """Partitions that are being saved or restored."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def handlers(self) -> dict[str, Handler]:
        """The requests of the control socket."""
        return {"save": self._on_save, "restore": self._on_restore}

    def open(self) -> None:
        """The system has started."""
        self._open = True

    async def close(self) -> None:
        """The system stops: what is under way ends, one way or the other."""
        self._open = False
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def check_idle(self, client: str) -> None:
        """Raises `LocalError` while this partition is being saved or restored."""
        if client in self._busy:
            raise LocalError(f"{client} is being saved or restored")

    def check_all_idle(self) -> None:
        """Raises `LocalError` while any partition is: its VIO servers are needed to the end."""
        for client in self._busy:
            self.check_idle(client)

    # -- save

    async def save(self, client: str, path: Path) -> int:
        """Let a client partition go on in the file `path`, and end it here; the file's size in bytes.

        Raises `LocalError`: then it goes on here and there is no file, unless the message says that it is saved.
        """
        return await self._shielded(self._alone(client, self._save(client, path)))

    async def _save(self, client: str, path: Path) -> int:
        system = self._system
        lpar = self._find(client)
        partition, kernel = system.partitions[client], system.kernels[client]
        disks, devices = system.disks_of(client), system.devices_of(client)
        for vios in (path.vios for disk in disks for path in disk.paths):
            self._check_here(client, vios)
            system.servers.check_runs(vios)  # they have something to save
        for device in devices:
            system.servers.check_runs(device.declared.vios)
        await asyncio.to_thread(saved_file.check_free, path)
        async with AsyncExitStack() as undo:
            for disk in disks:
                await self._quiet(disk, undo)
            for disk in disks:
                await system.flush(disk)
            await asyncio.to_thread(system.hypervisor.suspend, partition)
            stopped: list[Any] = []

            def go_on() -> None:
                system.hypervisor.resume(partition)
                for end in stopped:
                    end.start()

            undo.callback(go_on)
            state = save_partition(partition)
            ends = [path.client for disk in disks for path in disk.paths]
            for end in (*ends, *(device.client for device in devices)):
                end.stop()
                stopped.append(end)
            saved = [one for disk in disks for one in await self._saved_disk(disk)]
            saved += [await self._saved_device(device) for device in devices]
            manifest = Manifest(
                powervio=__version__,
                system=system.config.name,
                saved_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                lpar=_declaration(lpar, disks, devices),
                partition=state,
                devices=saved,
            )
            written = await asyncio.to_thread(saved_file.write, path, manifest, partition.area.fd)
            undo.pop_all()
        try:
            await self._end(client, kernel, partition, disks, devices)
        except (LocalError, OSError) as error:
            raise LocalError(f"{client} is saved in {path}, but ending it here failed: {error}") from error
        return written

    def _check_here(self, client: str, vios: str) -> None:
        """A device's state is taken and given in this process."""
        if vios in self._system.processes:
            raise LocalError(
                f"{client} has a disk of {vios}, which is a process of its own: only partitions whose VIO servers run"
                " in the hypervisor's process are saved and restored"
            )

    def _find(self, client: str) -> Lpar:
        for lpar in self._system.config.lpar:
            if lpar.name == client:
                if lpar.guest is not None:
                    raise LocalError(f"{client} is a guest: what runs in it is not ours to save")
                return lpar
        names = ", ".join(lpar.name for lpar in self._system.config.lpar) or "none"
        raise LocalError(f'there is no client partition "{client}"; there are: {names}')

    async def _quiet(self, disk: ServedDisk, undo: AsyncExitStack) -> None:
        """Nothing of the disk is in flight any more, and nothing further begins."""
        if disk.nbd is not None:
            undo.callback(disk.nbd.unpause)
            await disk.nbd.pause(QUIET_LIMIT)
        try:
            async with asyncio.timeout(QUIET_LIMIT):
                while left := disk.driver.in_flight + disk.driver.pending:  # path checks are among them
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise LocalError(
                f"{disk.name}: {left} requests did not end within {QUIET_LIMIT:g} s (the server is"
                f" {disk.server.state}); the partition goes on here"
            ) from None

    async def _saved_disk(self, disk: ServedDisk) -> list[SavedDevice]:
        """An entry for each path; the first one has the image."""
        image = await asyncio.to_thread(_look_at, disk.declared, disk.image.size)
        found = []
        for path in disk.paths:
            device = await self._system.in_partition(path.vios, path.device.state)
            found.append(SavedDevice(path.client_adapter.slot, DISK, device, path.driver.snapshot()))
        found[0].image = image
        return found

    async def _saved_device(self, served: ServedDevice | ServedVterm) -> SavedDevice:
        device = await self._system.in_partition(served.declared.vios, served.device_state)
        return SavedDevice(served.client_adapter.slot, served.row.section, device, served.driver_state())

    async def _end(
        self,
        client: str,
        kernel: PartitionKernel,
        partition: Partition,
        disks: list[ServedDisk],
        devices: list[ServedDevice | ServedVterm],
    ) -> None:
        system = self._system
        for disk in disks:
            if disk.nbd is not None:
                await disk.nbd.close(0.0)  # it is paused: everything that was begun has ended
                disk.nbd = None
            await system.plug.end(disk)
        for device in devices:
            for attachment in device.attachments:
                await attachment.close()
            await self._end_device(device)
        kernel.close()
        system.hypervisor.terminate(partition)
        del system.kernels[client], system.partitions[client]
        system.config = without_lpar(system.config, client)

    async def _end_device(self, device: ServedDevice | ServedVterm) -> None:
        system = self._system
        device.retire_client()
        await system.in_partition(device.declared.vios, device.retire_server)
        device.unplug(system.hypervisor)
        if device in system.devices:
            system.devices.remove(device)

    # -- restore

    async def restore(self, path: Path, *, force: bool = False) -> str:
        """Let a saved partition go on here; its name. With `force` also onto images that changed since.

        Raises `LocalError`; nothing of it is left here then, and the file is as it was.
        """
        return await self._shielded(self._read_and_restore(path, force=force))

    async def _read_and_restore(self, path: Path, *, force: bool) -> str:
        with await asyncio.to_thread(SavedFile, path) as file:
            client = file.manifest.partition.name
            if file.manifest.lpar.get("name") != client:
                raise LocalError(f"{path} is damaged: the partition has two names")
            return await self._alone(client, self._restore(file, client, force=force))

    async def _restore(self, file: SavedFile, client: str, *, force: bool) -> str:
        system = self._system
        manifest = file.manifest
        if client in system.partitions:
            raise LocalError(f"a partition named {client} is running here")
        try:
            grown, lpar = with_lpar(system.config, manifest.lpar)
        except LocalError as error:
            raise LocalError(f"{client} cannot go on here: {error}") from None
        if lpar.guest is not None:
            raise LocalError(f"{client} cannot go on here: it is declared as a guest, and those are never saved")
        for vios in (vios for disk in lpar.disk for vios in disk.servers):
            self._check_here(client, vios)
        if not force:
            for saved in manifest.devices:
                if saved.image is not None:
                    await asyncio.to_thread(_check_image, saved.image, manifest.saved_at)
        async with AsyncExitStack() as undo:
            system.config = grown

            def without() -> None:
                system.config = without_lpar(system.config, client)

            undo.callback(without)
            await self._build(file, lpar, undo)
            undo.pop_all()
        return client

    async def _build(self, file: SavedFile, lpar: Lpar, undo: AsyncExitStack) -> None:
        system, client = self._system, lpar.name
        partition = make_partition(system.hypervisor, client, file.manifest.partition.memory)
        system.partitions[client] = partition
        undo.callback(system.partitions.pop, client)
        undo.callback(system.hypervisor.terminate, partition)
        await asyncio.to_thread(file.read_memory, partition.memory)
        sections = _match(lpar, file.manifest)
        adapters = [self._plug_in(client, section, undo) for section in sections]
        restore_partition(partition, file.manifest.partition)
        kernel = system.kernels[client] = PartitionKernel(partition.port)
        undo.callback(lambda: system.kernels.pop(client).close())
        kernel.take_over()
        for section, ends in zip(sections, adapters, strict=True):
            await self._build_end(lpar, section, ends, undo)
        system.hypervisor.resume(partition)
        for disk in system.disks_of(client):
            for path in disk.paths:
                await system.in_partition(path.vios, path.server.start)
        for device in system.devices_of(client):
            await system.in_partition(device.declared.vios, device.server.start)
        system.run_client(client)
        for end in (*system.disks_of(client), *system.devices_of(client)):
            await system.connected(end)
        for disk in system.disks_of(client):
            undo.push_async_callback(_close_export, disk)
            await system.export(disk)
        for device in system.devices_of(client):
            for attachment in device.attachments:
                undo.push_async_callback(attachment.close)
            await system.attach_programs(device)

    def _plug_in(self, client: str, section: _Section, undo: AsyncExitStack) -> list[Ends]:
        """All adapters of a device, the client's with the numbers that they had."""
        system, declared = self._system, section.declared
        made: list[Ends] = []
        if isinstance(declared, Disk):
            for vios, adapter in zip(declared.servers, section.adapters, strict=True):
                made.append(make_pair(system.hypervisor, system.partitions, client, vios, None, adapter))
                undo.callback(_unplug_if_there, made[-1])
        else:
            (adapter,) = section.adapters
            made.append(make_device_pair(system.hypervisor, system.partitions, client, declared, adapter))
            undo.callback(_unplug_if_there, made[-1])
        return made

    async def _build_end(self, lpar: Lpar, section: _Section, ends: list[Ends], undo: AsyncExitStack) -> None:
        """The device and the driver behind their adapters, with what they kept; not started yet."""
        system, declared = self._system, section.declared
        where = f"{lpar.name}/{section.saved[0].slot}"
        if isinstance(declared, Disk):
            pairs = [
                (server, client)
                for server, client in ends
                if isinstance(server, VioAdapter) and isinstance(client, VioAdapter)
            ]
            disk = await make_disk(system, where, lpar.name, declared, pairs)
            system.disks.append(disk)
            undo.push_async_callback(system.plug.end, disk)
            for path, saved in zip(disk.paths, section.saved, strict=True):
                await system.in_partition(path.vios, partial(path.device.restore, saved.device))
                path.driver.restore(saved.driver)
            return
        (one,), (kept,) = ends, section.saved
        device = await system.in_partition(
            declared.vios, partial(system.make_device, where, lpar, TYPES[kept.section], declared, one)
        )
        system.devices.append(device)
        undo.push_async_callback(self._end_device, device)
        await system.in_partition(declared.vios, partial(device.restore, kept.device, kept.driver))

    # -- the control socket

    def _begin(self, client: str) -> None:
        if not self._open:
            raise LocalError("the system is starting or stopping; try again when it is up")
        self.check_idle(client)
        self._system.plug.check_idle()
        self._busy.add(client)

    async def _alone(self, client: str, work: Coroutine[Any, Any, T]) -> T:
        """Do this to its end, and nothing else with the partition meanwhile."""
        try:
            self._begin(client)
        except BaseException:
            work.close()
            raise
        try:
            return await work
        finally:
            self._busy.discard(client)

    async def _shielded(self, work: Coroutine[Any, Any, T]) -> T:
        """Whoever asked may leave; what was begun goes on to its end."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await asyncio.shield(task)
        except TimeoutError as error:
            raise LocalError(f"a VIO server does not answer: {error}") from error

    async def _on_save(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = _read(_Save, arguments)
        size = await self.save(asked.client, Path(asked.path))
        return {"client": asked.client, "path": asked.path, "size": size}

    async def _on_restore(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = _read(_Restore, arguments)
        client = await self.restore(Path(asked.path), force=asked.force)
        return {"client": client, "disks": [disk.declared.nbd for disk in self._system.disks_of(client)]}


@dataclass(slots=True)
class _Section:
    """One device of a saved partition: its declaration, and for each path its adapter and what its ends kept."""

    declared: Disk | AdapterSection
    adapters: list[SavedAdapter]
    saved: list[SavedDevice]


def _match(lpar: Lpar, manifest: Manifest) -> list[_Section]:
    """Every device of the partition; those of one section are everywhere in the same order. Raises `LocalError`."""
    adapters = {saved.slot: saved for saved in manifest.partition.adapters}
    found = []
    for name in (DISK, *TYPES):
        rest = [device for device in manifest.devices if device.section == name]
        for declared in getattr(lpar, name, []):
            count = declared.paths if isinstance(declared, Disk) else 1
            saved, rest = rest[:count], rest[count:]
            if len(saved) < count or any(device.slot not in adapters for device in saved):
                raise LocalError(f"{lpar.name}: the file does not say what became of every [[lpar.{name}]]")
            found.append(_Section(declared, [adapters[device.slot] for device in saved], saved))
        if rest:
            raise LocalError(f"{lpar.name}: the file has an adapter in slot {rest[0].slot} without [[lpar.{name}]]")
    return found


def _declaration(lpar: Lpar, disks: list[ServedDisk], devices: list[ServedDevice | ServedVterm]) -> dict[str, Any]:
    """The partition's section as it is now, with the slots that the system chose."""
    sections: dict[str, list[Any]] = {section: [] for section in TYPES if hasattr(lpar, section)}
    for device in devices:
        declared = device.declared
        # a virtual terminal is in slot 0 or 1, which a system file cannot name
        slot = declared.slot if is_vterm(declared) else device.client_adapter.slot
        sections[device.row.section].append(replace(declared, slot=slot))
    # an image that is gone is not to be made anew
    sections[DISK] = [replace(disk.declared, slot=disk.client_adapter.slot, size=None) for disk in disks]
    plain: dict[str, Any] = msgspec.to_builtins(replace(lpar, **sections), enc_hook=int)
    return plain


def _look_at(declared: Disk, size: int) -> SavedImage:
    """How an image was left. Those of QEMU are written to once more when its daemon closes them: their time says
    nothing."""
    if not is_uri(declared.image) and declared.format in (None, "raw"):
        found = os.stat(declared.image)
        if stat.S_ISREG(found.st_mode):
            return SavedImage(declared.image, size, found.st_mtime_ns)
    return SavedImage(declared.image, size)


def _check_image(saved: SavedImage, saved_at: str) -> None:
    """Raises `LocalError` when somebody wrote to an image after the partition was saved."""
    if not saved.modified:
        return  # its size is compared when it is opened
    try:
        found = os.stat(saved.name)
    except OSError as error:
        raise LocalError(f"{saved.name}: {error.strerror}") from error
    if (found.st_size, found.st_mtime_ns) != (saved.size, saved.modified):
        raise LocalError(
            f"{saved.name} was changed after the partition was saved ({saved_at}): going on with it could destroy the"
            " file systems on it (--force does it all the same)"
        )


def _unplug_if_there(ends: Ends) -> None:
    server, client = ends
    if isinstance(client, Vty) and isinstance(server, VtyServer):
        remove_vterm(server, client)
    elif isinstance(client, VioAdapter) and client.partition.slots.get(client.slot) is client:
        client.partition.hypervisor.remove_pair(client)


async def _close_export(disk: ServedDisk) -> None:
    if disk.nbd is not None:
        await disk.nbd.close()


def _read(kind: type[Any], arguments: dict[str, Any]) -> Any:
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise LocalError(f"the request's arguments: {error}") from None
