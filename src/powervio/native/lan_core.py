# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The hypervisor's part of a logical LAN adapter that runs for each frame: from a sender's window to a frame, from a
frame to a receiver's buffer (papr-vio 7.1 to 7.4).

All of the partition's memory is reached through the TCE table of its one pane, at the moment of use. Nothing that the
partition can write is read twice, and nothing of its buffer list is read at all: the state is here, and what the
architecture has the partition see of it is written there. The caller holds the hypervisor's lock.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import (
    be16,
    be32,
    be64,
    copy,
    get16,
    get32,
    ld32,
    ld64,
    pointer,
    pointer_to_read,
    st8,
    st32,
    st64,
    st64_release,
)
from cython.cimports.powervio.native.lan_frame import TcpView
from cython.cimports.powervio.network.frame import Frame
from cython.cimports.powervio.phyp.ledger import CostLedger
from cython.cimports.powervio.phyp.tce import TceTable

from powervio.papr import lan

H_PARAMETER = cython.declare(cython.int, -4)
H_NOT_FOUND = cython.declare(cython.int, -7)
H_DROPPED = cython.declare(cython.int, -12)
H_RESOURCE = cython.declare(cython.int, -16)

_SHIFT = cython.declare(cython.int, 12)
_PAGE = cython.declare(cython.ulonglong, 4096)
_READ = cython.declare(cython.ulonglong, 1)
_WRITE = cython.declare(cython.ulonglong, 2)
_LENGTH = cython.declare(cython.ulonglong, 0xFF_FFFF)
_LOW32 = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_VALID = cython.declare(cython.ulonglong, lan.VALID)
_TOGGLE = cython.declare(cython.uint, lan.TOGGLE)
_CONTROL = cython.declare(cython.ulonglong, 0x7F << 56)
"""Of a descriptor: all of its control byte but the valid bit."""
_LARGE_SEND = cython.declare(cython.uint, lan.LARGE_SEND)
_NO_CHECKSUM = cython.declare(cython.uint, lan.NO_CHECKSUM)
_GOOD = cython.declare(cython.uint, lan.CHECKSUM_GOOD)
_MESSAGE = cython.declare(cython.uint, lan.ENTRY_MESSAGE)
_ENTRY = cython.declare(cython.ulonglong, lan.ENTRY_SIZE)
_OFFSET = cython.declare(cython.ulonglong, lan.MESSAGE_OFFSET)
_OFFSET_MSS = cython.declare(cython.ulonglong, lan.MESSAGE_OFFSET_MSS)
_COUNTER = cython.declare(cython.ulonglong, lan.DROP_COUNTER)
_ATTRIBUTES = cython.declare(cython.ulonglong, lan.ATTRIBUTES_SHOWN)
_MIN_BUFFER = cython.declare(cython.ulonglong, lan.MIN_BUFFER)
_MIN_MSS = cython.declare(cython.ulonglong, lan.MIN_MSS)
_MAX_MSS = cython.declare(cython.ulonglong, 0xFFFF)
_MAX_FRAME = cython.declare(cython.ulonglong, lan.MAX_FRAME)
_MAX_POOLS = cython.declare(cython.uint, lan.MAX_POOLS)
_DESCRIPTORS = cython.declare(cython.int, lan.SEND_DESCRIPTORS)
_HEADERS = cython.declare(cython.ulonglong, 4096)
"""Where a TCP header has to end that is to be found (papr-vio 7.4)."""
_ETHERNET = cython.declare(cython.ulonglong, 14)
_CHECKSUM = cython.declare(cython.ulonglong, 16)
_LARGE = cython.declare(cython.uint, int(lan.Attribute.LARGE))
_SIZE_CONTROL = cython.declare(cython.uint, int(lan.Attribute.BUFFER_SIZE_CONTROL))
_IPV4 = cython.declare(cython.uint, int(lan.Attribute.CHECKSUM_IPV4))
_IPV6 = cython.declare(cython.uint, int(lan.Attribute.CHECKSUM_IPV6))
_TCPV4 = cython.declare(cython.int, 1)
_TCPV6 = cython.declare(cython.int, 4)
_ECN = cython.declare(cython.int, 0x80)

