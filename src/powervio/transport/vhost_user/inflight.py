# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The record of requests in flight of one queue, which survives this process: it is in memory that the front end keeps.

A back end notes each chain that it takes, and takes the note back after the chain is among the used ones. A successor
finds what was taken and not given back, and takes it again, in the order in which it was taken. Source: QEMU,
docs/interop/vhost-user.rst, "Inflight I/O tracking". Integers are in the host's byte order. The record of each queue
begins at a multiple of 64 bytes, in bytes:

======  ==  ===================  ===  ==========================================================================
offset  of  split                 of  packed
======  ==  ===================  ===  ==========================================================================
0       8   features (0)           8  features (0)
8       2   version (1; 0: new)    2  version (1; 0: new)
10      2   desc_num, N            2  desc_num, N
12      2   last_batch_head        2  free_head: first free entry, with the next batch of used chains
14      2   used_idx               2  old_free_head: first free entry
16                                 2  used_idx: slot where the next used descriptor goes, after the next batch
18                                 2  old_used_idx: slot where the next used descriptor goes
20                                 1  used_wrap_counter, there
21                                 1  old_used_wrap_counter, there
22                                 7  unused, and 3 more, for entries are aligned to 8
======  ==  ===================  ===  ==========================================================================

and then N entries, from 16 on (split, one for each descriptor) and from 32 on (packed, one for each descriptor of the
chains in flight, as they were in the ring):

======  ==  ===================  ===  ==========================================================================
0       1   inflight: of a head    1  inflight: of the first of a chain
1       5   unused                 1  unused
2                                  2  next entry, of a chain or of the free ones; N or more ends the free ones
4                                  2  last entry of a chain, in its first
6       2   next: of the batch     2  num: entries of a chain, in its first
8       8   counter                8  counter: of the first of a chain
16                                 2  id
18                                 2  flags
20                                 4  len
24                                 8  addr
======  ==  ===================  ===  ==========================================================================

**Split.** The order of stores, and why nothing is lost or done twice:

1. A chain is noted (counter, then inflight) before its data are touched.
2. Completed chains are linked by `next` from `last_batch_head` before used.idx shows them.
3. After used.idx shows them their notes are taken back, and then `used_idx` follows used.idx.

A death between 2 and 3 leaves `used_idx` behind: the chains of the last batch are noted though they are done. They
are told apart by *both* accounts: a chain is done if it is in that list and in the used ring from `used_idx` on. The
list alone does not do: a record that was never used says that chain 0 is its last batch, and after a migration, where
a new record meets a ring whose used.idx is not 0, chain 0 would be dropped although it is in flight. A list that
repeats itself, or is longer than the queue, is no batch. For the same reason `used_idx` is set when a queue starts.

**Packed.** The ring tells neither what was taken nor where it stands, so the record does:

1. A chain's descriptors are copied to free entries; then one store takes these from the free ones, both `free_head`s
   at once. Before it nothing has happened, for what is noted in free entries is void; after it the chain is in flight.
2. Completed chains stay in flight until they are about to be shown. Then they are put before the free entries
   (`free_head` alone), and `used_idx` says where the ring will stand.
3. The ring shows them, all by one store: the flags of the descriptor at `old_used_idx`.
4. Their notes are taken back, and the `old_` fields follow.

A successor that finds the two positions different looks at that descriptor: if it is still available, the batch was
not shown and the old fields are true; if not, the new ones are. What is noted in free entries then is void. Where the
next chain is to be taken follows: all between there and the used position is in flight. Rule 3 is the ring's
(`packed_device`); it also takes back the flags of used descriptors that a dead device wrote behind that one.

A record of version 0 is begun where the front end says that the ring stands. One that was begun is believed before
the front end, which cannot know where a dead back end was; except that chains which it says are in flight, first of
all, must be so in the ring: back ends are known that begin every record at slot 0, also after a migration.

