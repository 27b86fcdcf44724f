"""The hypervisor's side of a VIO server in a process of its own: the process, its door, and what is asked of it.

The process is the partition, and its death is the partition's: the gateway hears the end of the socket when the last
system call of the process has ended, and then tells the partners (docs/gateway.md, G1.5). Nothing here has to order it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

import powervio
from powervio.errors import LocalError
from powervio.gateway.server import Gateway
from powervio.phyp.partition import Partition
from powervio.storage.share import ImageShare
from powervio.system import server_messages as say
from powervio.system.config import Disk

HCALL_LIMIT = 10.0
"""Seconds that the hypervisor may keep it waiting: a machine that has much else to do is no dead one."""
BEGIN_LIMIT = 30.0
"""Seconds for the process to start."""
OPEN_LIMIT = 45.0
"""Seconds to open an image: that of QEMU has its own limits below this."""
CALL_LIMIT = 20.0
"""Seconds for anything else; the process has shorter ones."""
LOOK_LIMIT = 2.0
END_LIMIT = 5.0
"""Seconds for the process to end when it has stopped, or was killed."""
_LOOK_AGAIN = 0.01


class ServerGone(LocalError):
    """The process has ended: nothing that it served is served any more."""


class ServerProcess:
    """One VIO server's process: started, killed and started again any number of times. Used in one event loop, but
    `call`, which blocks and is for other threads."""

    def __init__(self, gateway: Gateway, partition: Partition, path: str, on_end: Callable[[str], None]) -> None:
        """`path` is where its door will be. `on_end` is called with the reason when the process has ended and nobody
        here wanted that."""
        self.name = partition.name
        self.facts: dict[int, dict[str, Any]] = {}
        """What the disks looked like when `look` was called last."""
        self.reason = ""
        """Why the process ended, when there is none."""
        self._gateway = gateway
        self._on_end = on_end
        self._door = gateway.add(partition, path)
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._control: socket.socket | None = None
        self._ended = asyncio.Event()
        self._is_to_end = False
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._disks = itertools.count(1)

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        return None if self._child is None else self._child.pid

    # -- life

    async def start(self) -> None:
        """Start the process, which begins with nothing to serve. Raises `LocalError`."""
        await self.vacated(END_LIMIT)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        folder = str(Path(powervio.__file__).resolve().parents[1])
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]  # this one's package, wherever that is
        command = [sys.executable, "-P", "-m", "powervio.system.server_main", str(theirs.fileno()), str(os.getpid())]
        with theirs:
            try:
                # in this thread: the process is killed when the thread that started it ends
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                    start_new_session=True,
                )
            except OSError as error:
                ours.close()
                raise LocalError(f"VIO server {self.name}: its process cannot be started ({error})") from error
        self._child, self._control, self.reason = child, ours, ""
        self._ended.clear()
        self._is_to_end = False
        self.facts.clear()
        self._pidfd = os.pidfd_open(child.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._has_ended)
        begin = say.Begin(self._door.path, HCALL_LIMIT, logging.getLogger().getEffectiveLevel())
        try:
            await asyncio.to_thread(self.call, begin, limit=BEGIN_LIMIT)
        except BaseException as error:
            self.kill()
            if isinstance(error, TimeoutError):
                raise LocalError(
                    f"VIO server {self.name}: its process did not start within {BEGIN_LIMIT:g} s"
                ) from error
            raise

    def _has_ended(self) -> None:
        child = self._child
        assert child is not None
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        status = child.wait()
        self._child = None
        self.reason = (
            f"its process ended with status {status}"
            if status >= 0
            else f"its process was killed ({signal.Signals(-status).name})"
        )
        with self._lock:  # whoever waits for an answer has heard the end
            if self._control is not None:
                self._control.close()
                self._control = None
        self._ended.set()
        if not self._is_to_end:
            self._on_end(self.reason)

    def kill(self) -> None:
        """End the process as by a crash; `ended` waits for that."""
        self._is_to_end = True
        if self._child is not None:
            self._child.kill()

    async def noticed(self) -> None:
        """If the process has ended just now: until that is known here, too."""
        if self._child is not None and self._child.poll() is not None:
            await self._ended.wait()

    async def ended(self) -> None:
        """Wait until the process has ended, if there is one."""
        if self._child is not None:
            await self._ended.wait()

    async def vacated(self, limit: float | None = None) -> None:
        """Wait until what the process left has been cleared away and its partners have been told.

        Raises `LocalError` after `limit` seconds.
        """
        deadline = None if limit is None else time.monotonic() + limit
        while not self._door.vacant:
            if deadline is not None and time.monotonic() > deadline:
                raise LocalError(f"VIO server {self.name}: what its last process had in hand has not ended")
            await asyncio.sleep(_LOOK_AGAIN)

    async def stop(self) -> None:
        """Let the process stop all that it serves and end; kill it when it does not. Raises `LocalError`."""
        if self._child is None:
            return
        self._is_to_end = True
        try:
            await asyncio.to_thread(self.call, say.Stop())
            async with asyncio.timeout(END_LIMIT):
                await self.ended()
        except TimeoutError:
            raise LocalError("its process did not stop, and was killed") from None
        finally:
            self.kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(END_LIMIT):
                    await self.ended()

    async def close(self) -> None:
        """Kill what is left of it, and close the door."""
        self.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(END_LIMIT):
                await self.ended()
        await asyncio.to_thread(self._gateway.remove, self._door)

    # -- what is asked of it

    def call(self, request: say.Request, fds: Sequence[int] = (), *, limit: float = CALL_LIMIT) -> dict[str, Any]:
        """Ask for something and wait for the answer; in a thread that may wait.

        Raises `LocalError`, `ServerGone`, `OSError`, and `TimeoutError` when it takes longer than `limit` seconds.
        """
        gone = ServerGone(f"VIO server {self.name}: its process has ended")
        deadline = time.monotonic() + limit
        if not self._lock.acquire(timeout=limit):
            raise TimeoutError(f"VIO server {self.name} did not answer within {limit:g} s")
        try:
            control = self._control
            if control is None:
                raise gone
            number = next(self._numbers)
            try:
                control.settimeout(limit)
                socket.send_fds(control, [say.pack(say.Ask(number, request))], fds)
                while True:
                    control.settimeout(max(0.001, deadline - time.monotonic()))
                    packet = control.recv(say.PACKET)
                    if not packet:
                        raise gone
                    answer = say.unpack_answer(packet)
                    if answer.number == number:  # else it is one that was too late for whoever asked
                        break
            except TimeoutError:
                raise TimeoutError(f"VIO server {self.name} did not answer within {limit:g} s") from None
            except (OSError, msgspec.MsgspecError):
                raise gone from None
        finally:
            self._lock.release()
        match answer.kind:
            case "refused":
                raise LocalError(answer.text)
            case "late":
                raise TimeoutError(answer.text)
            case "failed":
                raise OSError(answer.code, answer.text)
        return answer.value

    def open(self, declared: Disk, folder: str | None, share: ImageShare | None) -> RemoteDiskEnd:
        """Have it open a disk's image; blocks. Raises `LocalError`."""
        number = next(self._disks)
        fds = [] if share is None else [share.fileno()]
        try:
            facts = self.call(say.Open(number, declared, folder), fds, limit=OPEN_LIMIT)
        except OSError as error:  # TimeoutError is one
            raise LocalError(f"image {declared.image}: {error.strerror or error}") from error
        return RemoteDiskEnd(self, number, **facts)

    async def look(self) -> None:
        """Bring `facts` up to date, if it answers in time."""
        if self._child is None:
            return
        with suppress(OSError, LocalError):
            found = await asyncio.to_thread(self.call, say.Look(), limit=LOOK_LIMIT)
            self.facts = {int(number): facts for number, facts in found.items()}


