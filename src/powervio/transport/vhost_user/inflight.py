# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The record of requests in flight of one queue, which survives this process: it is in memory that the front end keeps.

A back end notes each buffer that it takes, and takes the note back after the buffer is in the used ring. A successor
finds what was taken and not given back, and takes it again, in the order in which it was taken. Source: QEMU,
docs/interop/vhost-user.rst, "Inflight I/O tracking", split virtqueue. Integers are in the host's byte order. For each
queue of N descriptors, aligned to 64 bytes::

    u64 features (0)   u16 version (1)   u16 desc_num   u16 last_batch_head   u16 used_idx
    N times: u8 inflight   5 bytes unused   u16 next   u64 counter

The order of stores, and why nothing is lost or done twice:

1. A buffer is noted (counter, then inflight) before its data are touched.
2. Completed buffers are chained by `next` from `last_batch_head` before used.idx shows them.
3. After used.idx shows them their notes are taken back, and then `used_idx` follows used.idx.

A death between 2 and 3 leaves `used_idx` behind: the buffers of the last batch are noted though they are done. They
are told apart by *both* accounts: a buffer is done if it is in that chain and in the used ring from `used_idx` on. The
chain alone does not do: a record that was never used says that buffer 0 is its last batch, and after a migration, where
a new record meets a ring whose used.idx is not 0, buffer 0 would be dropped although it is in flight. A chain that
repeats itself, or is longer than the queue, is no batch. For the same reason `used_idx` is set when a queue starts.

The memory is the front end's too: what is read there, by `recover` alone, is a number within bounds, and never a
length or an address. What runs for every request goes by books of its own, and only writes.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Sequence

import cython
from cython.cimports.powervio.memory.hw import (
    ld8,
    ld16,
    ld64,
    pointer,
    st8,
    st8_release,
    st16,
    st16_release,
    st64,
)

from powervio.errors import LocalError, RemoteError

VERSION = 1
ALIGN = 64
"""Bytes: the record of each queue begins at a multiple."""

_LAST = cython.declare(cython.ulonglong, 0xFFFF_FFFF_FFFF_FFFF)
# Offsets in bytes: of the head, and of an entry.
_SPLIT_HEAD = cython.declare(cython.uint, 16)
_SPLIT_ENTRY = cython.declare(cython.uint, 16)
_VERSION_AT = cython.declare(cython.uint, 8)
_COUNT_AT = cython.declare(cython.uint, 10)
_BATCH_AT = cython.declare(cython.uint, 12)
_USED_AT = cython.declare(cython.uint, 14)
_NEXT_AT = cython.declare(cython.uint, 6)
_COUNTER_AT = cython.declare(cython.uint, 8)


def split_bytes(size: int) -> int:
    """Bytes of the record of one split queue of `size` descriptors."""
    used: int = 16 + 16 * size
    return (used + ALIGN - 1) // ALIGN * ALIGN


@cython.cclass
class InflightQueue:
    """What a device notes of a queue: `begin` with a buffer taken, `complete` with one put into the used ring, then
    `published` with what the driver sees.

    All three run without the interpreter lock; `note_...` are the same for Python. `head` is what the ring calls the
    buffer; a number that no buffer of the queue has raises `LocalError`.
    """

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
        if not 0 < size <= 32768 or view.nbytes < needed:
            raise RemoteError(f"a record of {view.nbytes} bytes for a queue of {size} descriptors")
        self.size = size
        """Descriptors."""
        self._view = memoryview(view)
        self._books = bytearray(2 * size)
        self._record = pointer(view)
        self._completed = pointer(self._books)
        self._count = 0
        self._counter = 0
        version: int = ld16(self._record, _VERSION_AT)
        count: int = ld16(self._record, _COUNT_AT)
        if version and (version != VERSION or count != size):
            raise RemoteError(
                f"a record of requests in flight, version {version} for {count} descriptors; "
                f"expected version {VERSION} for {size}"
            )

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin(self, head: cython.uint) -> cython.int:
        """A buffer is taken; its data have not been touched."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def complete(self, head: cython.uint) -> cython.int:
        """A buffer is in the used ring, which does not show it yet."""
        with cython.gil:
            raise NotImplementedError

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def published(self, used_index: cython.uint) -> cython.int:
        """The used ring shows what was completed, up to `used_index` (`DeviceRing.used_index`)."""
        with cython.gil:
            raise NotImplementedError

    def note_begin(self, head: int) -> None:
        """See `begin`."""
        self.begin(head)

    def note_complete(self, head: int) -> None:
        """See `complete`."""
        self.complete(head)

    def note_published(self, used_index: int) -> None:
        """See `published`."""
        self.published(used_index)

    @cython.cfunc
    def _unknown(self, head: cython.uint) -> object:
        raise LocalError(f"head {head} on the record of requests in flight of a queue of {self.size}")


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _entry(head: cython.uint) -> cython.ulonglong:
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

    def recover(self, used_index: int, used_ring: Sequence[int]) -> list[int]:
        """The heads that a predecessor had in flight, in the order in which it took them; the record is put in order.

        `used_ring` are the ids in the used ring, oldest slot first (slot 0), and `used_index` is used.idx.
        """
        head: cython.uint
        for head in self._last_batch(used_index, used_ring):
            st8(self._record, _entry(head), 0)
        st16_release(self._record, _USED_AT, used_index)
        found: list[tuple[int, int]] = []
        for head in range(self.size):
            if ld8(self._record, _entry(head)):
                found.append((ld64(self._record, _entry(head) + _COUNTER_AT), head))
        found.sort()
        self._counter = (max(found)[0] + 1) & 0xFFFF_FFFF_FFFF_FFFF if found else 0
        return [head for _, head in found]

    def _last_batch(self, used_index: int, used_ring: Sequence[int]) -> list[int]:
        """What is noted although the used ring shows it."""
        size: int = self.size
        count: int = (used_index - ld16(self._record, _USED_AT)) & 0xFFFF
        if not 0 < count <= min(size, len(used_ring)):
            return []
        shown = {used_ring[(used_index - 1 - back) % len(used_ring)] for back in range(count)}
        chain: list[int] = []
        head: int = self._batch
        # a buffer that the ring itself gave back (its table could not be fetched) is in the used ring and not here
        while len(chain) < count and head < size and head in shown:
            if head in chain:
                return []
            chain.append(head)
            head = ld16(self._record, _entry(head) + _NEXT_AT)
        return chain

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def begin(self, head: cython.uint) -> cython.int:
        """See `InflightQueue`."""
        at: cython.ulonglong = _entry(head)
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
        """See `InflightQueue`."""
        if head >= self.size or self._count == self.size:
            with cython.gil:
                self._unknown(head)
        st16(self._record, _entry(head) + _NEXT_AT, self._batch)
        st16_release(self._record, _BATCH_AT, head)
        self._batch = head
        st16(self._completed, 2 * self._count, head)
        self._count += 1
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def published(self, used_index: cython.uint) -> cython.int:
        """See `InflightQueue`; `used_index` is used.idx."""
        index: cython.uint
        for index in range(self._count):
            st8(self._record, _entry(ld16(self._completed, 2 * index)), 0)
        self._count = 0
        st16_release(self._record, _USED_AT, used_index)
        return 0
