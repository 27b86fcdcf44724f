# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What a network driver has said about the frames that it gets: which of them (5.1.6.5.1 to 5.1.6.5.3), and in which
queue (5.1.6.5.5, 5.1.6.5.7).

All tables have a fixed size. A list of addresses that is longer lets every address of its kind pass: a driver looks at
what it gets itself.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.devices.net_frame import FrameView
from cython.cimports.powervio.memory.hw import fill, get16, get32, ld8, ld16, ld32, pointer, st8, st16, st32, zero

TABLE_ENTRIES = 128
"""Addresses of each kind, unicast and multicast, that are told apart."""
VLANS = 4096

_ENTRIES = cython.declare(cython.uint, TABLE_ENTRIES)
_FLOWS = cython.declare(cython.uint, 1024)
_ONES = cython.declare(cython.uint, 0xFFFF_FFFF)


@cython.final
@cython.cclass
class ReceiveFilter:
    """Which frames reach the driver."""

    promiscuous: cython.bint
    all_multicast: cython.bint
    all_unicast: cython.bint
    no_multicast: cython.bint
    no_unicast: cython.bint
    no_broadcast: cython.bint
    _counts: cython.p_uchar
    _tables: cython.p_uchar
    _vlans: cython.p_uchar
    _mac: cython.p_uchar
    _books: list[bytearray]

    def __init__(self) -> None:
        self._books = [bytearray(2 * 6 * TABLE_ENTRIES), bytearray(VLANS // 8), bytearray(6), bytearray(8)]
        self._tables = pointer(self._books[0])
        self._vlans = pointer(self._books[1])
        self._mac = pointer(self._books[2])
        self._counts = pointer(self._books[3])
        self.reset(bytes(6), vlans=False)

    def reset(self, mac: bytes, *, vlans: bool) -> None:
        """As after a reset: everything passes, but with `vlans` (CTRL_VLAN was negotiated) no tagged frame once the
        driver wants less than everything."""
        self.promiscuous = True
        self.all_multicast = self.all_unicast = False
        self.no_multicast = self.no_unicast = self.no_broadcast = False
        zero(self._counts, 0, 8)
        fill(self._vlans, 0, VLANS // 8, 0 if vlans else 0xFF)
        self.set_mac(mac)

    def set_mac(self, mac: bytes) -> None:
        """The adapter's own address."""
        self._books[2][:] = mac

    def set_table(self, kind: int, addresses: bytes) -> None:
        """Addresses that pass besides the adapter's own: `kind` 0 of single devices, 1 of groups. More than there is
        room for are as all of them."""
        count = len(addresses) // 6
        st32(self._counts, 4 * kind, TABLE_ENTRIES + 1 if count > TABLE_ENTRIES else count)
        if count <= TABLE_ENTRIES:
            start = kind * 6 * TABLE_ENTRIES
            self._books[0][start : start + len(addresses)] = addresses

    def table(self, kind: int) -> bytes | None:
        """The addresses of a kind; None when all of them pass."""
        count, start = ld32(self._counts, 4 * kind), kind * 6 * TABLE_ENTRIES
        return None if count > TABLE_ENTRIES else bytes(self._books[0][start : start + 6 * count])

    def set_vlan(self, vlan: int, passes: bool) -> None:
        """Whether frames with this tag (0 to 4095) pass."""
        bits = ld8(self._vlans, vlan >> 3)
        bit = 1 << (vlan & 7)
        st8(self._vlans, vlan >> 3, bits | bit if passes else bits & ~bit)

    @property
    def vlans(self) -> bytes:
        """A bit for each tag that passes, the lowest first."""
        return bytes(self._books[1])

    @vlans.setter
    def vlans(self, bits: bytes) -> None:
        self._books[1][:] = bits

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def passes(self, data: cython.p_uchar, view: FrameView) -> cython.bint:
        """Whether a frame that was looked at may reach the driver; `data` is what `view` has seen."""
        if self.promiscuous:
            return True
        if view.tagged and not ld8(self._vlans, view.vlan >> 3) >> (view.vlan & 7) & 1:
            return False
        if ld8(data, 0) & 1:
            if get32(data, 0) == _ONES and get16(data, 4) == 0xFFFF:
                return not self.no_broadcast
            if self.no_multicast:
                return False
            return self.all_multicast or self._lists(1, data)
        if self.no_unicast:
            return False
        if self.all_unicast:
            return True
        return (get32(data, 0) == get32(self._mac, 0) and get16(data, 4) == get16(self._mac, 4)) or self._lists(0, data)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _lists(self, kind: cython.uint, data: cython.p_uchar) -> cython.bint:
        number: cython.uint
        place: cython.uint = kind * 6 * _ENTRIES
        count: cython.uint = ld32(self._counts, 4 * kind)
        if count > _ENTRIES:
            return True
        for number in range(count):
            if get32(self._tables, place) == get32(data, 0) and get16(self._tables, place + 4) == get16(data, 4):
                return True
            place += 6
        return False


@cython.final
@cython.cclass
class Steering:
    """Which pair of queues a frame goes to. With one pair nobody needs to ask."""

    pairs: cython.uint
    hash_types: cython.uint
    rss: cython.bint
    unclassified: cython.uint
    _mask: cython.uint
    _flows: cython.p_uchar
    _table: cython.p_uchar
    _key: cython.p_uchar
    _books: list[bytearray]

    def __init__(self) -> None:
        self._books = [bytearray(2 * 1024), bytearray(2 * 128), bytearray(40 + 8)]
        self._flows = pointer(self._books[0])
        self._table = pointer(self._books[1])
        self._key = pointer(self._books[2])
        self.reset()

    def reset(self) -> None:
        """One pair, as after a reset."""
        self.pairs = 1
        """Pairs in use."""
        self.rss = False
        """Whether the driver has set up receive-side scaling."""
        self.hash_types = self.unclassified = self._mask = 0
        zero(self._flows, 0, 2 * _FLOWS)

    def set_automatic(self, pairs: int) -> None:
        """Use so many pairs; a flow comes back on the pair that sent it."""
        self.rss = False
        self.pairs = pairs

    def set_rss(self, pairs: int, types: int, table: list[int], unclassified: int, key: bytes) -> None:
        """Use so many pairs, by a hash over what `types` says: `table`, a power of two of at most 128 entries, has the
        pair of each; `unclassified` gets what has no hash. `key` has up to 40 bytes."""
        number: cython.uint
        for number in range(len(table)):
            st16(self._table, 2 * number, table[number])
        self._mask = len(table) - 1
        self._books[2][:] = key + bytes(48 - len(key))
        self.hash_types = types
        self.unclassified = unclassified
        self.pairs = pairs
        self.rss = True

    @property
    def table(self) -> list[int]:
        """The pairs of the indirection table."""
        return [int(ld16(self._table, 2 * number)) for number in range(self._mask + 1)]

    @property
    def key(self) -> bytes:
        """With zeros up to 40 bytes."""
        return bytes(self._books[2][:40])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def learn(self, view: FrameView, pair: cython.uint) -> cython.void:
        """The driver sent this frame on a pair."""
        if self.pairs > 1 and not self.rss:
            st16(self._flows, 2 * (view.flow() & (_FLOWS - 1)), pair)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def choose(self, view: FrameView) -> cython.uint:
        """The pair for a frame to the driver; less than `pairs` unless RSS says otherwise."""
        found: cython.longlong
        pair: cython.uint
        if self.rss:
            found = view.hashed(self.hash_types, self._key)
            return self.unclassified if found < 0 else ld16(self._table, 2 * (found & self._mask))
        if self.pairs == 1:
            return 0
        pair = ld16(self._flows, 2 * (view.flow() & (_FLOWS - 1)))
        return pair if pair < self.pairs else 0


@cython.final
@cython.cclass
class FrameRules:
    """The two for callers in Python, with what they look at."""

    filter: ReceiveFilter
    steering: Steering
    view: FrameView

    def __init__(self) -> None:
        self.filter = ReceiveFilter()
        self.steering = Steering()
        self.view = FrameView()

    @property
    def trivial(self) -> bool:
        """Whether every frame passes, to the first pair: nothing has to be looked at."""
        return bool(self.filter.promiscuous and self.steering.pairs == 1 and not self.steering.rss)

    @cython.ccall
    def place(self, data: object) -> cython.int:
        """The pair for a frame of at least 14 bytes; -1 when the driver does not want it."""
        self.view.look_at(data, 0)
        if not self.filter.passes(self.view._data, self.view):
            return -1
        return self.steering.choose(self.view)

    @cython.ccall
    def learn(self, data: object, pair: cython.uint) -> cython.void:
        """The driver sent this frame on a pair."""
        self.view.look_at(data, 0)
        self.steering.learn(self.view, pair)

    @cython.ccall
    def hashed(self, data: object) -> cython.longlong:
        """The hash of a frame, or -1."""
        self.view.look_at(data, 0)
        return self.view.hashed(self.steering.hash_types, self.steering._key)
