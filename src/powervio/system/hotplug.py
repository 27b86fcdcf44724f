"""Disks that come and go while the system runs: attach, detach, resize.

Detaching goes from the program to the image: the NBD clients are told to leave and what they have in flight is
answered, the disk is flushed, the client's end closes its CRQ and gives its memory back, then the server's end, then
both adapters are unplugged and the image is closed. Every step has a limit, and one that fails is told at the end and
keeps nothing else from being undone. With `force` the adapters are unplugged first: no remote DMA happens any more when
that call returns, both partitions learn of it by their device trees, and whatever was in flight fails with ESHUTDOWN.

A guest is asked by its device tree to let go of the disk (docs/gateway.md, G3.5): its driver writes what the guest has
in its cache, and frees the CRQ; then it goes on as above. A guest that does not keeps the disk, unless `force` is used.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from powervio.errors import LocalError
from powervio.system.config import Size, show_size
from powervio.system.control import Handler
from powervio.system.disks import ServedDisk, ServedPath, capacity_of, make_disk, resize_images
from powervio.system.guest_end import GuestDriver, GuestEnd
from powervio.system.load import with_disk, without_disk
from powervio.system.server_process import ServerGone

if TYPE_CHECKING:
    from powervio.system.system import System

GRACE = 1.0
"""Seconds for NBD clients to leave by themselves, while their further requests are refused."""
DRAIN_LIMIT = 10.0
"""Seconds more for what they have in flight."""
RELEASE_LIMIT = 15.0
"""Seconds for a guest to let go of a disk."""
_LOOK = 0.02
"""Seconds between two looks at whether it has."""
RESIZE_LIMIT = 10.0
"""Seconds for the client to learn of another size."""


class _Attach(msgspec.Struct, forbid_unknown_fields=True):
    client: str
    options: dict[str, Any]


class _Detach(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    force: bool = False


class _Resize(msgspec.Struct, forbid_unknown_fields=True):
    target: str
    size: int | str
    shrink: bool = False


class HotPlug:
    """What the control socket may change of a running system."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._open = False
        self._attaching: set[asyncio.Task[ServedDisk]] = set()
        self._leaving: dict[int, asyncio.Task[None]] = {}
        """By the id of the disk."""
        self._unplugged: set[int] = set()
        """Disks whose adapters are gone, by id."""

    def handlers(self) -> dict[str, Handler]:
        """The requests of the control socket."""
        return {"attach": self._on_attach, "detach": self._on_detach, "resize": self._on_resize}

    def open(self) -> None:
        """The system has started."""
        self._open = True

    async def close(self) -> None:
        """The system stops: what is being attached is given up, what is being detached ends."""
        self._open = False
        for task in self._attaching:
            task.cancel()
        tasks: list[asyncio.Task[Any]] = [*self._attaching, *self._leaving.values()]
        await asyncio.gather(*tasks, return_exceptions=True)

    def check_idle(self) -> None:
        """Raise `LocalError` while disks come or go: a VIO server has to know what it serves when it ends or begins."""
        self._check_open()
        if self._attaching or self._leaving:
            raise LocalError("a disk is being attached or detached; try again when that is over")

    def _check_open(self) -> None:
        if not self._open:
            raise LocalError("the system is starting or stopping; try again when it is up")

    # -- attach

    async def attach(self, client: str, options: dict[str, Any]) -> ServedDisk:
        """Give a client one more disk; `options` are those of `[[lpar.disk]]`, with absolute paths.

        `vios` may be left out when there is only one. Returns when it serves. Raises `LocalError`; nothing is left
        then.
        """
        self._check_open()
        self._system.moves.check_idle(client)
        task = asyncio.get_running_loop().create_task(self._attach(client, options))
        self._attaching.add(task)
        task.add_done_callback(self._attaching.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise LocalError("the system stopped while the disk was being attached") from None
            raise

    async def _attach(self, client: str, options: dict[str, Any]) -> ServedDisk:
        system = self._system
        if "vios" not in options:
            servers = [vios.name for vios in system.config.vios]
            if len(servers) > 1:
                raise LocalError(f"disk.vios: several could serve it, say which: {', '.join(servers)}")
            options = {**options, "vios": servers[0]}
        try:
            system.config, declared = with_disk(system.config, client, options)
        except LocalError as error:
            raise LocalError(self._with_names(str(error))) from None
        try:
            for name in declared.servers:
                system.servers.check_runs(name)
            self._share_memory(client)
            try:
                disk = await make_disk(system, "disk", client, declared)
            except LocalError as error:
                raise LocalError(f"disk: {error}") from error
            system.disks.append(disk)
            self._share_memory(client)  # others may have come while this one was being opened
            try:
                for path in disk.paths:
                    await system.in_partition(path.vios, path.server_end.start)
                    path.client_end.start()
                await system.connected(disk)
                await system.export(disk)
            except BaseException:
                self._unplug(disk)
                await self.end(disk)
                raise
        except BaseException:
            system.config = without_disk(system.config, declared)
            self._share_memory(client)
            raise
        return disk

    def _with_names(self, message: str) -> str:
        """A message in which disks and partitions are called as in `ps`: their place in the file, if any, says less."""
        config = self._system.config
        for where, _, declared in config.disks():
            name = next((disk.name for disk in self._system.disks if disk.declared is declared), where)
            message = message.replace(where, name)
        for number, vios in enumerate(config.vios):
            message = message.replace(f"vios[{number}].", f"{vios.name}.")
        for number, lpar in enumerate(config.lpar):
            message = message.replace(f"lpar[{number}].", f"{lpar.name}.")
        return message

    def _share_memory(self, client: str) -> None:
        """The pools of a client's disks share its memory: each gets its part anew."""
        buffers = self._system.buffers_of(client)
        for disk in self._system.disks_of(client):
            disk.client_driver.limit_buffers(buffers)

    # -- detach

    async def detach(self, disk: ServedDisk, *, force: bool = False) -> None:
        """Take a disk away; with `force` at once, also while another `detach` of it waits.

        When this raises `LocalError` the disk is gone all the same, unless the message says that it is still in use.
        """
        self._check_open()
        self._system.moves.check_idle(disk.client_adapter.partition.name)
        for path in disk.paths:
            self._system.servers.check_settled(path.vios)
        if force:
            self._unplug(disk)
        task = self._leaving.get(id(disk))
        if task is None:
            task = self._leaving[id(disk)] = asyncio.get_running_loop().create_task(self._leave(disk))
            task.add_done_callback(lambda _: self._leaving.pop(id(disk), None))
        await asyncio.shield(task)

    async def _leave(self, disk: ServedDisk) -> None:
        if isinstance(disk.paths[0].client_end, GuestEnd):
            await self._released(disk)
        problems: list[str] = []

        async def attempt(what: str, step: Coroutine[Any, Any, None]) -> None:
            try:
                await step
            except (LocalError, OSError) as error:
                if id(disk) not in self._unplugged:  # then it was meant to fail
                    problems.append(f"{what}: {error}")

        if disk.nbd is not None:
            await attempt(f"the NBD server at {disk.declared.nbd}", disk.nbd.close(DRAIN_LIMIT, grace=GRACE))
            disk.nbd = None
        if id(disk) not in self._unplugged:
            await attempt(f"flushing {disk.declared.image}", self._system.flush(disk))
        await self.end(disk)
        if problems:
            raise LocalError("\n".join(f"{disk.name} is detached, but {problem}" for problem in problems))

    async def _released(self, disk: ServedDisk) -> None:
        """Wait until a guest has let go of a disk, or is not asked any more. Raises `LocalError`."""
        hypervisor, adapter = self._system.hypervisor, disk.client_adapter
        if not adapter.registered:
            return
        vios = disk.paths[0].vios
        if not self._system.servers.runs(vios):
            raise LocalError(
                f"{disk.name} is still in use by its guest, which cannot write what it has for it while {vios} is"
                f" {self._system.servers.state(vios).value}; --force unplugs it all the same"
            )
        hypervisor.ask_release(adapter, wanted=True)
        try:
            async with asyncio.timeout(RELEASE_LIMIT):
                while adapter.registered:  # unplugged by force it is not
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            hypervisor.ask_release(adapter, wanted=False)
            raise LocalError(
                f"{disk.name} is still in use by its guest, which was asked to let it go and did not within"
                f" {RELEASE_LIMIT:g} s; --force unplugs it all the same, and what the guest had not written is lost"
            ) from None

    async def end(self, disk: ServedDisk) -> None:
        """End a disk that no program uses: both ends, the adapters, the image, what the system knows of them."""
        system = self._system
        disk.client_driver.fail_all("the disk was detached")
        for path in disk.paths:
            try:
                path.client_end.retire()
            except LocalError:
                self._unplug(disk)  # its CRQ cannot be freed now; without the adapter it does not have to be
                path.client_end.retire()
        for path in disk.paths:
            await self._end_server(disk, path)
        self._unplug(disk)
        system.disks.remove(disk)
        self._unplugged.discard(id(disk))
        system.config = without_disk(system.config, disk.declared)
        self._share_memory(disk.client_adapter.partition.name)
        await asyncio.to_thread(disk.close)

    async def _end_server(self, disk: ServedDisk, path: ServedPath) -> None:
        system = self._system
        if not system.servers.runs(path.vios):
            return  # of a server that was terminated nothing is left to end
        try:
            try:
                await system.in_partition(path.vios, path.server_end.retire)
            except ServerGone:
                return
            except LocalError:
                self._unplug(disk)
                if system.servers.runs(path.vios):
                    with suppress(ServerGone):
                        await system.in_partition(path.vios, path.server_end.retire)
        except TimeoutError:
            self._unplug(disk)
            raise LocalError(
                f"{disk.name} is detached from its client, but {path.vios} still works on"
                f" {disk.declared.image}; detach it again when that has ended"
            ) from None

    def _unplug(self, disk: ServedDisk) -> None:
        """Remove both adapters, if they are there."""
        if id(disk) not in self._unplugged:
            self._unplugged.add(id(disk))
            for path in disk.paths:
                self._system.hypervisor.remove_pair(path.client_adapter)

    # -- resize

    async def resize(self, disk: ServedDisk, size: int, *, shrink: bool = False) -> None:
        """Let a disk on a raw image have `size` bytes; returns when its client knows, or a guest was told. Raises
        `LocalError`.

        NBD clients that are connected keep the size that they know, those that connect later see the new one.
        """
        self._check_open()
        self._system.moves.check_idle(disk.client_adapter.partition.name)
        if id(disk) in self._leaving:
            raise LocalError(f"{disk.name} is being detached")
        now = capacity_of(self._system, disk)
        end = disk.paths[0].server_end
        if end.read_only:
            raise LocalError(f"{disk.name} is readonly and cannot be resized")
        if size % end.block_size:
            raise LocalError(f"size: {size} bytes; expected a multiple of {end.block_size}")
        if size < now and not shrink:
            raise LocalError(
                f"{disk.name} has {show_size(now)}; {show_size(size)} would cut off its end (--shrink allows that)"
            )

        if isinstance(disk.client_driver, GuestDriver):
            try:
                await resize_images(self._system, disk, size)
            except TimeoutError:
                raise LocalError(f"{disk.name}: {disk.declared.image} is busy; look at `powervio ps`") from None
            disk.client_driver.capacity = size
            return
        driver = disk.driver

        def known() -> bool:
            """Whether the client knows, by every path that it has now."""
            return driver.capacity == size and all(
                path.driver.capacity == size for path in disk.paths if path.driver.connected
            )

        changed = asyncio.Event()
        driver.on_resize = changed.set
        try:
            await resize_images(self._system, disk, size)
            async with asyncio.timeout(RESIZE_LIMIT):
                while not known():
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            raise LocalError(
                f"{disk.name}: its client did not learn of the new size within {RESIZE_LIMIT:g} s; it will when it"
                " connects again"
            ) from None
        finally:
            driver.on_resize = None

    # -- the control socket

    def find(self, target: str) -> ServedDisk:
        """The disk with this name (either end's, as in `ps`) or this socket's absolute path. Raises `LocalError`."""
        for disk in self._system.disks:
            if target in disk.names or os.path.normpath(target) == disk.declared.nbd:
                return disk
        names = ", ".join(disk.name for disk in self._system.disks) or "the system has none"
        raise LocalError(f'there is no disk "{target}"; expected the path of its socket, or one of: {names}')

    async def _on_attach(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = _read(_Attach, arguments)
        disk = await self.attach(asked.client, asked.options)
        return {"name": disk.name, "image": disk.declared.image, "vios": disk.server_name, "nbd": disk.declared.nbd}

    async def _on_detach(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = _read(_Detach, arguments)
        disk = self.find(asked.target)
        await self.detach(disk, force=asked.force)
        return {"name": disk.name, "image": disk.declared.image}

    async def _on_resize(self, arguments: dict[str, Any]) -> dict[str, Any]:
        asked = _read(_Resize, arguments)
        disk = self.find(asked.target)
        try:
            size = Size.parse(asked.size)
        except ValueError as error:
            raise LocalError(f"size: {error}") from None
        await self.resize(disk, size, shrink=asked.shrink)
        return {"name": disk.name, "size": disk.client_driver.capacity}


def _read(kind: type[Any], arguments: dict[str, Any]) -> Any:
    try:
        return msgspec.convert(arguments, kind)
    except msgspec.ValidationError as error:
        raise LocalError(f"the request's arguments: {error}") from None
