"""The Sub-CRQs of one end of a connection (papr-vio 5).

A Sub-CRQ is named by a cookie that only its owner is told. Cookies are never used again, so an element that was sent
with the cookie of a freed Sub-CRQ reaches nobody. Interrupt numbers come from the adapter's `interrupt-ranges`; they
are the adapter's for good, so that an interrupt that was accepted can be ended after its Sub-CRQ is gone.
The caller holds the hypervisor's lock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from powervio.phyp.crq import ReceiveQueue

if TYPE_CHECKING:
    from powervio.phyp.adapter import VioAdapter

SUB_CRQ_SLOT = 32
"""Bytes of one element."""


class SubCrq:
    """One registered Sub-CRQ; its interrupt is disabled until H_VIOCTL enables it."""

    __slots__ = ("cookie", "interrupt_enabled", "queue", "source")

    def __init__(self, cookie: int, source: int, queue: ReceiveQueue) -> None:
        self.cookie = cookie
        self.source = source
        self.queue = queue
        self.interrupt_enabled = False


class SubCrqs:
    """All Sub-CRQs of one adapter, with the interrupt sources kept for them."""

    def __init__(self, adapter: VioAdapter, limit: int) -> None:
        self._adapter = adapter
        self.sources = tuple(adapter.partition.new_source() for _ in range(limit))
        self._free = list(reversed(self.sources))
        self._by_cookie: dict[int, SubCrq] = {}

    def __len__(self) -> int:
        return len(self._by_cookie)

    def get(self, cookie: int) -> SubCrq | None:
        """The Sub-CRQ that the owner registered under this cookie."""
        return self._by_cookie.get(cookie)

    def of_source(self, source: int) -> SubCrq | None:
        """The Sub-CRQ with this interrupt number."""
        return next((sub for sub in self._by_cookie.values() if sub.source == source), None)

    def register(self, ioba: int, length: int) -> SubCrq | None:
        """Take a checked range into use with every header zeroed; None when there is no queue left."""
        table = self._adapter.table
        if not self._free or table is None:
            return None
        queue = ReceiveQueue(table, SUB_CRQ_SLOT)
        queue.register(ioba, length)
        queue.clear()
        sub = SubCrq(self._adapter.partition.hypervisor.new_cookie(), self._free.pop(), queue)
        self._by_cookie[sub.cookie] = sub
        return sub

    def free(self, cookie: int) -> bool:
        """Forget one; false if there is none with this cookie."""
        sub = self._by_cookie.pop(cookie, None)
        if sub is None:
            return False
        sub.queue.release()
        self._free.append(sub.source)
        return True

    def free_all(self) -> None:
        """Forget all, as H_FREE_CRQ and the end of a partition do."""
        for cookie in list(self._by_cookie):
            self.free(cookie)

    def disable_interrupts(self) -> None:
        """No Sub-CRQ interrupts any more."""
        for sub in self._by_cookie.values():
            sub.interrupt_enabled = False

    def signal(self, sub: SubCrq) -> None:
        """Pulse a Sub-CRQ's interrupt if it is enabled."""
        if sub.interrupt_enabled and self._adapter.partition.interrupts.pulse(sub.source):
            self._adapter.ledger.interrupted()
