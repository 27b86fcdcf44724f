# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Where a frame goes: the tables of a switch, and the decision for each frame, without the interpreter lock.

The rules, in their order; each frame that goes nowhere is counted for the port that it came from, by reason:

* VLANs (IEEE 802.1Q). What has no tag, or one of VLAN 0, belongs to the port's own VLAN (PVID). Tags of others are for
  tagged ports, in their allowed list. What has two tags goes nowhere, for without the first the second would count.
* An inactive trunk hears and says nothing: a frame that went out over the active one and came back must not go around.
* Sources. A port with a checked address has no other. Nobody else has the address of such a port, not even a trunk.
  Others' addresses are learnt, for each VLAN, and forgotten after some time; so many for each port, so that a port that
  makes up addresses only loses its own.
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
    ld32,
    ld64,
    mutex_give,
    mutex_try,
    mutex_wait,
    pointer,
    pointer_to_read,
    st8,
    st16,
    st32,
    st64,
    zero,
)
from cython.cimports.powervio.network.frame import Frame

DROP = 0
"""Kinds of decisions."""
ONE = 1
FLOOD = 2

KEEP = 0
"""What becomes of a frame's tag."""
STRIP = 1
PUSH = 2
REPLACE = 3

REASONS = (
    "too short",
    "bad source",
    "two tags",
    "tagged",
    "foreign VLAN",
    "inactive trunk",
    "spoofed",
    "rate",
    "for the next bridge",
    "storm",
    "same port",
    "no receiver",
    "no port",
    "malformed",
    "queue full",
    "line full",
    "lost on the line",
)
"""Why frames go nowhere: counters of a port, in this order. The last three are those of a receiver, for `miss`."""
NO_RECEIVER = REASONS.index("no receiver")
QUEUE_FULL = REASONS.index("queue full")
LINE_FULL = REASONS.index("line full")
LOST = REASONS.index("lost on the line")
VLANS = 4096
HEADER_BYTES = 18
"""What a decision is made of."""

_DROP = cython.declare(cython.int, 0)
_ONE = cython.declare(cython.int, 1)
_FLOOD = cython.declare(cython.int, 2)
_KEEP = cython.declare(cython.int, 0)
_STRIP = cython.declare(cython.int, 1)
_PUSH = cython.declare(cython.int, 2)
_REPLACE = cython.declare(cython.int, 3)
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

# A port: flags, PVID, addresses learnt and allowed, which one at this number it is, its own address, and two bounds of
# {units a second, burst in nanoseconds, when all that was sent is paid for}.
_ROW = cython.declare(cython.uint, 80)
_F_USED = cython.declare(cython.uint, 1)
_F_CHECKED = cython.declare(cython.uint, 2)
_F_TRUNK = cython.declare(cython.uint, 4)
_F_TAGGED = cython.declare(cython.uint, 8)
_PVID = cython.declare(cython.uint, 2)
_LEARNT = cython.declare(cython.uint, 4)
_MAY_LEARN = cython.declare(cython.uint, 8)
_TURN = cython.declare(cython.uint, 12)
_ADDRESS = cython.declare(cython.uint, 16)
_RATE_BOUND = cython.declare(cython.uint, 24)
_STORM_BOUND = cython.declare(cython.uint, 48)

_SECOND = cython.declare(cython.ulonglong, 1_000_000_000)
_NONE = cython.declare(cython.uint, 0xFFFF)
_WAYS = cython.declare(cython.uint, 8)
_ENTRY = cython.declare(cython.uint, 24)
"""Of an address that was learnt: key, when it was seen, port."""
_BUCKET = cython.declare(cython.uint, 8 * 24)
_MIX = cython.declare(cython.ulonglong, 0x9E37_79B9_7F4A_7C15)
_ALL = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_BROADCAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF)
_GROUP = cython.declare(cython.ulonglong, 0x0100_0000_0000)
_BRIDGES = cython.declare(cython.ulonglong, 0x0180_C200_0000)
_LOW = cython.declare(cython.ulonglong, 0xF)
_COUNTS = cython.declare(cython.uint, 8 * (4 + len(REASONS)))


