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
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from powervio.attach.block import BlockDisk
from powervio.attach.nbd import NbdServer
from powervio.devices.net_relay import Relay
from powervio.devices.p9 import P9Device
from powervio.drivers.multipath import Path as DiskPath
from powervio.drivers.multipath_disk import MultipathDriver
from powervio.errors import LocalError
from powervio.gateway.server import Gateway
from powervio.native.vterm import VtermEnd
from powervio.network.switch import Switch
from powervio.phyp.adapter import VirtualAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.vterm import Vty, VtyServer
from powervio.system import rundir, volumes
from powervio.system.config import Config, Disk, Lpar, devices_of, show_size
from powervio.system.descriptors import make_room
from powervio.system.disks import ServedDisk, ServedPath, entries, flush_image, make_disk
from powervio.system.doors import GuestDoor
from powervio.system.guest_end import GuestDriver, GuestEnd
from powervio.system.hotplug import HotPlug
from powervio.system.linux_guest import LinuxGuest
from powervio.system.machine_ports import MachinePorts
from powervio.system.moves import Moves
from powervio.system.net_section import Place
from powervio.system.operator import OperatorPort
from powervio.system.plan import make_device_pair, make_partition, tree_of_running
from powervio.system.seas import Seas
from powervio.system.section import AdapterSection
from powervio.system.served import ServedDevice
from powervio.system.server_process import ServerProcess
from powervio.system.servers import Servers
from powervio.system.sizing import buffers_of_each
from powervio.system.types import DeviceType
from powervio.system.vterm import ServedVterm
from powervio.transport.crq.client import ClientState
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import Host, PartitionKernel

T = TypeVar("T")
_log = logging.getLogger(__name__)

CONNECT_LIMIT = 15.0
"""Seconds for a client to reach its VIO server and settle with it."""
FLUSH_LIMIT = 30.0
"""Seconds for a disk's last flush."""
STOP_LIMIT = 15.0
"""Seconds for a VIO server to end what it is doing with an image."""