PUT, NO_BUFFER, NOT_TAKEN = 0, 1, 2
"""What `put` says."""
_PUT = cython.declare(cython.int, PUT)
_NO_BUFFER = cython.declare(cython.int, NO_BUFFER)
_NOT_TAKEN = cython.declare(cython.int, NOT_TAKEN)


@cython.final
@cython.cclass
class Pool:
    """The free buffers of one size; the one that was added last is taken first, for it may still be in a cache."""

    size: cython.ulonglong
    count: cython.uint
    _room: cython.uint
    _places: cython.p_uchar
    _book: Any

    def __init__(self, size: cython.ulonglong) -> None:
        self.size = size
        self.count = 0
        self._room = 0
        self._book = bytearray(4)
        self._places = pointer(self._book)

    @cython.cfunc
    def push(self, ioba: cython.uint) -> cython.void:
        """A buffer more."""
        if self.count == self._room:
            room: cython.uint = max(64, 2 * self._room)
            book = bytearray(4 * room)
            places: cython.p_uchar = pointer(book)
            copy(places, 0, self._places, 0, 4 * cython.cast(cython.ulonglong, self.count))
            self._book = book
            self._places = places
            self._room = room
        st32(self._places, 4 * cython.cast(cython.ulonglong, self.count), ioba)
        self.count += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def pop(self) -> cython.ulonglong:
        """The I/O address of one; there is one."""
        self.count -= 1
        return ld32(self._places, 4 * cython.cast(cython.ulonglong, self.count))


