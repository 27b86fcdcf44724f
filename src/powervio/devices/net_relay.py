# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Frames from one client to another of the same VIO server, whose memories the server cannot reach (`Staging`).

A turn of a transmit queue takes what is there, brings all small frames and the beginnings of large ones together, asks
the switch for each where it goes, and moves it into the receiver's buffers: small ones from the staging memory, the
rest of large ones from client to client. Receivers see what they got, and hear of it, once a turn.

What is not as usual is the devices' Python's: frames that do not pass the checks here, receivers that are somewhere
else, have no buffers now, or want to be told later, and frames for many. A frame that waits for a receiver is in the
queue of its port, and then all that come after it are, too, until that one is empty.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.devices.net_in_hand import FrameInHand, shift_of
from cython.cimports.powervio.devices.net_rules import ReceiveFilter
from cython.cimports.powervio.memory.hw import (
    address_of,
    at,
    bytes_at,
    clock_ns,
    copy,
    ld32,
    ld64,
    pointer,
    st8,
    st32,
    st64,
)
from cython.cimports.powervio.network.switch_core import SwitchCore
from cython.cimports.powervio.network.switch_decision import Decision
from cython.cimports.powervio.virtio.device_queue import DeviceQueue
from cython.cimports.powervio.virtio.device_ring import DeviceRing
from cython.cimports.powervio.virtio.staging import Staging

from powervio.errors import RemoteError

if TYPE_CHECKING:
    from powervio.devices.net_counters import Counters
    from powervio.devices.net_receive import Receiver
    from powervio.network.switch import SwitchPort

_ROWS = cython.declare(cython.uint, 64)
"""Frames that are taken together."""
_TURN_BYTES = cython.declare(cython.ulonglong, 512 * 1024)
_SEGMENTS = cython.declare(cython.uint, 1024)
_PIECES = cython.declare(cython.uint, 256)
_HELD = cython.declare(cython.uint, 64)
"""Segments of the buffers of one frame, and these buffers, at most; what needs more is not usual."""
_WHOLE = cython.declare(cython.ulonglong, 4096)
"""Bytes of a frame, with its header, up to which all of it is staged: another copy would cost more."""
_FIRST = cython.declare(cython.ulonglong, 268)
"""Bytes of others that are: enough to find all headers in (`net_frame.LOOK`)."""
_GAP = cython.declare(cython.ulonglong, 128)
"""Bytes between two frames that are brought along rather than beginning another copy."""
_MARGIN = cython.declare(cython.ulonglong, 64)
"""Bytes before the first frame, for a tag; those before others are the end of one that has gone on."""
_OVERHEAD = cython.declare(cython.ulonglong, 256)
"""More than a gap, and what is lost to alignment."""
_TAIL = cython.declare(cython.ulonglong, 68 * 1024)
"""Bytes at the end of the staging memory, for the rest of one large frame."""
_ETHERNET = cython.declare(cython.ulonglong, 14)
_LARGEST = cython.declare(cython.ulonglong, 65535 + 14 + 8)
_DROP = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)
_STRIP = cython.declare(cython.int, 1)
_PUSH = cython.declare(cython.int, 2)
_KEEP = cython.declare(cython.int, 0)

# A row: u32 head, bytes of the frame with its header, number of its first segment, and of segments; u64 where it is
# staged; u32 state.
_ROW = cython.declare(cython.uint, 32)
_TOTAL = cython.declare(cython.uint, 4)
_BEGINS = cython.declare(cython.uint, 8)
_COUNT = cython.declare(cython.uint, 12)
_PLACE = cython.declare(cython.uint, 16)
_STATE = cython.declare(cython.uint, 24)
_STAGED = cython.declare(cython.uint, 0)
_APART = cython.declare(cython.uint, 1)
_UNREACHABLE = cython.declare(cython.uint, 2)

_LOST = cython.declare(cython.int, 0)
_GOT = cython.declare(cython.int, 1)
_WAITS = cython.declare(cython.int, 2)
_GAVE = cython.declare(cython.int, 3)
"""Got by a port, which has counted it."""


