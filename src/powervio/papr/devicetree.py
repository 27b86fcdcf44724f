"""The device tree that a partition boots with, as far as virtual I/O goes (papr-vio 2.2, 9, 14.2).

`partition_tree` is a pure function of what the partition has, so that the hypervisor and the gateway give out the same;
`virtual_adapters` reads the adapters back, as a partition's firmware code does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from powervio.errors import RemoteError
from powervio.papr import lan
from powervio.papr.fdt import Node, cells, cells_64, strings, to_cells, to_strings
from powervio.papr.nodes import DmaWindow, VdeviceNode

_DEFINED = frozenset((
    "vty", "vty-server", "vty-mserver", "l-lan", "v-scsi", "v-scsi-host", "vfc-client", "vfc-server", "ibm,vnic",
    "ibm,vnic-server", "vtpm", "ibm,vmc",
))  # fmt: skip
"""Node names that the architecture defines; others carry `used-by-rtas` (papr-vio 9.2, requirement R1-19)."""
_CELLS_OF_ADDRESS = 2
_CELLS_OF_SIZE = 2
_TRIPLE = 1 + _CELLS_OF_ADDRESS + _CELLS_OF_SIZE
_LIVE_INSERTION = -1
"""`ibm,drc-power-domains`: no power domain has to be switched."""


def partition_tree(
    partition_id: int,
    partition_name: str,
    nodes: Iterable[VdeviceNode],
    function_sets: Sequence[str],
    *,
    max_virtual_dma_size: int | None = None,
    tree_source: int = 0,
) -> Node:
    """The root of a partition's tree.

    `function_sets` are the names of `ibm,hypertas-functions`; `max_virtual_dma_size` is bytes, None for no limit;
    `tree_source` is the interrupt source of hot-plug events, 0 for a platform without.
    """
    root = Node(
        properties={
            "model": strings("powervio"),
            "compatible": strings("powervio,partition"),
            "#address-cells": cells(2),
            "#size-cells": cells(2),
            "ibm,partition-no": cells(partition_id),
            "ibm,partition-name": strings(partition_name),
        },
        children=[
            Node("rtas", {"ibm,hypertas-functions": strings(*function_sets)}),
            _vdevice(sorted(nodes, key=lambda node: node.unit_address), max_virtual_dma_size),
        ],
    )
    if tree_source:
        properties = {
            "#address-cells": cells(0),
            "#interrupt-cells": cells(2),
            "interrupt-controller": b"",
            "interrupt-ranges": cells(tree_source, 1),
        }
        event = Node("hot-plug-events", {"interrupts": cells(tree_source, 0)})
        root.children.append(Node("event-sources", properties, [event]))
    return root


def _vdevice(nodes: list[VdeviceNode], max_virtual_dma_size: int | None) -> Node:
    properties = {
        "device_type": strings("vdevice"),
        "compatible": strings("IBM,vdevice"),
        "#address-cells": cells(1),
        "#size-cells": cells(0),
        "#interrupt-cells": cells(2),
        "interrupt-controller": b"",
    }
    ranges = _ranges(nodes)
    if ranges:
        properties["interrupt-ranges"] = cells(*(value for pair in ranges for value in pair))
    if max_virtual_dma_size is not None:
        properties["ibm,max-virtual-dma-size"] = cells(min(max_virtual_dma_size, 0xFFFF_FFFF))
    count = cells(len(nodes))
    properties["ibm,drc-indexes"] = count + cells(*map(_drc_index, nodes))
    properties["ibm,drc-names"] = count + strings(*map(_drc_name, nodes))
    properties["ibm,drc-types"] = count + strings(*("SLOT" for _ in nodes))
    properties["ibm,drc-power-domains"] = count + cells(*(_LIVE_INSERTION for _ in nodes))
    return Node("vdevice", properties, [_adapter(node) for node in nodes])


def _adapter(node: VdeviceNode) -> Node:
    properties = {
        "device_type": strings(node.device_type),
        "compatible": strings(*node.compatible),
        "reg": cells(node.unit_address),
        "interrupts": cells(node.interrupt, 0),  # sense 0: rising edge
        "ibm,loc-code": strings(node.location_code),
        "ibm,my-drc-index": cells(_drc_index(node)),
    }
    if node.windows:
        # On the node itself: Linux looks nowhere else for them (papr-vio 2.2).
        properties["ibm,#dma-address-cells"] = cells(_CELLS_OF_ADDRESS)
        properties["ibm,#dma-size-cells"] = cells(_CELLS_OF_SIZE)
        triples = (cells(window.liobn) + cells_64(0) + cells_64(window.size) for window in node.windows)
        properties["ibm,my-dma-window"] = b"".join(triples)
    if node.interrupt_ranges:
        properties["interrupt-ranges"] = cells(*(value for pair in node.interrupt_ranges for value in pair))
    if node.is_server:
        properties["ibm,vserver"] = b""
    if node.release:
        properties["powervio,release"] = b""
    properties |= dict(node.properties)
    if node.name not in _DEFINED:
        properties["used-by-rtas"] = b""
    return Node(f"{node.name}@{node.unit_address:x}", properties)


def _drc_index(node: VdeviceNode) -> int:
    """The index of the slot's connector is its unit address: unique, and 3 in the top digit means virtual I/O."""
    return node.unit_address


