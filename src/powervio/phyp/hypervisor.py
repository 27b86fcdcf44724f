"""The hypervisor: partitions, pairs of virtual adapters, and what happens when a partition dies or boots again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.papr.crq import TransportEvent
from powervio.papr.devicetree import partition_tree
from powervio.papr.fdt import encode
from powervio.phyp.adapter import Identity, VioAdapter, VirtualAdapter
from powervio.phyp.lock import new_lock
from powervio.phyp.partition import Partition
from powervio.phyp.physical import PhysicalAdapter
from powervio.phyp.policy import Policy
from powervio.phyp.registry import function_sets
from powervio.phyp.suspension import Suspensions

MIN_VIRTUAL_DMA_SIZE = 0x2_0000
"""Least value of `ibm,max-virtual-dma-size`, in bytes (papr-vio 4.1)."""

_FIRST_LIOBN = 0x1000_0000
_FIRST_COOKIE = 0x2000_0000
_SIGNED_MAX = (1 << 63) - 1


class Hypervisor:
    """A managed system of partitions in one process.

    One lock is held around each hcall and around each change of configuration. It is never held while code of a
    partition runs: partitions meet only in memory and through their interrupt lines. `max_virtual_dma_size` is the
    largest H_COPY_RDMA in bytes (device tree `/vdevice/ibm,max-virtual-dma-size`), None for no limit.
    """

    def __init__(self, policy: Policy = Policy(), max_virtual_dma_size: int | None = None) -> None:  # noqa: B008
        if max_virtual_dma_size is not None and max_virtual_dma_size < MIN_VIRTUAL_DMA_SIZE:
            raise LocalError(
                f"max_virtual_dma_size is {max_virtual_dma_size} bytes; PAPR wants {MIN_VIRTUAL_DMA_SIZE} or more"
            )
        self.policy = policy
        self.max_virtual_dma_size = max_virtual_dma_size
        self.copy_limit = _SIGNED_MAX if max_virtual_dma_size is None else max_virtual_dma_size
        """Longest copy; the length register is signed, so what is above is negative or too long."""
        self.lock = new_lock()
        self.drained = threading.Condition(self.lock)
        """Notified when an operation of a DMA engine has ended, if somebody waits."""
        self.waiting = 0
        self.suspensions = Suspensions(self.lock)
        self.partitions: dict[int, Partition] = {}
        """Live partitions by id."""
        self.sets: dict[str, object] = {}
        """What function sets of other rooms keep of this hypervisor, by their names."""
        self.next_liobn = _FIRST_LIOBN
        self._next_cookie = _FIRST_COOKIE

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def new_liobn(self) -> int:
        """A LIOBN that this hypervisor has not used: unique over all partitions, the top bit clear."""
        self.next_liobn += 1
        return self.next_liobn - 1

    def new_cookie(self) -> int:
        """A Sub-CRQ cookie that this hypervisor has not used: a late send to a freed Sub-CRQ reaches nobody."""
        self._next_cookie += 1
        return self._next_cookie - 1

    def create_partition(self, name: str, memory_size: int, partition_id: int | None = None) -> Partition:
        """A running partition with `memory_size` bytes of zeroed memory; ids count from 1."""
        _check_pages(memory_size, f"the memory of partition {name}")
        area = MappedArea.create(f"powervio-{name}", memory_size)
        try:
            return self.adopt_partition(name, area, partition_id)
        except BaseException:
            area.close()
            raise

    def adopt_partition(self, name: str, area: MappedArea, partition_id: int | None = None) -> Partition:
        """As `create_partition`, of memory that is there already and is closed with the partition."""
        _check_pages(area.size, f"the memory of partition {name}")
        with self.lock:
            if partition_id is None:
                partition_id = max(self.partitions, default=0) + 1
            if not 1 <= partition_id <= 0xFFFF:
                raise LocalError(f"partition id {partition_id} is not in 1 to 65535")
            if partition_id in self.partitions:
                raise LocalError(f"partition id {partition_id} belongs to {self.partitions[partition_id].name} already")
            if any(name == other.name for other in self.partitions.values()):
                raise LocalError(f"there is a partition named {name} already")
            partition = Partition(self, partition_id, name, area)
            self.partitions[partition_id] = partition
            return partition

    def create_pair(
        self,
        server: Partition,
        client: Partition,
        *,
        server_slot: int | None = None,
        client_slot: int | None = None,
        name: str = "virtio",
        device_type: str = "virtio",
        compatible: tuple[str, ...] = ("powervio,virtio",),
        server_name: str | None = None,
        server_device_type: str | None = None,
        server_compatible: tuple[str, ...] | None = None,
        server_window: int = 64 << 20,
        client_window: int = 256 << 20,
        client_identity: Identity | None = None,
    ) -> tuple[VioAdapter, VioAdapter]:
        """A server adapter and a client adapter that are each other's only partner: `(server, client)`.

        Windows are bytes, multiples of 4096; the server's second pane is as large as the client's window. Slots are
        the lowest free ones unless given; `client_identity` has the numbers of an adapter that existed before, in a
        partition that moves here (`saved`). What the server's node is called defaults to the client's with "-host".
        Client and server may be the same partition.
        """
        _check_pages(server_window, "the server's window")
        _check_pages(client_window, "the client's window")
        with self.lock:
            self._check_partition(server)
            self._check_partition(client)
            server_end = VioAdapter(
                server,
                server.choose_slot(server_slot),
                name=server_name or f"{name}-host",
                device_type=server_device_type or f"{device_type}-host",
                compatible=server_compatible or tuple(f"{entry}-host" for entry in compatible),
                window=server_window,
                remote_window=client_window,
                is_server=True,
            )
            server.add(server_end)
            try:
                with client.numbering(client_identity):
                    client_end = VioAdapter(
                        client,
                        client.choose_slot(client_slot),
                        name=name,
                        device_type=device_type,
                        compatible=compatible,
                        window=client_window,
                    )
            except LocalError:
                server.remove(server_end)
                raise
            client.add(client_end)
            server_end.partner = client_end
            client_end.partner = server_end
            return server_end, client_end

    def create_physical_adapter(self, partition: Partition, window: int = 64 << 20) -> PhysicalAdapter:
        """A physical storage adapter of a VIO server, for redirected DMA; `window` is the bytes of its TCE table."""
        _check_pages(window, "the window of a physical adapter")
        with self.lock:
            self._check_partition(partition)
            adapter = PhysicalAdapter(partition, len(partition.engines) + 1, window)
            partition.physical[adapter.liobn] = adapter
            partition.engines.append(adapter)
            return adapter

    def ask_release(self, adapter: VioAdapter, wanted: bool) -> None:
        """Ask the adapter's partition by its device tree to let go of it (`VdeviceNode.release`), or take that back.

        It has when `adapter.registered` is false. Nothing else comes of it.
        """
        with self.lock:
            partition = adapter.partition
            if partition.alive and partition.nodes.get(adapter.unit_address) is adapter.node:
                adapter.node = replace(adapter.node, release=wanted)
                partition.nodes[adapter.unit_address] = adapter.node
                partition.tree_changed()

    def remove_pair(self, adapter: VioAdapter) -> None:
        """Take an adapter and its partner out of their partitions (both ends of a DLPAR remove), also while in use.

        No remote DMA reaches either of them when this returns. Both partitions learn of it by their device trees: a
        node that is gone is gone for good, whereas an adapter whose partner only restarts keeps its node.
        """
        with self.lock:
            partner = adapter.partner
            self._end_dma(adapter)
            self._remove(adapter)
            if partner is not None:
                self._remove(partner)

    def remove_adapter(self, adapter: VioAdapter) -> None:
        """Take one end out: its partner sees it deregister and has no partner from here on."""
        with self.lock:
            partner = adapter.partner
            announce = adapter.registered
            self._end_dma(adapter)
            self._remove(adapter)
            if partner is not None:
                partner.partner = None
                if announce:
                    partner.deliver(TransportEvent.PARTNER_DEREGISTERED)

    def device_tree(self, partition: Partition) -> bytes:
        """The partition's flattened device tree as it is now (papr-vio 9)."""
        with self.lock:
            self._check_partition(partition)
            nodes = list(partition.nodes.values())
        tree = partition_tree(
            partition.partition_id,
            partition.name,
            nodes,
            function_sets(),
            max_virtual_dma_size=self.max_virtual_dma_size,
            tree_source=partition.tree_source,
        )
        return encode(tree)

    def terminate(self, partition: Partition, by: Partition | None = None) -> None:
        """The partition failed: its mappings, queues and memory are gone and its partners are told with FF01.

        A partner partition that asked for it (`by`, RTAS `ibm,partner-control`) is told with FF04 that it is done.
        Its adapters stay configured as partners, so that the others find the connection closed and not undefined.
        """
        with self.lock:
            self._check_partition(partition)
            for adapter in partition.adapters.values():
                adapter.stop()
            for adapter in partition.adapters.values():
                partner = adapter.partner if isinstance(adapter, VioAdapter) else None
                asked = by is not None and partner is not None and partner.partition is by
                event = TransportEvent.PARTNER_TERMINATED if asked else TransportEvent.PARTNER_FAILED
                adapter.notify_stopped(event)
            self._retire(partition)

    def fail(self, partition: Partition) -> None:
        """The partition failed and will boot again: FF01 to its partners, its queues, TCEs and memory are gone.

        It stays configured with its adapters, where `terminate` ends it for good; nobody runs it until it boots. Who
        calls this has ended the partition's I/O before: partners go on elsewhere as soon as they hear of it.
        """
        self._begin_anew(partition, TransportEvent.PARTNER_FAILED)

    def reboot(self, partition: Partition) -> None:
        """The partition boots again: as if it had freed every queue (FF02), with TCEs and memory cleared."""
        self._begin_anew(partition, TransportEvent.PARTNER_DEREGISTERED)

    def _begin_anew(self, partition: Partition, event: TransportEvent) -> None:
        with self.lock:
            self._check_partition(partition)
            for adapter in partition.adapters.values():
                adapter.stop()
            for adapter in partition.adapters.values():
                adapter.notify_stopped(event)
            if not self.wait_drained(lambda: not partition.pins):
                raise LocalError(
                    f"partition {partition.name} has no queues any more, but {partition.pins} DMA operations are still"
                    f" at work on its memory after {self.policy.drain_limit:g} s: reboot it again to finish"
                )
            self._check_partition(partition)  # the lock was free while it waited
            for engine in partition.engines:
                engine.table.forget(0, engine.table.count)
                engine.own.clear()
            for adapter in partition.adapters.values():
                if adapter.table is not None:
                    adapter.table.clear()
            partition.area.discard()
            partition.interrupts.reset()
            partition.unwatch_tree()
            partition.suspended = False
            self.suspensions.over(partition)

    def prepare_suspend(self, partition: Partition) -> None:
        """The first half of `suspend`: FF09 to each server that asked to be told, without waiting for them.

        Raises `SuspendAborted` when a server has forbidden it (H_VIOCTL DISABLE_MIGRATION).
        """
        with self.lock:
            self._check_partition(partition)
            self.suspensions.prepare(partition)

    def suspend(self, partition: Partition) -> None:
        """Suspend a partition (RTAS `ibm,suspend-me`): FF06 to both ends of each connection, its CRQs are disabled.

        Servers that asked for FF09 get it first and are waited for; this must not be called in the thread that serves
        them, unless `prepare_suspend` was called and they are ready. Raises `SuspendAborted` when one is not in time.
        Queues, TCEs and links persist (papr-vio 3.8). The partition takes no interrupt until `resume`.
        """
        with self.lock:
            self._check_partition(partition)
            self.suspensions.prepare(partition)
            self.suspensions.wait(partition)
            self._check_partition(partition)
            partition.suspended = True
            partition.interrupts.hold(True)
            for adapter in partition.adapters.values():
                if isinstance(adapter, VioAdapter) and adapter.registered:
                    adapter.enabled = False
                    adapter.enable_delays = self.policy.enable_crq_delays
                    adapter.deliver(TransportEvent.PARTNER_SUSPENDED)
                    if adapter.partner is not None and adapter.partner.partition is not partition:
                        adapter.partner.deliver(TransportEvent.PARTNER_SUSPENDED)

    def resume(self, partition: Partition) -> None:
        """Let a suspended partition run again; servers that were told with FF09 are told with FF0A."""
        with self.lock:
            self._check_partition(partition)
            partition.suspended = False
            partition.interrupts.hold(False)
            self.suspensions.over(partition)

    def close(self) -> None:
        """End every partition, telling nobody."""
        with self.lock:
            for partition in list(self.partitions.values()):
                for adapter in partition.adapters.values():
                    adapter.stop()
                self._retire(partition)

    def wait_drained(self, done: Callable[[], bool]) -> bool:
        """Wait until `done`, which is asked again whenever an operation has ended; false at the policy's limit.

        Under the lock, which is let go meanwhile: whatever was known before has to be looked up again.
        """
        self.waiting += 1
        try:
            return self.drained.wait_for(done, self.policy.drain_limit)
        finally:
            self.waiting -= 1

    def _end_dma(self, adapter: VioAdapter) -> None:
        """End what is redirected over a pair that is to be removed. Raises `LocalError` when operations go on."""
        client = adapter if adapter.remote_pane is None else adapter.partner
        if client is None or client.table is None or not client.partition.alive:
            return  # memory of the dead goes by itself
        copies = client.table.copies
        for end in (adapter, adapter.partner):
            if end is not None and end.remote_pane is not None and end.remote_pane.link is not None:
                end.remote_pane.link.closing = True
        copies.invalidate_all()
        if not self.wait_drained(lambda: not copies.pinned):
            raise LocalError(
                f"adapter {adapter.unit_address:#x} of partition {adapter.partition.name}: DMA operations are still at"
                f" work after {self.policy.drain_limit:g} s; remove it again when they have ended"
            )

    def _check_partition(self, partition: Partition) -> None:
        if self.partitions.get(partition.partition_id) is not partition:
            raise LocalError(f"partition {partition.name} is not running on this hypervisor")

    def _remove(self, adapter: VioAdapter) -> None:
        partition = adapter.partition
        if partition.alive and partition.adapters.get(adapter.unit_address) is not adapter:
            raise LocalError(f"adapter {adapter.unit_address:#x} was removed from partition {partition.name} already")
        adapter.stop()
        if partition.alive:
            partition.remove(adapter)
            _retire_table(adapter)

    def _retire(self, partition: Partition) -> None:
        for adapter in list(partition.adapters.values()):
            partition.remove(adapter)
            _retire_table(adapter)
        for engine in partition.engines:
            engine.stop()
        partition.physical.clear()
        partition.alive = False
        self.suspensions.forget(partition)
        del self.partitions[partition.partition_id]
        partition.interrupts.close()
        if not partition.pins:  # else the last operation to end does it
            partition.area.close()


def _retire_table(adapter: VirtualAdapter) -> None:
    if adapter.table is not None:
        adapter.table.retire()


def _check_pages(size: int, what: str) -> None:
    if size <= 0 or size % PAGE_SIZE:
        raise LocalError(f"{what} is {size} bytes; a positive multiple of {PAGE_SIZE} is needed")
