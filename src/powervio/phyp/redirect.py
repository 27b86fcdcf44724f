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

    first: dict[Any, Any]
    tracked: cython.ulonglong
    live: cython.ulonglong
    pinned: cython.ulonglong
    bit_bucket: cython.bint

    def __init__(self) -> None:
        self.first = {}
        self.tracked = 0
        """Copies on record."""
        self.live = 0
        self.pinned = 0
        self.bit_bucket = True
        """Bit Bucket Allowed (H_LIOBN_ATTRIBUTES): an entry with a live copy may be changed, which ends the copy."""

    @cython.ccall
    def check(
        self, entry: cython.ulonglong, places: list[Any], target: cython.ulonglong, limit: cython.int
    ) -> cython.int:
        """Whether one more copy of an entry may be made: H_RESOURCE when all `limit` are, H_IN_USE for the same."""
        if self.live == 0:
            return 0
        found: cython.int = 0
        same: cython.bint = False
        copy: RedirectedCopy | None = self.first.get(entry)
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
        key = entry
        if self.tracked != 0:
            copy.following = self.first.get(key)
        self.first[key] = copy
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
        key = copy.entry
        self.tracked -= 1
        other: Any = self.first[key]
        if other is copy:
            if copy.following is None:
                del self.first[key]
            else:
                self.first[key] = copy.following
            return
        before: RedirectedCopy = other
        while before.following is not None and before.following is not copy:
            before = before.following
        before.following = copy.following

    @cython.ccall
    def change(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """Entries are about to be changed. H_RESOURCE: they must not. BUSY: they may when operations have ended."""
        chains: list[Any]
        if count <= self.tracked:
            chains = [self.first[key] for key in range(index, index + count) if key in self.first]
        else:
            chains = [copy for key, copy in self.first.items() if index <= key < index + count]
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
            self._invalidate_chains(list(self.first.values()))

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
