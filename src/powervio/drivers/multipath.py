"""One disk behind several devices (multipath), without I/O: requests go to one of its paths, and on to another in need.

Each path is a `BlockCore` of its own adapter, to a VIO server of its own; all servers have the same medium open. A
request is always in one place: with the disk, while no path can take it, or with one path. So it completes once.

**The fencing rule.** A write that was in flight on a path must never reach the medium after it was submitted on another
path: acknowledged there, and overwritten by a later write to the same block, it would come back as a ghost. So a
request leaves a path only

- while it waits there for room in a ring, for then no device ever had it; or
- when the session is over *and the server has ended its work*: `Driver.fenced`. That is when the server has left the
  connection (FF01, FF02, FF04: who lets a server die ends its I/O on the medium before its partners hear of it, P1.9),
  or has answered a new one (P1.5, P1.9). The end of the session alone proves nothing: a client may leave a server that
  is in the middle of a slow write. Until then the requests stay with the path, and a new session of it takes them on.

A path that only hangs is another matter: it has a session, and does not answer its check in time. It gets no new
requests, and what waited there for room goes elsewhere; what its device has stays its own until it answers or is
fenced. That holds for reads too, whose buffers a late answer would fill.

An answer with an error status is an answer: it is the medium's, which is the same on every path, and is passed up.

**Flush.** Every server writes the same file or block device, so an fsync at one of them covers what was completed at
any of them before. That is the kernel's promise for one raw image on one machine; backings that keep a cache or a
journal of their own for each server (NBD, QEMU's formats) do not give it and cannot be used this way.

**Which disk it is.** The first path to be known says what the disk is; whether the others lead to the same one is
decided by serial number (GET_ID), capacity, logical block, readonly and FLUSH. A path to another disk is refused and
says why. What the disk can do is what every path can: until the first request a path that can do less narrows it,
after that such a path is refused, so a request that was taken can be done anywhere.

**Checks.** Every `check_interval` each path that has a session is asked for its serial number, standby paths too. A
path whose check is not answered when the next is due, and which completed nothing meanwhile, is failed until it
answers. With "failover" the first usable path gets all requests, so the preferred one takes over again when it has
answered; with "round-robin" they take turns.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import count
from operator import attrgetter
from typing import Literal, TypeAlias

from powervio.drivers.block_core import BlockCore
from powervio.drivers.block_limits import BlockLimits
from powervio.drivers.block_request import BlockRequest, failure
from powervio.errors import LocalError
from powervio.virtio import block as blk
from powervio.virtio.device import Cancellable, Scheduler
from powervio.virtio.queue import Buffer, DriverQueue, DriverTransport

Policy: TypeAlias = Literal["failover", "round-robin"]
"""Who gets new requests: the first path that can, or each in turn."""

CHECK_INTERVAL = 5.0
"""Seconds between two checks of a path."""

_LEAST = ("seg_max", "size_max", "max_discard", "max_write_zeroes", "max_secure_erase")
"""Limits of which the smallest holds for all paths."""


class PathState(Enum):
    """Where a path stands."""

    WAITING = "waiting"
    """It has no session: its server is away."""
    CHECKING = "checking"
    """It has one, and has not said yet which disk it is."""
    ACTIVE = "active"
    STANDBY = "standby"
    """It could take requests; another one does."""
    FAILED = "failed"
    """It does not answer its check: nothing new goes there until it does."""
    REFUSED = "refused"
    """It leads to another disk, or one that can do less."""


class Path(BlockCore):
    """The driver of one path's adapter; what its callers submit comes from the disk."""

    def __init__(self, disk: MultipathCore, name: str, max_queues: int) -> None:
        super().__init__(max_queues=max_queues, numbers=disk.numbers)
        self.name = name
        self.serial: bytes | None = None
        """What this session's device said to GET_ID; None before it did."""
        self.answers = True
        """Whether the last check was answered in time."""
        self.refusal = ""
        """Why it is not used though it answers."""
        self.check_request: BlockRequest | None = None
        """The check that is under way."""
        self.checks = 0
        """Completed by the device."""
        self.failures = 0
        """How often it became `FAILED`."""
        self.has_moved = False
        """Whether the device completed anything since the last look."""
        self._disk = disk

    @property
    def usable(self) -> bool:
        """Whether it may get new requests."""
        return self.connected and self.serial is not None and self.answers and not self.refusal

    @property
    def state(self) -> PathState:
        """Where it stands."""
        if not self.connected:
            return PathState.WAITING
        if self.refusal:
            return PathState.REFUSED
        if not self.answers:
            return PathState.FAILED
        if self.serial is None:
            return PathState.CHECKING
        return PathState.ACTIVE if self._disk.uses(self) else PathState.STANDBY

    @property
    def reason(self) -> str:
        """Why it is not used, in words; empty if there is nothing to say."""
        if self.connected and not self.answers:
            return f"no answer to the path check; {self.in_flight} requests stay with it"
        return self.refusal

    def start(self, transport: DriverTransport) -> None:
        """A session: ask which disk it is before anything else is done there."""
        super().start(transport)
        self.answers = True
        self._disk.path_started(self)

    def stop(self) -> None:
        """The session is over: what the device had stays here until `fenced`, what waited for room does not."""
        waiting = self.take_pending()
        if self.check_request is not None:
            self.check_request.withdrawn = True
        super().stop()
        self.serial = None
        self.refusal = ""
        self._disk.path_gives_up(waiting)

    def fenced(self) -> None:
        """The server has ended its work: another path may do what it had."""
        if not self.connected:
            self._disk.path_gives_up(self.take_pending())

    def completed(self, queue: DriverQueue) -> None:
        """See `BlockCore.completed`; a device that completes anything is alive."""
        before = self.requests
        super().completed(queue)
        self.has_moved = self.has_moved or self.requests != before

    def config_changed(self) -> None:
        """See `BlockCore.config_changed`."""
        before = self.capacity
        super().config_changed()
        if self.capacity != before:
            self._disk.path_resized(self)

    def removed(self, reason: str) -> None:
        """The adapter is gone for good: nobody will ever say what became of the requests that it had, so they fail."""
        waiting = self.take_pending() if self.connected else []
        self.fail_all(reason)
        self._disk.path_removed(waiting, reason)

    def release(self, give_back: Callable[[Buffer], None]) -> None:
        """See `Driver.release`."""
        super().release(give_back)
        self._disk.path_released(self, give_back)

    @property
    def is_closed(self) -> bool:
        """Whether it is gone for good."""
        return self._closed is not None

    def take(self, request: BlockRequest) -> None:
        """A request that has its number."""
        self._take(request)

    def take_pending(self) -> list[BlockRequest]:
        """Give up what waits, in its order; a check stays."""
        taken = [request for request in self._pending if request is not self.check_request]
        kept = [request for request in self._pending if request is self.check_request]
        self._pending = deque(kept)
        return taken

    def allocate(self, length: int) -> Buffer:
        """Memory that is mapped for each request, by any path. Raises `LocalError`; only while connected."""
        assert self._transport is not None
        return self._transport.allocate(length)

    def free(self, buffer: Buffer) -> None:
        """Give memory of `allocate` back, of any path; only while connected."""
        assert self._transport is not None
        self._transport.release(buffer)


