# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The device side of one virtqueue, as devices see it: in Python, and in loops without the interpreter lock.

A device in Python pops `Request`s and completes them, in any order, at once or later, and flushes. A compiled loop of a
device has the same queue as `take`, `finish` and `settle`, where rings and data are mapped (`MappedQueue`); it may hand
what it does not know to the device's Python, which finds the chain that was taken last.

Over mapped memory what is completed is visible to the driver at once. Only notifications are held back, and no longer
than 16 requests or until the device has no more to do: with driver and device on two processors, what a batch would
gain in stores it loses because the two take turns (docs/benchmarks.md).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import cython
from cython.cimports.powervio.memory.hw import event_signal, event_take, wait_any
from cython.cimports.powervio.memory.space import AddressSpace
from cython.cimports.powervio.virtio.device_ring import Chain, DeviceRing
from cython.cimports.powervio.virtio.staging import Staging

from powervio.errors import RemoteError
from powervio.memory.abstract import Payload
from powervio.virtio.batch import Batch

Segment: TypeAlias = tuple[int, int]
"""A run of bytes as the device is told of it: device address, length in bytes."""

_LEAST_COST = cython.declare(cython.longlong, 4096)
_UNLIMITED = cython.declare(cython.longlong, 0x7FFF_FFFF_FFFF_FFFF)
_HELD_BACK = cython.declare(cython.uint, 16)


@cython.freelist(64)
@cython.cclass
class Request:
    """One buffer that the driver made available: what the device may read, and what it may write."""

    head: cython.uint
    readable: Any
    writable: Any
    queue: DeviceQueue

    def __init__(self, queue: DeviceQueue, head: int, readable: Payload, writable: Payload) -> None:
        self.queue = queue
        self.head = head
        self.readable = readable
        self.writable = writable

    @property
    def queue_index(self) -> int:
        """Number of the queue that it came from."""
        return self.queue.index

    def charge(self, cost: int) -> None:
        """Count more than its bytes against this pass: for what takes long and carries little."""
        if self.queue._allowance != _UNLIMITED:
            self.queue._allowance -= cost

    def complete(self, written: int) -> None:
        """Give the buffer back; `written` bytes from the first writable one have been written (never over-report)."""
        self.queue.complete(self.head, written)


@cython.cclass
class DeviceQueue:
    """The device side of one virtqueue, for the life of one session between DRIVER_OK and reset."""

    index: cython.uint
    ring: DeviceRing
    live: cython.bint
    enabled: cython.bint
    batch: Any
    staging: Staging | None
    _allowance: cython.longlong
    _payload: Any
    _notify: Any
    _broken: Any
    _wake: Any
    _wake_is_due: cython.bint

    def __init__(
        self,
        index: int,
        ring: DeviceRing,
        payload: Callable[[DeviceQueue, list[Segment]], Payload],
        notify: Callable[[int], None],
        broken: Callable[[int, RemoteError], None] | None = None,
        wake: Callable[[DeviceQueue], None] | None = None,
        batch: Batch | None = None,
    ) -> None:
        """`payload` makes the transport's `Payload` of descriptor segments; `notify` sends a used notification.

        `broken` is told when completions cannot be made visible, because a completion may come from anywhere.
        `wake`, called from any thread, gives the device a turn with this queue in the partition's thread.
        """
        self.index = index
        self.ring = ring
        self.live = True
        """Whether the queue belongs to a session; afterwards nothing that it handed out touches the driver's memory."""
        self.enabled = True
        """Whether the driver wants anything of this queue now; vhost-user alone has queues that are not enabled."""
        self.batch = batch
        """How to serve several requests together; None where that saves nothing."""
        self.staging = None
        """How compiled code moves the driver's bytes, where they cannot be reached; set by the transport."""
        self._allowance = _UNLIMITED
        self._payload = payload
        self._notify = notify
        self._broken = broken
        self._wake = wake
        self._wake_is_due = False

    @property
    def allowance(self) -> int | None:
        """Bytes that may still be popped in this pass, each request counted as one page at least; None: no limit."""
        return None if self._allowance == _UNLIMITED else self._allowance

    @allowance.setter
    def allowance(self, left: int | None) -> None:
        self._allowance = _UNLIMITED if left is None else left

    @property
    def available(self) -> int:
        """Buffers that `pop` can give now. What a device leaves there stays the driver's until it is popped."""
        return self.ring.pending

    def wake(self) -> None:
        """Let the device's `process` be called for this queue soon; from any thread, for a device that has data.

        While the device is suspended and after the end of the session nothing comes of it; RESUME gives every queue
        a turn.
        """
        if self.live and not self._wake_is_due and self._wake is not None:
            self._wake_is_due = True
            self._wake(self)

    def woken(self) -> bool:
        """For the transport: the turn that `wake` asked for begins. False when the session is over."""
        self._wake_is_due = False
        return self.live

    def pop(self) -> Request | None:
        """The next available buffer, or None, also when the allowance is used up.

        Raises `RemoteError` when the driver broke the ring.
        """
        return self.request() if self.take_allowed() else None

    @cython.cfunc
    @cython.exceptval(-1)
    def take_allowed(self) -> cython.int:
        """As `take`; the buffer counts against this pass, and there is none when the pass or the session is over."""
        pieces: cython.longlong
        cost: cython.longlong
        if not self.live or self._allowance <= 0 or not self.take():
            return 0
        if self._allowance != _UNLIMITED:
            pieces = self.ring.segment_count  # each is a call of the hypervisor at least
            cost = self.ring.readable_bytes + self.ring.writable_bytes
            self._allowance -= max(_LEAST_COST * pieces, cost)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take(self) -> cython.int:
        """1 when there is another buffer, which stands in `ring` then (`DeviceRing.take`); else 0."""
        return self.ring.take()

    @cython.ccall
    def request(self) -> Request:
        """The buffer that was taken last, as an object."""
        chain: Chain = self.ring._as_chain()
        return self.request_of(chain.head, chain.readable, chain.writable)

    @cython.ccall
    def request_of(self, head: cython.uint, readable: list[Segment], writable: list[Segment]) -> Request:
        """A buffer that was taken, as an object."""
        return Request(self, head, self._payload(self, readable), self._payload(self, writable))

    @cython.ccall
    def payload_of(self, segments: list[Segment]) -> Any:
        """The transport's `Payload` of these segments."""
        return self._payload(self, segments)

    @cython.ccall
    def complete(self, head: cython.longlong, written: cython.longlong) -> object:
        """Put a buffer into the used ring; `flush` makes it visible. After a reset of the queue nothing happens."""
        if self.live:
            self.ring.push(head, written)
        return None

    def complete_together(self, used: Sequence[tuple[Request, int]]) -> None:
        """Give back buffers of which the driver has to see all at once, each with what was written: a frame's."""
        for request, written in used:
            self.complete(request.head, written)

    def fail(self, error: RemoteError) -> None:
        """The driver broke the ring, which was seen outside of a turn of this queue. Raises `error` when there is
        nobody to be told."""
        if self._broken is None:
            raise error
        self._broken(self.index, error)

    def flush(self) -> bool:
        """Make completed buffers visible to the driver and notify it unless it said it does not want to know.

        With IN_ORDER negotiated these are the ones before which nothing is unfinished.

        False when the driver does not see them and never will: the session is over, by now at the latest.
        """
        if not self.live:
            return False
        try:
            published = self.ring.publish()
        except RemoteError as error:
            self.fail(error)
            return False
        if published:
            self._notify(self.index)
        return True


