"""Virtual adapters: window panes, the CRQ, and the link between the two ends (papr-vio 2.2, 2.3, 3).

Everything here runs under the hypervisor's lock unless it says otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from powervio.papr.crq import TransportEvent, event_element
from powervio.papr.nodes import UNIT_ADDRESS_BASE, DmaWindow, VdeviceNode
from powervio.phyp.crq import ReceiveQueue
from powervio.phyp.records import AdapterRecord, WindowPane
from powervio.phyp.redirect import Link
from powervio.phyp.subcrq import SubCrqs
from powervio.phyp.tce import TceTable

if TYPE_CHECKING:
    from powervio.phyp.partition import Partition

_SUCCESS = 0
_DROPPED = -12
_RESOURCE = -16


class Identity(NamedTuple):
    """The numbers by which a partition knows one of its client adapters."""

    liobn: int
    """0 for an adapter without a window."""
    interrupt: int
    """The first of its interrupt numbers."""


class VirtualAdapter(AdapterRecord):
    """What every virtual adapter has: a slot, a node, an interrupt, window panes, a ledger.

    `window` and `remote_window` are bytes; 0 means that there is no such pane.
    """

    partition: Partition
    interrupt: int
    immovable = ""
    """Why a partition with such an adapter cannot be saved; empty when it can."""

    def __init__(
        self,
        partition: Partition,
        slot: int,
        *,
        name: str,
        device_type: str,
        compatible: tuple[str, ...],
        window: int,
        remote_window: int = 0,
        is_server: bool = False,
    ) -> None:
        super().__init__(partition, partition.new_source())
        self.slot = slot
        self.unit_address = UNIT_ADDRESS_BASE + slot
        hypervisor = partition.hypervisor
        self.panes: list[WindowPane] = []
        self.table: TceTable | None = None
        """TCE table of the first pane."""
        if window:
            self.table = TceTable(window, partition.memory)
            self.panes.append(WindowPane(hypervisor.new_liobn(), window, self.ledger, self.table))
        self.remote_pane: WindowPane | None = None
        if remote_window:
            self.remote_pane = WindowPane(hypervisor.new_liobn(), remote_window, self.ledger, None)
            self.panes.append(self.remote_pane)
        self.node = VdeviceNode(
            unit_address=self.unit_address,
            name=name,
            device_type=device_type,
            compatible=compatible,
            location_code=f"U9117.MMA.0000001-V{partition.partition_id}-C{slot}-T1",
            interrupt=self.interrupt,
            windows=tuple(DmaWindow(pane.liobn, pane.size) for pane in self.panes),
            is_server=is_server,
        )

    @property
    def sources(self) -> tuple[int, ...]:
        """All interrupt sources of the adapter."""
        return (self.interrupt,)

    def stop(self) -> None:
        """The owner is gone or boots again: forget what it had set up, telling nobody."""
        self.interrupt_enabled = False

    def notify_stopped(self, event: TransportEvent) -> None:
        """Tell the partner, after every adapter of the owner was stopped."""


class VioAdapter(VirtualAdapter):
    """One end of a client-server pair with a CRQ (the partition-managed class). Made by `Hypervisor.create_pair`."""

    queue: ReceiveQueue
    partner: VioAdapter | None

    def __init__(
        self,
        partition: Partition,
        slot: int,
        *,
        name: str,
        device_type: str,
        compatible: tuple[str, ...],
        window: int,
        remote_window: int = 0,
        is_server: bool = False,
    ) -> None:
        super().__init__(
            partition,
            slot,
            name=name,
            device_type=device_type,
            compatible=compatible,
            window=window,
            remote_window=remote_window,
            is_server=is_server,
        )
        self.window = self.panes[0]
        assert self.table is not None
        self.queue = ReceiveQueue(self.table)
        self.lost_events = 0
        """Transport events that could not be put into this end's queue."""
        self.sub_crqs = SubCrqs(self, partition.hypervisor.policy.max_sub_crqs)
        if self.sub_crqs.sources:
            ranges = ((self.sub_crqs.sources[0], len(self.sub_crqs.sources)),)
            self.node = replace(self.node, interrupt_ranges=ranges)
        self.migration_disabled = False
        self.prepare_msec: int | None = None
        """Milliseconds that this server asked for before its client is suspended; None if it did not ask."""
        self.enable_delays = 0
        """How often H_ENABLE_CRQ is still to say that it takes a while."""

    @property
    def sources(self) -> tuple[int, ...]:
        """See `VirtualAdapter.sources`: the CRQ's and those for Sub-CRQs."""
        return (self.interrupt, *self.sub_crqs.sources)

    def register(self, ioba: int, length: int) -> None:
        """Take a checked queue into use, with interrupts disabled, and link the panes if the partner is ready."""
        self.queue.register(ioba, length)
        self.registered = True
        self.enabled = True
        self.prepare_msec = None
        self.interrupt_enabled = False
        if self.partner is not None and self.partner.registered:
            self._link(self.partner)
            self.partner._link(self)

    def take_over(self, ioba: int, length: int, enqueue: int) -> None:
        """A queue that a suspended partition had registered elsewhere, disabled until H_ENABLE_CRQ."""
        interrupt_enabled = self.interrupt_enabled
        self.register(ioba, length)
        self.queue.go_on_at(enqueue)
        self.enabled = False
        self.interrupt_enabled = interrupt_enabled

    def drain(self) -> int:
        """Before an orderly end of the link: H_SUCCESS when nothing of it is redirected any more (papr-vio 1.5).

        Either end may be the one that frees. Once asked, the link takes no new copies.
        """
        client = self if self.remote_pane is None else self.partner
        server = self if self.remote_pane is not None else self.partner
        if client is None or client.table is None:
            return _SUCCESS
        code = client.table.copies.close()
        pane = None if server is None else server.remote_pane
        if code != _RESOURCE and pane is not None and pane.link is not None:
            pane.link.closing = True
        return code

    def free(self) -> bool:
        """H_FREE_CRQ without its event; false if there was nothing to free. The TCEs stay."""
        was_registered = self.registered
        self.registered = False
        self.enabled = False
        self.interrupt_enabled = False
        self.queue.release()
        self.sub_crqs.free_all()
        self.migration_disabled = False
        self.prepare_msec = None
        self.partition.hypervisor.suspensions.ready(self)
        self._unlink()
        if self.partner is not None:
            self.partner._unlink()
        return was_registered

    def deliver(self, event: TransportEvent) -> None:
        """Put a transport event into this end's queue, if there is one, and interrupt."""
        if not self.registered:
            return
        element = event_element(event)
        code = self.queue.put(element, 0)
        if code == _DROPPED and self.partition.hypervisor.policy.overlay_full_queue:
            code = self.queue.overlay(element)
        if code == _SUCCESS:
            self.signal()
        else:
            self.lost_events += 1

    def stop(self) -> None:
        """See `VirtualAdapter.stop`."""
        self._announce = self.free()

    def notify_stopped(self, event: TransportEvent) -> None:
        """The death of a partition is told to every registered partner, a reboot only where there was a queue."""
        if self.partner is not None and (self._announce or event != TransportEvent.PARTNER_DEREGISTERED):
            self.partner.deliver(event)

    _announce = False

    def _link(self, partner: VioAdapter) -> None:
        if self.remote_pane is not None:
            self.remote_pane.table = partner.table
            self.remote_pane.peer_ledger = partner.ledger
            assert partner.table is not None
            self.remote_pane.link = Link(partner.table.copies, partner.partition, self.ledger, partner.ledger)

    def _unlink(self) -> None:
        if self.remote_pane is not None:
            if self.remote_pane.link is not None:
                self.remote_pane.link.copies.invalidate_all()
                self.remote_pane.link = None
            self.remote_pane.table = None
            self.remote_pane.peer_ledger = None
