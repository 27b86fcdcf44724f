# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Forwarding between mapped rings, without the interpreter lock: from the transmit ring of a port straight into the
receive rings of others, as the switch that they are ports of decides.

One `Forwarder` has one thread for all queues of a switch that it was given, so no two threads ever touch a ring. A
frame is copied once, but for its first bytes, which are private before they are looked at: what the switch, a filter or
the check of offload metadata has seen is what the receiver gets. A receiver without buffers misses the frame; nobody
waits for it.

What is not as usual is the devices' Python's, in the same thread: frames that do not pass the checks here, that a
receiver takes in segments only, or whose receiver is no mapped ring.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import logging
import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import cython
from cython.cimports.powervio.devices.net_in_hand import FrameInHand, shift_of, write_tagged
from cython.cimports.powervio.devices.net_rules import ReceiveFilter, Steering
from cython.cimports.powervio.memory.hw import (
    at,
    clock_ns,
    copy,
    event_take,
    fetch,
    ld8_acquire,
    ld32,
    ld64,
    pointer,
    prefetch_at,
    prefetch_to_write,
    relax,
    st8,
    st8_release,
    st32,
    store,
    transfer,
    wait_any,
)
from cython.cimports.powervio.memory.space import READ, WRITE, AddressSpace
from cython.cimports.powervio.network.switch_core import Decision, SwitchCore
from cython.cimports.powervio.virtio.device_queue import MappedQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing

_log = logging.getLogger(__name__)

_TURN = cython.declare(cython.int, 32)
"""Frames of one ring before the next one's turn."""
_PRIVATE = cython.declare(cython.ulonglong, 256)
"""Bytes of a frame that are copied before they are looked at."""
_SOURCES = cython.declare(cython.int, 80)
_PLACES = cython.declare(cython.int, 256)
_HELD = cython.declare(cython.uint, 64)
"""Pieces of a frame, of the buffers it goes to, and these buffers, at most; what needs more is not usual."""
_AHEAD = cython.declare(cython.uint, 4)
"""Buffers whose memory is brought near before they are taken: without it each frame waits for the other processor's
cache several times."""
_LINES = cython.declare(cython.ulonglong, 76)
_BEFORE = cython.declare(cython.ulonglong, 16)
"""Bytes before a private frame, where its header is."""
_ETHERNET = cython.declare(cython.ulonglong, 14)
_LARGEST = cython.declare(cython.ulonglong, 65535)
_KEEP = cython.declare(cython.int, 0)
_QUEUE_FULL = cython.declare(cython.int, 14)
"""Of `switch_core.REASONS`."""
_DROPPED = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)

_NOBODY = cython.declare(cython.int, -2)
"""Nobody here has a ring of that port."""


