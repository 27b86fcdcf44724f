"""A Unix socket of a client partition: programs of the host that connect there are served by its driver."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from powervio.attach.unix_socket import UnixListener

_log = logging.getLogger(__name__)


class SocketAttachment:
    """Listens at a path; `serve(reader, writer)` has one connection until it returns."""

    def __init__(self, path: str, serve: Callable[..., Any], *, limit: int = 16) -> None:
        """At most `limit` connections at a time; further ones are closed at once."""
        self.path = path
        self._serve = serve
        self._limit = limit
        self._server: asyncio.Server | None = None
        self._listener: UnixListener | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. Raises `LocalError` when something is in the way."""
        self._listener = UnixListener(self.path)
        self._server = await asyncio.start_unix_server(self._accept, sock=self._listener.socket)

    async def close(self) -> None:
        """Stop listening, and end the connections."""
        if self._server is not None:
            self._server.close()
        if self._listener is not None:
            self._listener.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._limit:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._connection(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(reader, writer)
        except OSError as error:  # the program left, or the device did
            _log.debug("%s: %s", self.path, error)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
