# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The driver's side of one virtqueue over CRQ: buffers are mapped through the TCE window for as long as the device
has them, and a kick is an H_SEND_CRQ (docs/protocol.md, P6).

Mapping is strict: a buffer is unmapped before its driver hears of the completion, unless the client was told to be
lazy. Buffers that stay mapped (headers, status bytes) cost nothing here.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import cython
from cython.cimports.powervio.memory.hw import copy, ld32, ld64, pointer, st32, st64
from cython.cimports.powervio.vio.dma import DmaSpace
from cython.cimports.powervio.vio.outbox import Notification, Notifier
from cython.cimports.powervio.virtio.driver_queue import Buffer, DriverQueue
from cython.cimports.powervio.virtio.driver_ring import DriverRing

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.papr.codes import HcallError
from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.transport.crq.own_ring import OwnRing
from powervio.transport.crq.protocol import Message, QueueAddresses, encode
from powervio.vio.crq import CrqEnd
from powervio.vio.dma import DmaMemory
from powervio.vio.ranges import RangeExhausted
from powervio.virtio import features as feature
from powervio.virtio import packed_layout, split_layout
from powervio.virtio.driver_queue import BufferSlice, Used
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.split_driver import SplitDriverRing

IndirectPolicy: TypeAlias = Literal["auto", "always", "never"]
"""When a chain goes into an indirect table: `auto` only where it saves a shortage of descriptors, because fetching a
table costs the server one more remote copy."""

_AUTO_SEGMENTS = cython.declare(cython.uint, 16)
_LAZY = 64
"""Buffers that stay mapped after their use where unmapping is lazy, at most."""
_NONE = cython.declare(cython.uint, 0xFFFF_FFFF)
_READ = cython.declare(cython.uint, TCE_READ)
_ACCESS = cython.declare(cython.uint, TCE_ACCESS)


@cython.final
@cython.cclass
class KickNotification(Notification):
    """KICK of one queue: what is published when it is sent."""

    _queue: CrqDriverQueue
    _without_index: cython.ulonglong
    low_half: cython.ulonglong

    def __init__(self, queue: CrqDriverQueue, high: int, low: int) -> None:
        super().__init__(queue.index, high, low)
        self._queue = queue
        self._without_index = high
        self.low_half = low
        """With the queue's generation, where that is said."""

    @cython.ccall
    def build(self) -> cython.void:
        """See `Notification`: bytes 6-7, and the round of a packed ring in bytes 10-11 (P6.2)."""
        index: cython.ulonglong = self._queue.ring.published_index
        self.high = self._without_index | (index & 0xFFFF)
        self.low = self.low_half | ((index >> 16) << 32)