@cython.cclass
class MappedQueue(DeviceQueue):
    """A queue whose ring and data are mapped, with eventfds for both kinds of notification."""

    kick: cython.int
    call: cython.int
    space: AddressSpace | None
    notifications: cython.ulonglong
    _held_back: cython.uint
    _wanted: cython.bint

    def __init__(
        self,
        index: int,
        ring: DeviceRing,
        payload: Callable[[DeviceQueue, list[Segment]], Payload],
        broken: Callable[[int, RemoteError], None],
        wake: Callable[[DeviceQueue], None],
        space: AddressSpace | None,
    ) -> None:
        """`space` is where the data are; None: only `payload` knows, and no loop can serve this queue."""
        DeviceQueue.__init__(self, index, ring, payload, self._nothing, broken, wake)
        self.kick = -1
        """Descriptor that the driver signals, -1 when there is none; set by the transport."""
        self.call = -1
        """Descriptor that is signalled for used notifications, -1 when there is none; set by the transport."""
        self.space = space
        self.notifications = 0
        """Used notifications that were sent."""
        self._held_back = 0
        self._wanted = False

    def _nothing(self, index: int) -> None:
        raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def finish(self, head: cython.uint, written: cython.uint) -> cython.int:
        """Give a buffer back; the driver sees it at once, and is notified by `settle` at the latest."""
        self.ring.give(head, written)
        self.shown(self.ring.show())
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def shown(self, wanted: cython.int) -> cython.void:
        """One more buffer is visible; whether the driver wants to be notified of it."""
        if wanted:
            self._wanted = True
        self._held_back += 1
        if self._held_back >= _HELD_BACK:
            self.settle()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def settle(self) -> cython.void:
        """Send the used notification that is due, if one is."""
        self._held_back = 0
        if self._wanted:
            self._wanted = False
            self.notifications += 1
            if self.call >= 0:
                event_signal(self.call)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def rest(self, stop: cython.int, other: cython.int, milliseconds: cython.int) -> cython.int:
        """Sleep until the driver kicks or one of two descriptors (-1: none) can be read; returns which of them can.

        Bit 0: the kick, which is taken then, bit 1: `stop`, bit 2: `other`. Negative: an errno.
        """
        ready: cython.int = wait_any(self.kick, stop, other, milliseconds)
        taken: cython.int
        if ready > 0 and ready & 1:
            taken = event_take(self.kick)
            if taken < 0:
                return taken
        return ready

    @cython.ccall
    def complete(self, head: cython.longlong, written: cython.longlong) -> object:
        """See `DeviceQueue`; it is visible at once."""
        if self.live:
            if head < 0 or head >= self.ring.size or written < 0 or written > 0xFFFF_FFFF:
                self.ring.push(head, written)  # this says what is wrong
            self.finish(head, written)
        return None

    def complete_together(self, used: Sequence[tuple[Request, int]]) -> None:
        """See `DeviceQueue`. Each has a used entry of its own, with IN_ORDER too: that costs nothing over mapped
        memory, and DPDK's driver looks for the length in each."""
        if not self.live:
            return
        for request, written in used:
            self.ring.part()
            self.ring.give(request.head, written)
        self.shown(self.ring.show())

    def flush(self) -> bool:
        """See `DeviceQueue`: what is completed is visible; the driver is notified."""
        if not self.live:
            return False
        self.settle()
        return True
