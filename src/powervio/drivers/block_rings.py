# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The requests of a block driver: into a ring, out of it, and what waits for room; what is done for every request.

`block_core` has sessions, and tells of a request's life and of what is kept where. This file is compiled (Cython pure
mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from operator import attrgetter
from typing import Any

import cython
from cython.cimports.powervio.drivers.block_limits import BlockLimits
from cython.cimports.powervio.drivers.block_request import BlockRequest, Slot
from cython.cimports.powervio.memory.hw import ld8
from cython.cimports.powervio.virtio.driver_queue import DriverQueue

from powervio.drivers.block_limits import SECTOR
from powervio.drivers.block_request import failure, meaning
from powervio.errors import LocalError, RemoteError
from powervio.virtio import block as blk
from powervio.virtio.queue import BufferSlice, DriverTransport

_T_IN = cython.declare(cython.longlong, blk.T_IN)
_T_OUT = cython.declare(cython.longlong, blk.T_OUT)
_T_FLUSH = cython.declare(cython.longlong, blk.T_FLUSH)
_T_GET_ID = cython.declare(cython.longlong, blk.T_GET_ID)
_S_OK = cython.declare(cython.int, blk.S_OK)
_SECTOR = cython.declare(cython.longlong, SECTOR)
_MOST_SECTORS = cython.declare(cython.longlong, 0xFFFF_FFFF)


@cython.final
@cython.cclass
class Ring:
    """One queue of the session."""

    queue: DriverQueue
    load: cython.uint
    kick_is_due: cython.bint

    def __init__(self, queue: DriverQueue) -> None:
        self.queue = queue
        self.load = 0
        """Requests that the device has in it."""
        self.kick_is_due = False