The memory is the front end's too: what is read there, once and by `recover` and `recall` alone, is a number within
bounds. What runs for every request goes by books of its own, and only writes. Stores of one word are not torn, and
what a killed process stored is there in program order: it is enough that the compiler keeps that.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence

import cython
from cython.cimports.powervio.memory.hw import (
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
    st8_release,
    st16,
    st16_release,
    st32,
    st64,
    st64_release,
)
from cython.cimports.powervio.virtio.chain_record import ChainRecord
from cython.cimports.powervio.virtio.packed_layout import place_after

from powervio.errors import LocalError, RemoteError, Verdict

VERSION = cython.declare(cython.uint, 1)
ALIGN = 64
"""Bytes: the record of each queue begins at a multiple."""
MAX_SIZE = 32768
"""Descriptors of a queue."""

_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
_VERSION_AT = cython.declare(cython.uint, 8)
_COUNT_AT = cython.declare(cython.uint, 10)
_COUNTER_AT = cython.declare(cython.uint, 8)

_SPLIT_HEAD = cython.declare(cython.uint, 16)
_SPLIT_ENTRY = cython.declare(cython.uint, 16)
_BATCH_AT = cython.declare(cython.uint, 12)
_SPLIT_USED_AT = cython.declare(cython.uint, 14)
_SPLIT_NEXT_AT = cython.declare(cython.uint, 6)

_PACKED_HEAD = cython.declare(cython.uint, 32)
_PACKED_ENTRY = cython.declare(cython.uint, 32)
_FREE_AT = cython.declare(cython.uint, 12)
_OLD_FREE_AT = cython.declare(cython.uint, 14)
_USED_AT = cython.declare(cython.uint, 16)
_OLD_USED_AT = cython.declare(cython.uint, 18)
_WRAP_AT = cython.declare(cython.uint, 20)
_OLD_WRAP_AT = cython.declare(cython.uint, 21)
_NEXT_AT = cython.declare(cython.uint, 2)
_LAST_AT = cython.declare(cython.uint, 4)
_NUM_AT = cython.declare(cython.uint, 6)
_ID_AT = cython.declare(cython.uint, 16)
_FLAGS_AT = cython.declare(cython.uint, 18)
_LENGTH_AT = cython.declare(cython.uint, 20)
_ADDRESS_AT = cython.declare(cython.uint, 24)

# Flags of a packed descriptor (virtio 1.4, 2.8.1).
_AVAILABLE = cython.declare(cython.uint, 0x80)
_USED = cython.declare(cython.uint, 0x8000)

# Whose an entry is, while a record is recovered.
_NOBODYS = 0
_FREE = 1
_TAKEN = 2


def split_bytes(size: int) -> int:
    """Bytes of the record of one split queue of `size` descriptors."""
    used: int = 16 + 16 * size
    return (used + ALIGN - 1) // ALIGN * ALIGN


def packed_bytes(size: int) -> int:
    """Bytes of the record of one packed queue of `size` descriptors."""
    used: int = 32 + 32 * size
    return (used + ALIGN - 1) // ALIGN * ALIGN