@cython.final
@cython.cclass
class ForwardedQueue:
    """A queue that a `Forwarder` serves: of transmit queues the frames go on, receive queues get them."""

    identity: cython.uint
    number: cython.int
    handle: cython.uint
    pair: cython.uint
    receives: cython.bint
    taken: cython.uint
    link_up: cython.bint
    frames: cython.ulonglong
    bytes: cython.ulonglong
    unheard: cython.ulonglong
    full: cython.ulonglong
    filtered: cython.ulonglong
    too_long: cython.ulonglong
    no_room: cython.ulonglong
    no_memory: cython.ulonglong
    bad_buffers: cython.ulonglong
    handed_over: cython.ulonglong
    following: ForwardedQueue | None
    error: Any
    device: Any
    on_end: Any
    _forwarder: Forwarder
    _queue: MappedQueue
    _ring: DeviceRing
    _space: AddressSpace
    _filter: ReceiveFilter
    _steering: Steering
    _header_bytes: cython.ulonglong
    _mergeable: cython.bint
    _mtu: cython.ulonglong
    _features: cython.ulonglong
    _waiting: cython.p_uchar
    _heads: cython.p_uchar
    _places: cython.p_uchar
    _place_count: cython.int
    _held: cython.uint
    _room: cython.ulonglong
    _given: cython.bint
    _told_frames: cython.ulonglong
    _told_bytes: cython.ulonglong
    _books: Any

    def __init__(
        self,
        forwarder: Forwarder,
        queue: MappedQueue,
        device: Any,
        number: int,
        handle: int,
        features: int,
        mtu: int,
        header_bytes: int,
        *,
        mergeable: bool,
    ) -> None:
        """`number` and `handle` are the port's in the switch; `device` is called for what is not as usual."""
        books = bytearray(8), bytearray(12 * 64), bytearray(16 * 257)
        self.identity = 0
        """A number of the forwarder's own."""
        self.number = number
        self.handle = handle
        self.pair = queue.index >> 1
        self.receives = not queue.index & 1
        self.taken = 0
        """Bits of `Offload` that the driver takes."""
        self.link_up = True
        self.frames = self.bytes = 0
        """That went on, or that the driver got."""
        self.unheard = self.full = self.filtered = self.too_long = self.no_room = self.no_memory = 0
        """Frames that were lost: nobody got them, no buffers, ..."""
        self.bad_buffers = 0
        self.handed_over = 0
        """Frames that the device's Python served."""
        self.following = None
        self.error = None
        self.device = device
        self.on_end = None
        """Called when the queue cannot be served any more; `error` says why."""
        self._forwarder = forwarder
        self._queue = queue
        self._ring = queue.ring
        assert queue.space is not None
        self._space = queue.space
        self._filter = device.control.rules.filter
        self._steering = device.control.rules.steering
        self._header_bytes = header_bytes
        self._mergeable = mergeable
        self._mtu = mtu
        self._features = features & 0xFFFF_FFFF_FFFF_FFFF
        self._waiting = pointer(books[0])
        self._heads = pointer(books[1])
        """u32 head, u32 number of places, u32 room, of each buffer that is held for a frame."""
        self._places = pointer(books[2])
        self._place_count = 0
        self._held = 0
        self._room = 0
        self._given = False
        self._told_frames = self._told_bytes = 0
        self._books = books

    @property
    def queue(self) -> MappedQueue:
        """What is served."""
        return self._queue

    @property
    def lost(self) -> dict[str, int]:
        """Frames that were lost here, by reason."""
        return {
            reason: int(count)
            for reason, count in (
                ("port", self.unheard),
                ("no buffers", self.full),
                ("filtered", self.filtered),
                ("too long", self.too_long),
                ("no room", self.no_room),
                ("memory", self.no_memory),
            )
            if count
        }

    def arrived(self) -> None:
        """There is something for this receive queue that does not come from a ring; from any thread."""
        st8_release(self._waiting, 0, 1)
        self._forwarder.wake()

    def release(self) -> None:
        """Buffers that are held go back empty."""
        number: cython.uint
        if self.receives:
            self._tell()
        if self._queue.live and not self._ring.broken:
            for number in range(self._held):
                self._queue.complete(ld32(self._heads, 12 * number), 0)
        self._held = 0
        self._place_count = 0
        self._room = 0

    # -- transmit queues

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def turn(self, now: cython.ulonglong) -> cython.int:
        """Forward what is in this transmit ring, up to a bound, then in the next one's; how many frames there were."""
        count: cython.int = 0
        ahead: cython.uint
        self._forwarder.current = self.identity
        if self._ring.look():
            for ahead in range(_AHEAD):
                self.bring(ahead)
            while count < _TURN and self._queue.take():
                self.bring(_AHEAD - 1)
                self._forwarder.open_head = self._ring.head
                self._forwarder.open = True
                if self._forwarder.forward(self, now):
                    self._ring.give(self._ring.head, 0)
                self._forwarder.open = False
                count += 1
            self._queue.shown(self._ring.show())
            self._queue.settle()
        if self.following is not None:
            count += self.following.turn(now)
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def bring(self, distance: cython.uint) -> cython.void:
        """Have the memory of a buffer near that will be taken soon."""
        address: cython.ulonglong = self._ring.peek(distance)
        if address and self._space.gather(address, _LINES, READ, self._places, _PLACES, _PLACES + 1) == _PLACES + 1:
            if self.receives:
                prefetch_to_write(ld64(self._places, 16 * _PLACES))
            else:
                prefetch_at(ld64(self._places, 16 * _PLACES))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """Ask for kicks, of this ring and the next ones; not 0 when there is something to do."""
        found: cython.int = 0
        self._forwarder.current = self.identity
        if not self.receives:
            found = self._ring.arm()
        elif ld8_acquire(self._waiting, 0):
            found = self._ring.arm()
        if self.following is not None:
            found |= self.following.arm()
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """Say that kicks are not needed, and take those that came."""
        self._ring.disarm()
        if self._queue.kick >= 0 and wait_any(self._queue.kick, -1, -1, 0) > 0:
            event_take(self._queue.kick)
        if self.following is not None:
            self.following.disarm()

    # -- receive queues

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """Let the drivers see what they were given; give them what came some other way; how much there was."""
        count: cython.int = 0
        self._forwarder.current = self.identity
        if self._given:
            self._given = False
            self._queue.shown(self._ring.show())
            self._queue.settle()
            self._tell()
        if ld8_acquire(self._waiting, 0) and self._ring.look():
            st8(self._waiting, 0, 0)
            with cython.gil:
                count += self._give()
        if self.following is not None:
            count += self.following.show()
        return count

    @cython.cfunc
    @cython.exceptval(-1)
    def _give(self) -> cython.int:
        """Frames of the port's own queue: the device's Python has them."""
        if self.device.give_apart(self._queue):
            st8(self._waiting, 0, 1)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-3)
    def put(self, number: cython.int, pair: cython.uint) -> cython.int:
        """Give the forwarder's frame to a port, if it is this one or a following one: 1, 0 when it was lost, or
        _NOBODY."""
        if self.number != number or self.pair != pair:
            return _NOBODY if self.following is None else self.following.put(number, pair)
        if self._forwarder.hand.needs & ~self.taken:
            return _NOBODY  # it gets segments, or a checksum
        self._forwarder.current = self.identity
        return self._put()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def choose(self, number: cython.int) -> cython.int:
        """The pair for the forwarder's frame at a port that is this one or a following one; -1: it does not want it."""
        if self.number != number:
            return 0 if self.following is None else self.following.choose(number)
        if self._filter.promiscuous and self._steering.pairs == 1 and not self._steering.rss:
            return 0
        self._forwarder.look()
        if not self._filter.passes(self._forwarder.out, self._forwarder.hand.view):
            self.filtered += 1
            return -1
        return self._steering.choose(self._forwarder.hand.view)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-3)
    def _put(self) -> cython.int:
        """Take buffers for the forwarder's frame, and fill them."""
        size: cython.ulonglong = self._forwarder.out_bytes + self._forwarder.rest_bytes
        needed: cython.ulonglong = self._header_bytes + size
        if not self.link_up:
            self.no_room += 1
            return 0
        if not self._forwarder.hand.gso and size > self._mtu + self._forwarder.hand.link_bytes:
            self.too_long += 1
            return 0
        while self._room < needed:
            if not self._queue.take() and not (self._ring.look() and self._queue.take()):
                self.full += 1
                self._forwarder.core.missed(self.number, _QUEUE_FULL)
                return 0
            if self._ring.readable_bytes or self._ring.writable_bytes < (
                self._header_bytes if self._mergeable else needed
            ):
                self._refuse()
                self.bad_buffers += 1
                if not self._mergeable:
                    self.no_room += 1
                    return 0
            elif not self._hold():
                self._refuse()
                self.no_memory += 1
                return 0
        self._fill(needed)
        self.frames += 1
        self.bytes += size
        self.bring(_AHEAD - 1)
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tell(self) -> cython.void:
        """Have the switch count what the driver got since the last time."""
        if self.frames != self._told_frames:
            self._forwarder.core.delivered_many(
                self.number, self.frames - self._told_frames, self.bytes - self._told_bytes
            )
            self._told_frames = self.frames
            self._told_bytes = self.bytes

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _refuse(self) -> cython.int:
        """The buffer that was taken last goes back empty."""
        self._ring.part()
        self._ring.give(self._ring.head, 0)
        self._given = True
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _hold(self) -> cython.int:
        """Keep the buffer that was taken last for the frame; 0 when that cannot be."""
        count: cython.int = self._place_count
        number: cython.uint
        if self._held == _HELD:
            return 0
        for number in range(self._ring.segment_count):
            count = self._space.gather(
                ld64(self._ring.chain, 16 * number),
                ld64(self._ring.chain, 16 * number + 8),
                WRITE,
                self._places,
                count,
                _PLACES,
            )
            if count < 0:
                return 0
        st32(self._heads, 12 * self._held, self._ring.head)
        st32(self._heads, 12 * self._held + 4, count - self._place_count)
        st32(
            self._heads,
            12 * self._held + 8,
            cython.cast(cython.uint, self._ring.writable_bytes)
            if self._ring.writable_bytes < 0x7FFF_FFFF
            else 0x7FFF_FFFF,
        )
        self._place_count = count
        self._held += 1
        self._room += self._ring.writable_bytes
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _fill(self, needed: cython.ulonglong) -> cython.int:
        """Put header and frame into the buffers that are held, and give them back."""
        number: cython.uint
        place: cython.uint = 0
        end: cython.uint
        room: cython.ulonglong
        used: cython.ulonglong
        part: cython.ulonglong
        self._forwarder.begin_reading(self._header_bytes, self._held)
        for number in range(self._held):
            room = ld32(self._heads, 12 * number + 8)
            if room > needed:
                room = needed
            needed -= room
            used = room
            end = place + ld32(self._heads, 12 * number + 4)
            while place < end:
                part = ld64(self._places, 16 * place + 8)
                if part > room:
                    part = room
                if part:
                    self._forwarder.read_to(ld64(self._places, 16 * place), part)
                    room -= part
                place += 1
            self._ring.part()
            self._ring.give(ld32(self._heads, 12 * number), cython.cast(cython.uint, used))
        self._held = 0
        self._place_count = 0
        self._room = 0
        self._given = True
        return 0


