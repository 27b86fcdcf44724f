# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the device sides of the split and the packed virtqueue have in common (virtio 1.4, 2.7 and 2.8).

A device takes *chains* and gives each back with the number of bytes that it wrote. `DeviceRing` has the books on what
it has in hand, turns descriptors into segments with every check of the standard, copies indirect tables, and holds
completions back until their turn where IN_ORDER was negotiated. Where descriptors and used entries stand is the rings'.

There are two ways to use a ring. Compiled loops `look`, `take`, `give`, `show` and `arm`, without the interpreter lock;
the chain that was taken last stands in an array. Everybody else has the same steps as `refresh`, `pop`, `push`,
`publish` and `enable_notifications`, with chains as objects.

What each ring may rely on:

1. The partner is hostile. Every field in shared memory is loaded once, into a local or a private copy, and checked
   there. What decides over our own memory (buffers in hand, positions) is private and never read back from the ring.
2. `RingMemory.remote`: what is read is a copy. A descriptor in the copy is good only if it was available *before* the
   copy began, so what the copy itself shows to be available is trusted with the next copy, not with this one.
3. Bad ring contents raise `RemoteError` with `Verdict.NEEDS_RESET` and leave the ring `broken`. A ring lives from
   queue set-up to reset: after a reset a new one is made.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    copy,
    fetch,
    ld8,
    ld16,
    ld32,
    ld64,
    pointer,
    st8,
    st16,
    st32,
    st64,
)
from cython.cimports.powervio.memory.space import READ, AddressSpace
from cython.cimports.powervio.virtio.chain_record import ChainRecord

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory

_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_TABLE_PIECES = cython.declare(cython.int, 8)

# Whose a buffer is, in the device's books.
_DRIVERS = cython.declare(cython.uint, 0)
_POPPED = cython.declare(cython.uint, 1)
_FINISHED = cython.declare(cython.uint, 2)