@cython.cclass
class InflightQueue(ChainRecord):
    """What the records of both kinds of queue have in common. `note_...` are for Python what a ring calls."""

    size: cython.uint
    _view: object
    _books: object
    _record: cython.p_uchar
    _completed: cython.p_uchar
    _count: cython.uint
    _counter: cython.ulonglong

    def __init__(self, view: memoryview, size: int, needed: int) -> None:
        """For the kinds themselves: `needed` bytes for `size` descriptors. Raises `RemoteError` for another version
        or size.
        """
        books = bytearray(2 * size)
        if not 0 < size <= MAX_SIZE or view.nbytes < needed:
            raise RemoteError(f"a record of {view.nbytes} bytes for a queue of {size} descriptors")
        self.size = size
        """Descriptors that it has room for."""
        self._view = memoryview(view)
        self._books = books
        self._record = pointer(view)
        self._completed = pointer(books)
        self._count = 0
        self._counter = 0
        version: int = ld16(self._record, _VERSION_AT)
        count: int = ld16(self._record, _COUNT_AT)
        if version and (version != VERSION or count != size):
            raise RemoteError(
                f"a record of requests in flight, version {version} for {count} descriptors; "
                f"expected version {VERSION} for {size}"
            )

    def note_begin(self, head: int) -> None:
        """See `ChainRecord.begin`."""
        self.begin(head)

    def note_complete(self, head: int) -> None:
        """See `ChainRecord.complete`."""
        self.complete(head)

    def note_publishing(self, used_index: int) -> None:
        """See `ChainRecord.publishing`."""
        self.publishing(used_index)

    def note_published(self, used_index: int) -> None:
        """See `ChainRecord.published`."""
        self.published(used_index)

    @cython.cfunc
    def _unknown(self, head: cython.uint) -> object:
        raise LocalError(f"head {head} on the record of requests in flight of a queue of {self.size}")


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _split_entry(head: cython.uint) -> cython.ulonglong:
    return _SPLIT_HEAD + _SPLIT_ENTRY * head


@cython.final
@cython.cclass
class SplitInflight(InflightQueue):
    """The record of a split queue."""

    _batch: cython.uint

    def __init__(self, view: memoryview, size: int) -> None:
        """Raises `RemoteError` for a record of another version or size, or in too few bytes."""
        InflightQueue.__init__(self, view, size, split_bytes(size))
        if ld16(self._record, _VERSION_AT) == 0:  # never used
            st16(self._record, _COUNT_AT, size)
            st16_release(self._record, _VERSION_AT, VERSION)
        self._batch = ld16(self._record, _BATCH_AT)

    def start(self, used_index: int) -> None:
        """Begin a record of which nothing is in flight; `used_index` is used.idx."""
        head: cython.uint
        for head in range(self.size):
            st8(self._record, _split_entry(head), 0)
        st16_release(self._record, _SPLIT_USED_AT, used_index)

    def recover(self, used_index: int, used_ring: Sequence[int], in_order: bool = False) -> list[int]:
        """The heads that a predecessor had in flight, in the order in which it took them; the record is put in order.

        `used_ring` are the ids in the used ring, oldest slot first (slot 0), and `used_index` is used.idx. With
        `in_order`, IN_ORDER was negotiated: one id may be there for many.
        """
        head: cython.uint
        for head in self._last_batch(used_index, used_ring, in_order):
            st8(self._record, _split_entry(head), 0)
        st16_release(self._record, _SPLIT_USED_AT, used_index)
        found: list[tuple[int, int]] = []
        for head in range(self.size):
            if ld8(self._record, _split_entry(head)):
                found.append((ld64(self._record, _split_entry(head) + _COUNTER_AT), head))
        found.sort()
        self._counter = (max(found)[0] + 1) & _LAST if found else 0
        return [head for _, head in found]

    def _last_batch(self, used_index: int, used_ring: Sequence[int], in_order: bool) -> list[int]:
        """What is noted although the used ring shows it."""
        size: int = self.size
        count: int = (used_index - ld16(self._record, _SPLIT_USED_AT)) & 0xFFFF
        if not 0 < count <= min(size, len(used_ring)):
            return []
        shown = {used_ring[(used_index - 1 - back) % len(used_ring)] for back in range(count)}
        chain: list[int] = []
        head: int = self._batch
        # a chain of a back end that does not note those which go back at once is in the used ring and not here
        while len(chain) < count and head < size and (head in shown or (in_order and chain)):
            if head in chain:
                return []
            chain.append(head)
            head = ld16(self._record, _split_entry(head) + _SPLIT_NEXT_AT)
        return chain

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin(self, head: cython.uint) -> cython.int:
        """See `ChainRecord`."""
        at: cython.ulonglong = _split_entry(head)
        if head >= self.size:
            with cython.gil:
                self._unknown(head)
        st64(self._record, at + _COUNTER_AT, self._counter)
        self._counter = (self._counter + 1) & _LAST
        st8_release(self._record, at, 1)
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def complete(self, head: cython.uint) -> cython.int:
        """See `ChainRecord`."""
        if head >= self.size or self._count == self.size:
            with cython.gil:
                self._unknown(head)
        st16(self._record, _split_entry(head) + _SPLIT_NEXT_AT, self._batch)
        st16_release(self._record, _BATCH_AT, head)
        self._batch = head
        st16(self._completed, 2 * self._count, head)
        self._count += 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def published(self, used_index: cython.uint) -> cython.int:
        """See `ChainRecord`; `used_index` is used.idx."""
        index: cython.uint
        for index in range(self._count):
            st8(self._record, _split_entry(ld16(self._completed, 2 * index)), 0)
        self._count = 0
        st16_release(self._record, _SPLIT_USED_AT, used_index)
        return 0


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _packed_entry(entry: cython.uint) -> cython.ulonglong:
    return _PACKED_HEAD + _PACKED_ENTRY * entry


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _word(
    first: cython.ulonglong, second: cython.ulonglong, third: cython.ulonglong, fourth: cython.ulonglong
) -> cython.ulonglong:
    """Four fields of 16 bits that follow each other in memory, as the number to store there."""
    if le16(1) == 1:
        return first | second << 16 | third << 32 | fourth << 48
    return first << 48 | second << 32 | third << 16 | fourth


