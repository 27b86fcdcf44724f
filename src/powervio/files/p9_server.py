"""A share served by 9P2000.L on Unix and TCP sockets, with a thread for each connection, and one more for its Tfsync.

Whoever reaches a socket says which user he is and is believed, as with all servers of this protocol without
authentication: a Unix socket has the mode that it is given, and TCP is for networks that can be trusted.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from powervio.errors import LocalError
from powervio.files.p9_fids import FidBudget
from powervio.files.p9_session import Session
from powervio.files.p9_stream import P9Stream
from powervio.files.sizes import MOST_FIDS
from powervio.files.tree import Tree

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 256
BACKLOG = 64
PATIENCE = 60.0
"""Seconds that a client may take to read what it asked for."""
ENDING = 5.0
"""Seconds that a call to the file system may take when the server ends."""
BUFFER = 1 << 20
"""Bytes that the kernel keeps for each direction, if it lets us."""


@dataclass(slots=True)
class ServerCounters:
    """What a server has done since it was made; `messages` and bytes are those of connections that have ended."""

    connections: int = 0
    refused: int = 0
    """Connections beyond the limit, or beyond the threads that there may be."""
    messages: int = 0
    received: int = 0
    sent: int = 0


class P9Server:
    """Listens, and serves until `close`."""

    def __init__(
        self,
        tree: Tree,
        listen: Sequence[str],
        *,
        msize: int = 1 << 20,
        mode: int = 0o600,
        most_connections: int = MOST_CONNECTIONS,
        most_fids: int = MOST_FIDS,
    ) -> None:
        """`listen` are `unix:PATH` and `tcp:HOST:PORT` (port 0 is any); `mode` is that of Unix sockets. `most_fids`
        are those of all connections together.

        The tree stays the caller's. Raises `LocalError` when one cannot be listened at.
        """
        self.counters = ServerCounters()
        self._tree = tree
        self._msize = msize
        self._most = most_connections
        self._budget = FidBudget(most_fids)
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._closing = False
        self._paths: list[tuple[str, int]] = []
        self._listening: list[socket.socket] = []
        try:
            for place in listen:
                self._listening.append(self._listen(place, mode))
        except BaseException:
            self.close()
            raise
        self._threads = [
            threading.Thread(target=self._accept, args=(one,), name="9p-listen", daemon=True)
            for one in self._listening
        ]  # fmt: skip
        for thread in self._threads:
            thread.start()

    @property
    def places(self) -> list[str]:
        """Where it listens, in the form of `listen`, with the ports that were chosen."""
        return [_place_of(one) for one in self._listening]

    @property
    def connected(self) -> int:
        """Connections at this moment."""
        return len(self._connections)

    def _listen(self, place: str, mode: int) -> socket.socket:
        kind, _, rest = place.partition(":")
        try:
            if kind == "unix" and rest:
                return self._listen_unix(rest, mode)
            host, colon, port = rest.rpartition(":")
            if kind == "tcp" and colon and host and port.isdigit() and int(port) < 65536:
                found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
                return socket.create_server(found[0][4][:2], family=found[0][0], backlog=BACKLOG)
        except OSError as error:
            raise LocalError(f"cannot listen at {place}: {error.strerror or error}") from error
        raise LocalError(f"{place}: expected unix:PATH or tcp:HOST:PORT")

    def _listen_unix(self, path: str, mode: int) -> socket.socket:
        with suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(path).st_mode) and not _is_answered(path):
                os.unlink(path)
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            before = os.umask(0o777 & ~mode)
            try:
                made.bind(path)
            finally:
                os.umask(before)
            self._paths.append((path, os.lstat(path).st_ino))
            made.listen(BACKLOG)
        except BaseException:
            made.close()
            raise
        return made

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                made, _ = listening.accept()
            except OSError as error:
                if self._closing or error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ECONNABORTED):
                    return
                log.warning("9P server at %s: %s", _place_of(listening), error.strerror)
                threading.Event().wait(0.1)
                continue
            thread = threading.Thread(target=self._serve, args=(made,), name="9p", daemon=True)
            with self._lock:
                if self._closing or len(self._connections) >= self._most:
                    self.counters.refused += 1
                    made.close()
                    continue
                try:
                    thread.start()
                except RuntimeError as error:
                    log.warning("9P server at %s: %s", _place_of(listening), error)
                    self.counters.refused += 1
                    made.close()
                    continue
                self._connections[made] = thread
                self.counters.connections += 1

    def _serve(self, made: socket.socket) -> None:
        session = Session(self._tree, msize=self._msize, budget=self._budget)
        stream = P9Stream(made.fileno(), session)
        try:
            _prepare(made)
            with self._tree.identity.held():
                why = stream.serve()
            if why and not self._closing:
                log.warning("9P client: %s", why)
        finally:
            session.close()
            with self._lock:
                self.counters.messages += stream.messages
                self.counters.received += stream.received
                self.counters.sent += stream.sent
                self._connections.pop(made, None)
            made.close()

    def close(self) -> None:
        """End all connections, and listen no more. A second call does nothing."""
        self._closing = True
        for one in self._listening:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # which wakes accept
            one.close()
        for path, inode in self._paths:
            with suppress(OSError):
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)
        self._paths.clear()
        with self._lock:
            threads = list(self._connections.items())
        for made, _ in threads:
            with suppress(OSError):
                made.shutdown(socket.SHUT_RDWR)
        limit = time.monotonic() + ENDING
        for _, thread in threads:
            thread.join(max(0.0, limit - time.monotonic()))

    def __enter__(self) -> P9Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _prepare(made: socket.socket) -> None:
    made.settimeout(None)
    seconds = int(PATIENCE).to_bytes(8, sys.byteorder) + bytes(8)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    if made.family != socket.AF_UNIX:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _is_answered(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1)
        try:
            trial.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def _place_of(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"tcp:{host}:{name[1]}"