@cython.final
@cython.cclass
class Forwarder:
    """Forwards between the mapped queues of one switch, in a thread that is there while it has any."""

    core: SwitchCore
    decision: Decision
    hand: FrameInHand
    current: cython.uint
    open: cython.bint
    open_head: cython.uint
    opened_by: cython.uint
    out: cython.p_uchar
    out_bytes: cython.ulonglong
    rest_bytes: cython.ulonglong
    sleeps: cython.ulonglong
    _private: cython.p_uchar
    _changed: cython.p_uchar
    _base: cython.p_uchar
    _frame: cython.p_uchar
    _looked: cython.bint
    _sources: cython.p_uchar
    _source_count: cython.int
    _rest_source: cython.int
    _rest_offset: cython.ulonglong
    _reading: cython.int
    _offset: cython.ulonglong
    _shift: cython.int
    _place: cython.ulonglong
    _stopping: cython.p_uchar
    _first: ForwardedQueue | None
    _first_receiver: ForwardedQueue | None
    _spin: cython.ulonglong
    _books: Any
    _switch: Any
    _queues: Any
    _thread: Any
    _lock: Any
    _gate: Any
    _resumed: Any
    _poller: Any
    _poll_fd: cython.int
    _wake_fd: cython.int
    _numbers: cython.uint

    def __init__(self, switch: Any, *, spin: float = 0.0) -> None:
        """For a `network.switch.Switch`. `spin` is the seconds for which empty rings are looked at before it sleeps."""
        books = bytearray(512), bytearray(16 * 128), bytearray(512), bytearray(8)
        self.core = switch.core
        self.decision = Decision(switch.core)
        self.hand = FrameInHand()
        self.current = 0
        self.open = False
        self.open_head = self.opened_by = 0
        self.sleeps = 0
        self.out_bytes = self.rest_bytes = 0
        self._private = pointer(books[0])
        self._frame = at(self._private, _BEFORE)
        self._sources = pointer(books[1])
        self._changed = pointer(books[2])
        self._base = self._private
        self.out = self._frame
        self._shift = 0
        self._stopping = pointer(books[3])
        self._books = books
        self._switch = switch
        self._queues = {}
        self._thread = None
        self._lock = threading.Lock()
        self._gate = threading.RLock()
        self._resumed = threading.Event()
        self._resumed.set()
        self._spin = int(spin * 1e9)
        self._first = self._first_receiver = None
        self._numbers = 0
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poller = select.epoll()
        self._poll_fd = self._poller.fileno()
        self._poller.register(self._wake_fd, select.EPOLLIN)

    # -- from other threads

    def wake(self) -> None:
        """Have the thread look, if it sleeps."""
        with suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Nothing is forwarded meanwhile: what goes into decisions is about to change."""
        if self._thread is not None and threading.get_ident() == self._thread.ident:
            yield  # it is that thread's Python that changes it
            return
        with self._gate:
            self._resumed.clear()
            st8_release(self._stopping, 0, 1)
            self.wake()
            with self._lock:
                try:
                    yield
                finally:
                    st8_release(self._stopping, 0, 0)
                    self._resumed.set()

    def add(self, queue: ForwardedQueue) -> None:
        """Serve a queue from now on."""
        with self._gate:
            with self.still():
                self._numbers += 1
                queue.identity = self._numbers
                self._queues[queue.identity] = queue
                self._link()
                if queue.queue.kick >= 0:
                    self._poller.register(queue.queue.kick, select.EPOLLIN)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="forwarder", daemon=True)
                self._thread.start()
            self.wake()

    def remove(self, queue: ForwardedQueue) -> None:
        """Touch a queue no more."""
        with self._gate:
            with self.still():
                if self._queues.pop(queue.identity, None) is None:
                    return
                self._link()
                with suppress(OSError, ValueError):
                    self._poller.unregister(queue.queue.kick)
                queue.release()
            if not self._queues and self._thread is not None and threading.get_ident() != self._thread.ident:
                self.wake()
                self._thread.join()
                self._thread = None

    def close(self) -> None:
        """All queues have been removed."""
        self._poller.close()
        os.close(self._wake_fd)
        self._wake_fd = -1

    @cython.cfunc
    def _link(self) -> cython.void:
        """Make the chains of queues anew."""
        self._first = self._first_receiver = None
        queue: ForwardedQueue
        for one in self._queues.values():
            queue = one
            if queue.receives:
                queue.following = self._first_receiver
                self._first_receiver = queue
            else:
                queue.following = self._first
                self._first = queue

    # -- the thread

    def _work(self) -> None:
        while self._queues:
            self._resumed.wait()
            with self._lock:
                if not self._queues:
                    return
                try:
                    with cython.nogil:
                        self._run()
                except BaseException as error:
                    self._failed(error)

    def _failed(self, error: BaseException) -> None:
        """The queue that was touched last cannot be served; a frame that was on its way from another one is lost."""
        queue = self._queues.pop(self.current, None)
        if queue is None:
            _log.error("the forwarder failed", exc_info=error)
            return
        opened, self.open = self.open, False
        if opened and queue.receives:
            for other in self._queues.values():
                if not other.receives and other.identity == self.opened_by:
                    other.queue.complete(self.open_head, 0)
        self._link()
        with suppress(OSError, ValueError):
            self._poller.unregister(queue.queue.kick)
        queue.error = error
        if queue.on_end is not None:
            queue.on_end()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _run(self) -> cython.int:
        """Forward until somebody wants it to stop."""
        until: cython.ulonglong = 0
        now: cython.ulonglong
        found: cython.int
        while not ld8_acquire(self._stopping, 0):
            now = clock_ns()
            found = 0
            if self._first is not None:
                found += self._first.turn(now)
            if self._first_receiver is not None:
                found += self._first_receiver.show()
            if found:
                until = now + self._spin
            elif now < until:
                relax()
            else:
                self._sleep()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _sleep(self) -> cython.int:
        ready: cython.int = 0
        found: cython.int = 0
        if self._first is not None:
            found |= self._first.arm()
        if self._first_receiver is not None:
            found |= self._first_receiver.arm()
        if not found and not ld8_acquire(self._stopping, 0):
            self.sleeps += 1
            ready = wait_any(self._poll_fd, -1, -1, 1000)
        event_take(self._wake_fd)
        if self._first is not None:
            self._first.disarm()
        if self._first_receiver is not None:
            self._first_receiver.disarm()
        return 0 if ready >= 0 else self._no_waiting(ready)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _no_waiting(self, code: cython.int) -> cython.int:
        with cython.gil:
            raise OSError(-code, "waiting for kicks failed")

    # -- one frame

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def forward(self, queue: ForwardedQueue, now: cython.ulonglong) -> cython.int:
        """Let the frame that a transmit queue took last go on; 0 when the buffer went back already."""
        kind: cython.int
        self.opened_by = queue.identity
        if not self._is_usual(queue):
            queue.handed_over += 1
            with cython.gil:
                queue.device.take_apart(queue._queue)
            return 0
        if queue._steering.pairs > 1:
            self.hand.view.look(self._frame, self.hand.have)
            queue._steering.learn(self.hand.view, queue.pair)
        kind = self.core.decide(
            self.decision,
            queue.handle,
            self._frame,
            0,
            self.hand.length,
            self.hand.checksum_begins(),
            now,
        )
        if kind == _DROPPED:
            queue.unheard += 1
            return 1
        if kind == _ONE:
            kind = self._deliver(self.decision.egress, self.decision.todo)
        else:
            kind = self._flood()
        self.current = queue.identity
        if kind:
            queue.frames += 1
            queue.bytes += self.hand.length
        else:
            queue.unheard += 1
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _flood(self) -> cython.int:
        got: cython.int = 0
        number: cython.int = self.decision.next_receiver()
        while number >= 0:
            got |= self._deliver(number, self.decision.tag_change(self.decision.gets_tagged(number)))
            number = self.decision.next_receiver()
        return got

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_usual(self, queue: ForwardedQueue) -> cython.bint:
        """Find the frame that was taken last, and whether it can go on from here."""
        number: cython.uint
        total: cython.ulonglong = queue._ring.readable_bytes
        header_bytes: cython.ulonglong = queue._header_bytes
        length: cython.ulonglong
        have: cython.ulonglong
        count: cython.int = 0
        if queue._ring.writable_bytes or total < header_bytes + _ETHERNET or not queue.link_up:
            return False
        length = total - header_bytes
        if length > _LARGEST + _ETHERNET + 8:
            return False
        for number in range(queue._ring.segment_count):
            count = queue._space.gather(
                ld64(queue._ring.chain, 16 * number),
                ld64(queue._ring.chain, 16 * number + 8),
                READ,
                self._sources,
                count,
                _SOURCES,
            )
            if count < 0:
                return False
        self._source_count = count
        self._reading = 0
        self._offset = 0
        have = length if length < _PRIVATE else _PRIVATE
        self._fetch(at(self._private, _BEFORE - header_bytes), header_bytes + have)
        self._rest_source = self._reading
        self._rest_offset = self._offset
        self.rest_bytes = length - have
        return self.hand.take_up(
            at(self._private, _BEFORE - header_bytes), self._frame, have, length, queue._features, queue._mtu
        )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _fetch(self, to: cython.p_uchar, length: cython.ulonglong) -> cython.void:
        """Copy the next bytes of the sources."""
        done: cython.ulonglong = 0
        part: cython.ulonglong
        while done < length and self._reading < self._source_count:
            part = ld64(self._sources, 16 * self._reading + 8) - self._offset
            if part > length - done:
                part = length - done
            fetch(to, done, ld64(self._sources, 16 * self._reading) + self._offset, part)
            done += part
            self._offset += part
            if self._offset == ld64(self._sources, 16 * self._reading + 8):
                self._reading += 1
                self._offset = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self) -> cython.void:
        """Find the headers of the frame as a receiver gets it."""
        if not self._looked:
            self._looked = True
            self.hand.view.look(self.out, self.out_bytes)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _deliver(self, number: cython.int, change: cython.int) -> cython.int:
        """Give the frame to a port, with the tag that it gets; 1 when it got it."""
        pair: cython.int
        outcome: cython.int
        self._looked = False
        self._change(change)
        if self._first_receiver is not None:
            pair = self._first_receiver.choose(number)
            if pair < 0:
                return 0
            outcome = self._first_receiver.put(number, pair)
            if outcome == _NOBODY and pair:
                outcome = self._first_receiver.put(number, 0)
            if outcome >= 0:
                return outcome
        with cython.gil:
            return self._deliver_apart(number)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _change(self, change: cython.int) -> cython.void:
        """Make the first bytes of the frame as its receiver gets it."""
        self._base = self._private if change == _KEEP else self._changed
        self._shift = shift_of(change)
        self.out = at(self._base, _BEFORE)
        if change == _KEEP:
            self.out_bytes = self.hand.have
        else:
            self.out_bytes = write_tagged(self.out, 0, self._frame, self.hand.have, change, self.decision.tci)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin_reading(self, header_bytes: cython.ulonglong, buffers: cython.uint) -> cython.void:
        """Read header, first bytes and the rest of the frame from the beginning on."""
        self._place = _BEFORE - header_bytes
        self.hand.write_header(self._base, self._place, header_bytes, self._shift, buffers)
        self._reading = self._rest_source
        self._offset = self._rest_offset

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_to(self, address: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """Copy the next bytes to an address."""
        part: cython.ulonglong
        end: cython.ulonglong = _BEFORE + self.out_bytes
        while length:
            if self._place < end:
                part = end - self._place
                if part > length:
                    part = length
                store(address, self._base, self._place, part)
                self._place += part
            else:
                if self._reading >= self._source_count:
                    return
                part = ld64(self._sources, 16 * self._reading + 8) - self._offset
                if part > length:
                    part = length
                transfer(address, ld64(self._sources, 16 * self._reading) + self._offset, part)
                self._offset += part
                if self._offset == ld64(self._sources, 16 * self._reading + 8):
                    self._reading += 1
                    self._offset = 0
            address += part
            length -= part

    @cython.cfunc
    @cython.exceptval(-1)
    def _deliver_apart(self, number: cython.int) -> cython.int:
        """Give the frame to a port that is no mapped ring, or that takes less, as an object."""
        port = self._switch.ports_by_number[number]
        if port is None:
            return 0
        data = bytearray(int(self.out_bytes + self.rest_bytes))
        to: cython.p_uchar = pointer(data)
        copy(to, 0, self.out, 0, self.out_bytes)
        if self.rest_bytes:
            self._reading = self._rest_source
            self._offset = self._rest_offset
            self._fetch(at(to, self.out_bytes), self.rest_bytes)
        frame = self.hand.as_frame(bytes(data), self._shift)
        return 1 if port.deliver(frame) else 0