@cython.final
@cython.cclass
class Decision:
    """What was decided of one frame; its owner has one for all of its frames."""

    kind: cython.int
    reason: cython.int
    egress: cython.int
    tagged: cython.bint
    vlan: cython.int
    tci: cython.uint
    came: cython.int
    todo: cython.int
    words: cython.uint
    place: cython.uint
    rest: cython.ulonglong
    receivers: cython.p_uchar
    tags: cython.p_uchar
    _books: Any

    def __init__(self, core: SwitchCore) -> None:
        """`egress`: the port of ONE, `tagged`: whether that one gets a tag, `todo`: the `change` for it; `vlan`, `tci`:
        of the frame.
        """
        receivers, tags = bytearray(core.stride), bytearray(core.stride)
        self._books = (receivers, tags)
        self.receivers = pointer(receivers)
        self.tags = pointer(tags)
        self.words = core.words
        self.kind = _DROP
        self.reason = self.egress = self.vlan = self.came = self.todo = 0
        self.tci = self.place = 0
        self.rest = 0
        self.tagged = False

    @cython.ccall
    @cython.exceptval(check=False)
    def next(self) -> cython.int:
        """Of FLOOD: the next receiver, once; -1 when there is none."""
        return self.next_receiver()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_receiver(self) -> cython.int:
        """See `next`."""
        word: cython.ulonglong
        number: cython.uint
        while self.rest == 0:
            if self.place >= self.words:
                return -1
            self.rest = ld64(self.receivers, 8 * self.place)
            self.place += 1
        number = 64 * (self.place - 1)
        word = self.rest
        self.rest = word & (word - 1)
        while word & 0xFF == 0:
            word >>= 8
            number += 8
        while word & 1 == 0:
            word >>= 1
            number += 1
        return number

    @cython.ccall
    @cython.exceptval(check=False)
    def takes_tagged(self, port: cython.int) -> cython.bint:
        """Of FLOOD: whether a receiver gets a tag."""
        return self.gets_tagged(port)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gets_tagged(self, port: cython.int) -> cython.bint:
        """See `takes_tagged`."""
        return _has(self.tags, 0, port)

    @cython.ccall
    @cython.exceptval(check=False)
    def change(self, tagged: cython.bint) -> cython.int:
        """What becomes of the tag for a receiver that gets one, or none."""
        return self.tag_change(tagged)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def tag_change(self, tagged: cython.bint) -> cython.int:
        """See `change`."""
        if not tagged:
            return _KEEP if self.came == _UNTAGGED else _STRIP
        if self.came == _UNTAGGED:
            return _PUSH
        return _KEEP if self.came == _WITH_TAG else _REPLACE


