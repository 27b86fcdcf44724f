# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A queue between mapped rings whose frames go on without the interpreter lock: what a `net_loop.Forwarder` serves.

Of a transmit queue frames are taken; a receive queue finds buffers for the frame of the `Passage`, and holds them until
it has enough. It takes none in advance: a receiver without buffers misses the frame.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.devices.net_passage import Passage
from cython.cimports.powervio.devices.net_rules import ReceiveFilter, Steering
from cython.cimports.powervio.memory.hw import (
    event_take,
    ld8_acquire,
    ld32,
    ld64,
    pointer,
    prefetch_at,
    prefetch_to_write,
    st8,
    st8_release,
    st32,
    wait_any,
)
from cython.cimports.powervio.memory.space import READ, WRITE, AddressSpace
from cython.cimports.powervio.network.switch_core import SwitchCore
from cython.cimports.powervio.virtio.device_queue import MappedQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing

_PLACES = cython.declare(cython.int, 256)
_HELD = cython.declare(cython.uint, 64)
"""Pieces of the buffers that a frame goes to, and these buffers, at most; what needs more is not usual."""
_AHEAD = cython.declare(cython.uint, 4)
"""Buffers whose memory is brought near before they are taken: without it each frame waits for the other processor's
cache several times."""
_LINES = cython.declare(cython.ulonglong, 76)
_QUEUE_FULL = cython.declare(cython.int, 14)
"""Of `switch_decision.REASONS`."""
_NOBODY = cython.declare(cython.int, -2)
"""Nobody here has a ring of that port, or takes such frames."""


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
    _forwarder: Any
    _core: SwitchCore
    _passage: Passage
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
        forwarder: Any,
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
        """For a `net_loop.Forwarder`. `number` and `handle` are the port's in the switch; `device` is called for what
        is not as usual."""
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
        self._core = forwarder.core
        self._passage = forwarder.passage
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

    # -- both ways

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def bring_first(self) -> cython.void:
        """Have the memory of the next buffers near, before the first of them is taken."""
        ahead: cython.uint
        for ahead in range(_AHEAD):
            self._bring(ahead)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def bring_next(self) -> cython.void:
        """The same of one more, when one was taken."""
        self._bring(_AHEAD - 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _bring(self, distance: cython.uint) -> cython.void:
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
        self._passage.current = self.identity
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
        self._passage.current = self.identity
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
        if self._passage.hand.needs & ~self.taken:
            return _NOBODY  # it gets segments, or a checksum
        self._passage.current = self.identity
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
        self._passage.look()
        if not self._filter.passes(self._passage.out, self._passage.hand.view):
            self.filtered += 1
            return -1
        return self._steering.choose(self._passage.hand.view)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-3)
    def _put(self) -> cython.int:
        """Take buffers for the forwarder's frame, and fill them."""
        size: cython.ulonglong = self._passage.out_bytes + self._passage.rest_bytes
        needed: cython.ulonglong = self._header_bytes + size
        if not self.link_up:
            self.no_room += 1
            return 0
        if not self._passage.hand.gso and size > self._mtu + self._passage.hand.link_bytes:
            self.too_long += 1
            return 0
        while self._room < needed:
            if not self._queue.take() and not (self._ring.look() and self._queue.take()):
                self.full += 1
                self._core.missed(self.number, _QUEUE_FULL)
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
        self.bring_next()
        return 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _tell(self) -> cython.void:
        """Have the switch count what the driver got since the last time."""
        if self.frames != self._told_frames:
            self._core.delivered_many(self.number, self.frames - self._told_frames, self.bytes - self._told_bytes)
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
        self._passage.begin_reading(self._header_bytes, self._held)
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
                    self._passage.read_to(ld64(self._places, 16 * place), part)
                    room -= part
                place += 1
            self._ring.part()
            self._ring.give(ld32(self._heads, 12 * number), cython.cast(cython.uint, used))
        self._held = 0
        self._place_count = 0
        self._room = 0
        self._given = True
        return 0
