"""From a declaration to partitions and adapters, without anything running: also what `powervio dtb --file` shows."""

from __future__ import annotations

from collections.abc import Mapping

from powervio.errors import LocalError
from powervio.phyp.adapter import VioAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.system.config import Config, Disk


def make_partition(hypervisor: Hypervisor, name: str, memory: int) -> Partition:
    """A partition of the declaration. Raises `LocalError`."""
    try:
        return hypervisor.create_partition(name, memory)
    except OSError as error:
        raise LocalError(f"{memory} bytes of memory for partition {name}: {error.strerror}") from error


def make_pair(
    hypervisor: Hypervisor, partitions: Mapping[str, Partition], client: str, disk: Disk
) -> tuple[VioAdapter, VioAdapter]:
    """The adapters of a disk: `(server, client)`. Raises `LocalError` when the slot is taken."""
    return hypervisor.create_pair(partitions[disk.vios], partitions[client], client_slot=disk.slot)


def tree_of_running(hypervisor: Hypervisor, partitions: Mapping[str, Partition], name: str) -> bytes:
    """The device tree of the partition of this name. Raises `LocalError`."""
    if name not in partitions:
        raise LocalError(f'there is no partition "{name}"; expected one of: {", ".join(sorted(partitions))}')
    return hypervisor.device_tree(partitions[name])


def tree_of_declared(config: Config, name: str) -> bytes:
    """The device tree that a partition would start with. Raises `LocalError`."""
    with Hypervisor() as hypervisor:
        sizes = [(vios.name, vios.memory) for vios in config.vios] + [(lpar.name, lpar.memory) for lpar in config.lpar]
        partitions = {owner: make_partition(hypervisor, owner, memory) for owner, memory in sizes}
        for _, lpar, disk in config.disks():
            make_pair(hypervisor, partitions, lpar.name, disk)
        return tree_of_running(hypervisor, partitions, name)
