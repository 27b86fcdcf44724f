# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Frames from one client to another of the same VIO server, whose memories the server cannot reach (`Staging`).

A turn of a transmit queue takes what is there, brings all small frames and the beginnings of large ones together
(`net_relay_frames`), asks the switch for each where it goes, and moves it into the receiver's buffers
(`net_relay_buffers`): small ones from the staging memory, the rest of large ones from client to client. Receivers see
what they got, and hear of it, once a turn.

What is not as usual is the devices' Python's: frames that do not pass the checks here, receivers that are somewhere
else, have no buffers now, or want to be told later, and frames for many. A frame that waits for a receiver is in the
queue of its port, and then all that come after it are, too, until that one is empty.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.devices.net_in_hand import FrameInHand, shift_of
from cython.cimports.powervio.devices.net_relay_buffers import RelayBuffers
from cython.cimports.powervio.devices.net_relay_end import RelayEnd
from cython.cimports.powervio.devices.net_relay_frames import RelayFrames
from cython.cimports.powervio.memory.hw import at, clock_ns, copy, pointer, st8
from cython.cimports.powervio.network.switch_core import SwitchCore
from cython.cimports.powervio.network.switch_decision import Decision
from cython.cimports.powervio.virtio.device_queue import DeviceQueue

from powervio.errors import RemoteError

if TYPE_CHECKING:
    from powervio.devices.net_counters import Counters

_DROP = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)
_STRIP = cython.declare(cython.int, 1)
_PUSH = cython.declare(cython.int, 2)
_KEEP = cython.declare(cython.int, 0)

_STAGED = cython.declare(cython.uint, 0)
_APART = cython.declare(cython.uint, 1)
_UNREACHABLE = cython.declare(cython.uint, 2)
"""See `RelayFrames.state`."""

_LOST = cython.declare(cython.int, 0)
_GOT = cython.declare(cython.int, 1)
_WAITS = cython.declare(cython.int, 2)
_GAVE = cython.declare(cython.int, 3)
"""Got by a port, which has counted it."""