@cython.final
@cython.cclass
class SwitchCore:
    """The tables. Ports are numbers below `limit`, at most 65535; who sends is known by a handle, so that a port that
    is gone is not taken for the next one at its number.
    """

    limit: cython.uint
    version: cython.uint
    age: cython.ulonglong
    stride: cython.uint
    words: cython.uint
    buckets: cython.uint
    seed: cython.ulonglong
    ports: cython.p_uchar
    counts: cython.p_uchar
    members: cython.p_uchar
    open: cython.p_uchar
    tags: cython.p_uchar
    trunks: cython.p_uchar
    learners: cython.p_uchar
    any_group: cython.p_uchar
    macs: cython.p_uchar
    fixed: cython.p_uchar
    fixed_mask: cython.uint
    groups: cython.p_uchar
    groups_mask: cython.uint
    group_sets: cython.p_uchar
    word: cython.p_uchar
    swept: cython.ulonglong
    _books: Any
    _fixed: Any
    _groups: Any

    def __init__(self, limit: int, *, addresses: int, age: int, seed: int) -> None:
        """`limit`: ports; `addresses`: that can be learnt, a multiple of 8 and power of two; `age`: nanoseconds after
        which one is forgotten; `seed`: 64 bits that nobody can guess, of the table of addresses.
        """
        self.limit = limit
        self.words = (limit + 63) // 64
        self.stride = 8 * self.words
        self.age = age
        self.seed = seed
        self.buckets = addresses // _WAYS
        self.version = 0
        self.swept = 0
        sizes = (
            _ROW * limit,
            _COUNTS * limit,
            VLANS * self.stride,
            VLANS * self.stride,
            VLANS * self.stride,
            2 * VLANS,
            self.stride,
            self.stride,
            _ENTRY * addresses,
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
        self.macs = pointer(books[8])
        self.word = pointer(books[9])
        self._fixed = self._groups = None
        self.set_fixed({})
        self.set_groups({})

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
        st32(self.ports, row + _MAY_LEARN, may_learn)
        st64(self.ports, row + _ADDRESS, address)
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
        book = self._hashed([(key, port) for key, port in fixed.items()])
        self._take()
        self.fixed = pointer(book)
        self.fixed_mask = len(book) // 16 - 1
        mutex_give(self.word)
        self._fixed = book

    def set_groups(self, groups: dict[int, frozenset[int]]) -> None:
        """Which ports want the frames of which groups (48 bits)."""
        book = self._hashed([(mac, number) for number, mac in enumerate(groups)])
        sets = bytearray(self.stride * (len(groups) + 1))
        bits: cython.p_uchar = pointer(sets)
        for number, ports in enumerate(groups.values()):
            for port in ports:
                _set(bits, self.stride * number, port, True)
        self._take()
        self.groups = pointer(book)
        self.groups_mask = len(book) // 16 - 1
        self.group_sets = bits
        mutex_give(self.word)
        self._groups = (book, sets)

    def _hashed(self, items: list[tuple[int, int]]) -> bytearray:
        """A table of keys, which are not 0, and what they stand for; half of it is empty, so that a search ends."""
        place: cython.uint
        mask: cython.uint
        size = 16
        while size < 2 * len(items):
            size *= 2
        mask = size - 1
        book = bytearray(16 * size)
        table: cython.p_uchar = pointer(book)
        for key, value in items:
            place = _hash(key, self.seed, mask)
            while ld64(table, 16 * place) != 0:
                place = (place + 1) & mask
            st64(table, 16 * place, key)
            st64(table, 16 * place + 8, value)
        return book

    def forget(self, port: int, vlan: int | None) -> None:
        """Forget what was learnt at a port, in one VLAN or all."""
        place: cython.ulonglong
        key: cython.ulonglong
        number: cython.uint = port
        which: cython.longlong = -1 if vlan is None else vlan
        self._take()
        for place in range(0, _ENTRY * _WAYS * self.buckets, 24):
            key = ld64(self.macs, place)
            if key and ld16(self.macs, place + 16) == number and (which < 0 or key >> 48 == which):
                self._forget(place)
        mutex_give(self.word)

    # -- what can be asked

    def learnt(self, now: int) -> list[tuple[int, int, int]]:
        """Addresses that are known by what was sent: VLAN, address, port."""
        size = _ENTRY * _WAYS * self.buckets
        book = bytearray(size)
        view: cython.p_uchar = pointer(book)
        self._take()
        copy(view, 0, self.macs, 0, size)
        mutex_give(self.word)
        entries = struct.iter_unpack("=QQQ", book)
        return [
            (key >> 48, key & 0xFFFF_FFFF_FFFF, port) for key, seen, port in entries if key and now - seen <= self.age
        ]

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
            if flags & _F_CHECKED != 0 or self._find_fixed(key) >= 0:
                return self._drop(out, _SPOOFED)
            self._learn(port, key, now)
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
                holder = self._find_group(to)
                if holder < 0:
                    result = self._flood(out, port, self.any_group, 0, self.any_group, 0)
                else:
                    result = self._flood(out, port, self.any_group, 0, self.group_sets, self.stride * holder)
        else:
            key = to | cython.cast(cython.ulonglong, vlan) << 48
            holder = self._find_fixed(key)
            if holder < 0:
                holder = self._find_learnt(key, now)
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
        place: cython.ulonglong = cython.cast(cython.ulonglong, _COUNTS) * port + 16
        self._take()
        st64(self.counts, place, ld64(self.counts, place) + 1)
        st64(self.counts, place + 8, ld64(self.counts, place + 8) + length)
        mutex_give(self.word)

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

    # -- addresses

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _find_fixed(self, key: cython.ulonglong) -> cython.int:
        place: cython.uint = _hash(key, self.seed, self.fixed_mask)
        found: cython.ulonglong = ld64(self.fixed, 16 * place)
        while found != 0:
            if found == key:
                return ld32(self.fixed, 16 * place + 8)
            place = (place + 1) & self.fixed_mask
            found = ld64(self.fixed, 16 * place)
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _find_group(self, mac: cython.ulonglong) -> cython.int:
        place: cython.uint = _hash(mac, self.seed, self.groups_mask)
        found: cython.ulonglong = ld64(self.groups, 16 * place)
        while found != 0:
            if found == mac:
                return ld32(self.groups, 16 * place + 8)
            place = (place + 1) & self.groups_mask
            found = ld64(self.groups, 16 * place)
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _find_learnt(self, key: cython.ulonglong, now: cython.ulonglong) -> cython.int:
        way: cython.uint
        place: cython.ulonglong = cython.cast(cython.ulonglong, _hash(key, self.seed, self.buckets - 1)) * _BUCKET
        for way in range(8):
            if ld64(self.macs, place) == key:
                if self._is_old(place, now):
                    self._forget(place)
                    return -1
                return ld16(self.macs, place + 16)
            place += _ENTRY
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _learn(self, port: cython.uint, key: cython.ulonglong, now: cython.ulonglong) -> cython.void:
        """An address is at a port. It takes the place of the one of its bucket that was not seen for longest."""
        way: cython.uint
        found: cython.ulonglong
        place: cython.ulonglong
        row: cython.ulonglong = cython.cast(cython.ulonglong, _ROW) * port
        best: cython.ulonglong
        oldest: cython.ulonglong = _ALL
        place = cython.cast(cython.ulonglong, _hash(key, self.seed, self.buckets - 1)) * _BUCKET
        best = place
        for way in range(8):
            found = ld64(self.macs, place)
            if found == key:
                if ld16(self.macs, place + 16) == port:
                    st64(self.macs, place + 8, now)
                    return
                self._forget(place)  # it moved
                found = 0
            if found == 0:
                if oldest != 0:
                    best = place
                    oldest = 0
            elif ld64(self.macs, place + 8) < oldest:
                best = place
                oldest = ld64(self.macs, place + 8)
            place += _ENTRY
        if ld32(self.ports, row + _LEARNT) >= ld32(self.ports, row + _MAY_LEARN):
            self._sweep(now)
            if ld32(self.ports, row + _LEARNT) >= ld32(self.ports, row + _MAY_LEARN):
                return
        if ld64(self.macs, best) != 0:
            self._forget(best)
        st64(self.macs, best, key)
        st64(self.macs, best + 8, now)
        st16(self.macs, best + 16, port)
        st32(self.ports, row + _LEARNT, ld32(self.ports, row + _LEARNT) + 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _is_old(self, place: cython.ulonglong, now: cython.ulonglong) -> cython.bint:
        # another thread may have seen it later than this one looked at the clock
        return now > ld64(self.macs, place + 8) + self.age

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _forget(self, place: cython.ulonglong) -> cython.void:
        row: cython.ulonglong = cython.cast(cython.ulonglong, _ROW) * ld16(self.macs, place + 16)
        st64(self.macs, place, 0)
        st32(self.ports, row + _LEARNT, ld32(self.ports, row + _LEARNT) - 1)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _sweep(self, now: cython.ulonglong) -> cython.void:
        """Forget all that is too old, now and then: who has reached its limit must not cause this by each frame."""
        number: cython.uint
        place: cython.ulonglong = 0
        if now < self.swept + _SECOND:
            return
        self.swept = now
        for number in range(_WAYS * self.buckets):
            if ld64(self.macs, place) != 0 and self._is_old(place, now):
                self._forget(place)
            place += _ENTRY


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
def _hash(key: cython.ulonglong, seed: cython.ulonglong, mask: cython.uint) -> cython.uint:
    return ((((key ^ seed) * _MIX) & _ALL) >> 32) & mask


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