class System:
    """A managed system; used in one event loop, started and stopped once."""

    def __init__(self, config: Config, folder: Path | None = None) -> None:
        """`folder` is where the doors of guests are made, if this process alone has the system's name there (`rundir`);
        a private one if it is None."""
        self.config = config
        self.notes: list[str] = []
        """What whoever started it should know."""
        self.hypervisor = Hypervisor()
        self.disks: list[ServedDisk] = []
        self.devices: list[ServedDevice | ServedVterm] = []
        """What the table of device types declares."""
        self.switches: dict[str, Switch] = {}
        self._relays: dict[tuple[str, str], Relay] = {}
        """The hypervisor's, by name, as far as something is at them."""
        self.kernels: dict[str, PartitionKernel] = {}
        """By the name of the partition; of a VIO server that booted again another one than at the start. Only of those
        that run in this process."""
        self.partitions: dict[str, Partition] = {}
        self.doors: dict[str, GuestDoor] = {}
        """Of guests, by the name of the partition."""
        self.guests: dict[str, LinuxGuest] = {}
        """Those that the system boots itself, by the name of the partition."""
        self.processes: dict[str, ServerProcess] = {}
        """Of the VIO servers in processes of their own, by name."""
        self.ports = MachinePorts(config.port, config.name, self.switch)
        """For virtual machines of anybody."""
        self.plug = HotPlug(self)
        self.servers = Servers(self)
        self.seas = Seas(self)
        self.moves = Moves(self)
        self._undo = AsyncExitStack()
        self._problems: list[str] = []
        self._has_started = False
        self._private: str | None = None
        self._folder = folder
        self._gateway: Gateway | None = None
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
        self._later("the switches", self._close_switches)
        for vios in self.config.vios:
            engine = vios.redirect and not vios.process
            self._make_partition(vios.name, vios.memory, engine=engine, runs_here=not vios.process)
        for lpar in self.config.lpar:
            self._make_partition(lpar.name, lpar.memory, runs_here=lpar.guest is None)
        self._later("removing the private folder", self._remove_folder)
        await self._start_processes()
        self._later_each("closing {0.declared.image}", lambda disk: asyncio.to_thread(disk.close))
        for where, lpar, declared in self.config.disks():
            place = f"{self.config.file}: {where}"
            try:
                self.disks.append(await make_disk(self, place, lpar.name, declared))
            except LocalError as error:
                raise LocalError(f"{place}: {error}") from error
        self._later("what shares stand on", self._close_shares)
        for where, lpar, row, section in self.config.devices():
            place = f"{self.config.file}: {where}"
            try:
                self.devices.append(self._make_device(place, lpar, row, section))
            except LocalError as error:
                raise LocalError(f"{place}: {error}") from error
        self._later("Shared Ethernet Adapters", self.seas.close)
        self.seas.make()
        for vios in self.config.vios:
            await self._run_server(vios.name)
        for lpar in self.config.lpar:
            self.run_client(lpar.name)
        self._undo.push_async_callback(self._stop_clients)
        self._later_each("flushing {0.declared.image}", self.flush)
        for lpar in self.config.lpar:
            if lpar.guest is not None:
                self._open_door(lpar)
        self._later_each("the NBD server at {0.declared.nbd}", _close_export)
        for disk in self.disks:
            await self.connected(disk)
        for disk in self.disks:
            await self.export(disk)
        self._undo.push_async_callback(self._close_attachments)
        for device in self.devices:
            await self.connected(device)
            await self.attach_programs(device)
        if self.config.port:
            self.ports.start()
            self._later("ports of virtual machines", asyncio.to_thread, self.ports.close)
        self._later("partitions that come and go", self.moves.close)
        self._later("disks that come and go", self.plug.close)
        self._later("VIO servers that come and go", self.servers.close)
        self.plug.open()
        self.moves.open()
        self._has_started = True

    def _make_partition(self, name: str, memory: int, *, engine: bool = False, runs_here: bool = True) -> None:
        partition = make_partition(self.hypervisor, name, memory, engine=engine)
        self.partitions[name] = partition
        if runs_here:
            self.kernels[name] = PartitionKernel(partition.port)

    def gateway(self) -> Gateway:
        """What has the doors of partitions that run elsewhere, made when it is first needed."""
        if self._gateway is None:
            self._gateway = Gateway(spin_us=self.config.poll)
            self._later("the gateway", asyncio.to_thread, self._gateway.close)
            self._gateway.start()
        return self._gateway

    async def _start_processes(self) -> None:
        """Start the VIO servers that are processes, all at once."""
        for number, vios in enumerate(self.config.vios):
            if vios.process:
                path = os.path.join(self.private_folder(), f"v{number}.door")
                ended = partial(self.servers.process_ended, vios.name)
                process = ServerProcess(self.gateway(), self.partitions[vios.name], path, ended)
                self.processes[vios.name] = process
                self._later(f"the process of {vios.name}", process.close)
        results = await asyncio.gather(*(one.start() for one in self.processes.values()), return_exceptions=True)
        for error in results:
            if error is not None:
                raise error

    def _open_door(self, lpar: Lpar) -> None:
        folder = Path(self.private_folder()) if self._folder is None else self._folder
        door = GuestDoor(self.gateway(), lpar, self.partitions[lpar.name], self.config.name, folder)
        self.doors[lpar.name] = door
        self._later(f"the door of {lpar.name}", asyncio.to_thread, door.close)
        door.open()
        if lpar.guest != "linux":
            self.notes.append(f"{lpar.name}: its door is {door.path}; `powervio ps` has QEMU's options")
            return
        guest = LinuxGuest(door, lpar)
        self.guests[lpar.name] = guest
        self._later(f"the guest {lpar.name}", guest.stop)
        guest.start()
        self.notes.append(f"{lpar.name}: Linux is being started; `powervio console {lpar.name}` is its console")

    def is_guest(self, client: str) -> bool:
        """Whether a client partition is a guest."""
        return any(lpar.name == client and lpar.guest is not None for lpar in self.config.lpar)

    def _close_shares(self) -> None:
        for device in self.devices:
            if isinstance(device, ServedDevice) and isinstance(device.device, P9Device):
                device.device.close()

    def _close_switches(self) -> None:
        for switch in self.switches.values():
            switch.close()

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

    def private_folder(self) -> str:
        """A private folder for sockets between this process and its helpers, made when it is first needed."""
        if self._private is None:
            self._private = rundir.private_folder()
        return self._private

    def _remove_folder(self) -> None:
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)

    def buffers_of(self, client: str) -> int:
        """How many data buffers each disk of a client may have as it is declared now."""
        lpar = next(lpar for lpar in self.config.lpar if lpar.name == client)
        others = sum(row.client_memory for row, _, _ in devices_of(lpar))
        return buffers_of_each(lpar.memory - others, lpar.disk)

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
        kernels = self.kernels[declared.vios], self.kernels.get(lpar.name)
        server, client = adapters
        if isinstance(server, VtyServer) and isinstance(client, Vty):
            assert kernels[1] is not None
            return ServedVterm(row, where, declared, server, client, kernels[0], kernels[1])
        return ServedDevice(row, where, declared, server, client, *kernels, self._place(lpar, row, declared))

    def _place(self, lpar: Lpar, row: DeviceType, declared: AdapterSection) -> Place:
        known = getattr(lpar, row.section)
        number = next((at for at, one in enumerate(known) if one is declared), len(known))
        return Place(self.config.name, lpar.name, number, self.switch, partial(self._relay, declared.vios))

    def switch(self, name: str) -> Switch:
        """The hypervisor's switch of a name, made when it is first asked for."""
        if name not in self.switches:
            self.switches[name] = Switch(name)
        return self.switches[name]

    def _relay(self, server: str | list[str], switch: str) -> Relay:
        """What takes frames between the network devices of one VIO server at one switch."""
        assert isinstance(server, str)
        key = server, switch
        if key not in self._relays:
            self._relays[key] = Relay(self.switch(switch))
        return self._relays[key]

    async def in_partition(self, name: str, function: Callable[[], T]) -> T:
        """Call a function where a VIO server's objects live.

        Raises `TimeoutError` if its thread does not answer, `LocalError` if it does not run.
        """
        self.servers.check_runs(name)
        if name in self.processes:
            return await self.do(function, elsewhere=True)
        kernel = self.kernels[name]
        if kernel.threaded:
            # Elsewhere than in the loop: a thread that waits for a slow disk must not keep everything else waiting.
            return cast(T, await asyncio.to_thread(kernel.call, function, STOP_LIMIT))
        return function()

    async def do(self, function: Callable[[], T], *, elsewhere: bool) -> T:
        """Call a function, which blocks if its work is done elsewhere."""
        return await asyncio.to_thread(function) if elsewhere else function()

    def look_at_size(self, where: str, declared: Disk, size: int, *, made: bool) -> None:
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

    async def run_server(self, name: str) -> None:
        """Let a VIO server run, with whatever it serves now."""
        if name in self.processes:
            for path in self._paths_of(name):
                await asyncio.to_thread(path.server_end.start)
            await self.seas.run(name)
            return
        kernel = self.kernels[name]
        for server in self._served_by(name):
            server.start()
        await self.seas.run(name)
        if self.config.has_thread(next(vios for vios in self.config.vios if vios.name == name)):
            kernel.start(self._host())
        else:
            kernel.attach(asyncio.get_running_loop())

    def _host(self) -> Host | None:
        """Whose thread a VIO server's is: the gateway's if it is the only one and all its clients are guests, for then
        nobody else waits while it serves, and no other thread has to be woken for what a guest posts."""
        has_only_guests = all(lpar.guest for lpar in self.config.lpar)
        return self.gateway().hosted if len(self.config.vios) == 1 and has_only_guests else None

    async def _run_server(self, name: str) -> None:
        await self.run_server(name)

        async def stop() -> None:
            def stop_all() -> None:
                for server in self._served_by(name):
                    server.stop()
                self.seas.stop(name)

            if name in self.processes:
                await self.processes[name].stop()
                return
            if self.servers.runs(name):
                await self.in_partition(name, stop_all)
            if not await asyncio.to_thread(self.kernels[name].stop, STOP_LIMIT):
                raise LocalError(f"its thread did not end within {STOP_LIMIT:.0f} s")

        self._later(f"VIO server {name}", stop)

    def run_client(self, name: str) -> None:
        """Let a client partition run: it connects to its servers. A guest runs by itself."""
        if self.is_guest(name):
            return
        self.kernels[name].attach(asyncio.get_running_loop())
        for disk in self.disks_of(name):
            for path in disk.paths:
                path.client.start()
        for device in self.devices_of(name):
            device.client.start()

    async def _stop_clients(self) -> None:
        for lpar in reversed(self.config.lpar):
            await self._attempt(f"client {lpar.name}", self._stop_client, lpar.name)

    def _stop_client(self, name: str) -> None:
        for disk in self.disks_of(name):
            disk.client_driver.fail_all("the system stops")
            for path in disk.paths:
                path.client_end.stop()
        for device in self.devices_of(name):
            device.stop_client()

    def _paths_of(self, vios: str) -> list[ServedPath]:
        return [path for disk in self.disks for path in disk.paths if path.vios == vios]

    def _served_by(self, vios: str) -> list[VirtioCrq | VtermEnd]:
        ends: list[VirtioCrq | VtermEnd] = [path.server for path in self._paths_of(vios)]
        return [*ends, *(device.server for device in self.devices if device.declared.vios == vios)]

    def disks_of(self, client: str) -> list[ServedDisk]:
        """The disks of a client partition now."""
        return [disk for disk in self.disks if disk.client_adapter.partition.name == client]

    def devices_of(self, client: str) -> list[ServedDevice | ServedVterm]:
        """Its devices of the table of types."""
        return [device for device in self.devices if device.client_adapter.partition.name == client]

    async def connected(self, end: ServedDisk | ServedDevice | ServedVterm) -> None:
        """Wait until the client's driver runs, by every path; nobody waits for a guest's. Raises `LocalError`."""
        if not isinstance(end, ServedDisk):
            await self._connected(end.where, end.declared.vios, end.client_end, lambda: end.server.state)
            return
        for path in end.paths:
            await self.connected_path(end, path)
        end.connected = True

    async def connected_path(self, disk: ServedDisk, path: ServedPath) -> None:
        """The same for one path of a disk."""
        await self._connected(disk.where, path.vios, path.client_end, lambda: path.server_end.facts()["state"])
        if isinstance(disk.client_driver, MultipathDriver) and isinstance(path.client_driver, DiskPath):
            try:
                async with asyncio.timeout(CONNECT_LIMIT):
                    await disk.client_driver.known(path.client_driver)
            except TimeoutError:
                raise LocalError(
                    f"{disk.where}: {path.vios} did not say within {CONNECT_LIMIT:g} s which disk it is"
                ) from None

    async def _connected(self, where: str, vios: str, client: Any, server_state: Callable[[], object]) -> None:
        if isinstance(client, GuestEnd):
            return
        changed = asyncio.Event()
        client.on_state = lambda state: changed.set()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                while not client.running:
                    if client.state in (ClientState.FAILED, ClientState.GONE):
                        raise LocalError(f"{where}: {client.failure}")
                    changed.clear()
                    await changed.wait()
        except TimeoutError:
            reason = f": {client.failure}" if client.failure else ""
            raise LocalError(
                f"{where}: waited {CONNECT_LIMIT:g} s for {vios} to serve it;"
                f" the client is {client.state.value}, the server {server_state()}{reason}"
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
                description=f"{disk.client_adapter.node.location_code} served by {' and '.join(disk.declared.servers)}",
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
        if disk.paths[0].server_end.read_only or not disk.connected:
            return
        if isinstance(disk.client_driver, GuestDriver) or not any(path.client.running for path in disk.paths):
            # the way of the client is broken; what it was told is done is with the image already
            await flush_image(self, disk)
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
        if client in self.guests:
            if port not in ("0", "console"):
                raise LocalError(f'{client} has no port "{port}"; a guest\'s console has only port 0')
            return self.guests[client].console
        for device in self.devices:
            if device.row.section == "console" and device.client_adapter.partition.name == client:
                found: OperatorPort = device.find_port(port)
                return found
        raise LocalError(f"{client} has no console; [[lpar.console]] declares one")

    def device_tree(self, name: str) -> bytes:
        """The flattened device tree of a partition. Raises `LocalError`."""
        return tree_of_running(self.hypervisor, self.partitions, name)

    async def look(self) -> None:
        """Ask VIO servers in other processes how they are, for `report`."""
        await asyncio.gather(*(process.look() for process in self.processes.values()), self.seas.look())

    def report(self) -> dict[str, Any]:
        """What `powervio ps --json` prints, after `look`: plain values. Each end of each adapter pair has an entry."""
        adapters: list[dict[str, Any]] = []
        for disk in self.disks:
            adapters += entries(self, disk)
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
                {
                    "name": vios.name,
                    "memory": vios.memory,
                    "thread": vios.name not in self.kernels or self.kernels[vios.name].threaded,
                    "redirect": vios.redirect and not vios.process,
                    "state": self.servers.state(vios.name).value,
                    "process": vios.process,
                    "pid": self.processes[vios.name].pid if vios.process else os.getpid(),
                    "reason": self.processes[vios.name].reason if vios.process else "",
                }
                for vios in self.config.vios
            ],
            "lpar": [
                {
                    "name": lpar.name,
                    "memory": lpar.memory,
                    "guest": lpar.guest,
                    "door": self.doors[lpar.name].entry() if lpar.name in self.doors else None,
                    "linux": self.guests[lpar.name].entry() if lpar.name in self.guests else None,
                }
                for lpar in self.config.lpar
            ],
            "ports": self.ports.entries(),
            "sea": self.seas.entries(),
            "adapters": adapters,
        }


async def _close_export(disk: ServedDisk) -> None:
    if disk.nbd is not None:
        await disk.nbd.close()