@cython.final
@cython.cclass
class Relay:
    """Of one switch, and the devices at its ports that one VIO server serves in one thread."""

    forwarded: cython.ulonglong
    _switch: Any
    _core: SwitchCore
    _decision: Decision
    _hand: FrameInHand
    _ends: list[RelayEnd | None]
    _turn: cython.ulonglong
    _busy: cython.bint
    _frames: RelayFrames
    _buffers: RelayBuffers
    _shown: list[RelayEnd]
    _more: cython.bint
    _end: RelayEnd
    _queue: DeviceQueue
    _base: cython.p_uchar
    _scratch: cython.p_uchar
    _books: Any

    def __init__(self, switch: Any) -> None:
        """For a `network.switch.Switch`."""
        scratch = bytearray(16)
        self.forwarded = 0
        """Frames that went from client to client here."""
        self._switch = switch
        self._core = switch.core
        self._decision = Decision(switch.core)
        self._hand = FrameInHand()
        self._ends = [None] * len(switch.ports_by_number)
        self._turn = 0
        self._busy = False
        self._frames = RelayFrames()
        self._buffers = RelayBuffers()
        self._scratch = pointer(scratch)
        self._base = self._scratch
        self._books = scratch
        self._shown = []
        self._more = False

    @property
    def switch(self) -> Any:
        """Whose ports these are."""
        return self._switch

    def add(self, end: RelayEnd) -> None:
        """A device is there."""
        self._ends[end._number] = end

    def remove(self, end: RelayEnd) -> None:
        """It is gone."""
        if self._ends[end._number] is end:
            self._ends[end._number] = None

    def take(self, end: RelayEnd, queue: DeviceQueue) -> bool:
        """Let all that is in a device's transmit queue go on. False when this is no time for it: the caller does it.

        Raises `RemoteError` when the driver broke the ring; what it had made available before went on.
        """
        if self._busy or not end.usable or queue.staging is None:
            return False
        self._busy = True
        self._end = end
        self._queue = queue
        try:
            self._more = True
            while self._more and queue.live:
                self._take_some()
        finally:
            self._busy = False
            self._frames.clear()
        return True

    @cython.cfunc
    def _take_some(self) -> cython.void:
        """One turn."""
        row: cython.uint
        frames: RelayFrames = self._frames
        passed: cython.ulonglong = 0
        total: cython.ulonglong = 0
        gave: cython.uint = 0
        unheard: cython.uint = 0
        outcome: cython.int
        error: Any = None
        end: RelayEnd = self._end
        self._turn += 1
        try:
            self._more = frames.collect(self._queue, end._header_bytes, end.link_up) != 0
        except RemoteError as raised:
            error = raised
            self._more = False
        self._base = frames.base
        frames.bring(0)
        try:
            for row in range(frames.count):
                if frames.state(row) == _STAGED:
                    outcome = self._pass(row)
                    if outcome == _LOST:
                        unheard += 1
                    elif outcome != _WAITS:
                        passed += 1
                        gave += outcome == _GAVE
                        total += self._hand.length
                    if outcome != _WAITS:
                        self._give_back(row)
                elif frames.state(row) == _UNREACHABLE:
                    end._from_driver.drop("memory")
                    self._give_back(row)
                if frames.state(row) == _APART:
                    end._device.take_these([frames.request(row)], self._queue)
                    frames.bring(row + 1)  # that went through the same memory
        finally:
            self._account(passed, gave, total, unheard)
        if error is not None:
            raise error

    @cython.cfunc
    def _account(
        self, frames: cython.ulonglong, gave: cython.uint, total: cython.ulonglong, unheard: cython.uint
    ) -> cython.void:
        """Count so many frames and their bytes; `gave` of them the port has counted."""
        end: RelayEnd
        counters: Counters = self._end._from_driver
        shown: list[RelayEnd] = self._shown
        counters.frames += frames
        counters.bytes += total
        self._end.port.sent += frames - gave
        if unheard:
            counters.drop("port", unheard)
        if shown:
            self._shown = []
            for end in shown:
                end.show(self._core)

    @cython.cfunc
    @cython.exceptval(-1)
    def _give_back(self, row: cython.uint) -> cython.int:
        """The driver's buffer is its own again, by the next flush."""
        self._end._device.requests += 1
        if self._queue.live:
            self._queue.ring.give(self._frames.head(row), 0)
        return 0

    # -- where it goes

    @cython.cfunc
    @cython.exceptval(-1)
    def _pass(self, row: cython.uint) -> cython.int:
        """Let a frame go on: got, given by the port, lost, or it is counted and given back elsewhere (_WAITS)."""
        end: RelayEnd = self._end
        other: RelayEnd | None
        total: cython.ulonglong = self._frames.total(row)
        place: cython.ulonglong = self._frames.place(row)
        begins: cython.ulonglong = place + end._header_bytes
        have: cython.ulonglong = self._frames.staged(row) - end._header_bytes
        hand: FrameInHand = self._hand
        decision: Decision = self._decision
        kind: cython.int
        outcome: cython.int
        if not hand.take_up(
            at(self._base, place), at(self._base, begins), have, total - end._header_bytes, end._features, end._mtu
        ):
            self._frames.set_apart(row)
            return _WAITS
        ports = self._switch.ports_by_number  # before the decision, see `SwitchPort.send`
        kind = self._core.decide(decision, end._handle, hand.data, 0, hand.length, hand.checksum_begins(), clock_ns())
        if kind == _DROP:
            return _LOST
        if kind != _ONE:
            frame = self._whole(row, begins, have, 0)
            return _LOST if frame is None or not end.port.flood(frame, decision, ports) else _GAVE
        begins = self._retag(begins, decision.todo, decision.tci)
        have += shift_of(decision.todo)
        port = ports[decision.egress]
        other = self._ends[decision.egress]
        if other is not None and port is other.port and not hand.needs & ~other.taken and other.is_straight(self._turn):
            outcome = self._give(other, row, begins, have)
            if outcome != _WAITS:
                return outcome
            other._straight = False
        elif other is not None and port is other.port:
            other.is_straight(self._turn)
            other._straight = False  # what follows comes after this one
        frame = self._whole(row, begins, have, shift_of(decision.todo))
        return _LOST if frame is None or not end.port.give(frame, port) else _GAVE

    @cython.cfunc
    @cython.exceptval(check=False)
    def _retag(self, begins: cython.ulonglong, change: cython.int, tci: cython.uint) -> cython.ulonglong:
        """Change the tag of the frame that is staged; returns where it begins then. What is behind the tag stays."""
        base: cython.p_uchar = self._base
        if change == _KEEP:
            return begins
        if change == _STRIP or change == _PUSH:
            copy(self._scratch, 0, base, begins, 12)
            begins -= shift_of(change)
            copy(base, begins, self._scratch, 0, 12)
            if change == _STRIP:
                return begins
            st8(base, begins + 12, 0x81)
            st8(base, begins + 13, 0)
        st8(base, begins + 14, tci >> 8)
        st8(base, begins + 15, tci & 0xFF)
        return begins

    @cython.cfunc
    def _whole(self, row: cython.uint, begins: cython.ulonglong, have: cython.ulonglong, shift: cython.int) -> Any:
        """The frame as an object; None when the driver's memory is not there any more."""
        data = self._frames.whole(row, begins, have)
        return None if data is None else self._hand.as_frame(data, shift)

    # -- into the receiver's buffers

    @cython.cfunc
    @cython.exceptval(-1)
    def _give(self, other: RelayEnd, row: cython.uint, begins: cython.ulonglong, have: cython.ulonglong) -> cython.int:
        """Give the frame to a device here, if it has buffers now."""
        hand: FrameInHand = self._hand
        shift: cython.int = shift_of(self._decision.todo)
        size: cython.ulonglong = hand.length + shift
        needed: cython.ulonglong = other._header_bytes + size
        place: cython.ulonglong = begins - other._header_bytes
        outcome: cython.int
        queue: DeviceQueue | None = other.receive
        if queue is None:
            return _WAITS
        if not hand.gso and size > other._mtu + hand.link_bytes:
            other._to_driver.drop("too long")
            return _GOT
        if not other._filter.promiscuous:
            hand.view.look(at(self._base, begins), have)
            if not other._filter.passes(at(self._base, begins), hand.view):
                other._to_driver.drop("filtered")
                return _GOT
        try:
            outcome = self._buffers.hold(other, queue, needed)
        except RemoteError as error:  # the receiver's fault, and not the sender's
            self._buffers.clear()
            other.receive = None
            queue.fail(error)
            return _WAITS
        if not other._touched:
            other._touched = True
            self._shown.append(other)
        if outcome != _GOT:
            return outcome
        hand.write_header(self._base, place, other._header_bytes, shift, self._buffers.count)
        if self._buffers.fill(queue, self._frames, row, place, other._header_bytes + have, needed):
            other._frames += 1
            other._bytes += size
            self.forwarded += 1
        else:
            other._to_driver.drop("memory")
        return _GOT