@cython.cclass
class Chain:
    """One available buffer: its head, and what the device may read and write as `(device address, length)` lists.

    Segments that continue each other are one, and empty ones are left out: a remote copy costs a hypervisor call, and
    a device must not draw conclusions from framing (virtio 1.4, 2.7.4.1). `head` is what `push` takes: the head
    descriptor of a split ring, a number of the ring's own in a packed one.
    """

    head: cython.uint
    readable: list[tuple[int, int]]
    writable: list[tuple[int, int]]

    def __init__(self, head: cython.uint, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable

    def __repr__(self) -> str:
        return f"Chain({self.head}, {self.readable}, {self.writable})"


@cython.cclass
class DeviceRing:
    """The device's side: `refresh`, `pop` until None, serve, `push`, `publish`; then `enable_notifications`."""

    size: cython.uint
    in_hand: cython.uint
    broken: cython.bint
    rejected: cython.ulonglong
    head: cython.uint
    readable_count: cython.uint
    segment_count: cython.uint
    readable_bytes: cython.ulonglong
    writable_bytes: cython.ulonglong
    chain: cython.p_uchar
    _memory: RingMemory
    _space: AddressSpace | None
    _record: ChainRecord | None
    _views: tuple[object, ...]
    _why: str
    _remote: cython.bint
    _event_idx: cython.bint
    _indirect: cython.bint
    _in_order: cython.bint
    _joins: cython.bint
    _unpublished: cython.uint
    _oldest: cython.uint
    _ordered: cython.uint
    _descriptors: cython.p_uchar
    _available: cython.p_uchar
    _used: cython.p_uchar
    _table: cython.p_uchar
    _states: cython.p_uchar
    _order: cython.p_uchar
    _lengths: cython.p_uchar
    _rooms: cython.p_uchar
    _pieces: cython.p_uchar
    _writing: cython.bint
    _begins: cython.uint

    def __init__(self, size: int, memory: RingMemory, event_idx: bool, indirect: bool, in_order: bool) -> None:
        """For the rings themselves: `size` and `memory` are checked, the three features are those negotiated."""
        table, chain = bytearray(16 * size), bytearray(16 * size)
        states = bytearray(size)
        pieces = bytearray(16 * _TABLE_PIECES)
        # only IN_ORDER has to remember what was popped when, and how much could be written
        order, lengths, rooms = (bytearray(each * (size if in_order else 1)) for each in (2, 4, 8))
        # Views of our own: nobody can release them under the addresses taken here.
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            table,
            chain,
            pieces,
            states,
            order,
            lengths,
            rooms,
        )
        self.size = size
        self.in_hand = 0
        """Buffers that were popped and that the driver does not see as used yet."""
        self.broken = False
        self.rejected = 0
        """Buffers that went back unserved because their indirect table could not be fetched."""
        self.chain = pointer(chain)
        """The chain that was taken last: `segment_count` segments of {u64 device address, u64 length} in host order,
        the first `readable_count` of them for the device to read. It is there until the next is taken."""
        self._memory = memory
        self._space = memory.space
        self._record = None
        self._why = ""
        self._remote = memory.remote
        self._event_idx = event_idx
        self._indirect = indirect
        self._in_order = in_order
        self._joins = False
        self._unpublished = 0
        self._oldest = 0
        self._ordered = 0
        self._descriptors = pointer(memory.descriptors)
        self._available = pointer(memory.available)
        self._used = pointer(memory.used)
        self._table = pointer(table)
        self._pieces = pointer(pieces)
        self._states = pointer(states)
        self._order = pointer(order)
        self._lengths = pointer(lengths)
        self._rooms = pointer(rooms)
        self.head = 0
        self._begin()

    def keep_record(self, record: ChainRecord) -> None:
        """Tell a record of every chain from here on, before the first is taken. For mapped memory only."""
        if self.in_hand or self._remote:
            raise LocalError("a record begins with a ring of mapped memory of which nothing is taken")
        self._record = record

    # -- what each ring does in its own way

    @property
    def last_available(self) -> int:
        """How far the device has come in taking buffers; where another ring goes on when a queue moves to a server."""
        raise NotImplementedError

    @property
    def used_index(self) -> int:
        """How far the device has come in giving buffers back, in the 16 bits that USED carries (protocol.md, P6.2)."""
        raise NotImplementedError

    @property
    def pending(self) -> int:
        """Buffers that `pop` can still give before the next `refresh`."""
        raise NotImplementedError

    def ahead(self, index: int) -> int:
        """How far an index that came with a kick is beyond what was popped; 0 when it is late or cannot be."""
        raise NotImplementedError

    def refresh(self, known_index: int | None = None) -> int:
        """Learn what the driver made available; returns how many buffers can be popped.

        `known_index` is the index that came with a kick. Mapped memory needs no hint and no copy. Remote memory costs
        nothing when the hint is older than what is known already, one copy when it is known from a kick or from an
        earlier copy what is available, and two otherwise: one to learn it, one of what it covers.
        Raises `RemoteError` when the driver broke a rule of the ring.
        """
        raise NotImplementedError

    def pop(self) -> Chain | None:
        """The next buffer that `refresh` found, or None. Each must be given back by `push`, once.

        Raises `RemoteError` with NEEDS_RESET when the driver broke a rule of the ring; so does every later call. A
        buffer whose indirect table cannot be fetched (the address is not the driver's to give) is that request's
        fault alone: it goes back with length 0, is counted in `rejected`, and the next one is taken.
        """
        return self._as_chain() if self.take() else None

    def retake(self, note: int) -> Chain | None:
        """A buffer that a predecessor of this device popped and did not complete, by what is remembered of it: of a
        split ring the head, of a packed one what the record calls it.

        It is counted in `last_available` already. The rest is as in `pop`; None when its indirect table could not be
        fetched.
        """
        return self._as_chain() if self.take_again(note) else None

    def publish(self) -> bool:
        """Make pushed buffers visible, then tell whether the driver has to be notified (2.7.7.2, 2.8.10).

        Remote memory: always, when something was published. The driver's wish that could be read here is a copy made
        before; a driver that went to sleep since then would never wake. To read it anew costs as much as to notify.
        """
        return self.show() != 0

    def enable_notifications(self) -> bool:
        """Ask for kicks, to be called before sleeping. True when more came than `refresh` found: `refresh` again.

        What was found and not popped is the device's to come back for: a driver does not kick for it again.

        Remote memory: with EVENT_IDX one store and one copy; without it nothing, for kicks were never switched off.
        """
        raise NotImplementedError

    def disable_notifications(self) -> None:
        """Say that kicks are not needed for now. It is a wish: kicks may come all the same (2.7.10.1).

        Remote memory: nothing. A store costs a hypervisor call, and the kick that it saves carries the index that
        saves a copy.
        """
        raise NotImplementedError

    # -- the same for compiled loops, over mapped memory

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def look(self) -> cython.int:
        """As `refresh`, of mapped memory: how many buffers can be taken."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take(self) -> cython.int:
        """As `pop`: 1 when there is a chain, in `head`, `chain` and the counts beside it; else 0."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def peek(self, distance: cython.uint) -> cython.ulonglong:
        """Where a buffer is, about `distance` after the next one: a guess, to have memory near; 0 when nobody knows."""
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def take_again(self, note: cython.uint) -> cython.int:
        """As `retake`: 1 when there is a chain, 0 when it was rejected."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def part(self) -> cython.void:
        """Let what is given next have a used entry of its own, whatever IN_ORDER would spare."""
        self._joins = False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def show(self) -> cython.int:
        """As `publish`: 1 when the driver has to be notified."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def arm(self) -> cython.int:
        """As `enable_notifications`, of mapped memory: 1 when more came."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def disarm(self) -> cython.void:
        """As `disable_notifications`, of mapped memory."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _use(self, head: cython.uint, written: cython.uint, joins: cython.bint) -> cython.void:
        """Write a used entry that `publish` makes visible; `joins`: it takes the place of the one before (IN_ORDER)."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def used_position(self) -> cython.uint:
        """`used_index`."""
        return 0

    # -- the books

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _claim(self, head: cython.uint) -> cython.void:
        """`head` is the device's from here on."""
        place: cython.uint
        st8(self._states, head, _POPPED)
        self.in_hand += 1
        if self._in_order:
            place = self._oldest + self._ordered
            if place >= self.size:
                place -= self.size
            st16(self._order, 2 * place, head)
            # unknown until the chain was walked: what goes back before that has a used entry of its own
            st64(self._rooms, 8 * head, _MAX_BYTES)
            self._ordered += 1

    def push(self, head: int, written: int) -> None:
        """Give a popped buffer back; `publish` makes it visible. `written`: bytes from the first writable one on.

        With IN_ORDER it becomes visible after all that were popped before it. Raises `LocalError` for a head that the
        device does not have, and for a length that no buffer has.
        """
        if head < 0 or head >= self.size:
            raise LocalError(f"head {head} is not the device's to give back")
        if written < 0 or written > _MAX_LENGTH:
            raise LocalError(f"{written} bytes written to head {head}: a used length has 32 bits")
        self.give(head, written)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def give(self, head: cython.uint, written: cython.uint) -> cython.int:
        """As `push`."""
        first: cython.uint
        length: cython.uint
        if head >= self.size or ld8(self._states, head) != _POPPED:
            with cython.gil:
                raise LocalError(f"head {head} is not the device's to give back")
        if not self._in_order:
            st8(self._states, head, _DRIVERS)
            self._unpublished += 1
            self._use(head, written, False)
            if self._record is not None:
                self._record.complete(head)
            return 0
        st8(self._states, head, _FINISHED)
        st32(self._lengths, 4 * head, written)
        while self._ordered:
            first = ld16(self._order, 2 * self._oldest)
            if ld8(self._states, first) != _FINISHED:
                break
            st8(self._states, first, _DRIVERS)
            self._oldest = self._oldest + 1 if self._oldest + 1 < self.size else 0
            self._ordered -= 1
            self._unpublished += 1
            length = ld32(self._lengths, 4 * first)
            self._use(first, length, self._joins)
            if self._record is not None:
                self._record.complete(first)
            # a driver takes a buffer without an entry for completely written (2.7.9, 2.8.8)
            self._joins = length == ld64(self._rooms, 8 * first)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _published(self) -> cython.void:
        """What was pushed is the driver's now."""
        self.in_hand -= self._unpublished
        self._unpublished = 0
        self._joins = False

    def _fail(self, what: str) -> RemoteError:
        self.broken = True
        self._why = what
        return RemoteError(what, Verdict.NEEDS_RESET)

    def _again(self) -> RemoteError:
        return RemoteError(f"the queue is broken until it is reset: {self._why}", Verdict.NEEDS_RESET)

    # -- from descriptors to segments

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin(self) -> cython.void:
        """Start with a new chain."""
        self.segment_count = 0
        self.readable_count = 0
        self.readable_bytes = 0
        self.writable_bytes = 0
        self._writing = False
        self._begins = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _segment(
        self, head: cython.uint, address: cython.ulonglong, length: cython.ulonglong, writes: cython.bint
    ) -> cython.int:
        """One more descriptor of the chain."""
        last: cython.ulonglong
        run: cython.ulonglong
        run_length: cython.ulonglong
        if writes:
            if not self._writing:
                self._writing = True
                self._begins = self.readable_count = self.segment_count
            self.writable_bytes += length
        elif self._writing:
            with cython.gil:
                raise self._fail(
                    f"readable descriptor after a writable one, chain {head} (virtio 1.4, 2.7.4.2, 2.8.17)"
                )
        else:
            self.readable_bytes += length
        if self.readable_bytes + self.writable_bytes > _MAX_BYTES:
            with cython.gil:
                raise self._fail(f"chain {head} has more than 2^32 bytes (virtio 1.4, 2.7.5.2)")
        if length == 0:
            return 0
        if self.segment_count > self._begins:
            last = 16 * (self.segment_count - 1)
            run = ld64(self.chain, last)
            run_length = ld64(self.chain, last + 8)
            # `address > run`: a run never goes over the end of the address space
            if address > run and address - run == run_length:
                st64(self.chain, last + 8, run_length + length)
                return 0
        last = 16 * self.segment_count
        st64(self.chain, last, address)
        st64(self.chain, last + 8, length)
        self.segment_count += 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _end(self, head: cython.uint) -> cython.void:
        """The chain is complete."""
        if not self._writing:
            self.readable_count = self.segment_count
        if self._in_order:
            st64(self._rooms, 8 * head, self.writable_bytes)
        self.head = head

    @cython.cfunc
    def _as_chain(self) -> Chain:
        """The chain that was taken last as an object."""
        chain: Chain
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []
        number: cython.uint
        for number in range(self.segment_count):
            (readable if number < self.readable_count else writable).append(
                (ld64(self.chain, 16 * number), ld64(self.chain, 16 * number + 8))
            )
        chain = Chain.__new__(Chain)
        chain.head = self.head
        chain.readable = readable
        chain.writable = writable
        return chain

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def _fetch_table(self, head: cython.uint, address: cython.ulonglong, length: cython.uint) -> cython.int:
        """Copy an indirect table into our own; 0 when the chain was rejected and given back."""
        pieces: cython.int
        number: cython.int
        done: cython.ulonglong = 0
        if self._space is None:
            with cython.gil:
                return self._ask_for_table(head, address, length)
        pieces = self._space.gather(address, length, READ, self._pieces, 0, _TABLE_PIECES)
        if pieces < 0:
            self.rejected += 1
            self.give(head, 0)
            return 0
        for number in range(pieces):
            fetch(self._table, done, ld64(self._pieces, 16 * number), ld64(self._pieces, 16 * number + 8))
            done += ld64(self._pieces, 16 * number + 8)
        return 1

    @cython.cfunc
    @cython.exceptval(-1)
    def _ask_for_table(self, head: cython.uint, address: cython.ulonglong, length: cython.uint) -> cython.int:
        """The same through `RingMemory.fetch_table`."""
        try:
            view = self._memory.fetch_table(address, length)
        except RemoteError as error:
            if error.verdict is not Verdict.REJECT:
                self.broken = True
                self._why = str(error)
                raise
            self.rejected += 1
            self.give(head, 0)
            return 0
        if view.nbytes < length:
            raise LocalError(f"fetch_table gave {view.nbytes} bytes of {length}")
        # Private from here on, so aligned (2.7.5.3 asks for no alignment of tables) and not written by anybody else.
        if view.readonly:
            view = memoryview(bytearray(view))
        copy(self._table, 0, pointer(view), 0, length)
        return 1
