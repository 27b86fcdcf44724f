"""The hypervisor: partitions, pairs of virtual adapters, and what happens when a partition dies or boots again."""

from __future__ import annotations

import threading
from types import TracebackType

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.papr.crq import TransportEvent
from powervio.papr.devicetree import partition_tree
from powervio.papr.fdt import encode
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.partition import Partition
from powervio.phyp.policy import Policy
from powervio.phyp.registry import function_sets

MIN_VIRTUAL_DMA_SIZE = 0x2_0000
"""Least value of `ibm,max-virtual-dma-size`, in bytes (papr-vio 4.1)."""

_FIRST_LIOBN = 0x1000_0000
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
        self.lock = threading.Lock()
        self.partitions: dict[int, Partition] = {}
        """Live partitions by id."""
        self._next_liobn = _FIRST_LIOBN

    def __enter__(self) -> Hypervisor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def new_liobn(self) -> int:
        """A LIOBN that this hypervisor has not used: unique over all partitions, the top bit clear."""
        self._next_liobn += 1
        return self._next_liobn - 1

    def create_partition(self, name: str, memory_size: int, partition_id: int | None = None) -> Partition:
        """A running partition with `memory_size` bytes of zeroed memory; ids count from 1."""
        _check_pages(memory_size, f"the memory of partition {name}")
        with self.lock:
            if partition_id is None:
                partition_id = max(self.partitions, default=0) + 1
            if not 1 <= partition_id <= 0xFFFF:
                raise LocalError(f"partition id {partition_id} is not in 1 to 65535")
            if partition_id in self.partitions:
                raise LocalError(f"partition id {partition_id} belongs to {self.partitions[partition_id].name} already")
            if any(name == other.name for other in self.partitions.values()):
                raise LocalError(f"there is a partition named {name} already")
            partition = Partition(self, partition_id, name, memory_size)
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
    ) -> tuple[VioAdapter, VioAdapter]:
        """A server adapter and a client adapter that are each other's only partner: `(server, client)`.

        Windows are bytes, multiples of 4096; the server's second pane is as large as the client's window. Slots are
        the lowest free ones unless given. What the server's node is called defaults to the client's with "-host".
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

    def remove_pair(self, adapter: VioAdapter) -> None:
        """Take an adapter and its partner out of their partitions (both ends of a DLPAR remove), also while in use.

        No remote DMA reaches either of them when this returns. Both partitions learn of it by their device trees: a
        node that is gone is gone for good, whereas an adapter whose partner only restarts keeps its node.
        """
        with self.lock:
            partner = adapter.partner
            self._remove(adapter)
            if partner is not None:
                self._remove(partner)

    def remove_adapter(self, adapter: VioAdapter) -> None:
        """Take one end out: its partner sees it deregister and has no partner from here on."""
        with self.lock:
            partner = adapter.partner
            announce = adapter.registered
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

    def terminate(self, partition: Partition) -> None:
        """The partition failed: its mappings, queues and memory are gone and its partners are told with FF01.

        Its adapters stay configured as partners, so that the others find the connection closed and not undefined.
        """
        with self.lock:
            self._check_partition(partition)
            for adapter in partition.adapters.values():
                adapter.stop()
            for adapter in partition.adapters.values():
                adapter.notify_stopped(TransportEvent.PARTNER_FAILED)
            self._retire(partition)

    def reboot(self, partition: Partition) -> None:
        """The partition boots again: as if it had freed every queue (FF02), with TCEs and memory cleared."""
        with self.lock:
            self._check_partition(partition)
            for adapter in partition.adapters.values():
                adapter.stop()
            for adapter in partition.adapters.values():
                adapter.notify_stopped(TransportEvent.PARTNER_DEREGISTERED)
            for adapter in partition.adapters.values():
                if adapter.table is not None:
                    adapter.table.clear()
            partition.area.discard()
            partition.interrupts.reset()
            partition.unwatch_tree()

    def suspend(self, partition: Partition) -> None:
        """The partition was suspended and resumed (RTAS `ibm,suspend-me`): FF06 to both ends of every connection.

        Its CRQs are disabled until it calls H_ENABLE_CRQ; queues, TCEs and the link persist (papr-vio 3.8).
        """
        with self.lock:
            self._check_partition(partition)
            for adapter in partition.adapters.values():
                if isinstance(adapter, VioAdapter) and adapter.registered:
                    adapter.enabled = False
                    adapter.deliver(TransportEvent.PARTNER_SUSPENDED)
                    if adapter.partner is not None and adapter.partner.partition is not partition:
                        adapter.partner.deliver(TransportEvent.PARTNER_SUSPENDED)

    def close(self) -> None:
        """End every partition, telling nobody."""
        with self.lock:
            for partition in list(self.partitions.values()):
                for adapter in partition.adapters.values():
                    adapter.stop()
                self._retire(partition)

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
        partition.alive = False
        del self.partitions[partition.partition_id]
        partition.interrupts.close()
        partition.area.close()


def _retire_table(adapter: VirtualAdapter) -> None:
    if adapter.table is not None:
        adapter.table.retire()


def _check_pages(size: int, what: str) -> None:
    if size <= 0 or size % PAGE_SIZE:
        raise LocalError(f"{what} is {size} bytes; a positive multiple of {PAGE_SIZE} is needed")
