# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Redirected copies: entries of a client's TCE table that stand in a physical adapter's table too (papr-vio 2.4, 2.5).

A copy is *live* while an operation may begin on it, and *pinned* while one is under way. A copy that was invalidated
with an operation on it stays on record until that has ended, so that its page is known to be in use. Everything here
runs under the hypervisor's lock.
"""

from __future__ import annotations

from typing import Any

import cython

H_RESOURCE = cython.declare(cython.int, -16)
H_IN_USE = cython.declare(cython.int, -77)
H_LONG_BUSY = cython.declare(cython.int, 9900)
BUSY = cython.declare(cython.int, 0x10000)
CHUNK = cython.declare(cython.ulonglong, 512)

NOT_DRAINED = 0x10000
"""`BUSY` for callers that are not compiled: no return code of PAPR's, a partition never sees it."""


@cython.final
@cython.cclass
class Link:
    """One connection of two registered ends: whose memory is redirected through it, and on whose account.

    `ledger` is that of the server's adapter, `peer_ledger` that of the client's, `partition` the client's partition.
    """

    copies: CopySet
    memory: Any
    partition: Any
    ledger: Any
    peer_ledger: Any
    closing: cython.bint

    def __init__(self, copies: CopySet, partition: Any, ledger: Any, peer_ledger: Any) -> None:
        self.copies = copies
        self.memory = partition.memory
        self.partition = partition
        self.ledger = ledger
        self.peer_ledger = peer_ledger
        self.closing = False


@cython.final
@cython.cclass
class RedirectedCopy:
    """One entry of a client's table (`entry`) in one place of an adapter's (`places[target]`), as it was copied."""

    link: Link
    entry: cython.ulonglong
    tce: cython.ulonglong
    places: list[Any]
    target: cython.ulonglong
    pins: cython.ulonglong
    live: cython.bint
    following: RedirectedCopy | None


