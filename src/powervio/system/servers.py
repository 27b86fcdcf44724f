"""VIO servers that fail and boot again while the system runs: `powervio terminate` and `activate`.

**The order is the fence.** A server that is terminated fails as by a crash: what its devices had in hand is finished or
forgotten, nobody flushes or says goodbye. But its partners may go on elsewhere as soon as they hear of it (FF01), and a
write of the dead server's that reached the image after that would come back as a ghost. So first its thread ends, which
waits for the request in hand; then its images are closed, which ends what they have under way; and only then the
hypervisor tells the partners (`Hypervisor.fail`, docs/protocol.md P1.9). A thread that is stuck in a slow write keeps
all of this waiting, and the partners with it: their path check is what finds that out.

Its clients wait, or go on by the other path of a disk that has one. Nobody else gets the image of a disk with other
paths meanwhile; that of a disk with only this one is free for others, until the server boots. Then it has a new kernel
on the same adapters, opens its images anew, and its devices begin as new ones; the clients connect by themselves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from enum import Enum
from typing import TYPE_CHECKING, Any

from powervio.errors import LocalError
from powervio.system.control import Handler
from powervio.system.disks import ServedPath, open_end, serving
from powervio.system.linux_guest import LinuxGuest
from powervio.system.server_process import ServerProcess
from powervio.vio.kernel import PartitionKernel

if TYPE_CHECKING:
    from powervio.system.system import System

_log = logging.getLogger(__name__)

TERMINATE_LIMIT = 30.0
"""Seconds for a VIO server's last I/O; it is terminated after that too, but nobody waits for it."""
_PIECE = 0.5
"""Seconds of that wait at a time, so that the system can stop meanwhile."""


class ServerState(Enum):
    """Where a VIO server stands."""

    RUNNING = "running"
    TERMINATING = "terminating"
    """It begins nothing any more; its partners have not been told yet."""
    TERMINATED = "terminated"
    BOOTING = "booting"


