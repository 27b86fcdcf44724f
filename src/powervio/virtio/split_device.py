# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The device side of the split virtqueue (virtio 1.4, 2.7), over a `RingMemory`; `split_driver` is the other side.

A driver puts *heads* of descriptor chains into the available ring; a device takes them, and gives each back in the used
ring with the number of bytes that it wrote. Both indices run from 0 to 65535 and around; slots are `index mod size`.

What each side may rely on:

1. The partner is hostile. Every field in shared memory is loaded once, into a local, and checked there. What decides
   over our own memory (free descriptors, buffers in flight, indices) is private and never read back from the ring.
2. `RingMemory.remote`: what is read is a copy. A descriptor in the copy is good only if its entry was available
   *before* the copy began, so an index seen in the same copy is trusted with the next copy, not with this one.
3. Bad ring contents raise `RemoteError` with `Verdict.NEEDS_RESET` and leave the ring `broken`. A ring lives from
   queue set-up to reset: after a reset a new one is made.

Offsets, lengths and addresses are bytes. Ring fields are little-endian, or the guest's order in legacy devices
(2.7.3): `big_endian`. The three areas must be aligned to 16, 2 and 4 bytes (2.7); who maps them checks that.
This file is compiled (Cython pure mode) and also runs interpreted: 16-bit indices are masked where they are changed.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import (
    be16,
    be32,
    be64,
    copy,
    fence,
    ld8,
    ld16,
    ld16_acquire,
    ld32,
    ld64,
    le16,
    le32,
    le64,
    pointer,
    st8,
    st16,
    st16_release,
    st32,
)

from powervio.errors import LocalError, RemoteError, Verdict
from powervio.memory.abstract import RingMemory
from powervio.virtio.split_layout import check_memory

_NEXT = cython.declare(cython.uint, 1)
_WRITE = cython.declare(cython.uint, 2)
_INDIRECT = cython.declare(cython.uint, 4)
_MAX_BYTES = cython.declare(cython.ulonglong, 0x1_0000_0000)
_MAX_LENGTH = cython.declare(cython.ulonglong, 0xFFFF_FFFF)


@cython.cclass
class Chain:
    """One available buffer: its head, and what the device may read and write as `(device address, length)` lists.

    Segments that continue each other are one, and empty ones are left out: a remote copy costs a hypervisor call, and
    a device must not draw conclusions from framing (virtio 1.4, 2.7.4.1).
    """

    head = cython.declare(cython.uint, visibility="readonly")
    readable: list[tuple[int, int]] = cython.declare(list, visibility="readonly")
    writable: list[tuple[int, int]] = cython.declare(list, visibility="readonly")

    def __init__(self, head: cython.uint, readable: list[tuple[int, int]], writable: list[tuple[int, int]]) -> None:
        self.head = head
        self.readable = readable
        self.writable = writable

    def __repr__(self) -> str:
        return f"Chain({self.head}, {self.readable}, {self.writable})"