class MultipathCore(BlockLimits):
    """A disk for callers that keep many requests going and are told by callback: see `BlockCore`.

    Its interface is the same. Everything is called in the partition's thread.
    """

    def __init__(
        self,
        names: Sequence[str],
        scheduler: Scheduler,
        *,
        policy: Policy = "failover",
        check_interval: float = CHECK_INTERVAL,
        max_queues: int = 16,
    ) -> None:
        """A path for each name, the preferred one first; `scheduler` is the partition's kernel, for the checks.

        `check_interval` is seconds. Raises `LocalError` for fewer than two names or one that is there twice.
        """
        super().__init__()
        if len(names) < 2 or len(set(names)) != len(names):
            raise LocalError(f"paths {', '.join(names) or 'none'}: expected two or more, with a name of its own each")
        if check_interval <= 0:
            raise LocalError(f"check_interval {check_interval}: expected seconds above 0")
        self.numbers = count()
        """Places in the order of submission, over all paths."""
        self.policy = policy
        self.check_interval = check_interval
        self.serial = b""
        """What every path has to say to GET_ID."""
        self.paths = [Path(self, name, max_queues) for name in names]
        self._scheduler = scheduler
        self._pending: deque[BlockRequest] = deque()
        self._turn = 0
        self._failed = 0
        self._has_requests = False
        self._dispatching = False
        self._timer: Cancellable | None = None
        self._released: list[Path] = []

    # What people look at

    @property
    def connected(self) -> bool:
        """Whether a path can take requests."""
        return bool(self._usable())

    @property
    def requests(self) -> int:
        """Completed by the devices, checks not counted."""
        return sum(path.requests - path.checks for path in self.paths)

    @property
    def failed(self) -> int:
        """Completed with an error."""
        return self._failed + sum(path.failed for path in self.paths)

    @property
    def resubmitted(self) -> int:
        """Put back when a session was lost."""
        return sum(path.resubmitted for path in self.paths)

    @property
    def in_flight(self) -> int:
        """Requests that devices have."""
        return sum(path.in_flight for path in self.paths)

    @property
    def pending(self) -> int:
        """Requests that wait: for a path, for room on one, or for a server to have ended its work."""
        return len(self._pending) + sum(path.pending for path in self.paths)

    @property
    def waiting(self) -> int:
        """Requests that no path can take now."""
        return len(self._pending)

    def uses(self, path: Path) -> bool:
        """Whether new requests may go there now."""
        usable = self._usable()
        return path in (usable[:1] if self.policy == "failover" else usable)

    def _usable(self) -> list[Path]:
        return [path for path in self.paths if path.usable]

    # Requests

    def submit(self, request: BlockRequest) -> None:
        """See `BlockCore.submit`; a request is taken only if every path can do it."""
        self.check(request)
        self._has_requests = True
        request.order = next(self.numbers)
        path = None if self._pending else self._choose()
        if path is None:
            self._pending.append(request)
            return
        try:
            path.take(request)
        except BaseException:
            request.order = -1
            raise

    def submit_many(self, requests: Iterable[BlockRequest]) -> None:
        """Take requests in their order; what raises leaves those before it submitted."""
        for request in requests:
            self.submit(request)

    def kick(self) -> None:
        """Tell the devices of what was submitted since the last kick."""
        for path in self.paths:
            path.kick()

    def withdraw(self, request: BlockRequest) -> None:
        """See `BlockCore.withdraw`."""
        if request in self._pending:
            self._pending.remove(request)
            request.withdrawn = True
            self._fail(request, errno.ECANCELED, "withdrawn")
            return
        for path in self.paths:
            path.withdraw(request)

    def fail_all(self, reason: str) -> None:
        """See `BlockCore.fail_all`."""
        self._closed = reason
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for path in self.paths:
            path.fail_all(reason)
        while self._pending:
            self._fail(self._pending.popleft(), errno.ESHUTDOWN, reason)

    def _choose(self) -> Path | None:
        usable = self._usable()
        if not usable:
            return None
        if self.policy == "failover":
            return usable[0]
        self._turn = (self._turn + 1) % len(usable)
        turns = usable[self._turn :] + usable[: self._turn]
        return next((path for path in turns if not path.pending), turns[0])  # one with room, if there is one

    def _dispatch(self) -> None:
        """Give what waits to paths that can take it."""
        if self._dispatching:
            return  # a request that failed at once brought another: the loop below has it next
        self._dispatching = True
        try:
            while self._pending and (path := self._choose()) is not None:
                request = self._pending.popleft()
                try:
                    path.take(request)
                except BaseException:
                    self._pending.appendleft(request)
                    raise
        finally:
            self._dispatching = False
        self.kick()

    def _fail(self, request: BlockRequest, code: int, reason: str) -> None:
        self._failed += 1
        request.error = failure(request, code, reason)
        request.done = True
        if request.callback is not None:
            request.callback(request)

    # What happens to paths

    def path_started(self, path: Path) -> None:
        """A path has a session."""
        if self._closed is None:
            self._check_path(path)
            path.kick()
            if self._timer is None:
                self._timer = self._scheduler.call_later(self.check_interval, self._look)

    def path_gives_up(self, requests: list[BlockRequest]) -> None:
        """Requests of a path are the disk's again, in their old order, and for another path if there is one."""
        self._pending = deque(sorted((*self._pending, *requests), key=attrgetter("order")))
        if self._closed is not None:
            self.fail_all(self._closed)
        self.settled()
        self._dispatch()

    def path_resized(self, path: Path) -> None:
        """A device says that the disk has another size: the last word counts, and the others have to follow."""
        if path.serial is not None and not self._other_disk(path):
            self.capacity = path.capacity
        self._settle()
        if self.on_resize is not None:
            self.on_resize()

    def path_removed(self, requests: list[BlockRequest], reason: str) -> None:
        """An adapter is gone for good; with the last one the disk is."""
        if all(path.is_closed for path in self.paths):
            self.fail_all(reason)
        self.path_gives_up(requests)

    def path_released(self, path: Path, give_back: Callable[[Buffer], None]) -> None:
        """A path's end gave all memory back; with the last one the disk's own goes."""
        if path not in self._released:
            self._released.append(path)
        if len(self._released) == len(self.paths):
            self.release_memory(give_back)

    def release_memory(self, give_back: Callable[[Buffer], None]) -> None:
        """Nobody uses the disk any more: give back what was allocated for all paths."""

    def settled(self) -> None:
        """Something about the paths may be other than before."""

    # Checks

    def _look(self) -> None:
        """By timer: who has not answered since the last time is failed, the others are asked again."""
        self._timer = self._scheduler.call_later(self.check_interval, self._look)
        for path in self.paths:
            if not path.connected or path.is_closed:
                continue
            if path.check_request is None:
                self._check_path(path)
            elif not path.has_moved and path.answers:
                path.answers = False
                path.failures += 1
                self.path_gives_up(path.take_pending())  # what waits there for room, no device ever had
            path.has_moved = False
        self.kick()

    def _check_path(self, path: Path) -> None:
        request = BlockRequest(blk.T_GET_ID, callback=self._checked, context=path)
        path.check_request = request
        path.has_moved = False
        path.submit(request)

    def _checked(self, request: BlockRequest) -> None:
        path = request.context
        assert isinstance(path, Path)
        path.check_request = None
        if request.status >= 0:
            path.checks += 1
        if request.error is not None:
            path.failed -= 1  # nobody's request failed
        if not path.connected or request.withdrawn or path.is_closed:
            return
        # A device need not have a serial number (ENOTSUP); one that cannot say for another reason is not well.
        path.answers = request.error is None or request.error.errno == errno.ENOTSUP
        path.serial = request.answer if request.error is None else b""
        self._settle()

    # Which disk it is

    def _settle(self) -> None:
        """Look at every path anew: which of them lead to this disk, and what they can do."""
        known = [path for path in self.paths if path.connected and path.serial is not None and path.answers]
        if not self.started and known:
            self._learn(known[0])
        if len(known) == len(self.paths) and len({path.capacity for path in known}) == 1:
            self.capacity = known[0].capacity  # resized while nobody looked: all say so
        unused: list[BlockRequest] = []
        for path in known:
            path.refusal = self._other_disk(path) or self._other_size(path) or self._can_less(path)
            if path.refusal:
                unused += path.take_pending()
        self.path_gives_up(unused)

    def _learn(self, path: Path) -> None:
        for name in (*_LEAST, "features", "capacity", "block_size", "physical_block_size", "discard_alignment"):
            setattr(self, name, getattr(path, name))
        self.serial = path.serial or b""
        self.started = True

    def _other_disk(self, path: Path) -> str:
        """Why a path leads to another disk, in words; empty if it does not."""
        if path.serial != self.serial:
            return f"another disk: its serial number is {_shown(path.serial)}; expected {_shown(self.serial)}"
        for name, what in (("block_size", "logical block"), ("read_only", "readonly"), ("needs_flush", "write cache")):
            found, expected = getattr(path, name), getattr(self, name)
            if found != expected:
                return f"another disk: {what} {found}; expected {expected}"
        return ""

    def _other_size(self, path: Path) -> str:
        if path.capacity != self.capacity:
            return f"another disk: it has {path.capacity} bytes; expected {self.capacity}"
        return ""

    def _can_less(self, path: Path) -> str:
        """Why requests that were taken could not be done there; before the first request the disk can less instead."""
        less = [name for name in _LEAST if getattr(path, name) < getattr(self, name)]
        if not less:
            return ""
        if self._has_requests:
            return f"it can do less than the other paths ({', '.join(less)})"
        for name in less:
            setattr(self, name, getattr(path, name))
        self.features &= path.features
        return ""


def _shown(serial: bytes | None) -> str:
    return '"' + (serial or b"").split(b"\0", 1)[0].decode("ascii", "replace") + '"'