class Servers:
    """The VIO servers' states, and what the control socket may change of them."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._states = {vios.name: ServerState.RUNNING for vios in system.config.vios}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def handlers(self) -> dict[str, Handler]:
        """The requests of the control socket."""
        return {"terminate": self._on_terminate, "boot": self._on_boot}

    def state(self, name: str) -> ServerState:
        """Where a VIO server stands. Raises `LocalError` for a name that none has."""
        if name not in self._states:
            known = ", ".join([*self._states, *self._system.guests])
            raise LocalError(f'there is no VIO server "{name}"; expected one of: {known}')
        return self._states[name]

    def runs(self, name: str) -> bool:
        """Whether it runs: then its images are open and its partition can be asked."""
        return self.state(name) is ServerState.RUNNING

    def check_runs(self, name: str) -> None:
        """Raise `LocalError` if it does not run."""
        if not self.runs(name):
            raise LocalError(f"VIO server {name} is {self.state(name).value}")

    def check_settled(self, name: str) -> None:
        """Raise `LocalError` while it is between two states."""
        if name in self._tasks:
            raise LocalError(f"VIO server {name} is {self.state(name).value}; try again when that is over")

    async def close(self) -> None:
        """The system stops: a server that is terminating or booting is left where it is."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- terminate

    async def terminate(self, name: str) -> None:
        """Let a VIO server fail as by a crash; returns when its partners have been told. Raises `LocalError`."""
        self._check_free(name)
        self.check_runs(name)
        self._states[name] = ServerState.TERMINATING
        await self._do(
            name, self._terminate(name), "is still at work on an image; it is terminated when that has ended"
        )

    async def _terminate(self, name: str) -> None:
        system = self._system
        process = system.processes.get(name)
        if process is not None:
            process.kill()
            await process.ended()
            await process.vacated()  # then its partners have been told
            self._states[name] = ServerState.TERMINATED
            return
        kernel, partition = system.kernels[name], system.partitions[name]
        if kernel.threaded:
            while not await asyncio.to_thread(kernel.stop, _PIECE):
                pass
        else:
            kernel.detach()
        for path in self._paths_of(name):
            try:
                await asyncio.to_thread(path.server_end.close)
            except OSError as error:  # closed all the same
                _log.warning("VIO server %s: closing an image: %s", name, error)
        for device in system.devices:
            if device.declared.vios == name:
                device.server_died()
        system.seas.server_died(name)
        try:
            await asyncio.to_thread(system.hypervisor.fail, partition)
        finally:
            kernel.close()
            self._states[name] = ServerState.TERMINATED

    def process_ended(self, name: str, reason: str) -> None:
        """The process of a VIO server has ended, which nobody wanted: it has failed. The gateway tells its partners."""
        if self._states[name] is ServerState.RUNNING:
            self._states[name] = ServerState.TERMINATED
            _log.warning("VIO server %s: %s", name, reason)

    # -- boot

    async def boot(self, name: str) -> None:
        """Start a VIO server that was terminated; returns when it serves what it served. Raises `LocalError`.

        When an image cannot be opened nothing is started; a client that does not come back in time is told of, and
        the server runs.
        """
        self._check_free(name)
        if name in self._system.processes:
            await self._system.processes[name].noticed()
        if self.state(name) is not ServerState.TERMINATED:
            raise LocalError(f"VIO server {name} is {self.state(name).value}; only one that was terminated can boot")
        self._states[name] = ServerState.BOOTING
        await self._do(name, self._boot(name), "is still booting")
        for disk in self._system.disks:
            for path in disk.paths:
                if path.vios == name:
                    await self._system.connected_path(disk, path)
        for device in self._system.devices:
            if device.declared.vios == name:
                await self._system.connected(device)

    async def _boot(self, name: str) -> None:
        try:
            await self._start(name)
        except BaseException:
            self._states[name] = ServerState.TERMINATED
            raise
        process = self._system.processes.get(name)
        if process is not None and process.pid is None:
            self._states[name] = ServerState.TERMINATED
            raise LocalError(f"VIO server {name}: {process.reason}")
        self._states[name] = ServerState.RUNNING

    async def _start(self, name: str) -> None:
        system = self._system
        process = system.processes.get(name)
        if process is None:
            # whatever is left of its last life
            await asyncio.to_thread(system.hypervisor.reboot, system.partitions[name])
        async with AsyncExitStack() as undo:
            kernel = None
            if process is not None:
                await process.start()
                undo.push_async_callback(self._give_up, process)
            opened = []
            for disk in system.disks:
                for path in disk.paths:
                    if path.vios == name:
                        end = await open_end(system, name, disk.declared, disk.share)
                        if process is None:
                            undo.push_async_callback(asyncio.to_thread, end.close)
                        opened.append((path, end))
            if process is None:
                kernel = PartitionKernel(system.partitions[name].port)
                undo.callback(kernel.close)
            for path, end in opened:
                serve = serving(system, name, end, path.server_adapter, kernel)
                await system.do(serve, elsewhere=process is not None)
                path.server_end = end
            for other in system.devices:
                if other.declared.vios == name:
                    assert kernel is not None  # a process serves disks only
                    other.serve_anew(kernel)
            if kernel is not None:
                system.seas.serve_anew(name, kernel)
                undo.callback(system.seas.server_died, name)
                system.kernels[name] = kernel
            await system.run_server(name)
            undo.pop_all()

    @staticmethod
    async def _give_up(process: ServerProcess) -> None:
        process.kill()
        await process.ended()

    # -- both

    def _paths_of(self, name: str) -> list[ServedPath]:
        return [path for disk in self._system.disks for path in disk.paths if path.vios == name]

    def _check_free(self, name: str) -> None:
        self.state(name)
        self._system.plug.check_idle()
        self._system.moves.check_all_idle()
        self.check_settled(name)

    async def _do(self, name: str, work: Coroutine[Any, Any, None], late: str) -> None:
        """Do it to its end, whoever waits for that."""
        task = self._tasks[name] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(lambda done: self._done(name, done))
        if not (await asyncio.wait({task}, timeout=TERMINATE_LIMIT))[0]:
            raise LocalError(f"VIO server {name} {late}")
        if task.cancelled():
            raise LocalError("the system stops")
        task.result()

    def _done(self, name: str, task: asyncio.Task[None]) -> None:
        del self._tasks[name]
        if not task.cancelled() and task.exception() is not None:
            _log.warning("VIO server %s: %s", name, str(task.exception()))  # not the error itself, which has frames

    # -- the control socket

    async def _on_terminate(self, arguments: dict[str, Any]) -> dict[str, Any]:
        guest = self._guest(arguments)
        if guest is not None:
            await guest.terminate()
            return {"vios": guest.name, "state": guest.state}
        return await self._answer(arguments, self.terminate)

    async def _on_boot(self, arguments: dict[str, Any]) -> dict[str, Any]:
        guest = self._guest(arguments)
        if guest is not None:
            await guest.boot()
            return {"vios": guest.name, "state": guest.state}
        return await self._answer(arguments, self.boot)

    def _guest(self, arguments: dict[str, Any]) -> LinuxGuest | None:
        """The guest that a request is about, if it is about one. Raises `LocalError` for one that is not ours."""
        name = str(arguments.get("vios"))
        if name in self._system.doors and name not in self._system.guests:
            raise LocalError(f"{name} is a guest that somebody else starts and ends: its QEMU says whether it runs")
        return self._system.guests.get(name)

    async def _answer(self, arguments: dict[str, Any], change: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
        name = str(arguments.get("vios"))
        await change(name)
        return {"vios": name, "state": self.state(name).value}
