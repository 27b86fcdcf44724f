"""A suspended partition as a value: what another hypervisor needs to let it go on (papr-vio 3.8).

What the partition's software knows of its platform stays true: unit addresses, LIOBNs, interrupt numbers, TCEs, and
registered CRQs with their places, disabled as a suspension leaves them. It finds FF06 in each queue, calls
H_ENABLE_CRQ, and gets a new connection to whoever is the partner now. Sub-CRQs are not part of it: their cookies belong
to the connection that has ended, and H_FREE_SUB_CRQ answers H_PARAMETER for them. Memory is not part of the value
either, because it is large: whoever moves the partition moves `Partition.memory` beside it.

A partition that serves others cannot be moved, as on the real platform.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.papr.crq import ELEMENT_SIZE
from powervio.papr.tce import TCE_PAGE_SHIFT
from powervio.phyp.adapter import Identity, VioAdapter
from powervio.phyp.partition import Partition


@dataclass(slots=True)
class SavedQueue:
    """A registered CRQ: I/O address and length in bytes, and the offset of the slot that is filled next."""

    ioba: int
    length: int
    enqueue: int


@dataclass(slots=True)
class SavedAdapter:
    """One client adapter."""

    slot: int
    interrupt: int
    sources: int
    """How many interrupt numbers it has, from `interrupt` on."""
    liobn: int = 0
    """Of its window; 0 for an adapter without one, such as a vty."""
    window: int = 0
    """Bytes."""
    interrupt_enabled: bool = False
    queue: SavedQueue | None = None
    tces: dict[int, int] = field(default_factory=dict)
    """By number of the I/O page: those that are not 0."""

    @property
    def identity(self) -> Identity:
        """What the adapter is to be made with."""
        return Identity(self.liobn, self.interrupt)


@dataclass(slots=True)
class PartitionState:
    """One suspended partition without its memory."""

    name: str
    partition_id: int
    memory: int
    """Bytes."""
    priority: int
    """The processor priority (CPPR)."""
    pending: list[int]
    """Interrupt sources that have something to tell, oldest first."""
    accepted: list[int]
    """Those that were taken by H_XIRR and not ended by H_EOI."""
    watches_tree: bool
    """Whether it waits for a hot-plug event; the move is one."""
    adapters: list[SavedAdapter]


def save_partition(partition: Partition) -> PartitionState:
    """The state of a suspended partition, which stays as it is. Raises `LocalError` for one that cannot be moved."""
    with partition.hypervisor.lock:
        if not partition.alive or not partition.suspended:
            raise LocalError(f"partition {partition.name} is not suspended")
        if partition.physical or any(adapter.node.is_server for adapter in partition.adapters.values()):
            raise LocalError(f"partition {partition.name} serves others or has physical adapters: it cannot be moved")
        for adapter in partition.adapters.values():
            if adapter.immovable:
                raise LocalError(f"partition {partition.name} cannot be moved: {adapter.immovable}")
        if partition.pins:
            raise LocalError(f"partition {partition.name}: {partition.pins} DMA operations are at work on its memory")
        priority, pending, accepted = partition.interrupts.state()
        saved = []
        for adapter in partition.adapters.values():
            one = SavedAdapter(
                adapter.slot, adapter.interrupt, len(adapter.sources), interrupt_enabled=adapter.interrupt_enabled
            )
            if adapter.table is not None:
                one.liobn, one.window = adapter.panes[0].liobn, adapter.panes[0].size
                one.tces = adapter.table.used()
            if isinstance(adapter, VioAdapter) and adapter.registered:
                one.queue = SavedQueue(adapter.queue.ioba, adapter.queue.length, adapter.queue.enqueue)
            saved.append(one)
        return PartitionState(
            partition.name,
            partition.partition_id,
            len(partition.memory),
            priority,
            pending,
            accepted,
            partition.watches_tree,
            saved,
        )


def restore_partition(partition: Partition, state: PartitionState) -> None:
    """Give a new partition, whose adapters are in their slots and which did not run yet, the state of a saved one.

    It is suspended; `resume` of the hypervisor lets it run. Raises `LocalError` when something of the platform is
    different; the partition is of no use then.
    """
    hypervisor = partition.hypervisor
    with hypervisor.lock:
        if len(partition.memory) != state.memory:
            raise LocalError(
                f"partition {partition.name} has {len(partition.memory)} bytes of memory; it was saved with"
                f" {state.memory}"
            )
        _check_adapters(partition, {saved.slot: saved for saved in state.adapters})
        for saved in state.adapters:
            adapter = partition.slots[saved.slot]
            adapter.interrupt_enabled = saved.interrupt_enabled
            if adapter.table is not None:
                for page, tce in saved.tces.items():
                    if not (0 <= page < 1 << 52 and 0 <= tce < 1 << 64) or adapter.table.put(
                        page << TCE_PAGE_SHIFT, tce
                    ):
                        raise LocalError(
                            f"slot {saved.slot} of partition {partition.name}: TCE {tce:#x} of I/O page {page:#x} does"
                            f" not fit a window of {saved.window} bytes and a memory of {state.memory}"
                        )
            if isinstance(adapter, VioAdapter) and saved.queue is not None:
                queue = saved.queue
                if (
                    not 0 < queue.length <= saved.window - queue.ioba
                    or queue.ioba < 0
                    or (queue.ioba | queue.length) % PAGE_SIZE
                    or queue.enqueue % ELEMENT_SIZE
                    or not 0 <= queue.enqueue < queue.length
                ):
                    raise LocalError(f"slot {saved.slot} of partition {partition.name}: no CRQ can be {queue}")
                adapter.take_over(queue.ioba, queue.length, queue.enqueue)
        partition.suspended = True
        partition.interrupts.restore(state.priority, state.pending, state.accepted)
        if state.watches_tree:
            partition.watch_tree()
            partition.tree_changed()


def _check_adapters(partition: Partition, expected: Mapping[int, SavedAdapter]) -> None:
    if sorted(partition.slots) != sorted(expected):
        raise LocalError(
            f"partition {partition.name} has adapters in slots {sorted(partition.slots)}; it was saved with"
            f" {sorted(expected)}"
        )
    for slot, saved in expected.items():
        adapter = partition.slots[slot]
        panes = adapter.panes
        found = (
            panes[0].liobn if panes else 0,
            panes[0].size if panes else 0,
            adapter.interrupt,
            len(adapter.sources),
        )
        wanted = (saved.liobn, saved.window, saved.interrupt, saved.sources)
        if found != wanted:
            raise LocalError(
                f"slot {slot} of partition {partition.name}: LIOBN, window, interrupt and number of interrupts are"
                f" {found}; it was saved with {wanted}"
            )