@cython.cclass
class BlockRings(BlockLimits):
    """What of a `BlockCore` is about requests."""

    requests: cython.longlong
    failed: cython.longlong
    resubmitted: cython.longlong
    _transport: DriverTransport | None
    _rings: list[Ring]
    _unkicked: cython.bint
    _big_endian: cython.bint
    _in_flight: cython.uint
    _pending: deque[BlockRequest]
    _numbers: Iterator[int]
    _slots: list[Slot]
    _unmade_slots: Iterator[Slot]
    # Free slots, first in, first out: requests of one batch have neighbours.
    _first_free: Slot | None
    _last_free: Slot | None

    def __init__(self, numbers: Iterator[int] | None = None) -> None:
        BlockLimits.__init__(self)
        self.requests = 0
        """Completed by the device."""
        self.failed = 0
        """Completed, by the device or here, with an error."""
        self.resubmitted = 0
        """Put back when a session was lost or a queue was reset."""
        self._transport = None
        self._rings = []
        self._unkicked = False
        self._big_endian = False
        self._in_flight = 0
        self._pending = deque()
        self._numbers = count() if numbers is None else numbers
        self._slots = []
        self._unmade_slots = iter(())
        self._first_free = None
        self._last_free = None

    @property
    def in_flight(self) -> int:
        """Requests that the device has."""
        return self._in_flight

    @property
    def pending(self) -> int:
        """Requests that wait for room or for a session."""
        return len(self._pending)

    # Requests

    def submit(self, request: BlockRequest) -> None:
        """Take a request; the device has it after the next `kick`, or later when there is no room or no session now.

        Its callback may be called before this returns, if nothing has to be done for it or nothing can be.
        Raises `BlockError` for what this disk cannot do and `LocalError` for what no request can be; it is not
        submitted then.
        """
        if not self.is_usual(request):
            self.check(request)
        request.order = next(self._numbers)
        try:
            self._take(request)
        except BaseException:
            request.order = -1
            raise

    @cython.ccall
    def _take(self, request: BlockRequest) -> cython.void:
        """A request that has its place in the order of submission."""
        if len(self._pending) != 0 or not self._place(request):
            self._pending.append(request)

    def submit_many(self, requests: Iterable[BlockRequest]) -> None:
        """Take requests in their order; what raises leaves those before it submitted."""
        for request in requests:
            self.submit(request)

    def kick(self) -> None:
        """Tell the device of what was submitted since the last kick."""
        ring: Ring
        if self._unkicked:
            for ring in self._rings:
                if ring.kick_is_due:
                    ring.kick_is_due = False
                    ring.queue.kick()
            self._unkicked = False

    def withdraw(self, request: BlockRequest) -> None:
        """Give a request up: it ends with ECANCELED if the device does not have it.

        If the device has it, it ends as if it had not been withdrawn, unless the session is lost before or its queue
        is reset.
        """
        if request.done:
            return
        request.withdrawn = True
        if request.slot is None:
            try:
                self._pending.remove(request)
            except ValueError:
                return  # not submitted
            self._fail(request, errno.ECANCELED, "withdrawn")

    @cython.boundscheck(True)
    def completed(self, queue: DriverQueue) -> None:
        """Finish what the device gave back, then use the room. Raises `RemoteError` when the ring is broken."""
        ring: Ring = self._rings[queue.index]
        used: Any
        request: BlockRequest
        slot: Slot
        status: cython.int
        while True:
            used = queue.reap()
            if used is None:
                break
            token = used[0]
            if not isinstance(token, BlockRequest):
                raise LocalError(f"queue {queue.index}: what came back is no request of this driver")
            request = token
            assert request.slot is not None
            slot = request.slot
            status = ld8(slot.bytes_, slot.status_at)
            if request.kind == _T_GET_ID:
                request.answer = slot.read_id()
            self._leave(request, ring)
            self.requests += 1
            self._finish(request, status)
        if len(self._pending) != 0:
            self._place_pending()
        self.kick()

    @cython.cfunc
    def _leave(self, request: BlockRequest, ring: Ring) -> cython.void:
        """The device does not have a request any more."""
        assert request.slot is not None
        slot: Slot = request.slot
        request.slot = None
        slot.request = None
        ring.load -= 1
        self._in_flight -= 1
        self._add_free(slot)

    def _free_all(self) -> list[BlockRequest]:
        """The session is over, and so the device has no request any more; returns those that it had."""
        slot: Slot
        request: BlockRequest
        lost: list[BlockRequest] = []
        for slot in self._slots:
            if slot.request is not None:
                request = slot.request
                request.slot = None
                slot.request = None
                lost.append(request)
        self._in_flight = 0
        return lost

    @cython.boundscheck(True)
    def _came_out(self, index: int, tokens: list[object]) -> list[BlockRequest]:
        """A queue was emptied: what the device had in it, by its tokens."""
        request: BlockRequest
        back: list[BlockRequest] = []
        for token in tokens:
            assert isinstance(token, BlockRequest)
            request = token
            self._leave(request, self._rings[index])
            back.append(request)
        return back

    def _place_pending(self) -> None:
        pending = self._pending
        request: BlockRequest
        while pending and self._transport is not None:
            request = pending.popleft()
            placed = False
            try:
                placed = self._place(request)
            finally:
                if not placed:
                    pending.appendleft(request)
            if not placed:
                break

    @cython.cfunc
    @cython.exceptval(-1)
    def _place(self, request: BlockRequest) -> cython.bint:
        """Put a request into the least loaded ring that has room, or fail it; False when it has to wait."""
        slot: Slot
        ring: Ring | None
        kind: cython.longlong = request.kind
        code: int = errno.E2BIG
        reason: str = "it does not fit into an empty queue"
        if self._transport is None or (self._first_free is None and not self._make_slot()):
            return False
        assert self._first_free is not None
        slot = self._first_free
        if kind == _T_FLUSH and not self.needs_flush:
            self._finish(request, _S_OK)  # each write was stable when it completed
            return True
        readable: tuple[Any, ...] = slot.header
        writable: tuple[Any, ...] = slot.status
        slot.write_header(kind, request.position // _SECTOR, self._big_endian)
        if kind == _T_IN:
            writable = tuple(request.slices) + writable
        elif kind == _T_OUT:
            readable = readable + tuple(request.slices)
        elif kind == _T_GET_ID:
            writable = slot.answer
        elif kind != _T_FLUSH:
            if request.length // _SECTOR > _MOST_SECTORS:
                self._fail(request, errno.EINVAL, "more sectors than a range has")
                return True
            # The range says what is meant; the header's own sector is 0 (virtio 1.4, 5.2.6.1).
            slot.write_header(kind, 0, self._big_endian)
            slot.write_range(request.position // _SECTOR, request.length // _SECTOR, request.flags, self._big_endian)
            readable = slot.ranges
        try:
            ring = self._add(readable, writable, request)
        except RemoteError:
            return False  # the ring is broken: the session is about to end, and the request is for the next one
        except LocalError as error:
            # No room in the window, perhaps: then it comes back with the requests that have it now.
            code, reason = errno.EINVAL, str(error)
            ring = None
        if ring is not None:
            self._first_free = slot.following
            slot.following = None
            slot.request = request
            request.slot = slot
            ring.load += 1
            ring.kick_is_due = True
            self._unkicked = True
            self._in_flight += 1
            return True
        if self._in_flight != 0:
            return False
        self._fail(request, code, reason)  # nothing will make more room than there is now
        return True

    @cython.cfunc
    def _add(
        self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], request: BlockRequest
    ) -> Ring | None:
        """The least loaded ring that had room for a buffer, and has it now; None if none has."""
        best: Ring = self._rings[0]
        ring: Ring
        for ring in self._rings:
            if ring.load < best.load:
                best = ring
        if best.queue.add(readable, writable, request):
            return best
        if len(self._rings) > 1:
            for ring in sorted(self._rings, key=attrgetter("load")):
                if ring is not best and ring.queue.add(readable, writable, request):
                    return ring
        return None

    @cython.cfunc
    def _finish(self, request: BlockRequest, status: cython.int) -> cython.void:
        request.status = status
        if status != _S_OK:
            code, reason = meaning(status)
            self._fail(request, code, reason)
            return
        request.done = True
        if request.callback is not None:
            request.callback(request)

    def _fail(self, request: BlockRequest, code: int, reason: str) -> None:
        self.failed += 1
        request.error = failure(request, code, reason)
        request.done = True
        if request.callback is not None:
            request.callback(request)

    # Slots

    @cython.cfunc
    def _add_free(self, slot: Slot) -> cython.void:
        slot.following = None
        if self._first_free is None:
            self._first_free = slot
        else:
            assert self._last_free is not None
            self._last_free.following = slot
        self._last_free = slot

    @cython.cfunc
    @cython.exceptval(-1)
    def _make_slot(self) -> cython.bint:
        """One more slot is needed than ever before; an idle disk has none of these objects. False if there is none."""
        slot: Slot | None = next(self._unmade_slots, None)
        if slot is None:
            return False
        self._slots.append(slot)
        self._add_free(slot)
        return True

    def _free_slots(self) -> None:
        """A session begins: every slot that was made is free."""
        slot: Slot
        self._first_free = None
        for slot in self._slots:
            self._add_free(slot)