@cython.final
@cython.cclass
class CopySet:
    """All copies of the entries of one table that are live or pinned; empty for nearly every table."""

    chunks: list[Any]
    tracked: cython.ulonglong
    live: cython.ulonglong
    pinned: cython.ulonglong
    bit_bucket: cython.bint

    def __init__(self, count: cython.ulonglong) -> None:
        """For a table of `count` entries."""
        self.chunks = [None] * ((count + CHUNK - 1) // CHUNK)
        """The first copy of each entry, or None, 512 entries to a list; a chunk that was never used is None."""
        self.tracked = 0
        """Copies on record."""
        self.live = 0
        self.pinned = 0
        self.bit_bucket = True
        """Bit Bucket Allowed (H_LIOBN_ATTRIBUTES): an entry with a live copy may be changed, which ends the copy."""

    @cython.cfunc
    def _first(self, entry: cython.ulonglong) -> RedirectedCopy | None:
        chunk: list[Any] | None = self.chunks[entry // CHUNK]
        return None if chunk is None else chunk[entry % CHUNK]

    @cython.cfunc
    def _set_first(self, entry: cython.ulonglong, copy: RedirectedCopy | None) -> cython.void:
        chunk: list[Any] | None = self.chunks[entry // CHUNK]
        if chunk is None:
            chunk = [None] * 512
            self.chunks[entry // CHUNK] = chunk
        chunk[entry % CHUNK] = copy

    @cython.ccall
    def check(
        self, entry: cython.ulonglong, places: list[Any], target: cython.ulonglong, limit: cython.int
    ) -> cython.int:
        """Whether one more copy of an entry may be made: H_RESOURCE when all `limit` are, H_IN_USE for the same."""
        if self.live == 0:
            return 0 if limit > 0 else H_RESOURCE
        found: cython.int = 0
        same: cython.bint = False
        copy: RedirectedCopy | None = self._first(entry)
        while copy is not None:
            if copy.live:
                found += 1
                if copy.target == target and copy.places is places:
                    same = True
            copy = copy.following
        if found >= limit:
            return H_RESOURCE
        return H_IN_USE if same else 0

    @cython.ccall
    def add(
        self,
        link: Link,
        entry: cython.ulonglong,
        tce: cython.ulonglong,
        places: list[Any],
        target: cython.ulonglong,
    ) -> cython.void:
        """Make a copy, put it into its place and record it."""
        copy: RedirectedCopy = RedirectedCopy.__new__(RedirectedCopy)  # a call would make objects of the numbers
        copy.link = link
        copy.entry = entry
        copy.tce = tce
        copy.places = places
        copy.target = target
        copy.pins = 0
        copy.live = True
        copy.following = None
        if self.tracked != 0:
            copy.following = self._first(entry)
        self._set_first(entry, copy)
        places[target] = copy
        self.tracked += 1
        self.live += 1

    @cython.ccall
    def invalidate(self, copy: RedirectedCopy) -> cython.void:
        """No operation begins on the copy any more; it is forgotten when none is under way."""
        if copy.live:
            copy.live = False
            copy.places[copy.target] = None
            self.live -= 1
            if copy.pins == 0:
                self._forget(copy)

    @cython.ccall
    def pin(self, copy: RedirectedCopy) -> cython.void:
        """An operation begins on the copy's page."""
        if copy.pins == 0:
            self.pinned += 1
        copy.pins += 1

    @cython.ccall
    def unpin(self, copy: RedirectedCopy) -> cython.void:
        """An operation has ended."""
        copy.pins -= 1
        if copy.pins == 0:
            self.pinned -= 1
            if not copy.live:
                self._forget(copy)

    @cython.cfunc
    def _forget(self, copy: RedirectedCopy) -> cython.void:
        self.tracked -= 1
        before: RedirectedCopy | None = self._first(copy.entry)
        if before is copy:
            self._set_first(copy.entry, copy.following)
            return
        while before is not None:
            if before.following is copy:
                before.following = copy.following
                return
            before = before.following

    @cython.cfunc
    def _chains(self, index: cython.ulonglong, count: cython.ulonglong) -> list[Any]:
        """The first copies of those entries in a range of the table that have one."""
        found: list[Any] = []
        entry: cython.ulonglong = index
        end: cython.ulonglong = index + count
        chunk: list[Any] | None
        while entry < end:
            chunk = self.chunks[entry // CHUNK]
            if chunk is None:
                entry = (entry // CHUNK + 1) * CHUNK
                continue
            if chunk[entry % CHUNK] is not None:
                found.append(chunk[entry % CHUNK])
            entry += 1
        return found

    @cython.ccall
    def change(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """Entries are about to be changed. H_RESOURCE: they must not. BUSY: they may when operations have ended."""
        chains: list[Any] = self._chains(index, count)
        if not chains:
            return 0
        if not self.bit_bucket:
            return H_RESOURCE
        self._invalidate_chains(chains)
        if self.pinned != 0:
            for head in chains:
                copy: RedirectedCopy | None = head
                while copy is not None:
                    if copy.pins != 0:
                        return BUSY
                    copy = copy.following
        return 0

    @cython.ccall
    def invalidate_all(self) -> cython.void:
        """The connection or the table is gone."""
        if self.live != 0:
            self._invalidate_chains(self._chains(0, len(self.chunks) * CHUNK))

    @cython.cfunc
    def _invalidate_chains(self, chains: list[Any]) -> cython.void:
        for head in chains:
            copy: RedirectedCopy | None = head
            while copy is not None:
                following: RedirectedCopy | None = copy.following
                self.invalidate(copy)
                copy = following

    @cython.ccall
    def close(self) -> cython.int:
        """The connection is to end in order: 0 when no copy is left and no operation under way (papr-vio 1.5)."""
        if self.tracked == 0:
            return 0
        if self.live != 0 and not self.bit_bucket:
            return H_RESOURCE
        self.invalidate_all()
        return H_LONG_BUSY if self.pinned != 0 else 0
