# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What every hcall looks up: window panes, and the parts of partitions and adapters that the hot ones need, typed.

`Partition` and the adapters are ordinary classes on top of these. Everything is under the hypervisor's lock.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.phyp.crq import ReceiveQueue
from cython.cimports.powervio.phyp.interrupts import InterruptPresentation
from cython.cimports.powervio.phyp.ledger import CostLedger
from cython.cimports.powervio.phyp.lock import HypervisorLock
from cython.cimports.powervio.phyp.redirect import Link
from cython.cimports.powervio.phyp.tce import TceTable


@cython.final
@cython.cclass
class WindowPane:
    """One triple of `ibm,my-dma-window`: an address space of `size` bytes from 0.

    A local pane has its owner's TCE table for good. A remote pane has the table of the partner's first pane, and only
    while the two ends are linked: it is resolved at every use and names whoever is connected now.
    """

    liobn: cython.ulonglong
    size: cython.ulonglong
    ledger: CostLedger
    table: TceTable | None
    remote: cython.bint
    peer_ledger: CostLedger | None
    link: Link | None

    def __init__(self, liobn: int, size: int, ledger: CostLedger, table: TceTable | None) -> None:
        self.liobn = liobn
        self.size = size
        self.ledger = ledger
        self.table = table
        self.remote = table is None
        self.peer_ledger = None
        """The ledger of the adapter whose window this is, while linked."""
        self.link = None
        """For redirected DMA through this pane, while linked."""


@cython.cclass
class AdapterRecord:
    """Of a virtual adapter: its ledger and its interrupt; its queue and its partner, if it has a CRQ."""

    partition: Any
    ledger: CostLedger
    interrupts: InterruptPresentation
    interrupt: Any
    interrupt_enabled: cython.bint
    queue: ReceiveQueue | None
    registered: cython.bint
    enabled: cython.bint
    partner: Any

    def __init__(self, partition: Any, interrupt: int) -> None:
        self.partition = partition
        self.ledger = CostLedger()
        self.interrupts = partition.interrupts
        """Its owner's."""
        self.interrupt = interrupt
        self.interrupt_enabled = False
        self.queue = None
        """None for an adapter without a CRQ."""
        self.registered = False
        self.enabled = False
        """False while suspended: then nothing is sent in either direction (papr-vio 3.8)."""
        self.partner = None
        """The configured other end, whether or not it is registered."""

    def signal(self) -> None:
        """Pulse the interrupt if it is enabled; nothing is latched while it is not (papr-vio 3.4)."""
        self.pulse()

    @cython.cfunc
    @cython.exceptval(-1)
    def pulse(self) -> cython.int:
        """As `signal`."""
        if self.interrupt_enabled and self.interrupts.pulse(self.interrupt):
            self.ledger.interrupted()
        return 0


@cython.cclass
class PartitionRecord:
    """Of a partition: what it may name, and on whose account its hcalls are that belong to no adapter."""

    hypervisor: Any
    memory: Any
    panes: dict[int, WindowPane]
    physical: dict[int, Any]
    adapters: dict[int, Any]
    sources: dict[int, Any]
    ledger: CostLedger
    interrupts: InterruptPresentation
    copy_limit: cython.ulonglong
    redirect_limit: cython.int

    def __init__(self, hypervisor: Any, memory: memoryview) -> None:
        self.hypervisor = hypervisor
        self.memory = memory
        self.panes = {}
        """By LIOBN: what the partition may name, which is all the authorisation there is."""
        self.physical = {}
        """By LIOBN: whose TCE tables the partition may fill."""
        self.adapters = {}
        """By unit address."""
        self.sources = {}
        """By interrupt source number."""
        self.ledger = CostLedger()
        """hcalls that belong to no adapter: H_CPPR, an empty H_XIRR, unknown unit addresses and LIOBNs."""
        self.interrupts = InterruptPresentation()
        self.copy_limit = hypervisor.copy_limit
        self.redirect_limit = hypervisor.policy.max_redirected_mappings


@cython.cclass
class PortRecord:
    """Of a partition's port: whose hcalls it passes on, and under which lock."""

    _partition: PartitionRecord
    _lock: HypervisorLock

    def __init__(self, partition: PartitionRecord) -> None:
        self._partition = partition
        self._lock = partition.hypervisor.lock
