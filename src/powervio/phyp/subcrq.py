# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The Sub-CRQs of one end of a connection (papr-vio 5).

A Sub-CRQ is named by a cookie that only its owner is told. Cookies are never used again, so an element that was sent
with the cookie of a freed Sub-CRQ reaches nobody. Interrupt numbers come from the adapter's `interrupt-ranges`; they
are the adapter's for good, so that an interrupt that was accepted can be ended after its Sub-CRQ is gone.
The caller holds the hypervisor's lock.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cython
from cython.cimports.powervio.phyp.crq import ReceiveQueue
from cython.cimports.powervio.phyp.records import AdapterRecord, PartitionRecord

if TYPE_CHECKING:
    from powervio.phyp.adapter import VioAdapter

SUB_CRQ_SLOT = 32
"""Bytes of one element."""


@cython.final
@cython.cclass
class SubCrq:
    """One registered Sub-CRQ; its interrupt is disabled until H_VIOCTL enables it."""

    cookie: Any
    source: Any
    queue: ReceiveQueue
    interrupt_enabled: cython.bint

    def __init__(self, cookie: int, source: int, queue: ReceiveQueue) -> None:
        self.cookie = cookie
        self.source = source
        self.queue = queue
        self.interrupt_enabled = False


@cython.final
@cython.cclass
class SubCrqs:
    """All Sub-CRQs of one adapter, with the interrupt sources kept for them."""

    sources: tuple[int, ...]
    _adapter: AdapterRecord
    unused: list[int]
    _by_cookie: dict[int, SubCrq]

    def __init__(self, adapter: VioAdapter, limit: int) -> None:
        self._adapter = adapter
        self.sources = tuple(adapter.partition.new_source() for _ in range(limit))
        self.unused = list(reversed(self.sources))
        self._by_cookie = {}

    def __len__(self) -> int:
        return len(self._by_cookie)

    @property
    def cookies(self) -> list[int]:
        """Of all that are registered."""
        return list(self._by_cookie)

    def get(self, cookie: int) -> SubCrq | None:
        """The Sub-CRQ that the owner registered under this cookie."""
        return self._by_cookie.get(cookie)

    def of_source(self, source: int) -> SubCrq | None:
        """The Sub-CRQ with this interrupt number."""
        return next((sub for sub in self._by_cookie.values() if sub.source == source), None)

    def register(self, ioba: int, length: int) -> SubCrq | None:
        """Take a checked range into use with every header zeroed; None when there is no queue left."""
        table = self._adapter.table  # type: ignore[attr-defined]
        if not self.unused or table is None:
            return None
        queue = ReceiveQueue(table, SUB_CRQ_SLOT)
        queue.register(ioba, length)
        queue.clear()
        sub = SubCrq(self._adapter.partition.hypervisor.new_cookie(), self.unused.pop(), queue)
        self._by_cookie[sub.cookie] = sub
        return sub

    def free(self, cookie: int) -> bool:
        """Forget one; false if there is none with this cookie."""
        sub = self._by_cookie.pop(cookie, None)
        if sub is None:
            return False
        sub.queue.release()
        self.unused.append(sub.source)
        return True

    def free_all(self) -> None:
        """Forget all, as H_FREE_CRQ and the end of a partition do."""
        for cookie in list(self._by_cookie):
            self.free(cookie)

    def disable_interrupts(self) -> None:
        """No Sub-CRQ interrupts any more."""
        for sub in self._by_cookie.values():
            sub.interrupt_enabled = False

    @cython.cfunc
    @cython.exceptval(-1)
    def signal(self, sub: SubCrq) -> cython.int:
        """Pulse a Sub-CRQ's interrupt if it is enabled."""
        partition: PartitionRecord = self._adapter.partition
        if sub.interrupt_enabled and partition.interrupts.pulse(sub.source):
            self._adapter.ledger.interrupted()
        return 0
