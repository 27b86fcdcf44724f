"""A disk as an NBD server on a Unix socket, usable by any program of the host.

Each client is an `NbdConnection`, where the way of a request is told. All of them share the disk and its pool of
buffers. A flush covers the writes of all clients, because a write is answered only after the disk completed it: hence
MULTI_CONN.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from functools import partial
from pathlib import Path
from typing import Any, Generic

from powervio.attach.disk import B, Disk
from powervio.attach.nbd_connection import NbdConnection
from powervio.attach.unix_socket import UnixListener, check_path
from powervio.errors import LocalError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.rules import Export

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds for which a client may keep a buffer of the pool without moving a byte while somebody waits for one."""


class NbdServer(Generic[B]):
    """Serves one disk to any number of clients."""

    def __init__(
        self,
        disk: Disk[B],
        path: str | Path,
        *,
        name: str = "",
        description: str = "",
        mode: int = 0o600,
        max_clients: int = 128,
        patience: float = PATIENCE,
    ) -> None:
        """`name` is the export's (an empty name finds it too), `mode` the permissions of the socket file.

        Raises `LocalError` when the path is too long for a Unix socket, or the disk's sizes fit no export.
        """
        self.disk = disk
        self.path = Path(path)
        self._name = name
        self._description = description
        _export_of(disk, name, description)
        self._mode = mode
        self._max_clients = max_clients
        self._patience = patience
        self._waiting = 0
        self._paused = False
        self._connections: dict[NbdConnection[B], asyncio.Task[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._listener: UnixListener | None = None
        check_path(path)

    @property
    def export(self) -> Export:
        """What a client that connects now is told; those who are connected keep the size that they know."""
        return _export_of(self.disk, self._name, self._description)

    @property
    def clients(self) -> int:
        """How many clients are connected."""
        return len(self._connections)

    async def start(self) -> None:
        """Listen. A socket file that nobody answers on any more is replaced.

        Raises `LocalError` when somebody does answer, or the socket cannot be made there.
        """
        self._listener = UnixListener(self.path, self._mode)
        self._tasks = [asyncio.create_task(self._accept(self._listener.socket)), asyncio.create_task(self._watch())]

    async def pause(self, timeout: float) -> bool:
        """Begin no further requests; their clients see a slow disk. `unpause` goes on, `close` drops them unanswered.

        Returns whether all that had begun has ended within `timeout` seconds. Replies that clients do not take are
        waited for as long, and no harm if they stay.
        """
        self._paused = True
        for connection in self._connections:
            connection.pause()
        waiting = [asyncio.ensure_future(connection.quiet()) for connection in self._connections]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=timeout)
            for task in late:
                task.cancel()
        return not any(connection.busy for connection in self._connections)

    def unpause(self) -> None:
        """Begin requests again."""
        self._paused = False
        for connection in self._connections:
            connection.unpause()

    async def close(self, timeout: float = 5.0, *, grace: float = 0.0) -> None:
        """Stop listening, remove the socket file, answer what is in flight, and close all connections.

        For `grace` seconds clients may still ask, get ESHUTDOWN, and leave by themselves. After `timeout` seconds more
        connections are cut; what the disk still has is not waited for any longer.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        tasks = list(self._connections.values())
        if tasks and grace:
            for connection in self._connections:
                connection.refuse()
            await asyncio.wait(tasks, timeout=grace)
            tasks = list(self._connections.values())
        for connection in list(self._connections):
            connection.finish()
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=timeout)
            if late:
                for connection in list(self._connections):
                    connection.cut("the server is closing")
                await asyncio.wait(late, timeout=1.0)

    async def __aenter__(self) -> NbdServer[B]:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _acquire(self, length: int) -> B:
        """A buffer of the disk's pool; counted, so that `_watch` knows that somebody waits."""
        self._waiting += 1
        try:
            return await self.disk.acquire(length)
        finally:
            self._waiting -= 1

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:  # out of descriptors or memory: those who are connected go on
                log.warning("NBD %s: cannot accept: %s", self.path, error)
                await asyncio.sleep(0.5)
                continue
            if len(self._connections) >= self._max_clients:
                log.warning("NBD %s: %d clients are connected, a further one was refused", self.path, self.clients)
                client.close()
                continue
            client.setblocking(False)
            connection = NbdConnection(self.disk, self.export, client, self._acquire, str(self.path))
            if self._paused:
                connection.pause()
            task = asyncio.create_task(connection.run())
            self._connections[connection] = task
            task.add_done_callback(partial(self._forget, connection))

    def _forget(self, connection: NbdConnection[B], _: asyncio.Task[None]) -> None:
        del self._connections[connection]

    async def _watch(self) -> None:
        """Cut clients that sit on the pool's buffers while others wait: the pool is shared, their patience is not."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._patience / 4)
            if self._waiting:
                for connection in list(self._connections):
                    connection.cut_if_stalled(loop.time() - self._patience)


def _export_of(disk: Disk[Any], name: str, description: str) -> Export:
    """What is advertised: nothing that is not honoured."""
    if disk.max_transfer < nbd.UNFRAGMENTED or disk.max_transfer % disk.block_size:
        raise LocalError(
            f"buffers of {disk.max_transfer} bytes: at least {nbd.UNFRAGMENTED} and whole blocks are needed for NBD"
        )
    flags = nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.CAN_MULTI_CONN | nbd.SEND_CACHE
    if disk.read_only:
        flags |= nbd.READ_ONLY
    else:
        if disk.can_discard:
            flags |= nbd.SEND_TRIM
        if disk.can_write_zeroes:
            flags |= nbd.SEND_WRITE_ZEROES | (nbd.SEND_FAST_ZERO if disk.zeroes_fast else 0)
    return Export(
        name=name,
        size=disk.size,
        flags=flags,
        description=description,
        minimum_block=disk.block_size,
        preferred_block=disk.preferred_size,
        maximum_payload=nbd.MAX_PAYLOAD,
        largest_unfragmented=disk.max_transfer,
    )