@cython.cclass
class CrqDriverQueue(DriverQueue):
    """See `DriverQueue`. Lives for one session; `end` takes every mapping back."""

    ring: DriverRing
    memory: OwnRing
    ending: cython.bint
    held: cython.bint
    _dma: DmaSpace
    _features: int
    _big_endian: cython.bint
    _notifier: Notifier
    _auto: cython.bint
    _always: cython.bint
    _kick: KickNotification
    # Indirect tables that no buffer has, and the one of each head.
    _tables: list[DmaMemory]
    _table_of: list[DmaMemory | None]
    _indirect_count: cython.uint
    # The buffer that is being added: entries of `DriverRing.lend`.
    _segments: cython.p_uchar
    _count: cython.uint
    # Mappings of buffers in flight, 24 bytes each: I/O address, length, number of the buffer's next one. `_first` has
    # the first of each head, `_spare` is the first that is not used; of the buffer being added it is `_chain`.
    _mappings: cython.p_uchar
    _first: cython.p_uchar
    _spare: cython.uint
    _chain: cython.uint
    _mappings_room: cython.uint
    # What the device has used and is still mapped: entries of `DmaSpace.unmap_runs`.
    _mapped: cython.p_uchar
    _mapped_count: cython.uint
    _mapped_room: cython.uint
    _keep: cython.uint
    # What the device has used: head and written bytes, 8 bytes together, and the tokens of those that `reap` is to tell
    # of. Up to `_ready` they are unmapped, up to `_next` the driver has taken them.
    _used: cython.p_uchar
    _used_count: cython.uint
    _used_room: cython.uint
    _ready: cython.uint
    _next: cython.uint
    _tokens: list[Any]
    _views: dict[str, bytearray]

    def __init__(
        self,
        index: int,
        size: int,
        dma: DmaSpace,
        crq: CrqEnd,
        session: int,
        *,
        big_endian: bool,
        features: int,
        indirect: IndirectPolicy,
        lazy: bool = False,
    ) -> None:
        """`features` are those that were negotiated: they decide over the kind of ring. `lazy`: see `VirtioVio`."""
        self.index = index
        self.size = size
        if not features & feature.INDIRECT_DESC:
            indirect = "never"
        self._dma = dma
        self._features = features if indirect != "never" else features & ~feature.INDIRECT_DESC
        self._big_endian = big_endian
        self.memory = self._make_memory()
        self.ring = self._make_ring()
        self.ending = False
        """Set while the last completions are taken: nothing is added any more."""
        self.held = False
        """Set while the device is not to look at the queue: what is added is not published."""
        self._notifier = crq.outbox
        self._auto = indirect == "auto"
        self._always = indirect == "always"
        self._tables = []
        self._table_of = [None] * size
        self._indirect_count = 0
        segments, first, nothing = bytearray(16 * size), bytearray(b"\xff" * 4 * size), bytearray(8)
        self._views = {"segments": segments, "first": first, "nothing": nothing}
        self._segments = pointer(segments)
        self._first = pointer(first)
        self._mappings = pointer(nothing)
        self._mapped = pointer(nothing)
        self._used = pointer(nothing)
        self._mappings_room = self._mapped_room = self._used_room = 0
        self._spare = _NONE
        self._chain = _NONE
        self._count = 0
        self._mapped_count = 0
        self._keep = _LAZY if lazy else 0
        self._used_count = self._ready = self._next = 0
        self._tokens = []
        high, low = encode(Message.KICK, session, queue=index)
        self._kick = KickNotification(self, high, low)

    def _make_memory(self) -> OwnRing:
        if self._features & feature.RING_PACKED:
            return OwnRing(self._dma, self.size, packed_layout.EVENT_BYTES, packed_layout.EVENT_BYTES)
        lengths = split_layout.available_bytes(self.size), split_layout.used_bytes(self.size)
        return OwnRing(self._dma, self.size, *lengths)

    def _make_ring(self) -> DriverRing:
        """An empty ring in `memory`."""
        event_idx = bool(self._features & feature.EVENT_IDX)
        indirect = bool(self._features & feature.INDIRECT_DESC)
        in_order = bool(self._features & feature.IN_ORDER)
        if self._features & feature.RING_PACKED:
            return PackedDriverRing(self.size, self.memory, event_idx=event_idx, indirect=indirect, in_order=in_order)
        return SplitDriverRing(
            self.size,
            self.memory,
            big_endian=self._big_endian,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
        )

    def addresses(self) -> QueueAddresses:
        """Where the device finds the ring."""
        return self.memory.addresses(self.index, self.size)

    def use(self, notifier: Notifier, generation: int) -> None:
        """Kick through a Sub-CRQ; the kick carries the queue's generation (P5.16)."""
        self._notifier = notifier
        self._kick.low_half = generation << 48

    @cython.ccall
    @cython.exceptval(-1)
    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> cython.bint:
        """See `DriverQueue`: descriptors carry I/O addresses; what is not mapped yet is mapped here."""
        readers: cython.uint = len(readable)
        count: cython.uint = readers + len(writable)
        indirect: cython.bint
        head: cython.int
        if self.ending:
            # nothing is mapped for a server that has lost its connection (P1.5)
            raise RemoteError("the session is over", Verdict.CLOSE)
        indirect = self._is_indirect(count)
        if self.ring.free_descriptors < (1 if indirect else count):
            return False
        if count > self.size:
            raise LocalError(f"a buffer of {count} segments for a queue of {self.size}")
        self._count = 0
        try:
            self._plan(readable, _READ)
            self._plan(writable, _ACCESS)
            head = self._lend(readers, indirect)
        except RangeExhausted:
            self._forget()
            if not self._mapped_count:
                raise
            self._unmap()  # what was left mapped out of laziness is in the way
            return self.add(readable, writable, token)
        except HcallError as error:
            self._forget()
            if self._dma.gone:
                raise RemoteError("the adapter was unplugged") from error
            raise
        except BaseException:
            self._forget()
            raise
        if head < 0:
            self._forget()
            return False
        self.ring.name(head, token)
        return True

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _is_indirect(self, count: cython.uint) -> cython.bint:
        """Whether a buffer of so many segments goes into a table."""
        if self._auto:
            return count > _AUTO_SEGMENTS or count > self.ring.free_descriptors
        return self._always and count > 1

    @cython.cfunc
    def _plan(self, slices: Sequence[BufferSlice], access: cython.uint) -> cython.void:
        """Put slices into `_segments`; those of a buffer that is not mapped are to be mapped with `access`."""
        part: Any
        buffer: Buffer
        offset: cython.longlong
        length: cython.longlong
        size: cython.longlong
        for part in slices:
            buffer = part[0]
            offset = part[1]
            length = part[2]
            size = buffer.length
            if offset < 0 or length > size or offset > size - length:
                raise LocalError(f"slice of {length} bytes at {offset} of a buffer of {size}")
            if buffer.is_mapped:
                st64(self._segments, 16 * self._count, buffer.mapped_at + offset)
                st64(self._segments, 16 * self._count + 8, length)
            else:
                self._map(self._count, buffer.address + offset, length, access)
            self._count += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _map(
        self, number: cython.uint, address: cython.longlong, length: cython.longlong, access: cython.uint
    ) -> cython.int:
        """Let segment `number` be memory at a logical address that is to be mapped; the device's address is put there.

        Raises (-1) as `DmaSpace.plan`.
        """
        ioba: cython.longlong = self._dma.plan_now(address, length, access)
        mapping: cython.uint
        place: cython.ulonglong
        if ioba < 0:
            with cython.gil:
                ioba = self._dma.plan(address, length, access)
        if self._spare == _NONE:
            with cython.gil:
                self._make_mappings()
        mapping = self._spare
        place = 24 * mapping
        self._spare = ld32(self._mappings, place + 16)
        st64(self._mappings, place, ioba)
        st64(self._mappings, place + 8, length)
        st32(self._mappings, place + 16, self._chain)
        self._chain = mapping
        st64(self._segments, 16 * number, ioba)
        st64(self._segments, 16 * number + 8, length)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-2)
    def lend(
        self, segments: cython.p_uchar, count: cython.uint, readers: cython.uint, unmapped: cython.uint
    ) -> cython.int:
        """As `DriverRing.lend`, without a table; but segment number `unmapped` has a logical address, and is mapped.

        For a driver that has no tokens: it is told of used buffers by `collect` and not by `reap`. Raises also (-2) as
        `DmaSpace.plan`.
        """
        head: cython.int = -1
        place: cython.ulonglong = 16 * unmapped
        if self.ending:
            with cython.gil:
                raise RemoteError("the session is over", Verdict.CLOSE)
        if count > self.size or unmapped >= count or count > self.ring.free_descriptors:
            return -1
        if self._chain != _NONE:
            with cython.gil:
                self._forget()  # of a call that raised
        copy(self._segments, 0, segments, 0, 16 * count)
        self._map(unmapped, ld64(segments, place), ld64(segments, place + 8), _READ if unmapped < readers else _ACCESS)
        head = self.ring.lend(self._segments, count, readers, cython.NULL, 0)
        if head < 0:
            with cython.gil:
                self._forget()
            return -1
        st32(self._first, 4 * head, self._chain)
        self._chain = _NONE
        return head

    @cython.cfunc
    @cython.exceptval(-2)
    def _lend(self, readers: cython.uint, indirect: cython.bint) -> cython.int:
        """Put what is in `_segments` into the ring; returns its head, or -1 when there is no room."""
        head: cython.int
        table: DmaMemory
        if not indirect:
            head = self.ring.lend(self._segments, self._count, readers, cython.NULL, 0)
        else:
            table = self._take_table()
            try:
                head = self.ring.lend(self._segments, self._count, readers, pointer(table.view), table.ioba)
            except BaseException:
                self._tables.append(table)
                raise
            if head < 0:
                self._tables.append(table)
            else:
                self._table_of[head] = table
                self._indirect_count += 1
        if head >= 0:
            st32(self._first, 4 * head, self._chain)
            self._chain = _NONE
        return head

    @cython.cfunc
    def _forget(self) -> cython.void:
        """The buffer that was being added is not: what was planned for it is not mapped."""
        self._give_up(self._chain)
        self._chain = _NONE

    @cython.ccall
    def kick(self) -> cython.void:
        """See `DriverQueue`: this is where a kick becomes an H_SEND_CRQ, or an H_SEND_SUB_CRQ.

        Everything that was added is mapped before the device can see it.
        """
        if self.ending or self.held:
            return
        try:
            self._dma.commit()
        except HcallError:
            if self._dma.gone:
                return  # the device tree tells the driver
            raise
        if self.ring.show() != 0:
            self._notifier.signal(self._kick)

    @cython.ccall
    def reap(self) -> Used:
        """See `DriverQueue`. Raises `RemoteError` when the device broke the ring.

        All that the device has used by now is unmapped together, before the first of it is handed out. Raises
        `HcallError` when that is not possible, for a DMA engine works there still perhaps: the next call tries again.
        """
        number: cython.uint = self._next
        if number == self._ready:
            self._gather()
            for number in range(len(self._tokens), self._used_count):
                self._tokens.append(self.ring.token(ld32(self._used, 8 * number)))
            self._make_ready()
            if self._ready == 0:
                return None
            number = 0
        self._next = number + 1
        token = self._tokens[number]
        self._tokens[number] = None
        return token, ld32(self._used, 8 * number + 4)

    @cython.cfunc
    @cython.exceptval(-1)
    def collect(self) -> cython.int:
        """Take back all that the device has used and unmap it; returns how many buffers that are. See `head_of`.

        Raises as `reap`.
        """
        self._next = self._ready
        self._gather()
        self._make_ready()
        return self._ready

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def head_of(self, number: cython.uint) -> cython.uint:
        """The head that `lend` gave to number `number` of those that `collect` took; another buffer may have it now."""
        return ld32(self._used, 8 * number)

    @cython.cfunc
    def _gather(self) -> cython.void:
        """Take from the ring what the device has used. All that was ready before is taken."""
        number: cython.uint
        before: cython.uint
        head: cython.uint
        table: DmaMemory | None
        if self._next != 0:
            self._tokens.clear()
            self._used_count = self._next = self._ready = 0
        before = self._used_count
        try:
            self._take_used()
        except RemoteError:
            if self._used_count == 0:
                raise  # else it is raised again when what came before is handed out: a broken ring stays so
        if self._indirect_count != 0:
            for number in range(before, self._used_count):
                head = ld32(self._used, 8 * number)
                table = self._table_of[head]
                if table is not None:
                    self._table_of[head] = None
                    self._tables.append(table)
                    self._indirect_count -= 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _take_used(self) -> cython.int:
        head: cython.int
        while True:
            head = self.ring.take_back()
            if head < 0:
                return 0
            if self._used_count == self._used_room:
                with cython.gil:
                    self._make_used()
            st32(self._used, 8 * self._used_count, head)
            st32(self._used, 8 * self._used_count + 4, self.ring.written)
            self._used_count += 1
            self._move(ld32(self._first, 4 * head))
            st32(self._first, 4 * head, _NONE)

    @cython.cfunc
    def _make_ready(self) -> cython.void:
        """Unmap what the device has used, so that it is the driver's again."""
        if self._mapped_count > self._keep:
            self._unmap()
        self._ready = self._used_count

    @cython.cfunc
    def _unmap(self) -> cython.void:
        try:
            self._dma.unmap_runs(self._mapped, self._mapped_count)
        except HcallError:
            self._mapped_count = self._dma.left
            raise
        self._mapped_count = 0

    def end(self) -> None:
        """The session is over: take every mapping back and free the ring. Buffers are the driver's again."""
        self._take_back()
        for table in self._tables:
            self._dma.release(table)
        self._tables.clear()
        self.memory.release()

    def renew(self, notifier: Notifier, generation: int) -> list[object]:
        """The device has forgotten the queue: begin with an empty ring elsewhere; returns the tokens of what was in it.

        Raises `LocalError` when there is no memory for another ring.
        """
        memory = self._make_memory()
        tokens = self._take_back()
        self.memory.release()
        self.memory = memory
        self.ring = self._make_ring()
        self.use(notifier, generation)
        return tokens

    def _take_back(self) -> list[object]:
        head: cython.uint
        count: cython.uint
        table: DmaMemory | None
        tokens: list[object] = self._tokens[self._next :]
        self._tokens = []
        self._used_count = self._next = self._ready = 0
        tokens += self.ring.drain()
        for head in range(self.size):
            self._move(ld32(self._first, 4 * head))
            st32(self._first, 4 * head, _NONE)
            table = self._table_of[head]
            if table is not None:
                self._table_of[head] = None
                self._tables.append(table)
        self._indirect_count = 0
        count = self._mapped_count
        self._mapped_count = 0
        self._dma.unmap_runs(self._mapped, count)
        return tokens

    def _take_table(self) -> DmaMemory:
        """A mapped piece for one indirect table of up to `size` entries; a pool that grows with the need."""
        if not self._tables:
            self._tables.append(self._dma.allocate(16 * self.size))
        return self._tables.pop()

    # -- the books

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _move(self, mapping: cython.uint) -> cython.int:
        """The mappings from this one on are those of a used buffer."""
        place: cython.ulonglong
        following: cython.uint
        while mapping != _NONE:
            place = 24 * mapping
            if self._mapped_count == self._mapped_room:
                with cython.gil:
                    self._make_mapped()
            copy(self._mapped, 16 * self._mapped_count, self._mappings, place, 16)
            self._mapped_count += 1
            following = ld32(self._mappings, place + 16)
            st32(self._mappings, place + 16, self._spare)
            self._spare = mapping
            mapping = following
        return 0

    @cython.cfunc
    def _give_up(self, mapping: cython.uint) -> cython.void:
        """The mappings from this one on are not wanted; `DmaSpace` knows that they were only planned."""
        count: cython.uint = self._mapped_count
        self._move(mapping)
        if self._mapped_count == count:
            return
        given_up = bytearray(16 * (self._mapped_count - count))
        runs: cython.p_uchar = pointer(given_up)
        copy(runs, 0, self._mapped, 16 * count, len(given_up))
        self._mapped_count = count
        self._dma.unmap_runs(runs, len(given_up) >> 4)

    @cython.cfunc
    def _make_mappings(self) -> cython.void:
        """Room for more mappings of buffers in flight."""
        old: cython.uint = self._mappings_room
        room: cython.uint = old + max(64, old)
        number: cython.uint
        self._mappings = self._larger("mappings", self._mappings, 24 * old, 24 * room)
        self._mappings_room = room
        for number in range(old, room):
            st32(self._mappings, 24 * number + 16, number + 1 if number + 1 < room else self._spare)
        self._spare = old

    @cython.cfunc
    def _make_mapped(self) -> cython.void:
        room: cython.uint = self._mapped_room + max(64, self._mapped_room)
        self._mapped = self._larger("mapped", self._mapped, 16 * self._mapped_room, 16 * room)
        self._mapped_room = room

    @cython.cfunc
    def _make_used(self) -> cython.void:
        room: cython.uint = self._used_room + max(64, self._used_room)
        self._used = self._larger("used", self._used, 8 * self._used_room, 8 * room)
        self._used_room = room

    @cython.cfunc
    def _larger(
        self, name: str, old: cython.p_uchar, used: cython.ulonglong, length: cython.ulonglong
    ) -> cython.p_uchar:
        """A larger array with the same contents."""
        array = bytearray(length)
        new: cython.p_uchar = pointer(array)
        copy(new, 0, old, 0, used)
        self._views[name] = array
        return new
