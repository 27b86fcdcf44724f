# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the device sides of the split and the packed virtqueue have in common (virtio 1.4, 2.7 and 2.8).

A device takes *chains* and gives each back with the number of bytes that it wrote. `DeviceRing` has the books on what
it has in hand, turns descriptors into segments with every check of the standard, copies indirect tables, and holds
completions back until their turn where IN_ORDER was negotiated. Where descriptors and used entries stand is the rings'.

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

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory

_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)

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
    _memory: RingMemory
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
    _readable: list[tuple[int, int]]
    _writable: list[tuple[int, int]]
    _writing: cython.bint
    _total: cython.ulonglong
    _run: cython.ulonglong
    _run_length: cython.ulonglong
    _room: cython.ulonglong

    def __init__(self, size: int, memory: RingMemory, event_idx: bool, indirect: bool, in_order: bool) -> None:
        """For the rings themselves: `size` and `memory` are checked, the three features are those negotiated."""
        table = bytearray(16 * size)
        states = bytearray(size)
        # only IN_ORDER has to remember what was popped when, and how much could be written
        order, lengths, rooms = (bytearray(each * (size if in_order else 1)) for each in (2, 4, 8))
        # Views of our own: nobody can release them under the addresses taken here.
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            table,
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
        self._memory = memory
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
        self._states = pointer(states)
        self._order = pointer(order)
        self._lengths = pointer(lengths)
        self._rooms = pointer(rooms)
        self._begin()

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
        raise NotImplementedError

    def publish(self) -> bool:
        """Make pushed buffers visible, then tell whether the driver has to be notified (2.7.7.2, 2.8.10).

        Remote memory: always, when something was published. The driver's wish that could be read here is a copy made
        before; a driver that went to sleep since then would never wake. To read it anew costs as much as to notify.
        """
        raise NotImplementedError

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

    @cython.cfunc
    @cython.exceptval(-1)
    def _use(self, head: cython.uint, written: cython.uint, joins: cython.bint) -> cython.int:
        """Write a used entry that `publish` makes visible; `joins`: it takes the place of the one before (IN_ORDER)."""
        raise NotImplementedError

    # -- the books

    @cython.cfunc
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
        first: cython.uint
        length: cython.uint
        if head < 0 or head >= self.size or ld8(self._states, head) != _POPPED:
            raise LocalError(f"head {head} is not the device's to give back")
        if written < 0 or written > _MAX_LENGTH:
            raise LocalError(f"{written} bytes written to head {head}: a used length has 32 bits")
        if not self._in_order:
            st8(self._states, head, _DRIVERS)
            self._unpublished += 1
            self._use(head, written, False)
            return
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
            # a driver takes a buffer without an entry for completely written (2.7.9, 2.8.8)
            self._joins = length == ld64(self._rooms, 8 * first)

    @cython.cfunc
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
    def _begin(self) -> cython.void:
        """Start with a new chain."""
        self._readable = []
        self._writable = []
        self._writing = False
        self._total = 0
        self._run = 0
        self._run_length = 0
        self._room = 0

    @cython.cfunc
    @cython.exceptval(-1)
    def _segment(
        self, head: cython.uint, address: cython.ulonglong, length: cython.ulonglong, writes: cython.bint
    ) -> cython.int:
        """One more descriptor of the chain."""
        self._total += length
        if self._total > _MAX_BYTES:
            raise self._fail(f"chain {head} has more than 2^32 bytes (virtio 1.4, 2.7.5.2)")
        if writes:
            if not self._writing:
                if self._run_length:
                    self._readable.append((self._run, self._run_length))
                    self._run_length = 0
                self._writing = True
            self._room += length
        elif self._writing:
            raise self._fail(f"readable descriptor after a writable one, chain {head} (virtio 1.4, 2.7.4.2, 2.8.17)")
        if length:
            # `address > run`: a run never goes over the end of the address space.
            if self._run_length and address > self._run and address - self._run == self._run_length:
                self._run_length += length
            else:
                if self._run_length:
                    (self._writable if self._writing else self._readable).append((self._run, self._run_length))
                self._run = address
                self._run_length = length
        return 0

    @cython.cfunc
    def _end(self, head: cython.uint) -> Chain:
        """The chain is complete."""
        chain: Chain
        if self._run_length:
            (self._writable if self._writing else self._readable).append((self._run, self._run_length))
        if self._in_order:
            st64(self._rooms, 8 * head, self._room)
        chain = Chain.__new__(Chain)
        chain.head = head
        chain.readable = self._readable
        chain.writable = self._writable
        return chain

    @cython.cfunc
    @cython.exceptval(-1)
    def _fetch_table(self, head: cython.uint, address: cython.ulonglong, length: cython.uint) -> cython.int:
        """Copy an indirect table into our own; false when the chain was rejected and given back."""
        try:
            view = self._memory.fetch_table(address, length)
        except RemoteError as error:
            if error.verdict is not Verdict.REJECT:
                self.broken = True
                self._why = str(error)
                raise
            self.rejected += 1
            self.push(head, 0)
            return 0
        if view.nbytes < length:
            raise LocalError(f"fetch_table gave {view.nbytes} bytes of {length}")
        # Private from here on, so aligned (2.7.5.3 asks for no alignment of tables) and not written by anybody else.
        if view.readonly:
            view = memoryview(bytearray(view))
        copy(self._table, 0, pointer(view), 0, length)
        return 1
