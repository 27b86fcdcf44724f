"""The gateway: doors of partitions, in one thread that gives each of them its turn.

A door is a Unix socket with one partition behind it. Whoever connects is that partition until its socket closes: QEMU
with `-device ivshmem-doorbell`, or a process of ours (`remote_port`). Then the partition has failed: its partners are
told with FF01, its queues and TCEs are gone, and the door is open for the next process.

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
import time
from collections.abc import Callable, Iterable, Sequence

from powervio.errors import LocalError
from powervio.gateway import ivshmem, layout
from powervio.gateway.hosted import Hosted
from powervio.gateway.layout import Layout, MapEntry
from powervio.gateway.mailbox import Lookout
from powervio.gateway.session import Session
from powervio.phyp.partition import Partition

_log = logging.getLogger(__name__)

TURN = 64
"""hcalls of one partition that are answered before the next partition has its turn."""
CHECK_SECONDS = 0.25
"""How often each partition's memory file is looked at: whether it is as long as it was."""
_SLICE = 50_000
"""Nanoseconds of looking for something to do without letting go of the lock."""
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
        self._gateway.opened(self)
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
        """It woke the thread, which looks at every ring."""

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
        self._gateway.closed(self)
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
        with self._gateway.lock:
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


class Gateway:
    """All doors of one hypervisor. `poll` is one pass; `start` runs it in a thread."""

    def __init__(self, *, turn: int = TURN, spin_us: int = 0) -> None:
        """`spin_us`: microseconds for which the thread goes on looking after it had something to do, before it sleeps.

        A processor that sleeps is slow to wake, and slow for a while after. What is spent is at most one processor, and
        only while partitions have something to do at least this often.
        """
        self.lock = threading.RLock()
        """Held while the gateway works; `add` and `remove` take it."""
        self.ready: dict[Door, None] = {}
        """Whose turn it is, in order."""
        self.doors: list[Door] = []
        self._turn = turn
        self._spin = spin_us * 1e-6
        self._spin_until = 0.0
        self._epoll = select.epoll()
        self._open: list[Door] = []
        """Those with a process."""
        self._lookout = Lookout(self._epoll.fileno())
        self._calls: dict[int, Callable[[], None]] = {}
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.watch(self._wake, self._woken)
        self.hosted = Hosted(self._epoll, lambda: os.eventfd_write(self._wake, 1))
        """Partitions of this process that run in the gateway's thread."""
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._next_check = 0.0

    def __enter__(self) -> Gateway:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        partition: Partition,
        path: str,
        *,
        memory_map: Sequence[MapEntry] = (),
        vectors: int = 2,
        slots: int = layout.DEFAULT_SLOTS,
        region_size: int = layout.DEFAULT_REGION,
        users: Iterable[int] | None = None,
    ) -> Door:
        """A door at `path` for a partition that nobody runs here; whoever connects runs it.

        `vectors` is that of QEMU's device. `users` are the user ids that may connect; root and this process's user
        unless given. Raises `LocalError`.
        """
        where = layout.plan(
            partition.area.size,
            partition.partition_id,
            memory_map=memory_map,
            region_size=region_size,
            slots=slots,
            vectors=vectors,
        )
        with self.lock:
            door = Door(self, partition, path, where, frozenset((0, os.geteuid()) if users is None else users))
            partition.waits = False  # its hcalls are made in this thread, which is everybody's
            door.open()
            self.doors.append(door)
            return door

    def remove(self, door: Door) -> None:
        """Close a door; its partition fails if a process is it. When this returns it has."""
        with self.lock:
            self.doors.remove(door)
            ender = door.close()
        if ender is not None:
            ender.join()

    def watch(self, fd: int, call: Callable[[], None], events: int = select.EPOLLIN) -> None:
        """Call in the gateway's thread when a descriptor is readable."""
        self._calls[fd] = call
        self._epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """End that, before the descriptor is closed."""
        if self._calls.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """One pass: a turn for each partition that posted something, who comes and goes, and what partitions of this
        thread have to do. Waits at most `timeout` seconds for something to do. Whether a partition has more to do."""
        wait = self._look(CHECK_SECONDS if timeout is None else timeout)
        events = self._epoll.poll(wait)
        with self.lock:
            for fd, _ in events:
                call = self._calls.get(fd)
                if call is not None:  # it may have been ended by one before it
                    call()
        self.hosted.run(events)
        if events:
            self._spin_until = time.monotonic() + self._spin
        return bool(self.ready)

    def _look(self, longest: float) -> float:
        """Look for what is posted and answer it; seconds to wait for descriptors after that, `longest` at most.

        If there was something to do lately this looks for a while before there is a wait.
        """
        with self.lock:
            now = time.monotonic()
            if now >= self._next_check:
                self._next_check = now + CHECK_SECONDS
                for door in self.doors:
                    door.look()
            wait = 0.0 if self.ready else self.hosted.timeout(longest)
            if not wait:
                self._lookout.look(0)
            elif now < self._spin_until:
                self._lookout.look(min(_SLICE, int(wait * 1e9)))
                wait = 0.0
            elif self._lookout.rest():
                wait = 0.0
            return 0.0 if self._turns() else wait

    def _turns(self) -> bool:
        """A turn for each door where something is posted, those first that had to wait; whether there was one."""
        for door in self._open:
            if door.session is not None and door.session.mailbox.waiting:
                self.ready.setdefault(door)
        if not self.ready:
            return False
        self._spin_until = time.monotonic() + self._spin
        for door in list(self.ready):
            self.ready.pop(door, None)
            if door.turn(self._turn):
                self.ready[door] = None
        return True

    def opened(self, door: Door) -> None:
        """A process is the partition: its ring is looked at."""
        self._open.append(door)
        self._watch_rings()

    def closed(self, door: Door) -> None:
        """It is not any more. Its session is closed after this."""
        self._open.remove(door)
        self.ready.pop(door, None)
        self._watch_rings()

    def _watch_rings(self) -> None:
        self._lookout.watch([door.session.mailbox for door in self._open if door.session is not None])

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)

    def start(self) -> None:
        """Run in a thread."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self.hosted.thread = self._thread
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.poll(None)
            except Exception:  # a fault of ours: the other partitions go on
                _log.exception("the gateway's turn failed")

    def stop(self) -> None:
        """End the thread after what it is doing."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._stopping = True
            os.eventfd_write(self._wake, 1)
            thread.join()
            self.hosted.thread = None
            with self.lock:  # nobody looks any more, so whoever posts something has to ring (G5.7)
                for door in self._open:
                    if door.session is not None:
                        door.session.mailbox.rest()

    def close(self) -> None:
        """End the thread and all doors."""
        self.stop()
        for door in list(self.doors):
            self.remove(door)
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake)