def _drc_name(node: VdeviceNode) -> str:
    """The connector is the slot: the location code without the port."""
    return node.location_code.removesuffix("-T1")


def _ranges(nodes: list[VdeviceNode]) -> list[tuple[int, int]]:
    """All interrupt sources as (first, count)."""
    found = sorted([(node.interrupt, 1) for node in nodes] + [pair for node in nodes for pair in node.interrupt_ranges])
    ranges: list[tuple[int, int]] = []
    for first, count in found:
        if ranges and first <= sum(ranges[-1]):
            start = ranges[-1][0]
            ranges[-1] = (start, max(sum(ranges[-1]), first + count) - start)
        else:
            ranges.append((first, count))
    return ranges


def virtual_adapters(root: Node) -> dict[int, VdeviceNode]:
    """The children of `/vdevice` by unit address. Raises `RemoteError` for a tree that does not have them right."""
    vdevice = root.child("vdevice")
    if vdevice is None:
        raise RemoteError("the device tree has no /vdevice")
    found = {}
    for child in vdevice.children:
        try:
            adapter = _read_adapter(child)
        except KeyError as missing:
            raise RemoteError(f"/vdevice/{child.name} has no property {missing.args[0]}") from None
        except (RemoteError, ValueError) as error:
            raise RemoteError(f"/vdevice/{child.name}: {error}") from None
        found[adapter.unit_address] = adapter
    return found


def _read_adapter(node: Node) -> VdeviceNode:
    have = node.properties
    (unit_address,) = to_cells(have["reg"])
    interrupt, _ = to_cells(have["interrupts"])
    (device_type,) = to_strings(have["device_type"])
    (location_code,) = to_strings(have["ibm,loc-code"])
    windows: list[DmaWindow] = []
    if "ibm,my-dma-window" in have:
        if to_cells(have["ibm,#dma-address-cells"]) + to_cells(have["ibm,#dma-size-cells"]) != (2, 2):
            raise RemoteError("window panes are read with 2 cells of address and 2 of size")
        panes = to_cells(have["ibm,my-dma-window"])
        if len(panes) % _TRIPLE:
            raise RemoteError(f"{len(panes)} cells of window panes; each has {_TRIPLE}")
        for at in range(0, len(panes), _TRIPLE):
            windows.append(DmaWindow(panes[at], panes[at + 3] << 32 | panes[at + 4]))
    ranges = to_cells(have.get("interrupt-ranges", b""))
    return VdeviceNode(
        unit_address=unit_address,
        name=node.name.partition("@")[0],
        device_type=device_type,
        compatible=to_strings(have["compatible"]),
        location_code=location_code,
        interrupt=interrupt,
        windows=tuple(windows),
        is_server="ibm,vserver" in have,
        interrupt_ranges=tuple(zip(ranges[::2], ranges[1::2], strict=True)),
        release="powervio,release" in have,
        properties=tuple((name, have[name]) for name in lan.PROPERTIES if name in have),
    )
