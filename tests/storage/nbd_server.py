"""An NBD server for tests, on the sans-I/O machine of the product: with a volatile cache, and mortal."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

from powervio.errors import RemoteError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import Command, Error, Request
from powervio.storage.nbd.rules import Export
from powervio.storage.nbd.server import Answer, Ended, ServerConnection

FLAGS = nbd.SEND_FLUSH | nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.SEND_FUA


class VolatileServer:
    """Completed writes are in a cache until a flush, and go with `die`."""

    def __init__(self, path: Path, size: int, *, flags: int = FLAGS, minimum_block: int = 1) -> None:
        self.path = path
        self.export = Export("", size, flags, minimum_block=minimum_block)
        self.stable = bytearray(size)
        self.cached = bytearray(size)
        self.log: list[tuple[str, int, int]] = []
        self.fail: dict[Command, Error] = {}
        """Commands that fail."""
        self.die_at: Command | None = None
        """Die when such a request has come, before or instead of answering it."""
        self.obey_first = False
        """Carry the request out before dying of it."""
        self._links: list[socket.socket] = []
        self._listener: socket.socket | None = None
        self.start()

    def start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._listener = listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen()
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def die(self) -> None:
        """As if killed: nothing that was not flushed is left."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._links.clear()
        self.cached[:] = self.stable

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            self._links.append(link)
            threading.Thread(target=self._serve, args=(link,), daemon=True).start()

    def _serve(self, link: socket.socket) -> None:
        connection = ServerConnection([self.export])
        with contextlib.suppress(OSError, RemoteError), link:
            link.sendall(connection.greeting())
            while True:
                event = self._next(connection, link)
                if isinstance(event, Answer):
                    link.sendall(event.data)
                elif isinstance(event, Ended):
                    return
                elif isinstance(event, Request):
                    link.sendall(self._answer(connection, link, event))

    def _next(self, connection: ServerConnection, link: socket.socket) -> object:
        while (event := connection.next_event()) is None:
            count = link.recv_into(connection.buffer())
            if not count:
                raise ConnectionResetError
            connection.received(count)
        return event

    def _answer(self, connection: ServerConnection, link: socket.socket, request: Request) -> bytes:
        command, at, end = Command(request.command), request.offset, request.offset + request.length
        data = bytearray(request.length if command == Command.WRITE else 0)
        if data:
            connection.supply(memoryview(data))
            self._next(connection, link)
        self.log.append((command.name, request.offset, request.length))
        dies = command == self.die_at
        if dies and not self.obey_first:
            self.die()
            raise ConnectionResetError
        if command in self.fail:
            return connection.error_reply(request, self.fail[command], "as the test wants it")
        if command == Command.WRITE:
            self.cached[at:end] = data
        elif command in (Command.WRITE_ZEROES, Command.TRIM):
            self.cached[at:end] = bytes(request.length)
        elif command == Command.FLUSH:
            self.stable[:] = self.cached
        if dies:
            self.die()
            raise ConnectionResetError
        if command == Command.READ:
            return connection.data_header(request, at, request.length) + self.cached[at:end]
        if command == Command.BLOCK_STATUS:
            runs = [(512, nbd.STATE_ZERO * (not any(self.cached[i : i + 512]))) for i in range(at, end, 512)]
            return connection.status_reply(request, runs)
        return connection.done_reply(request)
