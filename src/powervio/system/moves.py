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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

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
from powervio.system.config import Disk, Lpar, with_lpar, without_lpar
from powervio.system.control import Handler
from powervio.system.plan import is_vterm, make_device_pair, make_pair, make_partition
from powervio.system.saved_file import Manifest, SavedDevice, SavedFile, SavedImage
from powervio.system.types import TYPES, AdapterSection
from powervio.vio.kernel import PartitionKernel

if TYPE_CHECKING:
    from powervio.system.served import ServedDevice
    from powervio.system.system import ServedDisk, System
    from powervio.system.vterm import ServedVterm

T = TypeVar("T")

DISK = "disk"
"""The section of disks, which stand beside the table of device types."""
QUIET_LIMIT = 10.0
"""Seconds for what is in flight to end, before a partition is saved."""


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

    # -- save

    async def save(self, client: str, path: Path) -> int:
        """Let a client partition go on in the file `path`, and end it here; the file's size in bytes.

        Raises `LocalError`: then it goes on here and there is no file, unless the message says that it is saved.
        """
        self._begin(client)
        try:
            return await self._shielded(self._save(client, path))
        finally:
            self._busy.discard(client)

    async def _save(self, client: str, path: Path) -> int:
        system = self._system
        lpar = self._find(client)
        partition, kernel = system.partitions[client], system.kernels[client]
        disks, devices = system.disks_of(client), system.devices_of(client)
        await asyncio.to_thread(saved_file.check_free, path)
        async with AsyncExitStack() as undo:
            for disk in disks:
                await self._quiet(disk, undo)
            for disk in disks:
                await system.flush(disk)
            await asyncio.to_thread(system.hypervisor.suspend, partition)
            stopped: list[ServedDisk | ServedDevice | ServedVterm] = []

            def go_on() -> None:
                system.hypervisor.resume(partition)
                for end in stopped:
                    end.client.start()

            undo.callback(go_on)
            state = save_partition(partition)
            for end in (*disks, *devices):
                end.client.stop()
                stopped.append(end)
            saved = [await self._saved_disk(disk) for disk in disks]
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

    def _find(self, client: str) -> Lpar:
        for lpar in self._system.config.lpar:
            if lpar.name == client:
                return lpar
        names = ", ".join(lpar.name for lpar in self._system.config.lpar) or "none"
        raise LocalError(f'there is no client partition "{client}"; there are: {names}')

    async def _quiet(self, disk: ServedDisk, undo: AsyncExitStack) -> None:
        """Nothing of the disk is in flight any more, and nothing further begins."""
        ended = True
        if disk.nbd is not None:
            undo.callback(disk.nbd.unpause)
            ended = await disk.nbd.pause(QUIET_LIMIT)
        if not ended or disk.driver.in_flight or disk.driver.pending:
            raise LocalError(
                f"{disk.name}: {disk.driver.in_flight + disk.driver.pending} requests did not end within"
                f" {QUIET_LIMIT:g} s (the server is {disk.server.state}); the partition goes on here"
            )

    async def _saved_disk(self, disk: ServedDisk) -> SavedDevice:
        device = await self._system.in_partition(disk.declared.vios, disk.device.state)
        image = await asyncio.to_thread(_look_at, disk.declared, disk.image.size)
        return SavedDevice(disk.client_adapter.slot, DISK, device, disk.driver.state(), image)

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
        with await asyncio.to_thread(SavedFile, path) as file:
            client = file.manifest.partition.name
            if file.manifest.lpar.get("name") != client:
                raise LocalError(f"{path} is damaged: the partition has two names")
            self._begin(client)
            try:
                return await self._shielded(self._restore(file, client, force=force))
            finally:
                self._busy.discard(client)

    async def _restore(self, file: SavedFile, client: str, *, force: bool) -> str:
        system = self._system
        manifest = file.manifest
        if client in system.partitions:
            raise LocalError(f"a partition named {client} is running here")
        try:
            grown, lpar = with_lpar(system.config, manifest.lpar)
        except LocalError as error:
            raise LocalError(f"{client} cannot go on here: {error}") from None
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
        made = (*system.disks_of(client), *system.devices_of(client))
        for end in made:
            await system.in_partition(end.declared.vios, end.server.start)
        system.run_client(client)
        for end in made:
            await system.connected(end)
        for disk in system.disks_of(client):
            undo.push_async_callback(_close_export, disk)
            await system.export(disk)
        for device in system.devices_of(client):
            for attachment in device.attachments:
                undo.push_async_callback(attachment.close)
            await system.attach_programs(device)

    def _plug_in(self, client: str, section: _Section, undo: AsyncExitStack) -> tuple[VirtualAdapter, VirtualAdapter]:
        """Both adapters, the client's with the numbers that it had."""
        system = self._system
        ends: tuple[VirtualAdapter, VirtualAdapter]
        if isinstance(section.declared, Disk):
            ends = make_pair(system.hypervisor, system.partitions, client, section.declared, section.adapter)
        else:
            ends = make_device_pair(system.hypervisor, system.partitions, client, section.declared, section.adapter)
        undo.callback(_unplug_if_there, ends)
        return ends

    async def _build_end(
        self,
        lpar: Lpar,
        section: _Section,
        ends: tuple[VirtualAdapter, VirtualAdapter],
        undo: AsyncExitStack,
    ) -> None:
        """The device and the driver behind their adapters, with what they kept; not started yet."""
        system, declared, saved = self._system, section.declared, section.saved
        where = f"{lpar.name}/{saved.slot}"
        if isinstance(declared, Disk):
            server, client = ends
            assert isinstance(server, VioAdapter)
            assert isinstance(client, VioAdapter)
            disk = await system.make_disk(where, lpar.name, declared, (server, client))
            system.disks.append(disk)
            undo.push_async_callback(system.plug.end, disk)
            await system.in_partition(declared.vios, lambda: disk.device.restore(saved.device))
            disk.driver.restore(saved.driver)
            return

        device = await system.in_partition(
            declared.vios, lambda: system.make_device(where, lpar, TYPES[saved.section], declared, ends)
        )
        system.devices.append(device)
        undo.push_async_callback(self._end_device, device)
        await system.in_partition(declared.vios, lambda: device.restore(saved.device, saved.driver))

    # -- the control socket

    def _begin(self, client: str) -> None:
        if not self._open:
            raise LocalError("the system is starting or stopping; try again when it is up")
        self.check_idle(client)
        self._system.plug.check_idle(client)
        self._busy.add(client)

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


class _Section:
    """One device of a saved partition: its declaration, its adapter, and what its two ends kept."""

    def __init__(self, declared: Disk | AdapterSection, adapter: SavedAdapter, saved: SavedDevice) -> None:
        self.declared = declared
        self.adapter = adapter
        self.saved = saved


def _match(lpar: Lpar, manifest: Manifest) -> list[_Section]:
    """Every device of the partition; those of one section are everywhere in the same order. Raises `LocalError`."""
    adapters = {saved.slot: saved for saved in manifest.partition.adapters}
    found = []
    for section in (DISK, *TYPES):
        declared = getattr(lpar, section, [])
        saved = [device for device in manifest.devices if device.section == section]
        if len(saved) != len(declared) or any(device.slot not in adapters for device in saved):
            raise LocalError(
                f"{lpar.name}: the file says differently in different places what [[lpar.{section}]] it has"
            )
        found += [_Section(one, adapters[device.slot], device) for one, device in zip(declared, saved, strict=True)]
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


def _unplug_if_there(ends: tuple[VirtualAdapter, VirtualAdapter]) -> None:
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
