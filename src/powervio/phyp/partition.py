"""A partition: its memory, its virtual adapters, its interrupts, and the port that its software uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid5

from powervio.errors import LocalError
from powervio.memory.area import MappedArea
from powervio.phyp.port import PartitionPort
from powervio.phyp.records import PartitionRecord

if TYPE_CHECKING:
    from powervio.papr.nodes import VdeviceNode
    from powervio.phyp.adapter import Identity, VirtualAdapter
    from powervio.phyp.hypervisor import Hypervisor
    from powervio.phyp.physical import PhysicalAdapter

_NAMESPACE = UUID("6b1d2f5e-7a52-4c1e-9d0c-706f77657276")
_FIRST_SOURCE = 0x1000
_TREE_SOURCE = _FIRST_SOURCE - 1
"""Interrupt source of hot-plug events."""
_FIRST_SLOT = 2
_LAST_SLOT = 0xFFFF


class Partition(PartitionRecord):
    """Made by `Hypervisor.create_partition` and `adopt_partition`; `area` is its memory, a multiple of 4096 bytes.

    The dictionaries are read under the hypervisor's lock by every hcall and changed only by `add` and `remove`.
    """

    hypervisor: Hypervisor
    area: MappedArea
    memory: memoryview
    adapters: dict[int, VirtualAdapter]
    sources: dict[int, VirtualAdapter]
    physical: dict[int, PhysicalAdapter]

    def __init__(self, hypervisor: Hypervisor, partition_id: int, name: str, area: MappedArea) -> None:
        self.partition_id = partition_id
        self.name = name
        self.uuid = uuid5(_NAMESPACE, f"{partition_id}-{name}")
        super().__init__(hypervisor, area)
        self.slots: dict[int, VirtualAdapter] = {}
        self.nodes: dict[int, VdeviceNode] = {}
        self.engines: list[PhysicalAdapter] = []
        self.tree_source = _TREE_SOURCE
        self.interrupts.add(_TREE_SOURCE)
        self._tree_generation = 1
        self._tree_watched = False
        self.suspended = False
        self._next_source = _FIRST_SOURCE
        self.port = PartitionPort(self)

    def new_source(self) -> int:
        """An interrupt source number that this partition has not used."""
        self._next_source += 1
        return self._next_source - 1

    @contextmanager
    def numbering(self, identity: Identity | None) -> Iterator[None]:
        """The next adapter is made with this LIOBN and interrupt number, those after it with numbers not used yet.

        LIOBNs are looked up in a partition's own table, so it does not matter to the others.
        """
        if identity is None:
            yield
            return
        hypervisor = self.hypervisor
        source, liobn = self._next_source, hypervisor.next_liobn
        self._next_source = identity.interrupt
        hypervisor.next_liobn = identity.liobn
        try:
            yield
        finally:
            self._next_source = max(source, self._next_source)
            hypervisor.next_liobn = max(liobn, hypervisor.next_liobn)

    def choose_slot(self, wanted: int | None) -> int:
        """The slot asked for, or the lowest free one; 0 and 1 belong to virtual terminals."""
        if wanted is None:
            free = next((slot for slot in range(_FIRST_SLOT, _LAST_SLOT + 1) if slot not in self.slots), None)
            if free is None:
                raise LocalError(f"partition {self.name} has an adapter in each of its {_LAST_SLOT + 1} slots")
            return free
        if not 0 <= wanted <= _LAST_SLOT:
            raise LocalError(f"slot {wanted} of partition {self.name} does not exist: slots are 0 to {_LAST_SLOT}")
        if wanted in self.slots:
            raise LocalError(f"slot {wanted} of partition {self.name} holds {self.slots[wanted].node.name} already")
        return wanted

    def add(self, adapter: VirtualAdapter) -> None:
        """Plug an adapter into its slot. Under the hypervisor's lock."""
        self.slots[adapter.slot] = adapter
        self.adapters[adapter.unit_address] = adapter
        for source in adapter.sources:
            self.sources[source] = adapter
            self.interrupts.add(source, adapter.ledger)
        for pane in adapter.panes:
            self.panes[pane.liobn] = pane
        self.panes_changed()
        self.nodes[adapter.unit_address] = adapter.node
        self.tree_changed()

    def remove(self, adapter: VirtualAdapter) -> None:
        """Unplug an adapter: its unit address and LIOBNs are unknown from here on. Under the hypervisor's lock.

        Also one of which only a part was added, because a signal ended the process in the middle of `add`.
        """
        self.nodes.pop(adapter.unit_address, None)
        for pane in adapter.panes:
            self.panes.pop(pane.liobn, None)
        self.panes_changed()
        for source in adapter.sources:
            self.interrupts.remove(source)
            self.sources.pop(source, None)
        self.adapters.pop(adapter.unit_address, None)
        self.slots.pop(adapter.slot, None)
        self.tree_changed()

    def watch_tree(self) -> int:
        """See `HcallPort.watch_tree`. Under the hypervisor's lock."""
        self._tree_watched = True
        return self._tree_generation

    def unwatch_tree(self) -> None:
        """The partition boots: nobody waits for changes. Under the hypervisor's lock."""
        self._tree_watched = False

    @property
    def watches_tree(self) -> bool:
        """Whether its software waits for the next change of its device tree."""
        return self._tree_watched

    def tree_changed(self) -> None:
        """Tell whoever waits for it. Under the hypervisor's lock."""
        self._tree_generation += 1
        if self._tree_watched:
            self._tree_watched = False
            self.interrupts.pulse(_TREE_SOURCE)
