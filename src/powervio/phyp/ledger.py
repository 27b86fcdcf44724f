# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The cost ledger: what an adapter made the hypervisor do, counted and never guessed.

"Hypervisor calls per request" and "remote copies per request" are deterministic, so tests assert them and they are
headline figures beside throughput. A ledger is always on; reading it costs nothing to the adapter.
"""

from __future__ import annotations

from typing import Any

import cython

LIMIT = 128
"""How many hcalls can have a counter."""

_names: list[str] = []


def hcall_index(name: str) -> int:
    """The place of an hcall's counter, given out on first use; one table for the whole process."""
    if name not in _names:
        if len(_names) >= LIMIT:
            raise RuntimeError(f"no counter left for {name}: the ledger has room for {LIMIT} hcalls")
        _names.append(name)
    return _names.index(name)


class Costs(dict[str, Any]):
    """Counts at one moment, or between two moments: the difference and the sum of two snapshots are again one.

    Keys: `hcalls` (a dict by hcall name, only those above zero), `rdma_operations`, `rdma_bytes`, `redirected_pages`,
    `redirected_bytes`, `crq_messages`, `interrupts`, `tce_updates`,
    `shared_tce_updates`.
    """

    def __sub__(self, earlier: Costs) -> Costs:
        return self._merge(earlier, -1)

    def __add__(self, other: Costs) -> Costs:
        return self._merge(other, 1)

    def _merge(self, other: Costs, sign: int) -> Costs:
        mine = self["hcalls"]
        theirs = other["hcalls"]
        result = Costs({key: self[key] + sign * other[key] for key in self if key != "hcalls"})
        calls = {name: mine.get(name, 0) + sign * theirs.get(name, 0) for name in {**mine, **theirs}}
        result["hcalls"] = {name: count for name, count in calls.items() if count}
        return result


@cython.final
@cython.cclass
class CostLedger:
    """Counters of one adapter, or of what a partition did on no adapter in particular.

    hcalls are counted as attempts, also those that fail. Bytes of remote DMA are counted at both ends of a connection,
    operations only at the end that asked. Pages mapped for redirected DMA, and bytes that an engine moved there, count
    at both ends. Messages count where they were sent, interrupts where they arrived.
    """

    calls: cython.ulonglong[128]
    rdma_operations: cython.ulonglong
    rdma_bytes: cython.ulonglong
    redirected_pages: cython.ulonglong
    redirected_bytes: cython.ulonglong
    crq_messages: cython.ulonglong
    interrupts: cython.ulonglong
    tce_updates: cython.ulonglong
    shared_tce_updates: cython.ulonglong

    def __init__(self) -> None:
        if not cython.compiled:
            self.calls = [0] * LIMIT
        index: cython.int
        for index in range(128):
            self.calls[index] = 0
        self.rdma_operations = 0
        self.rdma_bytes = 0
        self.redirected_pages = 0
        self.redirected_bytes = 0
        self.crq_messages = 0
        self.interrupts = 0
        self.tce_updates = 0
        """Entries of this adapter's table that were written, by hcalls or by its owner."""
        self.shared_tce_updates = 0
        """Those of them that its owner wrote into a shared table and the hypervisor met (docs/gateway.md, G9.9)."""

    @cython.ccall
    @cython.exceptval(check=False)
    def count(self, index: cython.int) -> cython.void:
        """One more attempt at the hcall with this index."""
        self.calls[index & 127] += 1

    @cython.ccall
    @cython.exceptval(check=False)
    def moved(self, length: cython.ulonglong) -> cython.void:
        """One remote DMA operation of this adapter moved `length` bytes."""
        self.rdma_operations += 1
        self.rdma_bytes += length

    @cython.ccall
    @cython.exceptval(check=False)
    def touched(self, length: cython.ulonglong) -> cython.void:
        """The partner's remote DMA moved `length` bytes to or from this adapter's window."""
        self.rdma_bytes += length

    @cython.ccall
    @cython.exceptval(check=False)
    def redirected(self, pages: cython.ulonglong, length: cython.ulonglong) -> cython.void:
        """So many pages of this connection were mapped for an engine, or `length` bytes moved by one."""
        self.redirected_pages += pages
        self.redirected_bytes += length

    @cython.ccall
    @cython.exceptval(check=False)
    def sent(self) -> cython.void:
        """One message of this adapter was put into the partner's queue."""
        self.crq_messages += 1

    @cython.ccall
    @cython.exceptval(check=False)
    def interrupted(self) -> cython.void:
        """One interrupt of this adapter became pending."""
        self.interrupts += 1

    @cython.ccall
    @cython.exceptval(check=False)
    def updated(self, entries: cython.ulonglong) -> cython.void:
        """So many entries of this adapter's TCE table were written."""
        self.tce_updates += entries

    def snapshot(self) -> Costs:
        """The counts now."""
        index: cython.int
        calls = {}
        for index in range(len(_names)):
            if self.calls[index]:
                calls[_names[index]] = int(self.calls[index])
        return Costs(
            hcalls=calls,
            rdma_operations=self.rdma_operations,
            rdma_bytes=self.rdma_bytes,
            redirected_pages=self.redirected_pages,
            redirected_bytes=self.redirected_bytes,
            crq_messages=self.crq_messages,
            interrupts=self.interrupts,
            tce_updates=self.tce_updates,
            shared_tce_updates=self.shared_tce_updates,
        )
