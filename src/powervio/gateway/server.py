"""The gateway: doors of partitions, in one thread that gives each of them its turn."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

from powervio.gateway import layout
from powervio.gateway.door import Door
from powervio.gateway.hosted import Hosted
from powervio.gateway.layout import MapEntry
from powervio.gateway.mailbox import CALL, READABLE, look
from powervio.phyp.partition import Partition

_log = logging.getLogger(__name__)

TURN = 64
"""hcalls of one partition that are answered before the next partition has its turn."""
CHECK_SECONDS = 0.25
"""How often each partition's memory file is looked at: whether it is as long as it was."""
_GIVE_WAY = 0.0001
"""Seconds; enough for a thread that waits for the lock to wake up and take it."""


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
        self._spin_ns = spin_us * 1000
        self._has_worked = False
        """In the last pass: then the next thing may be near."""
        self._askers: set[int] = set()
        """Threads that want the lock."""
        self._epoll = select.epoll()
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
        with self.held():
            door = Door(self, partition, path, where, frozenset((0, os.geteuid()) if users is None else users))
            partition.waits = False  # its hcalls are made in this thread, which is everybody's
            door.open()
            self.doors.append(door)
            return door

    def remove(self, door: Door) -> None:
        """Close a door; its partition fails if a process is it. When this returns it has."""
        with self.held():
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

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock, for a thread that is not the gateway's: that one would else take it again before any other can."""
        asker = threading.get_ident()
        self._askers.add(asker)
        os.eventfd_write(self._wake, 1)
        try:
            with self.lock:
                yield
        finally:
            self._askers.discard(asker)

    def poll(self, timeout: float | None = 0.0) -> bool:
        """One pass: who comes and goes, and a turn for each partition that rang. Waits at most `timeout` seconds for
        something to do. Whether a partition has more to do."""
        wait = self._wait(timeout)
        events = () if wait is None else self._epoll.poll(wait)
        if self._askers:
            time.sleep(_GIVE_WAY)
        with self.lock:
            now = time.monotonic()
            if now >= self._next_check:
                self._next_check = now + CHECK_SECONDS
                for door in self.doors:
                    door.look()
            for fd, _ in events:
                call = self._calls.get(fd)
                if call is not None:  # it may have been ended by one before it
                    call()
            self._has_worked = bool(events or self.ready)
            for door in list(self.ready):
                del self.ready[door]
                if door.turn(self._turn):
                    self.ready[door] = None
        self.hosted.run(events)
        return bool(self.ready)

    def _wait(self, timeout: float | None) -> float | None:
        """How long to wait for something to do, in seconds; looks for it first, if there was something just now.

        None when it was found so: then descriptors are for a later pass.
        """
        if self.ready:
            return 0.0
        longest = self.hosted.timeout(CHECK_SECONDS if timeout is None else timeout)
        spin = min(self._spin_ns, int(longest * 1e9))
        if not spin or not self._has_worked or self._askers:
            return longest
        with self.lock:  # a session that ends takes its ring away
            sessions = [(door, door.session) for door in self.doors if door.session is not None]
            if len(sessions) == 1:
                door, session = sessions[0]
                seen = session.mailbox.look(spin, self._epoll.fileno())
                if seen == CALL:
                    self.ready[door] = None
                    return None
                return 0.0 if seen == READABLE else longest
        # of several each is heard of by its doorbell
        return 0.0 if look(spin, self._epoll.fileno()) else longest

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

    def close(self) -> None:
        """End the thread and all doors."""
        self.stop()
        for door in list(self.doors):
            self.remove(door)
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._wake)
