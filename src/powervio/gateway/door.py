"""A door: a Unix socket with one partition behind it.

Whoever connects is that partition until its socket closes: QEMU with `-device ivshmem-doorbell`, or a process of ours
(`remote_port`). Then the partition has failed: its partners are told with FF01, its queues and TCEs are gone, and the
door is open for the next process.

A socket is closed by the kernel when the last thread of its process has ended, and so after every system call of it
that was under way. So when partners hear of a dead VIO server, what it had begun to write has ended (the fencing rule).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
from typing import TYPE_CHECKING

from powervio.errors import LocalError
from powervio.gateway import ivshmem, layout
from powervio.gateway.layout import Layout
from powervio.gateway.session import Session
from powervio.phyp.partition import Partition

if TYPE_CHECKING:
    from powervio.gateway.server import Gateway

_log = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("=iII")
_BACKLOG = 4


class Door:
    """One partition's way in; made by `Gateway.add`."""

    def __init__(self, gateway: Gateway, partition: Partition, path: str, where: Layout, users: frozenset[int]) -> None:
        self.partition = partition
        self.path = path
        self.where = where
        self.session: Session | None = None
        self.sessions = 0
        """Processes that were let in so far."""
        self._gateway = gateway
        self._users = users
        self._socket: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._listener.bind(path)
            self._listener.listen(_BACKLOG)
        except OSError as error:
            self._listener.close()
            raise LocalError(f"{path}: {error.strerror}") from error
        self._successor: socket.socket | None = None
        """Came when its predecessor had just gone, and is let in when that is done with."""
        self._ender: threading.Thread | None = None
        self._closed = False

    @property
    def attached(self) -> bool:
        """Whether there is a process."""
        return self.session is not None

    @property
    def vacant(self) -> bool:
        """Whether nobody is there, and what the last process left has been cleared away and told to its partners."""
        return self.session is None and self._ender is None

    # -- in the gateway's thread

    def open(self) -> None:
        """Listen."""
        self._gateway.watch(self._listener.fileno(), self._arrives)

    def _arrives(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:  # out of descriptors: the one who waits is asked in again when there are some
            _log.error("partition %s: %s", self.partition.name, error.strerror)
            return
        process, user, _group = _CREDENTIALS.unpack(
            client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        why = self._refusal(user)
        if why:
            _log.warning("partition %s: process %d of user %d: %s", self.partition.name, process, user, why)
            client.close()
            return
        _log.info("partition %s: process %d of user %d", self.partition.name, process, user)
        if self._ender is None:
            self._let_in(client)
        else:
            self._successor = client

    def _refusal(self, user: int) -> str:
        if user not in self._users:
            return "this user may not be the partition"
        if self._socket is not None:
            # a process that was just killed may be heard of after its successor has come
            if not self._has_gone(self._socket):
                return "the partition runs in another process"
            self._leave("its process has gone")
        return self._refusal_now()

    def _refusal_now(self) -> str:
        if not self.partition.alive:
            return "the partition was terminated"
        if self.partition.area.lost:
            return "the partition's memory file became shorter"
        return ""

    @staticmethod
    def _has_gone(client: socket.socket) -> bool:
        try:
            return not client.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _let_in(self, client: socket.socket) -> None:
        client.setblocking(False)
        session = None
        try:
            session = Session(self.partition, self.where)
            peers = [
                (layout.HYPERVISOR_PEER, [session.doorbell]),
                (layout.PARTITION_PEER, session.vectors),
            ]
            # some 30 bytes of messages and one descriptor each: they fit a new socket's buffer
            for value, fd in ivshmem.greeting(layout.PARTITION_PEER, session.region.fd, peers):
                socket.send_fds(client, [ivshmem.MESSAGE.pack(value)], [] if fd is None else [fd])
        except OSError as error:
            _log.warning("partition %s: its process is not let in: %s", self.partition.name, error)
            if session is not None:
                session.close()
            client.close()
            return
        self._socket, self.session = client, session
        self.sessions += 1
        self._gateway.watch(client.fileno(), self._hear)
        # every write to the doorbell wakes, so that it need not be read
        self._gateway.watch(session.doorbell, self._ring, select.EPOLLIN | select.EPOLLET)

    def _hear(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(ivshmem.MESSAGE.size)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._leave("its process has gone")
        elif data != ivshmem.MESSAGE.pack(ivshmem.ASK_MEMORY):
            self._leave("its process said what no partition says")
        else:
            try:
                socket.send_fds(self._socket, [data], [self.partition.area.fd])
            except OSError:
                self._leave("its process does not listen")

    def _ring(self) -> None:
        self._gateway.ready[self] = None

    def turn(self, limit: int) -> bool:
        """Answer some hcalls; whether there are more."""
        if self.session is None or not self.check():
            return False
        return self.session.turn(limit)

    def look(self) -> None:
        """End the session of a partition whose memory has become less."""
        if self.check():
            self.partition.area.look()
            self.check()

    def check(self) -> bool:
        """End the session of a partition that cannot go on."""
        if self.session is None:
            return False
        if not self.session.usable:
            self._leave("it was terminated" if not self.partition.alive else "its memory file became shorter")
            return False
        return True

    def _leave(self, why: str) -> None:
        """End the session. The partition fails in a thread of its own, because operations on its memory may have to
        end first; until then nobody is let in."""
        session, client = self.session, self._socket
        if session is None or client is None:
            return
        _log.info("partition %s: %s", self.partition.name, why)
        self._gateway.unwatch(session.doorbell)
        self._gateway.unwatch(client.fileno())
        self._gateway.unwatch(self._listener.fileno())
        self._gateway.ready.pop(self, None)
        self._ender = threading.Thread(target=self._fail, name=f"gateway-{self.partition.name}", daemon=True)
        self.session = self._socket = None
        session.close()
        client.close()
        self._ender.start()

    def _fail(self) -> None:
        hypervisor = self.partition.hypervisor
        while self.partition.alive:
            try:
                hypervisor.fail(self.partition)
                break
            except LocalError as error:  # operations that take long; or it was terminated meanwhile
                _log.warning("%s", error)
                if self._closed:
                    break
        with self._gateway.held():
            self._ender = None
            successor, self._successor = self._successor, None
            if successor is not None and (self._closed or self._refusal_now()):
                successor.close()
            elif successor is not None:
                self._let_in(successor)
            if not self._closed:
                self.open()

    def close(self) -> threading.Thread | None:
        """End it, with the process that is there; what still goes on then is to be waited for without the lock."""
        self._leave("its door is closed")
        self._closed = True
        self._gateway.unwatch(self._listener.fileno())
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self.path)
        return self._ender
