"""Logical LAN adapters of VIO servers: how one that is a process of its own is at the hypervisor's switches.

What bridges or serves networks in a VIO server of the hypervisor's process has a `SwitchPort`. In another process there
is no switch: there its partition has an adapter, as on PowerVM, which the hypervisor's side makes (`plug_lan`) and the
VIO server's opens by its unit address (`open_lan`). Both are a `network.port.Port` for whatever stands on them.

    # in the process of the hypervisor, before or while the VIO server runs
    options = PortOptions(name="vios1.trunk0", pvid=10, vlans=(20,), trunk=1)
    adapter = plug_lan(system, "vios1", options, switch="ETHERNET0")
    ...tell the VIO server adapter.unit_address...
    # in the process of the VIO server, in its partition's thread
    port = open_lan(kernel, unit_address)
    port.take(Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN)
    port.on_arrival = ...

The adapter outlives the process: when that is killed the adapter leaves its switch, and the next process opens it
again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from powervio.errors import LocalError
from powervio.memory.area import PAGE_SIZE
from powervio.native.lan import LanAdapter, create_lan, remove_lan
from powervio.native.lan_client import DEFAULT_POOLS, LARGEST, BufferPool, LanPort
from powervio.network.switch import DEFAULT_NAME, PortOptions
from powervio.vio.kernel import PartitionKernel

if TYPE_CHECKING:
    from powervio.system.system import System

WINDOW = 16 << 20
"""Bytes of the pane of an adapter that `LanPort` drives: what it maps, and as much again."""


def memory_of(pools: Iterable[BufferPool] = DEFAULT_POOLS) -> int:
    """Bytes of its partition's memory that an open port takes, for who sizes that."""
    found = list(pools)
    entries = (16 * (sum(pool.count for pool in found) + 1) + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE
    buffers = sum((pool.size * pool.count + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE for pool in found)
    return 2 * PAGE_SIZE + entries + buffers + LARGEST


def plug_lan(
    system: System, server: str, options: PortOptions, *, switch: str = DEFAULT_NAME, own_macs: bool = True
) -> LanAdapter:
    """Give the partition of a VIO server an adapter at the switch of this name; in the hypervisor's process.

    `options` are what its port is: `trunk` for one that bridges, `vlans`, bounds, and `mac`, which it gets one of
    without it. `own_macs`: whether the VIO server may choose another address. A server that runs is told by its device
    tree. Raises `LocalError`.
    """
    partition = system.partitions.get(server)
    if partition is None:
        raise LocalError(f"there is no partition named {server}")
    return create_lan(system.hypervisor, partition, system.switch(switch), options, window=WINDOW, own_macs=own_macs)


def unplug_lan(adapter: LanAdapter) -> None:
    """Take it away, also while it is in use; in the hypervisor's process. Whoever stands on it loses all frames."""
    remove_lan(adapter)


def open_lan(
    kernel: PartitionKernel,
    unit_address: int,
    *,
    pools: Iterable[BufferPool] = DEFAULT_POOLS,
    mac: bytes | None = None,
    mtu: int = 1500,
) -> LanPort:
    """The port of an adapter, registered and with its buffers; in the partition's thread.

    `mac`: another address than the node's. Raises `LocalError`, also when the device tree has no such adapter.
    """
    if unit_address not in kernel.port.nodes:
        kernel.port.watch_tree()  # it is new, and nobody here may have been told yet
    node = kernel.port.nodes.get(unit_address)
    if node is None:
        raise LocalError(f"the device tree has no adapter {unit_address:#x}")
    port = LanPort(kernel, node, pools=pools, mac=mac, mtu=mtu)
    port.start()
    return port