@cython.cclass
class SplitDeviceRing:
    """The device's side: `refresh`, `pop` until None, serve, `push`, `publish`; then `enable_notifications`."""

    size = cython.declare(cython.uint, visibility="readonly")
    last_available = cython.declare(cython.uint, visibility="readonly")
    used_index = cython.declare(cython.uint, visibility="readonly")
    published_index = cython.declare(cython.uint, visibility="readonly")
    broken = cython.declare(cython.bint, visibility="readonly")
    rejected = cython.declare(cython.ulonglong, visibility="readonly")

    _memory: RingMemory
    _views: tuple[object, ...]
    _why: str
    _remote: cython.bint
    _big: cython.bint
    _event_idx: cython.bint
    _indirect: cython.bint
    _trusted: cython.uint
    _seen: cython.uint
    _descriptors: cython.p_uchar
    _available: cython.p_uchar
    _used: cython.p_uchar
    _table: cython.p_uchar
    _owned: cython.p_uchar

    def __init__(
        self,
        size: int,
        memory: RingMemory,
        *,
        big_endian: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
        last_available: int = 0,
        used_index: int = 0,
    ) -> None:
        """Start at the given indices: 0 after a reset, those that were saved when a queue moves to another server.

        `event_idx` and `indirect` say whether the two features were negotiated. Raises `LocalError` for a size that
        is no queue size or an area that is too small.
        """
        check_memory(size, memory)
        table = bytearray(16 * size)
        owned = bytearray(size)
        self.size = size
        self._memory = memory
        # Views of our own: nobody can release them under the addresses taken here.
        self._views = (
            memoryview(memory.descriptors),
            memoryview(memory.available),
            memoryview(memory.used),
            table,
            owned,
        )
        self._descriptors = pointer(memory.descriptors)
        self._available = pointer(memory.available)
        self._used = pointer(memory.used)
        self._table = pointer(table)
        self._owned = pointer(owned)
        self._remote = memory.remote
        self._big = big_endian
        self._event_idx = event_idx
        self._indirect = indirect
        self.last_available = last_available & 0xFFFF
        self.used_index = used_index & 0xFFFF
        self._trusted = self.last_available
        self._seen = self.last_available
        self.published_index = self.used_index
        self.broken = False
        self.rejected = 0
        self._why = ""

    @property
    def pending(self) -> int:
        """Buffers that `pop` can still give before the next `refresh`."""
        return (self._trusted - self.last_available) & 0xFFFF

    def refresh(self, known_index: int | None = None) -> int:
        """Learn what the driver made available; returns how many buffers can be popped.

        `known_index` is the avail.idx that came with a kick. Mapped memory needs no hint and no copy. Remote memory
        costs nothing when the hint is older than what is known already, one copy when an index is known from a kick or
        from an earlier copy, and two otherwise: one to learn an index, one of what it covers.
        Raises `RemoteError` when the index went back or ran ahead of the queue (2.7.6.1, 2.7.13.3.1).
        """
        known: cython.uint = self._seen
        hint: cython.uint
        if self.broken:
            raise self._again()
        if not self._remote:
            self._trusted = self._checked(self._index())
            self._seen = self._trusted
            return self.pending
        if known_index is not None:
            # A kick may be late (its entries were popped already) or wrong; it is a hint. Anything up to a queue's
            # length ahead may be news, and the copy below shows whether it is.
            hint = known_index & 0xFFFF
            if self._ahead(hint) > self._ahead(known) and self._ahead(hint) <= self.size:
                known = hint
        elif self._seen == self._trusted:
            self._memory.fetch_available()
            self._see()
            known = self._seen
        if known != self._trusted:
            hint = self._seen
            self._memory.fetch_descriptors()
            self._see()
            # what the copy shows beyond the hint is for the next copy; a hint beyond what it shows was not true
            self._trusted = known if self._ahead(known) <= self._ahead(self._seen) else hint
        return self.pending

    @cython.cfunc
    @cython.inline
    def _ahead(self, index: cython.uint) -> cython.uint:
        return (index - self.last_available) & 0xFFFF

    @cython.cfunc
    @cython.inline
    def _index(self) -> cython.uint:
        value: cython.uint = ld16_acquire(self._available, 2)
        return be16(value) if self._big else le16(value)

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _checked(self, index: cython.uint) -> cython.uint:
        if self._ahead(index) > self.size or self._ahead(index) < self._ahead(self._seen):
            raise self._fail(
                f"avail.idx is {index} when {self.last_available} were taken and {self._seen} announced, in a queue of "
                f"{self.size} (virtio 1.4, 2.7.6.1: idx never goes back)"
            )
        return index

    @cython.cfunc
    @cython.exceptval(-1, check=True)
    def _see(self) -> cython.int:
        self._seen = self._checked(self._index())
        return 0

    def _fail(self, what: str) -> RemoteError:
        self.broken = True
        self._why = what
        return RemoteError(what, Verdict.NEEDS_RESET)

    def _again(self) -> RemoteError:
        return RemoteError(f"the queue is broken until it is reset: {self._why}", Verdict.NEEDS_RESET)

    def pop(self) -> Chain | None:
        """The next buffer that `refresh` found, or None. Each must be given back by `push`, once.

        Raises `RemoteError` with NEEDS_RESET when the driver broke a rule of the ring; so does every later call. A
        buffer whose indirect table cannot be fetched (the address is not the driver's to give) is that request's
        fault alone: it goes back with length 0, is counted in `rejected`, and the next one is taken.
        """
        chain: Chain | None
        if self.broken:
            raise self._again()
        while self.last_available != self._trusted:
            chain = self._take()
            if chain is not None:
                return chain
        return None

    @cython.cfunc
    def _take(self) -> Chain | None:
        size: cython.uint = self.size
        big: cython.bint = self._big
        table: cython.p_uchar = self._descriptors
        entries: cython.uint = size
        steps: cython.uint = 0
        inside: cython.bint = False
        writing: cython.bint = False
        total: cython.ulonglong = 0
        run: cython.ulonglong = 0
        run_length: cython.ulonglong = 0
        address: cython.ulonglong
        length: cython.ulonglong
        raw: cython.uint
        flags: cython.uint
        following: cython.uint
        place: cython.ulonglong
        readable: list[tuple[int, int]] = []
        writable: list[tuple[int, int]] = []

        raw = ld16(self._available, 4 + 2 * (self.last_available & (size - 1)))
        head: cython.uint = be16(raw) if big else le16(raw)
        index: cython.uint = head
        if head >= size:
            raise self._fail(f"available head {head} in a queue of {size} descriptors (virtio 1.4, 2.7.6)")
        if ld8(self._owned, head):
            raise self._fail(f"head {head} made available again before it was used (virtio 1.4, 2.7.13)")
        self.last_available = (self.last_available + 1) & 0xFFFF
        st8(self._owned, head, 1)

        while True:
            if index >= entries:
                raise self._fail(f"descriptor {index} of a table of {entries}, chain {head} (virtio 1.4, 2.7.5)")
            if steps == size:
                raise self._fail(
                    f"chain {head} is a loop or longer than the queue of {size} (virtio 1.4, 2.7.5.2, 2.7.5.3.1)"
                )
            steps += 1
            place = 16 * index
            address = ld64(table, place)
            length = ld32(table, place + 8)
            flags = ld16(table, place + 12)
            following = ld16(table, place + 14)
            if big:
                address = be64(address)
                length = be32(length)
                flags = be16(flags)
                following = be16(following)
            else:
                address = le64(address)
                length = le32(length)
                flags = le16(flags)
                following = le16(following)

            if flags & _INDIRECT:
                # WRITE means nothing here (2.7.5.3.2).
                if not self._indirect:
                    raise self._fail(f"indirect descriptor {index} without the feature (virtio 1.4, 2.7.5.3.1)")
                if inside:
                    raise self._fail(f"indirect descriptor in an indirect table, chain {head} (virtio 1.4, 2.7.5.3.1)")
                if flags & _NEXT:
                    raise self._fail(f"descriptor {index} is INDIRECT and has NEXT (virtio 1.4, 2.7.5.3.1)")
                if length == 0 or length & 15:
                    raise self._fail(f"indirect table of {length} bytes, chain {head} (virtio 1.4, 2.7.5.3)")
                # A chain has `size` descriptors at most: what a table has beyond is not worth a copy.
                entries = size if length > 16 * size else length >> 4
                if not self._fetch_table(head, address, 16 * entries):
                    return None
                table = self._table
                index = 0
                steps -= 1  # the pointer is no part of the buffer
                inside = True
                continue

            total += length
            if total > _MAX_BYTES:
                raise self._fail(f"chain {head} has more than 2^32 bytes (virtio 1.4, 2.7.5.2)")
            if flags & _WRITE:
                if not writing:
                    if run_length:
                        readable.append((run, run_length))
                        run_length = 0
                    writing = True
            elif writing:
                raise self._fail(f"readable descriptor after a writable one, chain {head} (virtio 1.4, 2.7.4.2)")
            if length:
                # `address > run`: a run never goes over the end of the address space.
                if run_length and address > run and address - run == run_length:
                    run_length += length
                else:
                    if run_length:
                        (writable if writing else readable).append((run, run_length))
                    run = address
                    run_length = length
            if not flags & _NEXT:
                break
            index = following

        if run_length:
            (writable if writing else readable).append((run, run_length))
        chain: Chain = Chain.__new__(Chain)
        chain.head = head
        chain.readable = readable
        chain.writable = writable
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

    def push(self, head: int, written: int) -> None:
        """Give a popped buffer back; `publish` makes it visible. `written`: bytes from the first writable one on.

        Raises `LocalError` for a head that the device does not have, and for a length that no buffer has.
        """
        place: cython.ulonglong = 4 + 8 * (self.used_index & (self.size - 1))
        if head < 0 or head >= self.size or not ld8(self._owned, head):
            raise LocalError(f"head {head} is not the device's to give back")
        if written < 0 or written > _MAX_LENGTH:
            raise LocalError(f"{written} bytes written to head {head}: a used length has 32 bits")
        st8(self._owned, head, 0)
        if self._big:
            st32(self._used, place, be32(head))
            st32(self._used, place + 4, be32(written))
        else:
            st32(self._used, place, le32(head))
            st32(self._used, place + 4, le32(written))
        self.used_index = (self.used_index + 1) & 0xFFFF

    def publish(self) -> bool:
        """Make pushed buffers visible, then tell whether the driver has to be notified (2.7.7.2).

        Remote memory: always, when something was published. The driver's wish that could be read here is a copy made
        before; a driver that went to sleep since then would never wake. To read it anew costs as much as to notify.
        """
        old: cython.uint = self.published_index
        new: cython.uint = self.used_index
        value: cython.uint
        if new == old:
            return False
        if self._remote:
            st16(self._used, 2, be16(new) if self._big else le16(new))
            self._memory.store_used(old & (self.size - 1), (new - old) & 0xFFFF)
            self.published_index = new
            return True
        st16_release(self._used, 2, be16(new) if self._big else le16(new))
        self.published_index = new
        fence()  # idx is visible before the driver's wish is read; the driver does the same in the other order
        value = ld16(self._available, 4 + 2 * self.size if self._event_idx else 0)
        value = be16(value) if self._big else le16(value)
        if self._event_idx:
            return ((new - value - 1) & 0xFFFF) < ((new - old) & 0xFFFF)
        return not value & 1

    def enable_notifications(self) -> bool:
        """Ask for kicks, to be called before sleeping. True when more came than `refresh` found: `refresh` again.

        What was found and not popped is the device's to come back for: a driver does not kick for it again.

        Remote memory: with EVENT_IDX one store and one copy; without it nothing, for kicks were never switched off.
        """
        if self.broken:
            raise self._again()
        if self._remote:
            if self._event_idx:
                self._arm(self._seen)
                self._memory.store_suppression()
                fence()
                self._memory.fetch_available()
                self._see()
            return self._seen != self._trusted
        if self._event_idx:
            self._arm(self._trusted)
        else:
            st16(self._used, 0, 0)
        fence()
        return self._checked(self._index()) != self._trusted

    @cython.cfunc
    @cython.inline
    def _arm(self, index: cython.uint) -> cython.void:
        st16(self._used, 4 + 8 * self.size, be16(index) if self._big else le16(index))

    def disable_notifications(self) -> None:
        """Say that kicks are not needed for now. It is a wish: kicks may come all the same (2.7.10.1).

        With EVENT_IDX there is nothing to do: avail_event stays behind, and the driver kicks only when it passes it.
        Remote memory: nothing either. A store costs a hypervisor call, and the kick that it saves carries the index
        that saves a copy.
        """
        if not self._remote and not self._event_idx:
            st16(self._used, 0, be16(1) if self._big else le16(1))
