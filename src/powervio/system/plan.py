"""From a declaration to partitions and adapters, without anything running: also what `powervio dtb --file` shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from powervio.errors import LocalError
from powervio.phyp.adapter import VioAdapter, VirtualAdapter
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.partition import Partition
from powervio.phyp.saved import SavedAdapter
from powervio.phyp.vterm import create_vterm
from powervio.system.config import Config
from powervio.system.section import AdapterSection

DEVICE_WINDOW = 16 << 20
"""Bytes that a device of the table of types can have mapped at a time, and its server likewise."""


def make_partition(hypervisor: Hypervisor, name: str, memory: int, *, engine: bool = False) -> Partition:
    """A partition of the declaration, with a physical storage adapter if it has an `engine`. Raises `LocalError`."""
    try:
        partition = hypervisor.create_partition(name, memory)
    except OSError as error:
        raise LocalError(f"{memory} bytes of memory for partition {name}: {error.strerror}") from error
    if engine:
        hypervisor.create_physical_adapter(partition)
    return partition


def make_pair(
    hypervisor: Hypervisor,
    partitions: Mapping[str, Partition],
    client: str,
    vios: str,
    slot: int | None,
    saved: SavedAdapter | None = None,
) -> tuple[VioAdapter, VioAdapter]:
    """The adapters of a disk, or of one path of it: `(server, client)`; `saved` is the client's in a partition that
    moves here.

    Raises `LocalError` when the slot is taken.
    """
    return hypervisor.create_pair(partitions[vios], partitions[client], **_place(slot, saved))


def make_device_pair(
    hypervisor: Hypervisor,
    partitions: Mapping[str, Partition],
    client: str,
    section: AdapterSection,
    saved: SavedAdapter | None = None,
) -> tuple[VirtualAdapter, VirtualAdapter]:
    """The adapters of a device of the table of types, as `make_pair`. Raises `LocalError`."""
    vios, owner = partitions[section.vios], partitions[client]
    if is_vterm(section):
        return create_vterm(hypervisor, vios, owner, **_place(section.slot, saved))
    return hypervisor.create_pair(
        vios,
        owner,
        client_window=DEVICE_WINDOW,
        server_window=DEVICE_WINDOW,
        **_place(section.slot, saved),
    )


def _place(slot: int | None, saved: SavedAdapter | None) -> dict[str, Any]:
    if saved is None:
        return {"client_slot": slot}
    return {"client_slot": saved.slot, "client_identity": saved.identity}


def is_vterm(section: AdapterSection) -> bool:
    """Whether the device is the platform's own terminal and not a virtio one."""
    return getattr(section, "type", "virtio") == "vterm"


def tree_of_running(hypervisor: Hypervisor, partitions: Mapping[str, Partition], name: str) -> bytes:
    """The device tree of the partition of this name. Raises `LocalError`."""
    if name not in partitions:
        raise LocalError(f'there is no partition "{name}"; expected one of: {", ".join(sorted(partitions))}')
    return hypervisor.device_tree(partitions[name])


def tree_of_declared(config: Config, name: str) -> bytes:
    """The device tree that a partition would start with. Raises `LocalError`."""
    with Hypervisor() as hypervisor:
        partitions = {
            vios.name: make_partition(hypervisor, vios.name, vios.memory, engine=vios.redirect) for vios in config.vios
        }
        partitions |= {lpar.name: make_partition(hypervisor, lpar.name, lpar.memory) for lpar in config.lpar}
        for _, lpar, disk in config.disks():
            for number, vios in enumerate(disk.servers):
                make_pair(hypervisor, partitions, lpar.name, vios, None if number else disk.slot)
        for _, lpar, _, section in config.devices():
            make_device_pair(hypervisor, partitions, lpar.name, section)
        return tree_of_running(hypervisor, partitions, name)