class RemoteDiskEnd:
    """`DiskEnd` in that process; every method blocks until it has answered. Raises `TimeoutError` if it does not."""

    def __init__(
        self,
        process: ServerProcess,
        number: int,
        *,
        size: int,
        capacity: int,
        block_size: int,
        read_only: bool,
        is_raw: bool,
    ) -> None:
        self._process = process
        self._number = number
        self.size = size
        self.capacity = capacity
        self.block_size = block_size
        self.read_only = read_only
        self.is_raw = is_raw

    def _do(self, what: Any, size: int | None = None) -> None:
        self._process.call(say.Do(self._number, what, size))

    def serve(self, unit_address: int) -> None:
        """See `DiskEnd.serve`."""
        self._process.call(say.Serve(self._number, unit_address))

    def start(self) -> None:
        """See `DiskEnd.start`."""
        self._do("start")

    def retire(self) -> None:
        """See `DiskEnd.retire`."""
        self._do("retire")

    def flush(self) -> None:
        """See `DiskEnd.flush`."""
        self._do("flush")

    def close(self) -> None:
        """See `DiskEnd.close`; harmless when the process has ended, which closes everything."""
        with suppress(ServerGone):
            self._do("close")

    def resize_image(self, size: int) -> None:
        """See `DiskEnd.resize_image`."""
        self._do("resize_image", size)
        self.size = size

    def image_resized(self, size: int) -> None:
        """See `DiskEnd.image_resized`."""
        self._do("image_resized", size)
        self.size = size

    def resize_device(self, size: int) -> None:
        """See `DiskEnd.resize_device`."""
        self._do("resize_device", size)
        self.capacity = size

    def facts(self) -> dict[str, Any]:
        """See `DiskEnd.facts`: as they were when the process was looked at last."""
        unknown: dict[str, Any] = {
            "state": "unknown",
            "revision": None,
            "capacity": self.size,
            "requests": 0,
            "rejected": 0,
            "counters": {},
            "limits": None,
            "delayed": 0,
            "reconnections": 0,
        }
        return {**unknown, **self._process.facts.get(self._number, {})}