@cython.final
@cython.cclass
class PackedInflight(InflightQueue):
    """The record of a packed queue."""

    _period: cython.uint
    # What the head of the record says, besides `_free`: positions (`packed_layout`) for the slots with wrap counters.
    _old_free: cython.uint
    _used: cython.uint
    _old_used: cython.uint
    # Of each entry: the next one, and the last one and the number of the chain that begins there.
    _next: cython.p_uchar
    _lasts: cython.p_uchar
    _counts: cython.p_uchar
    # The entries of the chains that the ring has in hand, by what it calls them.
    _entries: cython.p_uchar
    _free: cython.uint
    _room: cython.uint
    _taken: cython.uint
    _more_books: object

    def __init__(self, view: memoryview, size: int, queue_size: int) -> None:
        """A record of `size` entries for a ring of `queue_size`, which may be less. `start` or `recover` comes next.

        Raises `RemoteError` for a record of another version or size, or in too few bytes.
        """
        InflightQueue.__init__(self, view, size, packed_bytes(size))
        if not 0 < queue_size <= size:
            raise RemoteError(f"a ring of {queue_size} entries, and a record for {size}")
        books = [bytearray(2 * size) for _ in range(4)]
        self._more_books = books
        self._next = pointer(books[0])
        self._lasts = pointer(books[1])
        self._counts = pointer(books[2])
        self._entries = pointer(books[3])
        for head in range(size):
            st16(self._entries, 2 * head, size)
        self._period = queue_size
        self._free = self._old_free = self._room = self._taken = 0
        self._used = self._old_used = 0

    @property
    def begun(self) -> bool:
        """Whether it was ever started."""
        return ld16(self._record, _VERSION_AT) != 0

    @property
    def used_index(self) -> int:
        """Position of the next used descriptor, in 16 bits (`packed_layout`), after `start` or `recover`."""
        return self._used

    @property
    def last_available(self) -> int:
        """Position of the next chain to be taken, in 16 bits, after `start` or `recover`."""
        return place_after(self.used_index, self._taken, self._period)

    def start(self, used_index: int) -> None:
        """Begin a record of which nothing is in flight, where `used_index` is the position of the next used descriptor.

        Raises `RemoteError` for a position that the ring does not have.
        """
        entry: cython.uint
        position: cython.uint = used_index & 0xFFFF
        self._check(position & 0x7FFF)
        st16_release(self._record, _VERSION_AT, 0)  # a death meanwhile leaves a new one
        for entry in range(self.size):
            st8(self._record, _packed_entry(entry), 0)
            st16(self._record, _packed_entry(entry) + _NEXT_AT, entry + 1)
            st16(self._next, 2 * entry, entry + 1)
        self._free = self._taken = 0
        self._room = self.size
        self._counter = 0
        self._used = position
        self._settle()
        self._store_used()
        self._store_free()

    @cython.cfunc
    @cython.exceptval(-1)
    def _check(self, slot: cython.uint) -> cython.int:
        if slot >= self._period:
            raise RemoteError(f"slot {slot} of a packed ring of {self._period} entries", Verdict.NEEDS_RESET)
        return 0

    def recover(self, descriptors: memoryview, base: int) -> list[int]:
        """What `recall` takes for the chains that a predecessor had in flight, in the order in which it took them.

        The record is put in order. `descriptors` is the descriptor ring, and `base` is the position of the next used
        descriptor as the front end has it, in case that the record does not know. Raises `RemoteError` for a record
        that contradicts itself or the ring.
        """
        ring: cython.p_uchar = pointer(descriptors)
        entry: cython.uint
        free: int = ld16(self._record, _FREE_AT)
        used: int = ld16(self._record, _USED_AT)
        old_used: int = ld16(self._record, _OLD_USED_AT)
        wrap: int = ld8(self._record, _WRAP_AT)
        old_wrap: int = ld8(self._record, _OLD_WRAP_AT)
        if wrap > 1 or old_wrap > 1:
            raise self._contradiction(f"wrap counters {wrap} and {old_wrap}")
        self._check(used)
        self._check(old_used)
        if (used, wrap) == (old_used, old_wrap) or _is_available(ring, old_used, old_wrap):
            free, used, wrap = ld16(self._record, _OLD_FREE_AT), old_used, old_wrap
        whose = bytearray(self.size)
        free_ones = self._free_ones(free, whose)
        chains = self._chains(whose)
        self._taken = sum(ld16(self._counts, 2 * number) for _, number in chains)
        if self._taken > self._period:
            raise self._contradiction(f"{self._taken} descriptors in flight in a ring of {self._period}")
        busy: bool = bool(chains)
        if not _can_be_used_next(ring, used, wrap, busy):
            self._check(base & 0x7FFF)
            if not _can_be_used_next(ring, base & 0x7FFF, base >> 15 & 1, busy):
                raise self._contradiction(f"the ring is not at slot {used}, and not at {base & 0x7FFF} either")
            used, wrap = base & 0x7FFF, base >> 15 & 1
        # from here on it is written; a death at any point leaves what the next one finds as this one did
        for entry in range(self.size):
            if whose[entry] == _NOBODYS:  # what a chain lost that others wrote into, or a death of another back end
                free_ones.append(entry)
        self._room = len(free_ones)
        self._link(free_ones)
        self._used = used | wrap << 15
        self._settle()
        self._store_free()
        self._store_used()
        for entry in free_ones:
            st8(self._record, _packed_entry(entry), 0)
        self._counter = (max(chains)[0] + 1) & _LAST if chains else 0
        return [number for _, number in chains]

    def _contradiction(self, what: str) -> RemoteError:
        return RemoteError(f"the record of requests in flight contradicts itself: {what}", Verdict.NEEDS_RESET)

    def _free_ones(self, entry: int, whose: bytearray) -> list[int]:
        """The free entries from the first one on, in their order."""
        found: list[int] = []
        size: int = self.size
        while entry < size:
            if whose[entry]:
                raise self._contradiction(f"entry {entry} is free twice")
            whose[entry] = _FREE
            found.append(entry)
            entry = ld16(self._record, _packed_entry(entry) + _NEXT_AT)
        return found

    def _chains(self, whose: bytearray) -> list[tuple[int, int]]:
        """The chains that are in flight, oldest first: counter and first entry."""
        found: list[tuple[int, int]] = []
        first: int
        entry: int
        following: int
        count: int
        for first in range(self.size):
            if whose[first] == _FREE or not ld8(self._record, _packed_entry(first)):
                continue
            count = ld16(self._record, _packed_entry(first) + _NUM_AT)
            entry = first
            for _ in range(count):
                if entry >= self.size or whose[entry]:
                    raise self._contradiction(f"the chain of entry {first} has entry {entry}, which is not its own")
                whose[entry] = _TAKEN
                following = ld16(self._record, _packed_entry(entry) + _NEXT_AT)
                st16(self._next, 2 * entry, following)
                st16(self._lasts, 2 * first, entry)
                entry = following
            if not count:
                raise self._contradiction(f"the chain of entry {first} is empty")
            st16(self._counts, 2 * first, count)
            found.append((ld64(self._record, _packed_entry(first) + _COUNTER_AT), first))
        found.sort()
        return found

    def _link(self, free_ones: list[int]) -> None:
        """Link the free entries, from the last one on: those that are new to the list are behind the others."""
        entry: cython.uint
        following: cython.uint = self.size
        for entry in reversed(free_ones):
            st16(self._next, 2 * entry, following)
            st16_release(self._record, _packed_entry(entry) + _NEXT_AT, following)
            following = entry
        self._free = following

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _settle(self) -> cython.void:
        """Let the old fields be as the new ones."""
        self._old_free = self._free
        self._old_used = self._used

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _store_free(self) -> cython.void:
        """The word of the version and the free entries, after all that was stored before."""
        st64_release(self._record, _VERSION_AT, _word(VERSION, self.size, self._free, self._old_free))

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def _store_used(self) -> cython.void:
        """The word of where the next used descriptor goes, after all that was stored before."""
        wraps: cython.uint = le16((self._used >> 15) | (self._old_used >> 15) << 8)
        word: cython.ulonglong = _word(self._used & 0x7FFF, self._old_used & 0x7FFF, wraps, 0)
        st64_release(self._record, _USED_AT, word)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin_chain(
        self, head: cython.uint, table: cython.p_uchar, slot: cython.uint, count: cython.uint
    ) -> cython.int:
        """See `ChainRecord`."""
        first: cython.uint = self._free
        entry: cython.uint = first
        last: cython.uint = first
        index: cython.uint
        place: cython.ulonglong
        at: cython.ulonglong
        if head >= self._period or slot >= self._period or count == 0 or count > self._room or count > self._period:
            with cython.gil:
                self._unknown(head)
        for index in range(count):
            place = 16 * slot
            at = _packed_entry(entry)
            st64(self._record, at + _ADDRESS_AT, le64(ld64(table, place)))
            st32(self._record, at + _LENGTH_AT, le32(ld32(table, place + 8)))
            st16(self._record, at + _ID_AT, le16(ld16(table, place + 12)))
            st16(self._record, at + _FLAGS_AT, le16(ld16(table, place + 14)))
            last = entry
            entry = ld16(self._next, 2 * entry)
            slot = slot + 1 if slot + 1 < self._period else 0
        at = _packed_entry(first)
        st16(self._record, at + _LAST_AT, last)
        st16(self._record, at + _NUM_AT, count)
        st64(self._record, at + _COUNTER_AT, self._counter)
        st8(self._record, at, 1)
        self._counter = (self._counter + 1) & _LAST
        st16(self._lasts, 2 * first, last)
        st16(self._counts, 2 * first, count)
        st16(self._entries, 2 * head, first)
        self._free = entry
        self._room -= count
        self._old_free = entry
        self._store_free()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def recall(self, head: cython.uint, note: cython.uint, table: cython.p_uchar) -> cython.int:
        """See `ChainRecord`."""
        count: cython.uint = 0
        entry: cython.uint = note
        index: cython.uint
        at: cython.ulonglong
        if head < self._period and note < self.size:
            count = ld16(self._counts, 2 * note)
        if count == 0:
            with cython.gil:
                self._unknown(head)
        for index in range(count):
            at = _packed_entry(entry)
            st64(table, 16 * index, le64(ld64(self._record, at + _ADDRESS_AT)))
            st32(table, 16 * index + 8, le32(ld32(self._record, at + _LENGTH_AT)))
            st16(table, 16 * index + 12, le16(ld16(self._record, at + _ID_AT)))
            st16(table, 16 * index + 14, le16(ld16(self._record, at + _FLAGS_AT)))
            entry = ld16(self._next, 2 * entry)
        st16(self._entries, 2 * head, note)
        return count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def complete(self, head: cython.uint) -> cython.int:
        """See `ChainRecord`."""
        entry: cython.uint = self.size
        if head < self._period:
            entry = ld16(self._entries, 2 * head)
            st16(self._entries, 2 * head, self.size)
        if entry >= self.size or self._count == self.size:
            with cython.gil:
                self._unknown(head)
        st16(self._completed, 2 * self._count, entry)
        self._count += 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def publishing(self, used_index: cython.uint) -> cython.int:
        """See `ChainRecord`."""
        index: cython.uint
        entry: cython.uint
        last: cython.uint
        for index in range(self._count):
            entry = ld16(self._completed, 2 * index)
            last = ld16(self._lasts, 2 * entry)
            st16(self._next, 2 * last, self._free)
            st16(self._record, _packed_entry(last) + _NEXT_AT, self._free)
            self._free = entry
        self._used = used_index
        self._store_free()
        self._store_used()
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def published(self, used_index: cython.uint) -> cython.int:
        """See `ChainRecord`."""
        index: cython.uint
        entry: cython.uint
        for index in range(self._count):
            entry = ld16(self._completed, 2 * index)
            st8(self._record, _packed_entry(entry), 0)
            self._room += ld16(self._counts, 2 * entry)
            st16(self._counts, 2 * entry, 0)
        self._count = 0
        self._settle()
        self._store_free()
        self._store_used()
        return 0

    def note_chain(self, head: int, descriptors: bytearray, slot: int, count: int) -> None:
        """See `ChainRecord.begin_chain`."""
        if len(descriptors) < 16 * self._period:
            raise LocalError(f"{len(descriptors)} bytes of descriptors of a ring of {self._period}")
        self.begin_chain(head, pointer(descriptors), slot, count)

    def note_recall(self, head: int, note: int) -> bytes:
        """See `ChainRecord.recall`; the descriptors."""
        table = bytearray(16 * self.size)
        count: int = self.recall(head, note, pointer(table))
        return bytes(table[: 16 * count])


@cython.cfunc
@cython.exceptval(-1)
def _is_available(ring: cython.p_uchar, slot: cython.uint, wrap: cython.uint) -> cython.bint:
    """Whether a descriptor is available and not used, in the round with that wrap counter."""
    flags: cython.uint = le16(ld16_acquire(ring, 16 * slot + 14)) & (_AVAILABLE | _USED)
    return flags == (_AVAILABLE if wrap else _USED)


@cython.cfunc
@cython.exceptval(-1)
def _can_be_used_next(ring: cython.p_uchar, slot: cython.uint, wrap: cython.uint, busy: cython.bint) -> cython.bint:
    """Whether the next used descriptor can be due there: with chains in flight it is still available; without, it is
    anything but used in this round (driver and device leave flags of the round before in the middle of a chain).
    """
    flags: cython.uint = le16(ld16_acquire(ring, 16 * slot + 14)) & (_AVAILABLE | _USED)
    if busy:
        return flags == (_AVAILABLE if wrap else _USED)
    return flags != (_AVAILABLE | _USED if wrap else 0)
