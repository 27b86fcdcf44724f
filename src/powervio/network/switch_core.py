# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Where a frame goes: what is known of the ports, and the decision for each frame, without the interpreter lock.

The rules, in their order; each frame that goes nowhere is counted for the port that it came from, by reason:

* VLANs (IEEE 802.1Q). What has no tag, or one of VLAN 0, belongs to the port's own VLAN (PVID). Tags of others are for
  tagged ports, in their allowed list. What has two tags goes nowhere, for without the first the second would count.
* An inactive trunk hears and says nothing: a frame that went out over the active one and came back must not go around.
* Sources. A port with a checked address has no other. Nobody else has the address of such a port, not even a trunk.
  Others' addresses are learnt, for each VLAN, and forgotten after some time (`switch_addresses`); so many for each
  port, so that a port that makes up addresses only loses its own.
* Bounds of the port on bytes, and on frames that are for all or for somebody unknown.
* Destinations. A group goes to all ports of the VLAN that want it, a known address to its port, an unknown one to the
  active trunk of the VLAN (PAPR), and if there is none to the ports whose addresses are not checked. Groups that are
  for the next bridge only (01-80-C2-00-00-0x) go nowhere.

A lock, held for one decision, is all that threads share. Who changes the tables holds it too.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import struct
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    be16,
    be32,
    copy,
    get16,
    get32,
    ld8,
    ld16,
    ld64,
    mutex_give,
    mutex_try,
    mutex_wait,
    pointer,
    pointer_to_read,
    st8,
    st16,
    st64,
    zero,
)
from cython.cimports.powervio.network.frame import Frame
from cython.cimports.powervio.network.switch_addresses import AddressTable
from cython.cimports.powervio.network.switch_decision import Decision

from powervio.network.switch_decision import REASONS

VLANS = 4096
HEADER_BYTES = 18
"""What a decision is made of."""

_DROP = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)
_FLOOD = cython.declare(cython.int, 2)
_TOO_SHORT = cython.declare(cython.int, 0)
_BAD_SOURCE = cython.declare(cython.int, 1)
_TWO_TAGS = cython.declare(cython.int, 2)
_TAGGED = cython.declare(cython.int, 3)
_FOREIGN = cython.declare(cython.int, 4)
_INACTIVE = cython.declare(cython.int, 5)
_SPOOFED = cython.declare(cython.int, 6)
_RATE = cython.declare(cython.int, 7)
_NEXT_BRIDGE = cython.declare(cython.int, 8)
_STORM = cython.declare(cython.int, 9)
_SAME_PORT = cython.declare(cython.int, 10)
_NO_RECEIVER = cython.declare(cython.int, 11)
_NO_PORT = cython.declare(cython.int, 12)
_MALFORMED = cython.declare(cython.int, 13)

_UNTAGGED = cython.declare(cython.int, 0)
_WITH_TAG = cython.declare(cython.int, 1)
_PRIORITY = cython.declare(cython.int, 2)

# A port: flags, PVID, which one at this number it is, its own address, and two bounds of {units a second, burst in
# nanoseconds, when all that was sent is paid for}.
_ROW = cython.declare(cython.uint, 64)
_F_USED = cython.declare(cython.uint, 1)
_F_CHECKED = cython.declare(cython.uint, 2)
_F_TRUNK = cython.declare(cython.uint, 4)
_F_TAGGED = cython.declare(cython.uint, 8)
_PVID = cython.declare(cython.uint, 2)
_TURN = cython.declare(cython.uint, 4)
_ADDRESS = cython.declare(cython.uint, 8)
_RATE_BOUND = cython.declare(cython.uint, 16)
_STORM_BOUND = cython.declare(cython.uint, 40)

_SECOND = cython.declare(cython.ulonglong, 1_000_000_000)
_NONE = cython.declare(cython.uint, 0xFFFF)
_BROADCAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF)
_GROUP = cython.declare(cython.ulonglong, 0x0100_0000_0000)
_BRIDGES = cython.declare(cython.ulonglong, 0x0180_C200_0000)
_LOW = cython.declare(cython.ulonglong, 0xF)
_COUNTS = cython.declare(cython.uint, 8 * (4 + len(REASONS)))