@cython.final
@cython.cclass
class LanCore:
    """Of one adapter. Addresses are I/O addresses of its pane, of `window` bytes."""

    registered: cython.bint
    attributes: cython.uint
    address: cython.ulonglong
    trunk: cython.bint
    drops: cython.ulonglong
    buffers: cython.ulonglong
    queue_entries: cython.ulonglong
    moved: cython.ulonglong
    _table: TceTable
    _ledger: CostLedger
    _window: cython.ulonglong
    _limit: cython.ulonglong
    _list: cython.ulonglong
    _queue: cython.ulonglong
    _next: cython.ulonglong
    _toggle: cython.uint
    _pools: list[Pool]
    _vlans: Any
    _tcp: TcpView

    def __init__(
        self,
        table: TceTable,
        ledger: CostLedger,
        window: int,
        limit: int,
        vlans: frozenset[int],
        trunk: bool,
    ) -> None:
        """`limit`: bytes of a descriptor (`ibm,max-virtual-dma-size`); `vlans`: whose tags a frame may have."""
        self._table = table
        self._ledger = ledger
        self._window = window
        self._limit = limit
        self._vlans = vlans
        self.trunk = trunk
        self.attributes = 0
        """Those of `lan.Attribute` that frames depend on."""
        self.address = 0
        """Of the adapter: 48 bits."""
        self._tcp = TcpView()
        self._list = self._queue = 0
        self.release()

    # -- from registration to its end

    def register(self, buffer_list: cython.ulonglong, queue: cython.ulonglong, filters: cython.ulonglong) -> int:
        """Take the two pages and the receive queue (a descriptor) into use; H_PARAMETER for what cannot be."""
        length: cython.ulonglong = queue >> 32 & _LENGTH
        place: cython.ulonglong = queue & _LOW32
        offset: cython.ulonglong
        if (buffer_list | filters) & (_PAGE - 1) != 0 or (place | length) & (_ENTRY - 1) != 0:
            return H_PARAMETER
        if queue >> 56 & _VALID == 0 or length == 0:
            return H_PARAMETER
        if not self._may(buffer_list, _PAGE) or not self._may(filters, _PAGE) or not self._may(place, length):
            return H_PARAMETER
        self.release()
        self._list = buffer_list
        self._queue = place
        self.queue_entries = length // _ENTRY
        for offset in range(512):
            self._show(8 * offset, 0)
        self._show(0, queue & ~_CONTROL)
        self._show(8, _VALID << 56 | _PAGE << 32 | filters)
        self.registered = True
        return 0

    def show_attributes(self, attributes: cython.ulonglong) -> None:
        """What the adapter's attributes are now, for the partition to see."""
        if self.registered:
            self._show(_ATTRIBUTES, attributes)

    def release(self) -> None:
        """Nothing is received any more; all buffers are the partition's again."""
        self.registered = False
        self._pools = []
        self._next = 0
        self._toggle = 0
        self.queue_entries = self.buffers = 0
        self.drops = 0
        """Frames that found no buffer since the registration, as the buffer list has it."""
        self.moved = 0
        """Bytes that were copied for this adapter."""

    # -- buffers

    def add(self, descriptor: cython.ulonglong) -> int:
        """A buffer to receive into."""
        size: cython.ulonglong = descriptor >> 32 & _LENGTH
        ioba: cython.ulonglong = descriptor & _LOW32
        pool: Pool | None
        if descriptor >> 56 & _VALID == 0 or size < _MIN_BUFFER or ioba & 3 != 0:
            return H_PARAMETER
        if ioba >= self._window or size > self._window - ioba:
            return H_PARAMETER
        if self.buffers + 1 >= self.queue_entries:
            return H_RESOURCE  # the queue has to have an entry for each and one more
        pool = self._pool(size)
        if pool is None:
            if len(self._pools) >= _MAX_POOLS:
                return H_RESOURCE
            pool = Pool(size)
            self._pools.append(pool)
            self._pools.sort(key=_size_of)
        pool.push(cython.cast(cython.uint, ioba))
        self.buffers += 1
        return 0

    def give_back(self, size: cython.ulonglong) -> int:
        """Return a buffer of this size unused, by the receive queue."""
        pool: Pool | None = self._pool(size)
        ioba: cython.ulonglong
        if pool is None or pool.count == 0:
            return H_NOT_FOUND
        if not self._has_entry():
            return H_PARAMETER
        ioba = pool.pop()
        self.buffers -= 1
        self._enqueue(0, 0, 0, self._handle(ioba))
        return 0

    @cython.cfunc
    def _pool(self, size: cython.ulonglong) -> Pool | None:
        pool: Pool
        for pool in self._pools:
            if pool.size == size:
                return pool
        return None

    @cython.cfunc
    def _choose(self, length: cython.ulonglong) -> Pool | None:
        """The pool that a message goes to, with all that stands before it."""
        pool: Pool
        for pool in self._pools:
            if pool.size >= length:
                if pool.count != 0:
                    return pool
                if self.attributes & _SIZE_CONTROL != 0:
                    return None
        return None

    # -- sending

    def take(
        self,
        d1: cython.ulonglong,
        d2: cython.ulonglong,
        d3: cython.ulonglong,
        d4: cython.ulonglong,
        d5: cython.ulonglong,
        d6: cython.ulonglong,
        mss: cython.ulonglong,
    ) -> object:
        """The frame that up to six descriptors name, or a return code."""
        words: cython.ulonglong[6]
        if not cython.compiled:
            words = [0] * 6
        words[0], words[1], words[2], words[3], words[4], words[5] = d1, d2, d3, d4, d5, d6
        count: cython.int = 0
        total: cython.ulonglong = 0
        length: cython.ulonglong
        while count < _DESCRIPTORS:
            length = words[count] >> 32 & _LENGTH
            if words[count] >> 56 & _VALID == 0 or length == 0:
                break
            if length > self._limit:
                return H_PARAMETER
            total += length
            count += 1
        if total == 0 or total > _MAX_FRAME:
            return H_PARAMETER
        if self.attributes & _LARGE == 0:
            mss = 0
        if mss != 0 and (mss < _MIN_MSS or mss > _MAX_MSS):
            return H_PARAMETER
        book = bytearray(total)
        data: cython.p_uchar = pointer(book)
        done: cython.ulonglong = 0
        number: cython.int
        for number in range(count):
            length = words[number] >> 32 & _LENGTH
            if not self._read(words[number] & _LOW32, data, done, length):
                return H_PARAMETER
            done += length
        self._ledger.moved(total)
        self.moved += total
        return self._frame(book, data, total, cython.cast(cython.uint, d1 >> 56 & 7), mss)

    @cython.cfunc
    def _frame(
        self,
        book: bytearray,
        data: cython.p_uchar,
        length: cython.ulonglong,
        flags: cython.uint,
        mss: cython.ulonglong,
    ) -> object:
        tcp: TcpView = self._tcp
        found: cython.bint = tcp.look(data, length)
        kind: cython.int
        source: cython.ulonglong
        if tcp.tagged and tcp.vlan != 0 and tcp.vlan not in self._vlans:
            return H_PARAMETER
        flags &= _NO_CHECKSUM | _GOOD
        if flags != 0:
            if flags == _NO_CHECKSUM or not found or not self._offloads(tcp.version):
                return H_PARAMETER
        if mss != 0 and (not found or tcp.payload > _HEADERS):
            return H_PARAMETER
        if flags & _NO_CHECKSUM == 0 and mss == 0:
            return Frame(memoryview(book).toreadonly(), None, flags != 0)
        if flags & _NO_CHECKSUM != 0 and not self.trunk:
            source = be16(get16(data, 6))
            if (source << 32 | be32(get32(data, 8))) != self.address:
                return H_DROPPED
        tcp.make_partial()
        view = memoryview(book).toreadonly()
        if tcp.end < length:
            view = view[: tcp.end]
        place = (tcp.transport, _CHECKSUM)
        if mss == 0 or tcp.end - tcp.payload <= mss:
            return Frame(view, place)
        kind = _TCPV4 if tcp.version == 4 else _TCPV6
        if tcp.congested:
            kind |= _ECN
        return Frame(view, place, False, kind, mss, tcp.payload)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _offloads(self, version: cython.uint) -> cython.bint:
        return self.attributes & (_IPV4 if version == 4 else _IPV6) != 0

    # -- receiving

    def put(self, frame: Frame) -> int:
        """Put a frame into a buffer: PUT; NO_BUFFER, counted; NOT_TAKEN when it is unfinished in a way that this
        receiver has not enabled."""
        flags: cython.uint = 0
        offset: cython.ulonglong = _OFFSET
        length: cython.ulonglong = len(frame.data)
        data: cython.p_uchar = pointer_to_read(frame.data)
        field: cython.ulonglong = 0
        tcp: TcpView = self._tcp
        pool: Pool | None
        ioba: cython.ulonglong
        if frame.partial is not None:
            if not tcp.look(data, length) or not self._offloads(tcp.version):
                return _NOT_TAKEN
            if frame.partial != (tcp.transport, _CHECKSUM) or tcp.end != length:
                return _NOT_TAKEN
            flags = _NO_CHECKSUM | _GOOD
            field = tcp.transport + _CHECKSUM
            if frame.gso != 0:
                if self.attributes & _LARGE == 0 or frame.gso & 0x7F != (_TCPV4 if tcp.version == 4 else _TCPV6):
                    return _NOT_TAKEN
                flags |= _LARGE_SEND
                offset = _OFFSET_MSS
        elif frame.valid and self.attributes & (_IPV4 | _IPV6) != 0 and tcp.look(data, length):
            flags = _GOOD if self._offloads(tcp.version) else 0
        if not self.registered or length > _MAX_FRAME:
            return self._miss()
        pool = self._choose(length + offset)
        if pool is None or not self._has_entry():
            return self._miss()
        ioba = pool.pop()
        self.buffers -= 1
        if not self._may(ioba, length + offset):
            return self._miss()  # the partition took the mapping away, and with it the buffer
        if offset == _OFFSET_MSS:
            self._store(ioba + _OFFSET, be64(frame.gso_size))
        self._write(ioba + offset, data, length)
        if field != 0:
            # a partial one is a matter of the sender's: on a LAN its field is 0 (papr-vio 7.4)
            self._clear(ioba + offset + field)
            self._clear(ioba + offset + field + 1)
        self._enqueue(_MESSAGE | flags, offset, length, self._handle(ioba))
        self._ledger.moved(length)
        self.moved += length
        return _PUT

    def miss(self) -> None:
        """A frame for this adapter is lost for another reason; it counts as those without a buffer."""
        self._miss()

    @cython.cfunc
    @cython.exceptval(-1)
    def _miss(self) -> cython.int:
        if self.registered:
            self.drops += 1
            self._show(_COUNTER, self.drops)
        return _NO_BUFFER

    @cython.cfunc
    @cython.exceptval(check=False)
    def _has_entry(self) -> cython.bint:
        return self.registered and self._may(self._queue + self._next * _ENTRY, _ENTRY)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _enqueue(
        self, control: cython.uint, offset: cython.ulonglong, length: cython.ulonglong, handle: cython.ulonglong
    ) -> cython.void:
        """An entry of the receive queue, which `_has_entry`; its control byte is seen last."""
        ioba: cython.ulonglong = self._queue + self._next * _ENTRY
        place: cython.ulonglong
        word: cython.ulonglong
        if not self._table.allows(ioba, _ENTRY, _WRITE):  # a table that its owner writes itself may have changed
            self._table.end_use()
            return
        place = self._place(ioba)
        if self._toggle == 0:
            control |= cython.cast(cython.uint, _VALID)
        word = cython.cast(cython.ulonglong, control) << 56 | offset << 32 | length
        st64(self._table.memory, place + 8, handle)
        st64_release(self._table.memory, place, be64(word))
        self._table.end_use()
        self._next += 1
        if self._next == self.queue_entries:
            self._next = 0
            self._toggle ^= _TOGGLE
            if self._table.allows(self._list, 1, _WRITE):
                st8(self._table.memory, self._place(self._list), cython.cast(cython.uint, _VALID) | self._toggle)
            self._table.end_use()

    # -- the partition's memory; what is not mapped is left alone

    @cython.cfunc
    @cython.exceptval(check=False)
    def _may(self, ioba: cython.ulonglong, length: cython.ulonglong) -> cython.bint:
        """Whether all of a range may be written now."""
        found: cython.bint = self._table.allows(ioba, length, _WRITE)
        self._table.end_use()
        return found

    @cython.cfunc
    @cython.exceptval(check=False)
    def _place(self, ioba: cython.ulonglong) -> cython.ulonglong:
        """Where in the memory it is, of a range that `allows` has found good; see `phyp.rdma`."""
        return ((ld64(self._table.entries, (ioba >> _SHIFT) * 8) >> _SHIFT) << _SHIFT) + (ioba & (_PAGE - 1))

    @cython.cfunc
    @cython.exceptval(check=False)
    def _read(
        self, ioba: cython.ulonglong, data: cython.p_uchar, done: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """Copy from the window; False, and nothing copied, if a page may not be read."""
        part: cython.ulonglong
        if not self._table.allows(ioba, length, _READ):
            self._table.end_use()
            return False
        while length != 0:
            part = min(length, _PAGE - (ioba & (_PAGE - 1)))
            copy(data, done, self._table.memory, self._place(ioba), part)
            ioba += part
            done += part
            length -= part
        self._table.end_use()
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def _write(self, ioba: cython.ulonglong, data: cython.p_uchar, length: cython.ulonglong) -> cython.void:
        part: cython.ulonglong
        done: cython.ulonglong = 0
        if self._table.allows(ioba, length, _WRITE):
            while done < length:
                part = min(length - done, _PAGE - ((ioba + done) & (_PAGE - 1)))
                copy(self._table.memory, self._place(ioba + done), data, done, part)
                done += part
        self._table.end_use()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _handle(self, ioba: cython.ulonglong) -> cython.ulonglong:
        """The first eight bytes of a buffer as they stand there; the buffer is aligned to four only."""
        high: cython.ulonglong = self._load(ioba)
        low: cython.ulonglong = self._load(ioba + 4)
        return be64(high << 32 | low)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _load(self, ioba: cython.ulonglong) -> cython.ulonglong:
        value: cython.ulonglong = 0
        if self._table.allows(ioba, 4, _WRITE):
            value = be32(ld32(self._table.memory, self._place(ioba)))
        self._table.end_use()
        return value

    @cython.cfunc
    @cython.exceptval(check=False)
    def _store(self, ioba: cython.ulonglong, value: cython.ulonglong) -> cython.void:
        """Eight bytes as they are to stand there, aligned to four."""
        half: cython.ulonglong = be64(value)
        number: cython.uint
        for number in range(2):
            if self._table.allows(ioba + 4 * number, 4, _WRITE):
                st32(
                    self._table.memory,
                    self._place(ioba + 4 * number),
                    be32(cython.cast(cython.uint, half >> (32 - 32 * number) & _LOW32)),
                )
            self._table.end_use()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _clear(self, ioba: cython.ulonglong) -> cython.void:
        if self._table.allows(ioba, 1, _WRITE):
            st8(self._table.memory, self._place(ioba), 0)
        self._table.end_use()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _show(self, offset: cython.ulonglong, value: cython.ulonglong) -> cython.void:
        """A word of the buffer list, for the partition to see."""
        if self._table.allows(self._list + offset, 8, _WRITE):
            st64(self._table.memory, self._place(self._list + offset), be64(value))
        self._table.end_use()


def _size_of(pool: Pool) -> int:
    return pool.size