@cython.final
@cython.cclass
class RelayEnd:
    """What a `Relay` knows of one network device."""

    usable: cython.bint
    taken: cython.uint
    link_up: cython.bint
    receive: DeviceQueue | None
    port: Any
    _device: Any
    _receiver: Any
    _from_driver: Any
    _to_driver: Any
    _number: cython.int
    _handle: cython.uint
    _features: cython.ulonglong
    _mtu: cython.ulonglong
    _header_bytes: cython.ulonglong
    _mergeable: cython.bint
    _direct: cython.bint
    _filter: ReceiveFilter
    _turn: cython.ulonglong
    _straight: cython.bint
    _frames: cython.ulonglong
    _bytes: cython.ulonglong
    _touched: cython.bint

    def __init__(
        self, device: Any, port: SwitchPort, receiver: Receiver, from_driver: Counters, to_driver: Counters
    ) -> None:
        """`device` is called for what is not as usual; the others are its own."""
        self.usable = False
        """Whether there is a session, of a driver that the relay understands."""
        self.taken = 0
        """Bits of `Offload` that the driver takes."""
        self.link_up = True
        self.receive = None
        """The receive queue while frames may be put there, by the device."""
        self.port = port
        self._device = device
        self._receiver = receiver
        self._from_driver = from_driver
        self._to_driver = to_driver
        self._number = port.number
        self._handle = port.handle
        self._features = 0
        self._mtu = 0
        self._header_bytes = 0
        self._mergeable = False
        self._direct = port.options.line.perfect
        self._filter = device.control.rules.filter
        self._turn = 0
        self._straight = False
        self._frames = self._bytes = 0
        self._touched = False

    def begin(self, features: int, mtu: int, header_bytes: int, *, mergeable: bool) -> None:
        """A session begins, of a driver with little-endian headers."""
        self.usable = True
        self.receive = None
        self._features = features & 0xFFFF_FFFF_FFFF_FFFF
        self._mtu = mtu
        self._header_bytes = header_bytes
        self._mergeable = mergeable

    def end(self) -> None:
        """It is over."""
        self.usable = False
        self.receive = None

    @cython.cfunc
    @cython.exceptval(-1)
    def is_straight(self, turn: cython.ulonglong) -> cython.bint:
        """Whether frames of a turn, which has a number, may go to this device's buffers from here."""
        if self._turn != turn:
            self._turn = turn
            self._straight = (
                self._direct
                and self.usable
                and self.link_up
                and self.receive is not None
                and self.receive.live
                and self.receive.enabled
                and self.receive.staging is not None
                and self._is_idle()
            )
        return self._straight

    @cython.cfunc
    @cython.exceptval(-1)
    def _is_idle(self) -> cython.bint:
        """Whether no frame waits that came before."""
        receiver: Receiver = self._receiver
        return (
            receiver.frame is None
            and not receiver.pending
            and not receiver.held
            and not receiver.ready
            and not self.port.waiting
            and not self._device.control.coalescing
        )

    @cython.cfunc
    def show(self, core: SwitchCore) -> cython.void:
        """Let the driver see what it was given in a turn."""
        counters: Counters = self._to_driver
        frames: cython.ulonglong = self._frames
        length: cython.ulonglong = self._bytes
        self._touched = False
        self._frames = self._bytes = 0
        if frames:
            counters.frames += frames
            counters.bytes += length
            core.delivered_many(self._number, frames, length)
        if self.receive is not None:
            self.receive.flush()


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
    _rows: cython.p_uchar
    _row_count: cython.uint
    _segments: cython.p_uchar
    _segment_count: cython.uint
    _requests: dict[int, Any]
    _shown: list[RelayEnd]
    _more: cython.bint
    _end: RelayEnd
    _queue: DeviceQueue
    _staging: Staging
    _base: cython.p_uchar
    # The copy that is being made up.
    _open: cython.bint
    _from: cython.ulonglong
    _until: cython.ulonglong
    _to: cython.ulonglong
    _place: cython.ulonglong
    _failed: cython.bint
    # The buffers of the frame in hand: u32 head, number of pieces, and room of each, and {u64 address, u64 bytes}.
    _heads: cython.p_uchar
    _held: cython.uint
    _pieces: cython.p_uchar
    _piece_count: cython.uint
    _room: cython.ulonglong
    _scratch: cython.p_uchar
    _books: Any

    def __init__(self, switch: Any) -> None:
        """For a `network.switch.Switch`."""
        books = bytearray(32 * 64), bytearray(16 * 1024), bytearray(12 * 64), bytearray(16 * 256), bytearray(16)
        self.forwarded = 0
        """Frames that went from client to client here."""
        self._switch = switch
        self._core = switch.core
        self._decision = Decision(switch.core)
        self._hand = FrameInHand()
        self._ends = [None] * len(switch.ports_by_number)
        self._turn = 0
        self._busy = False
        self._rows = pointer(books[0])
        self._segments = pointer(books[1])
        self._heads = pointer(books[2])
        self._pieces = pointer(books[3])
        self._scratch = pointer(books[4])
        self._base = self._scratch
        self._books = books
        self._row_count = self._segment_count = 0
        self._requests = {}
        self._shown = []
        self._more = self._open = self._failed = False
        self._from = self._until = self._to = self._place = self._room = 0
        self._held = self._piece_count = 0

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
        self._staging = queue.staging
        self._base = self._staging.base
        try:
            self._more = True
            while self._more and queue.live:
                self._take_some()
        finally:
            self._busy = False
            self._requests.clear()
        return True

    @cython.cfunc
    def _take_some(self) -> cython.void:
        """One turn."""
        row: cython.uint
        frames: cython.ulonglong = 0
        total: cython.ulonglong = 0
        gave: cython.uint = 0
        unheard: cython.uint = 0
        outcome: cython.int
        error: Any = None
        end: RelayEnd = self._end
        self._turn += 1
        self._row_count = self._segment_count = 0
        try:
            self._collect()
        except RemoteError as raised:
            error = raised
            self._more = False
        self._bring(0)
        try:
            for row in range(self._row_count):
                if ld32(self._rows, _ROW * row + _STATE) == _STAGED:
                    outcome = self._pass(row)
                    if outcome == _LOST:
                        unheard += 1
                    elif outcome != _WAITS:
                        frames += 1
                        gave += outcome == _GAVE
                        total += self._hand.length
                    if outcome != _WAITS:
                        self._give_back(row)
                elif ld32(self._rows, _ROW * row + _STATE) == _UNREACHABLE:
                    end._from_driver.drop("memory")
                    self._give_back(row)
                if ld32(self._rows, _ROW * row + _STATE) == _APART:
                    end._device.take_these([self._request(row)], self._queue)
                    self._bring(row + 1)  # that went through the same memory
        finally:
            self._account(frames, gave, total, unheard)
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

    # -- from the ring

    @cython.cfunc
    @cython.exceptval(-1)
    def _collect(self) -> cython.int:
        """Take what is there, up to a bound."""
        queue: DeviceQueue = self._queue
        ring: DeviceRing = queue.ring
        end: RelayEnd = self._end
        staged: cython.ulonglong = _MARGIN
        moved: cython.ulonglong = 0
        total: cython.ulonglong
        row: cython.ulonglong
        count: cython.uint
        while self._row_count < _ROWS:
            if not queue.take_allowed():
                self._more = False
                return 0
            row = _ROW * self._row_count
            total = ring.readable_bytes
            count = ring.segment_count
            st32(self._rows, row, ring.head)
            if (
                ring.writable_bytes
                or total < end._header_bytes + _ETHERNET
                or total > end._header_bytes + _LARGEST
                or not end.link_up
                or self._segment_count + count > _SEGMENTS
            ):
                st32(self._rows, row + _STATE, _APART)
                self._requests[self._row_count] = queue.request()
            else:
                st32(self._rows, row + _TOTAL, total)
                st32(self._rows, row + _BEGINS, self._segment_count)
                st32(self._rows, row + _COUNT, count)
                st32(self._rows, row + _STATE, _STAGED)
                copy(self._segments, 16 * self._segment_count, ring.chain, 0, 16 * count)
                self._segment_count += count
                staged += self._part_of(total) + _OVERHEAD
                moved += total
            self._row_count += 1
            if staged + _WHOLE + _OVERHEAD + _TAIL > self._staging.size or moved >= _TURN_BYTES:
                return 0
        return 0

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _part_of(self, total: cython.ulonglong) -> cython.ulonglong:
        """Bytes of a frame that are staged."""
        return total if total <= _WHOLE else _FIRST

    @cython.cfunc
    def _request(self, row: cython.uint) -> Any:
        """A row as an object."""
        begins: cython.uint
        request: Any = self._requests.pop(row, None)
        if request is not None:
            return request
        begins = ld32(self._rows, _ROW * row + _BEGINS)
        readable = [
            (ld64(self._segments, 16 * number), ld64(self._segments, 16 * number + 8))
            for number in range(begins, begins + ld32(self._rows, _ROW * row + _COUNT))
        ]
        return self._queue.request_of(ld32(self._rows, _ROW * row), readable, [])

    @cython.cfunc
    @cython.exceptval(-1)
    def _give_back(self, row: cython.uint) -> cython.int:
        """The driver's buffer is its own again, by the next flush."""
        self._end._device.requests += 1
        if self._queue.live:
            self._queue.ring.give(ld32(self._rows, _ROW * row), 0)
        return 0

    # -- to the staging memory

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring(self, first: cython.uint) -> cython.int:
        """Stage rows from `first` on: those that lie near each other in one copy, gaps included."""
        row: cython.uint
        self._open = self._failed = False
        self._place = _MARGIN
        for row in range(first, self._row_count):
            if ld32(self._rows, _ROW * row + _STATE) == _STAGED:
                self._bring_row(row)
        self._close()
        if self._failed:
            for row in range(first, self._row_count):
                if ld32(self._rows, _ROW * row + _STATE) == _STAGED:
                    self._bring_alone(row)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_row(self, row: cython.uint) -> cython.int:
        """Have a row be part of the next copies."""
        left: cython.ulonglong = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))
        number: cython.uint = ld32(self._rows, _ROW * row + _BEGINS)
        address: cython.ulonglong
        part: cython.ulonglong
        gap: cython.ulonglong = _GAP
        begins: cython.bint = True
        while left:
            address = ld64(self._segments, 16 * number)
            part = ld64(self._segments, 16 * number + 8)
            if part > left:
                part = left
            if not self._open or address < self._until or address - self._until > gap:
                self._close()
                if begins:
                    self._place = (self._place + 63) & ~cython.cast(cython.ulonglong, 63)
                self._open = True
                self._from = address
                self._to = self._place
            else:
                self._place += address - self._until
            if begins:
                begins = False
                gap = 0  # all of a row is in one piece
                st64(self._rows, _ROW * row + _PLACE, self._place)
            self._until = address + part
            self._place += part
            left -= part
            number += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _close(self) -> cython.int:
        """Make the copy."""
        if self._open:
            self._open = False
            if not self._staging.bring(self._from, self._until - self._from, self._to):
                self._failed = True
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_alone(self, row: cython.uint) -> cython.int:
        """Stage a row where it has its place, after a copy of several had failed."""
        left: cython.ulonglong = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))
        if not self._bring_bytes(row, 0, left, ld64(self._rows, _ROW * row + _PLACE)):
            st32(self._rows, _ROW * row + _STATE, _UNREACHABLE)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _bring_bytes(
        self, row: cython.uint, offset: cython.ulonglong, length: cython.ulonglong, place: cython.ulonglong
    ) -> cython.int:
        """Copy bytes of a row to a place; 0 when they are not there."""
        number: cython.uint = ld32(self._rows, _ROW * row + _BEGINS)
        size: cython.ulonglong
        while length:
            size = ld64(self._segments, 16 * number + 8)
            if offset >= size:
                offset -= size
            else:
                size -= offset
                if size > length:
                    size = length
                if not self._staging.bring(ld64(self._segments, 16 * number) + offset, size, place):
                    return 0
                place += size
                length -= size
                offset = 0
            number += 1
        return 1

    # -- where it goes

    @cython.cfunc
    @cython.exceptval(-1)
    def _pass(self, row: cython.uint) -> cython.int:
        """Let a frame go on: got, given by the port, lost, or it is counted and given back elsewhere (_WAITS)."""
        end: RelayEnd = self._end
        other: RelayEnd | None
        total: cython.ulonglong = ld32(self._rows, _ROW * row + _TOTAL)
        place: cython.ulonglong = ld64(self._rows, _ROW * row + _PLACE)
        begins: cython.ulonglong = place + end._header_bytes
        have: cython.ulonglong = self._part_of(total) - end._header_bytes
        hand: FrameInHand = self._hand
        decision: Decision = self._decision
        kind: cython.int
        outcome: cython.int
        if not hand.take_up(
            at(self._base, place), at(self._base, begins), have, total - end._header_bytes, end._features, end._mtu
        ):
            st32(self._rows, _ROW * row + _STATE, _APART)
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
        total: cython.ulonglong = ld32(self._rows, _ROW * row + _TOTAL)
        staged: cython.ulonglong = self._part_of(total)
        place: cython.ulonglong = self._staging.size - _TAIL
        data: bytes = bytes_at(address_of(self._base, begins), have)
        if total != staged:
            if not self._bring_bytes(row, staged, total - staged, place):
                return None
            data += bytes_at(address_of(self._base, place), total - staged)
        return self._hand.as_frame(data, shift)

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
            outcome = self._hold(other, queue, needed)
        except RemoteError as error:  # the receiver's fault, and not the sender's
            self._held = self._piece_count = 0
            other.receive = None
            queue.fail(error)
            return _WAITS
        if not other._touched:
            other._touched = True
            self._shown.append(other)
        if outcome != _GOT:
            return outcome
        hand.write_header(self._base, place, other._header_bytes, shift, self._held)
        if self._fill(other, queue, row, place, other._header_bytes + have, needed):
            other._frames += 1
            other._bytes += size
            self.forwarded += 1
        else:
            other._to_driver.drop("memory")
        return _GOT

    @cython.cfunc
    @cython.exceptval(-1)
    def _hold(self, other: RelayEnd, queue: DeviceQueue, needed: cython.ulonglong) -> cython.int:
        """Take buffers for so many bytes: got; lost, for one cannot be used; waits, when there are too few."""
        ring: DeviceRing = queue.ring
        least: cython.ulonglong = other._header_bytes if other._mergeable else needed
        self._held = self._piece_count = 0
        self._room = 0
        while self._room < needed:
            if self._held == _HELD or not queue.take():
                self._leave(other, queue)
                return _WAITS
            if ring.readable_bytes or ring.writable_bytes < least:
                ring.give(ring.head, 0)
                other._receiver.bad_buffers += 1
                if not other._mergeable:
                    other._to_driver.drop("no room")
                    return _LOST
            elif self._piece_count + ring.segment_count > _PIECES:
                request = queue.request()
                self._leave(other, queue)
                other._receiver.held.append(request)
                return _WAITS
            else:
                self._keep(ring)
        return _GOT

    @cython.cfunc
    @cython.exceptval(check=False)
    def _keep(self, ring: DeviceRing) -> cython.void:
        """The buffer that was taken last is for the frame in hand."""
        copy(self._pieces, 16 * self._piece_count, ring.chain, 0, 16 * ring.segment_count)
        self._piece_count += ring.segment_count
        st32(self._heads, 12 * self._held, ring.head)
        st32(self._heads, 12 * self._held + 4, ring.segment_count)
        st32(
            self._heads,
            12 * self._held + 8,
            cython.cast(cython.uint, ring.writable_bytes if ring.writable_bytes < 0x7FFF_FFFF else 0x7FFF_FFFF),
        )
        self._held += 1
        self._room += ring.writable_bytes

    @cython.cfunc
    @cython.exceptval(-1)
    def _leave(self, other: RelayEnd, queue: DeviceQueue) -> cython.int:
        """The buffers that are held are for the frame that the device's Python gets next."""
        number: cython.uint
        first: cython.uint = 0
        count: cython.uint
        requests: list[Any] = []
        for number in range(self._held):
            count = ld32(self._heads, 12 * number + 4)
            writable = [
                (ld64(self._pieces, 16 * place), ld64(self._pieces, 16 * place + 8))
                for place in range(first, first + count)
            ]
            first += count
            requests.append(queue.request_of(ld32(self._heads, 12 * number), [], writable))
        other._receiver.held[:0] = requests
        self._held = self._piece_count = 0
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _fill(
        self,
        other: RelayEnd,
        queue: DeviceQueue,
        row: cython.uint,
        place: cython.ulonglong,
        staged: cython.ulonglong,
        needed: cython.ulonglong,
    ) -> cython.int:
        """Put header and frame into the buffers that are held, and give them back; 0 when they went back empty.

        `staged` bytes are at `place`, and the rest is in the sender's memory.
        """
        number: cython.uint
        piece: cython.uint = 0
        end: cython.uint
        room: cython.ulonglong
        address: cython.ulonglong
        part: cython.ulonglong
        size: cython.ulonglong
        sound: cython.bint = True
        there: Staging = cython.cast(Staging, queue.staging)
        source: cython.uint = ld32(self._rows, _ROW * row + _BEGINS)
        offset: cython.ulonglong = self._part_of(ld32(self._rows, _ROW * row + _TOTAL))
        for number in range(self._held):
            room = ld32(self._heads, 12 * number + 8)
            if room > needed:
                room = needed
            needed -= room
            st32(self._heads, 12 * number + 8, room)  # what of it is used
            end = piece + ld32(self._heads, 12 * number + 4)
            while piece < end:
                address = ld64(self._pieces, 16 * piece)
                part = ld64(self._pieces, 16 * piece + 8)
                if part > room:
                    part = room
                room -= part
                piece += 1
                while part and sound:
                    if staged:
                        size = part if part < staged else staged
                        sound = there.put(address, size, place) != 0
                        place += size
                        staged -= size
                    else:
                        size = ld64(self._segments, 16 * source + 8)
                        while offset >= size:
                            offset -= size
                            source += 1
                            size = ld64(self._segments, 16 * source + 8)
                        size -= offset
                        if size > part:
                            size = part
                        sound = (
                            self._staging.pass_on(ld64(self._segments, 16 * source) + offset, size, there, address) != 0
                        )
                        offset += size
                    address += size
                    part -= size
        for number in range(self._held):
            queue.ring.give(ld32(self._heads, 12 * number), ld32(self._heads, 12 * number + 8) if sound else 0)
        self._held = self._piece_count = 0
        return 1 if sound else 0