@cython.final
@cython.cclass
class SwitchCore:
    """The tables of a switch. Ports are numbers below `limit`, at most 65535; who sends is known by a handle, so that a
    port that is gone is not taken for the next one at its number.
    """

    limit: cython.uint
    version: cython.uint
    stride: cython.uint
    words: cython.uint
    ports: cython.p_uchar
    counts: cython.p_uchar
    members: cython.p_uchar
    open: cython.p_uchar
    tags: cython.p_uchar
    trunks: cython.p_uchar
    learners: cython.p_uchar
    any_group: cython.p_uchar
    addresses: AddressTable
    word: cython.p_uchar
    _books: Any

    def __init__(self, limit: int, *, addresses: int, age: int, seed: int) -> None:
        """`limit`: ports; `addresses`: that can be learnt, a multiple of 8 and power of two; `age`: nanoseconds after
        which one is forgotten; `seed`: 64 bits that nobody can guess, of the table of addresses.
        """
        self.limit = limit
        self.words = (limit + 63) // 64
        self.stride = 8 * self.words
        self.version = 0
        sizes = (
            _ROW * limit,
            _COUNTS * limit,
            VLANS * self.stride,
            VLANS * self.stride,
            VLANS * self.stride,
            2 * VLANS,
            self.stride,
            self.stride,
            4,
        )
        books = [bytearray(size) for size in sizes]
        self._books = books
        self.ports = pointer(books[0])
        self.counts = pointer(books[1])
        self.members = pointer(books[2])
        self.open = pointer(books[3])
        self.tags = pointer(books[4])
        books[5][:] = b"\xff" * (2 * VLANS)
        self.trunks = pointer(books[5])
        self.learners = pointer(books[6])
        self.any_group = pointer(books[7])
        self.addresses = AddressTable(limit, addresses=addresses, age=age, seed=seed)
        self.word = pointer(books[8])

    # -- what the switch sets; all under the lock, so that a decision sees the tables before or after

    def set_port(
        self,
        port: int,
        *,
        pvid: int,
        vlans: frozenset[int],
        address: int,
        checked: bool,
        trunk: bool,
        may_learn: int,
        rate: int,
        burst: int,
        storm: int,
    ) -> None:
        """A port is there, in its own VLAN and `vlans` (if it is a tagged one).

        `address`: 48 bits, 0 for none; `rate` and `burst`: bytes a second, and bytes at once; `storm`: frames a second.
        0 is no bound. The addresses of ports are set by `set_fixed`, trunks by `set_trunk`.
        """
        row: cython.ulonglong = _ROW * port
        flags: cython.uint = _F_USED
        everywhere = sorted(vlans | {pvid})
        turn: cython.uint
        burst_ns = burst * _SECOND // rate if rate else 0
        if checked:
            flags |= _F_CHECKED
        if trunk:
            flags |= _F_TRUNK
        if vlans:
            flags |= _F_TAGGED
        self._take()
        turn = ld16(self.ports, row + _TURN) + 1
        zero(self.ports, row, _ROW)
        st16(self.ports, row + _TURN, turn)
        zero(self.counts, _COUNTS * port, _COUNTS)
        st8(self.ports, row, flags)
        st16(self.ports, row + _PVID, pvid)
        st64(self.ports, row + _ADDRESS, address)
        self.addresses.begin(port, may_learn)
        if rate:
            st64(self.ports, row + _RATE_BOUND, rate)
            st64(self.ports, row + _RATE_BOUND + 8, burst_ns)
        if storm:
            st64(self.ports, row + _STORM_BOUND, storm)
            st64(self.ports, row + _STORM_BOUND + 8, _SECOND)
        for vlan in everywhere:
            _set(self.members, self.stride * vlan, port, True)
            _set(self.open, self.stride * vlan, port, not trunk)
            _set(self.tags, self.stride * vlan, port, vlan != pvid)
        _set(self.learners, 0, port, not checked)
        _set(self.any_group, 0, port, True)
        self.version += 1
        mutex_give(self.word)

    def clear_port(self, port: int) -> None:
        """A port is gone."""
        vlan: cython.uint
        self._take()
        st8(self.ports, _ROW * port, 0)
        for vlan in range(4096):
            _set(self.members, self.stride * vlan, port, False)
            _set(self.open, self.stride * vlan, port, False)
            _set(self.tags, self.stride * vlan, port, False)
        _set(self.learners, 0, port, False)
        _set(self.any_group, 0, port, False)
        self.version += 1
        mutex_give(self.word)
        self.forget(port, None)

    def set_address(self, port: int, address: int) -> None:
        """The address of a port is another; 0 for none. See `set_fixed`."""
        self._take()
        st64(self.ports, _ROW * port + _ADDRESS, address)
        mutex_give(self.word)

    def set_trunk(self, vlan: int, port: int) -> None:
        """The active trunk of a VLAN, -1 for none; what was learnt there of the one before is forgotten."""
        before: cython.int
        self._take()
        before = ld16(self.trunks, 2 * vlan)
        if before != _NONE:
            _set(self.open, self.stride * vlan, before, False)
        st16(self.trunks, 2 * vlan, _NONE if port < 0 else port)
        if port >= 0:
            _set(self.open, self.stride * vlan, port, True)
        mutex_give(self.word)
        if before != _NONE and before != port:
            self.forget(before, vlan)

    def set_all_groups(self, port: int, wanted: bool) -> None:
        """Whether a port gets the frames of all groups, or of those of `set_groups` only."""
        self._take()
        _set(self.any_group, 0, port, wanted)
        mutex_give(self.word)

    def set_fixed(self, fixed: dict[int, int]) -> None:
        """All addresses that belong to ports whatever anybody sends: keys (VLAN << 48 | address), ports."""
        book = self.addresses.hashed(list(fixed.items()))
        self._take()
        self.addresses.use_fixed(book)
        mutex_give(self.word)

    def set_groups(self, groups: dict[int, frozenset[int]]) -> None:
        """Which ports want the frames of which groups (48 bits)."""
        book = self.addresses.hashed([(mac, number) for number, mac in enumerate(groups)])
        sets = bytearray(self.stride * (len(groups) + 1))
        bits: cython.p_uchar = pointer(sets)
        for number, ports in enumerate(groups.values()):
            for port in ports:
                _set(bits, self.stride * number, port, True)
        self._take()
        self.addresses.use_groups(book, sets)
        mutex_give(self.word)

    def forget(self, port: int, vlan: int | None) -> None:
        """Forget what was learnt at a port, in one VLAN or all."""
        self._take()
        self.addresses.forget(port, -1 if vlan is None else vlan)
        mutex_give(self.word)

    # -- what can be asked

    def learnt(self, now: int) -> list[tuple[int, int, int]]:
        """Addresses that are known by what was sent: VLAN, address, port."""
        book = bytearray(self.addresses.learnt_bytes)
        view: cython.p_uchar = pointer(book)
        self._take()
        self.addresses.copy_learnt(view)
        mutex_give(self.word)
        return self.addresses.entries(book, now)

    def counters(self, port: int) -> tuple[int, ...]:
        """Of a port since it is there: frames and bytes that it sent and that went on; frames and bytes that loops
        delivered; frames that were lost for each of `REASONS`."""
        book = bytearray(_COUNTS)
        view: cython.p_uchar = pointer(book)
        self._take()
        copy(view, 0, self.counts, _COUNTS * port, _COUNTS)
        mutex_give(self.word)
        return struct.unpack(f"={_COUNTS // 8}Q", book)

    def miss(self, port: int, reason: int) -> None:
        """Count a frame that somebody should have got, by its place in `REASONS`."""
        self.missed(port, reason)

    # -- frames

    def handle(self, port: int) -> int:
        """What the port that is at a number now calls itself when it sends."""
        return ld16(self.ports, _ROW * port + _TURN) << 16 | port

    def decide_frame(self, out: Decision, handle: int, frame: Frame, now: int) -> int:
        """As `decide`, of a frame that is an object."""
        view: cython.p_uchar = pointer_to_read(frame.data)
        begin: cython.uint = HEADER_BYTES
        if frame.needs != 0:
            begin = frame.partial[0]
        return self.decide(out, handle, view, 0, len(frame.data), begin, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def decide(
        self,
        out: Decision,
        handle: cython.uint,
        frame: cython.p_uchar,
        offset: cython.ulonglong,
        length: cython.ulonglong,
        begin: cython.uint,
        now: cython.ulonglong,
    ) -> cython.int:
        """Where a frame goes that a port sends at the time `now`, in nanoseconds of any clock that does not go back.

        `handle`: what the port is called, see there; `frame` at `offset` has what `HEADER_BYTES` says, if the frame has
        as many; `length` is of all of it. `begin` is where a partial checksum begins, `HEADER_BYTES` if there is none:
        what is decided here must not be changed when it is finished.
        """
        kind: cython.int
        self._take()
        kind = self._decide(out, handle, frame, offset, length, begin, now)
        mutex_give(self.word)
        return kind

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _decide(
        self,
        out: Decision,
        handle: cython.uint,
        frame: cython.p_uchar,
        offset: cython.ulonglong,
        length: cython.ulonglong,
        begin: cython.uint,
        now: cython.ulonglong,
    ) -> cython.int:
        row: cython.ulonglong
        count: cython.ulonglong
        to: cython.ulonglong
        source: cython.ulonglong
        own: cython.ulonglong
        key: cython.ulonglong
        flags: cython.uint
        kind: cython.uint
        vlan: cython.uint
        holder: cython.int
        result: cython.int
        port: cython.uint = handle & 0xFFFF
        out.egress = port
        out.kind = _DROP
        out.reason = _NO_PORT
        if port >= self.limit:
            return _DROP
        row = _ROW * port
        flags = ld8(self.ports, row)
        if flags & _F_USED == 0 or ld16(self.ports, row + _TURN) != handle >> 16:
            return _DROP
        if length < 14:
            return self._drop(out, _TOO_SHORT)
        to = _address(frame, offset)
        source = _address(frame, offset + 6)
        if source == 0 or source & _GROUP != 0:
            return self._drop(out, _BAD_SOURCE)
        # the VLAN
        vlan = ld16(self.ports, row + _PVID)
        out.came = _UNTAGGED
        out.tci = vlan
        kind = be16(get16(frame, offset + 12))
        if kind == 0x8100:
            if length < 18:
                return self._drop(out, _TOO_SHORT)
            kind = be16(get16(frame, offset + 16))
            out.tci = be16(get16(frame, offset + 14))
            if kind == 0x8100 or kind == 0x88A8:
                return self._drop(out, _TWO_TAGS)
            if out.tci & 0xFFF == 0:
                out.came = _PRIORITY
                out.tci |= vlan
            elif flags & _F_TAGGED == 0:
                return self._drop(out, _TAGGED)
            else:
                out.came = _WITH_TAG
                vlan = out.tci & 0xFFF
        elif kind == 0x88A8:
            return self._drop(out, _TWO_TAGS)
        if begin < 14 or (begin < 18 and out.came != _UNTAGGED):
            return self._drop(out, _MALFORMED)
        out.vlan = vlan
        if not _has(self.members, self.stride * vlan, port):
            return self._drop(out, _FOREIGN)
        if flags & _F_TRUNK != 0 and ld16(self.trunks, 2 * vlan) != port:
            return self._drop(out, _INACTIVE)
        # the source
        own = ld64(self.ports, row + _ADDRESS)
        key = source | cython.cast(cython.ulonglong, vlan) << 48
        if source != own:
            if flags & _F_CHECKED != 0 or self.addresses.find_fixed(key) >= 0:
                return self._drop(out, _SPOOFED)
            self.addresses.learn(port, key, now)
        if self._exceeds(row + _RATE_BOUND, length, now):
            return self._drop(out, _RATE)
        # the destination
        if to & _GROUP != 0:
            if to - (to & _LOW) == _BRIDGES:
                return self._drop(out, _NEXT_BRIDGE)
            if to == _BROADCAST:
                if self._exceeds(row + _STORM_BOUND, 1, now):
                    return self._drop(out, _STORM)
                result = self._flood(out, port, self.open, self.stride * vlan, self.open, self.stride * vlan)
            else:
                holder = self.addresses.find_group(to)
                if holder < 0:
                    result = self._flood(out, port, self.any_group, 0, self.any_group, 0)
                else:
                    result = self._flood(out, port, self.any_group, 0, self.addresses.group_sets, self.stride * holder)
        else:
            key = to | cython.cast(cython.ulonglong, vlan) << 48
            holder = self.addresses.find_fixed(key)
            if holder < 0:
                holder = self.addresses.find_learnt(key, now)
            if holder == port:
                return self._drop(out, _SAME_PORT)
            if holder >= 0 and _has(self.open, self.stride * vlan, holder):
                result = self._one(out, holder)
            else:
                result = self._unknown(out, port, now)
        if result != _DROP:
            count = _COUNTS * port
            st64(self.counts, count, ld64(self.counts, count) + 1)
            st64(self.counts, count + 8, ld64(self.counts, count + 8) + length)
        return result

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _unknown(self, out: Decision, port: cython.uint, now: cython.ulonglong) -> cython.int:
        trunk: cython.uint
        if self._exceeds(cython.cast(cython.ulonglong, _ROW) * port + _STORM_BOUND, 1, now):
            return self._drop(out, _STORM)
        trunk = ld16(self.trunks, 2 * out.vlan)
        if trunk != _NONE and trunk != port:
            return self._one(out, trunk)
        return self._flood(out, port, self.learners, 0, self.learners, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _flood(
        self,
        out: Decision,
        port: cython.uint,
        some: cython.p_uchar,
        place: cython.ulonglong,
        others: cython.p_uchar,
        other: cython.ulonglong,
    ) -> cython.int:
        """To the ports of either set that are in the VLAN, but for the sender."""
        number: cython.uint
        word: cython.ulonglong
        base: cython.ulonglong = cython.cast(cython.ulonglong, self.stride) * out.vlan
        found: cython.uint = 0
        for number in range(self.words):
            word = ld64(some, place + 8 * number) | ld64(others, other + 8 * number)
            st64(out.receivers, 8 * number, word & ld64(self.open, base + 8 * number))
        _set(out.receivers, 0, port, False)
        for number in range(self.words):
            if ld64(out.receivers, 8 * number) != 0:
                found = 1
        out.rest = 0
        out.place = 0
        if found == 0:
            return self._drop(out, _NO_RECEIVER)
        copy(out.tags, 0, self.tags, base, self.stride)
        out.kind = _FLOOD
        return _FLOOD

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _one(self, out: Decision, port: cython.int) -> cython.int:
        out.egress = port
        out.tagged = _has(self.tags, cython.cast(cython.ulonglong, self.stride) * out.vlan, port)
        out.todo = out.tag_change(out.tagged)
        out.kind = _ONE
        return _ONE

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _drop(self, out: Decision, reason: cython.int) -> cython.int:
        """The frame of port `out.egress` goes nowhere."""
        place: cython.ulonglong = cython.cast(cython.ulonglong, _COUNTS) * out.egress + 32 + 8 * reason
        st64(self.counts, place, ld64(self.counts, place) + 1)
        out.kind = _DROP
        out.reason = reason
        return _DROP

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def delivered(self, port: cython.uint, length: cython.ulonglong) -> cython.void:
        """A loop gave a port a frame."""
        self.delivered_many(port, 1, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def delivered_many(self, port: cython.uint, frames: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """As `delivered`, of several frames with `length` bytes together."""
        place: cython.ulonglong = cython.cast(cython.ulonglong, _COUNTS) * port + 16
        self._take()
        st64(self.counts, place, ld64(self.counts, place) + frames)
        st64(self.counts, place + 8, ld64(self.counts, place + 8) + length)
        mutex_give(self.word)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def missed(self, port: cython.uint, reason: cython.int) -> cython.void:
        """A loop had a frame for a port, which did not get it."""
        place: cython.ulonglong = cython.cast(cython.ulonglong, _COUNTS) * port + 32 + 8 * reason
        self._take()
        st64(self.counts, place, ld64(self.counts, place) + 1)
        mutex_give(self.word)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _take(self) -> cython.void:
        if mutex_try(self.word) == 0:
            while mutex_wait(self.word) < 0:
                pass  # a signal: it is taken when the decision is made

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _exceeds(self, row: cython.ulonglong, units: cython.ulonglong, now: cython.ulonglong) -> cython.bint:
        """A bound (the generic cell rate algorithm): what is sent has its time, and may be ahead of it by a burst."""
        rate: cython.ulonglong = ld64(self.ports, row)
        until: cython.ulonglong
        if rate == 0:
            return False
        until = ld64(self.ports, row + 16)
        if until < now:
            until = now
        if until - now >= ld64(self.ports, row + 8):
            return True
        st64(self.ports, row + 16, until + units * _SECOND // rate)
        return False


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _address(frame: cython.p_uchar, offset: cython.ulonglong) -> cython.ulonglong:
    high: cython.ulonglong = be16(get16(frame, offset))
    return high << 32 | be32(get32(frame, offset + 2))


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _has(bits: cython.p_uchar, place: cython.ulonglong, number: cython.uint) -> cython.bint:
    return ld8(bits, place + (number >> 3)) >> (number & 7) & 1 != 0


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _set(bits: cython.p_uchar, place: cython.ulonglong, number: cython.uint, value: cython.bint) -> cython.void:
    byte: cython.ulonglong = place + (number >> 3)
    bit: cython.uint = 1 << (number & 7)
    if value:
        st8(bits, byte, ld8(bits, byte) | bit)
    else:
        st8(bits, byte, ld8(bits, byte) & ~bit)
