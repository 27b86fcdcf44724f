# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What every hcall looks up: window panes, and the parts of partitions and adapters that the hot ones need, typed.

`Partition` and the adapters are ordinary classes on top of these. Everything is under the hypervisor's lock.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from typing import Any

import cython
from cython.cimports.powervio.memory.hw import low64
from cython.cimports.powervio.phyp.crq import ReceiveQueue
from cython.cimports.powervio.phyp.dma_table import DmaOperation, DmaTable
from cython.cimports.powervio.phyp.interrupts import InterruptPresentation
from cython.cimports.powervio.phyp.ledger import CostLedger
from cython.cimports.powervio.phyp.lock import HypervisorLock
from cython.cimports.powervio.phyp.redirect import Link
from cython.cimports.powervio.phyp.tce import TceTable

_AT_HAND = cython.declare(cython.ulonglong, 8)


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
    area: Any
    pins: cython.int
    alive: cython.bint
    waits: cython.bint
    _panes_at_hand: list[WindowPane | None]
    _engine_at_hand: PhysicalRecord | None

    def __init__(self, hypervisor: Any, area: Any) -> None:
        self.hypervisor = hypervisor
        self.area = area
        self.memory = area.view
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
        self.panes_changed()
        self._engine_at_hand = None
        self.pins = 0
        """Operations of DMA engines, its own or its servers', that are at work on its memory."""
        self.alive = True
        self.waits = True
        """Whether its hcalls may wait for operations that are in flight, in the thread that makes them."""

    def panes_changed(self) -> None:
        """`panes` has been changed: none of them is at hand."""
        self._panes_at_hand = [None] * _AT_HAND

    @cython.cfunc
    def pane(self, liobn: Any) -> WindowPane | None:
        """What an LIOBN names in `panes`. Looked up by number first, among those that were found lately."""
        number: cython.ulonglong = low64(liobn)
        place: cython.ulonglong = number & (_AT_HAND - 1)
        found: WindowPane | None = self._panes_at_hand[place]
        if found is None or found.liobn != number:
            found = self.panes.get(number)
            if found is not None:
                self._panes_at_hand[place] = found
        return found

    @cython.cfunc
    def engine(self, liobn: Any) -> PhysicalRecord | None:
        """What an LIOBN names in `physical`: an adapter is in there for as long as it is alive."""
        number: cython.ulonglong = low64(liobn)
        found: PhysicalRecord | None = self._engine_at_hand
        if found is None or found.liobn != number or not found.alive:
            found = self.physical.get(number)
            self._engine_at_hand = found
        return found

    @cython.cfunc
    @cython.exceptval(-1)
    def unpin(self) -> cython.int:
        """An operation on this memory has ended; the memory of a dead partition goes with the last of them."""
        self.pins -= 1
        if self.pins == 0 and not self.alive:
            self.area.close()
        return 0


@cython.cclass
class PhysicalRecord:
    """Of a physical adapter: its TCE table, and the operations of its engine."""

    partition: Any
    size: cython.ulonglong
    liobn: cython.ulonglong
    ledger: CostLedger
    own: TceTable
    table: DmaTable
    alive: cython.bint
    in_flight: cython.int
    _spare: DmaOperation | None
    _hypervisor: Any
    _lock: HypervisorLock

    def __init__(self, partition: PartitionRecord, liobn: int, window: int) -> None:
        self.partition = partition
        self.size = window
        self.liobn = liobn
        self.ledger = CostLedger()
        self.own = TceTable(window, partition.memory)
        self.table = DmaTable(self.own, partition)
        self.alive = True
        self.in_flight = 0
        """Operations that have begun and not ended."""
        self._spare = None
        """One that has ended: what it grew to is of use to the next."""
        self._hypervisor = partition.hypervisor
        self._lock = partition.hypervisor.lock

    @cython.cfunc
    def begin_moves(self, moves: Any, count: cython.ulonglong) -> DmaOperation | None:
        """Begin one operation of all that a list of moves names; None, with nothing pinned, if it is not good.

        To be given to `end_here`.
        """
        operation: DmaOperation
        self._lock.acquire()
        try:
            operation = self.unused()
            if not self.alive or not operation.take_all(self.table, moves, count):
                self.refused(operation)
                return None
            self.begun(operation)
            return operation
        finally:
            self._lock.release()

    @cython.cfunc
    @cython.exceptval(-1)
    def end_here(self, operation: DmaOperation, moved: cython.bint) -> cython.int:
        """It touches the memory no more, and nobody has it; `moved`: all bytes that are not counted yet."""
        if moved:
            operation.count_all()
        self._lock.acquire()
        try:
            self.ended(operation)
            operation.clear()
            self._spare = operation
        finally:
            self._lock.release()
        return 0

    # under the lock

    @cython.cfunc
    def unused(self) -> DmaOperation:
        """For what begins next: one that has ended, or a new one."""
        operation: DmaOperation | None = self._spare
        self._spare = None
        return DmaOperation() if operation is None else operation

    @cython.cfunc
    @cython.exceptval(-1)
    def refused(self, operation: DmaOperation) -> cython.int:
        """An operation did not get all its pages."""
        operation.release()
        return self._wake()

    @cython.cfunc
    @cython.exceptval(-1)
    def begun(self, operation: DmaOperation) -> cython.int:
        """An operation has all its pages."""
        partition: PartitionRecord
        self.in_flight += 1
        for partition in operation.partitions:
            partition.pins += 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def ended(self, operation: DmaOperation) -> cython.int:
        """It touches them no more."""
        partition: PartitionRecord
        operation.release()
        self.in_flight -= 1
        for partition in operation.partitions:
            partition.unpin()
        operation.settle()
        return self._wake()

    @cython.cfunc
    @cython.exceptval(-1)
    def _wake(self) -> cython.int:
        """Whoever waits for operations to end looks again."""
        if self._hypervisor.waiting:
            self._hypervisor.drained.notify_all()
        return 0


@cython.cclass
class PortRecord:
    """Of a partition's port: whose hcalls it passes on, and under which lock."""

    _partition: PartitionRecord
    _lock: HypervisorLock

    def __init__(self, partition: PartitionRecord) -> None:
        self._partition = partition
        self._lock = partition.hypervisor.lock
