"""What the hypervisor's device trees say (papr-vio 9, 14.2), and how partitions learn that they changed."""

from __future__ import annotations

import os
import subprocess

import pytest

from powervio.errors import RemoteError
from powervio.papr import fdt
from powervio.papr.devicetree import partition_tree, virtual_adapters
from powervio.papr.fdt import Node, cells, strings
from powervio.papr.nodes import DmaWindow, VdeviceNode
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.policy import Policy

from .conftest import CLIENT_WINDOW, PAGE, SERVER_WINDOW, Rig


def tree_of(rig: Rig, *, server: bool = False) -> Node:
    return fdt.decode(rig.hypervisor.device_tree(rig.server if server else rig.client))


def only_adapter(tree: Node) -> Node:
    vdevice = tree.child("vdevice")
    assert vdevice is not None
    (adapter,) = vdevice.children
    return adapter


def test_root_names_the_partition(rig: Rig) -> None:
    properties = tree_of(rig).properties
    assert properties["ibm,partition-no"] == cells(2)
    assert properties["ibm,partition-name"] == b"client\0"


def test_rtas_has_the_function_sets_that_are_there(rig: Rig) -> None:
    rtas = tree_of(rig).child("rtas")
    assert rtas is not None
    names = fdt.to_strings(rtas.properties["ibm,hypertas-functions"])
    assert {"hcall-tce", "hcall-multi-tce", "hcall-vio", "hcall-crq", "hcall-rdma"} <= set(names)


def test_vdevice_has_what_the_architecture_lists(rig: Rig) -> None:
    vdevice = tree_of(rig).child("vdevice")
    assert vdevice is not None
    ua = rig.c_ua
    assert vdevice.properties == {
        "device_type": b"vdevice\0",
        "compatible": b"IBM,vdevice\0",
        "#address-cells": cells(1),
        "#size-cells": cells(0),
        "#interrupt-cells": cells(2),
        "interrupt-controller": b"",
        "interrupt-ranges": cells(rig.client_end.interrupt, 1),
        "ibm,drc-indexes": cells(1, ua),
        "ibm,drc-names": cells(1) + b"U9117.MMA.0000001-V2-C2\0",
        "ibm,drc-types": cells(1) + b"SLOT\0",
        "ibm,drc-power-domains": cells(1, -1),
    }


def test_client_node_is_the_one_of_the_book(rig: Rig) -> None:
    adapter = only_adapter(tree_of(rig))
    assert adapter.name == "virtio@30000002"
    assert adapter.properties == {
        "device_type": b"virtio\0",
        "compatible": b"powervio,virtio\0",
        "reg": cells(0x30000002),
        "interrupts": cells(rig.client_end.interrupt, 0),
        "ibm,loc-code": b"U9117.MMA.0000001-V2-C2-T1\0",
        "ibm,my-drc-index": cells(0x30000002),
        "ibm,#dma-address-cells": cells(2),
        "ibm,#dma-size-cells": cells(2),
        "ibm,my-dma-window": cells(rig.window, 0, 0, 0, CLIENT_WINDOW),
        "used-by-rtas": b"",
    }


def test_server_node_has_a_second_pane_of_the_clients_size(rig: Rig) -> None:
    adapter = only_adapter(tree_of(rig, server=True))
    assert adapter.properties["ibm,vserver"] == b""
    panes = cells(rig.local, 0, 0, 0, SERVER_WINDOW, rig.remote, 0, 0, 0, CLIENT_WINDOW)
    assert adapter.properties["ibm,my-dma-window"] == panes


def test_max_virtual_dma_size_is_there_when_copies_are_limited(rig: Rig) -> None:
    vdevice = tree_of(rig).child("vdevice")
    assert vdevice is not None
    assert "ibm,max-virtual-dma-size" not in vdevice.properties
    with Hypervisor(Policy(), 0x4_0000) as limited:
        partition = limited.create_partition("p", PAGE)
        vdevice = fdt.decode(limited.device_tree(partition)).child("vdevice")
        assert vdevice is not None
        assert vdevice.properties["ibm,max-virtual-dma-size"] == cells(0x4_0000)


def test_adapters_read_back_are_equal(rig: Rig) -> None:
    for partition in (rig.server, rig.client):
        blob = rig.hypervisor.device_tree(partition)
        assert virtual_adapters(fdt.decode(blob)) == dict(partition.port.nodes)


NODES = [
    VdeviceNode(0x30000000, "vty", "serial", ("hvterm1",), "U1-V1-C0-T1", 0x1000, (), False),
    VdeviceNode(0x30000005, "virtio", "virtio", ("a,b", "c"), "U1-V1-C5-T1", 0x1001, (DmaWindow(7, 1 << 40),), False),
    VdeviceNode(
        0x30000006, "vfc-server", "fcp", ("IBM,vfc-server",), "U1-V1-C6-T1", 0x1007,
        (DmaWindow(8, 4096), DmaWindow(9, 1 << 32)), True, ((0x2000, 8), (0x2010, 1)),
    ),
]  # fmt: skip


def test_many_adapters_read_back_are_equal_and_sorted() -> None:
    tree = partition_tree(1, "p", reversed(NODES), ["hcall-tce"], tree_source=16)
    read = virtual_adapters(fdt.decode(fdt.encode(tree)))
    assert list(read.values()) == NODES
    vdevice = tree.child("vdevice")
    assert vdevice is not None
    assert vdevice.properties["interrupt-ranges"] == cells(0x1000, 2, 0x1007, 1, 0x2000, 8, 0x2010, 1)
    assert "used-by-rtas" not in vdevice.children[0].properties
    assert "ibm,my-dma-window" not in vdevice.children[0].properties


@pytest.mark.parametrize("case", ["rig", "server", "none", "many"])
def test_dtc_reads_the_tree_without_a_warning(case: str, rig: Rig) -> None:
    if case in ("none", "many"):
        tree = partition_tree(1, "p", NODES if case == "many" else [], ["hcall-tce"], tree_source=16)
        blob = fdt.encode(tree)
    else:
        blob = rig.hypervisor.device_tree(rig.server if case == "server" else rig.client)
    result = subprocess.run(["dtc", "-I", "dtb", "-O", "dts"], input=blob, capture_output=True, check=True)
    assert result.stderr == b""
    assert b"/dts-v1/" in result.stdout
    again = subprocess.run(["dtc", "-I", "dts", "-O", "dtb"], input=result.stdout, capture_output=True, check=True)
    assert again.stderr == b""
    assert fdt.decode(again.stdout) == fdt.decode(blob)


BAD = {
    "no vdevice": (Node(""), "the device tree has no /vdevice"),
    "no reg": (Node("", {}, [Node("vdevice", {}, [Node("x")])]), "/vdevice/x has no property reg"),
    "two cells": (
        Node("", {}, [Node("vdevice", {}, [Node("x", {"reg": cells(1, 2)})])]),
        "/vdevice/x: too many values to unpack (expected 1)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_tree_that_lacks_something_is_remote_error(case: str) -> None:
    tree, told = BAD[case]
    with pytest.raises(RemoteError) as caught:
        virtual_adapters(tree)
    assert str(caught.value) == told


def test_pane_with_other_cells_is_remote_error(rig: Rig) -> None:
    tree = tree_of(rig)
    adapter = only_adapter(tree)
    adapter.properties["ibm,#dma-size-cells"] = cells(1)
    with pytest.raises(RemoteError, match="2 cells of address and 2 of size"):
        virtual_adapters(tree)
    adapter.properties["ibm,#dma-size-cells"] = cells(2)
    adapter.properties["ibm,my-dma-window"] += cells(1)
    with pytest.raises(RemoteError, match="6 cells of window panes; each has 5"):
        virtual_adapters(tree)
    adapter.properties["device_type"] = strings("a", "b")
    with pytest.raises(RemoteError):
        virtual_adapters(tree)


# -- changes


def line_is_up(rig: Rig) -> bool:
    try:
        os.eventfd_read(rig.c.interrupt_fd)
    except BlockingIOError:
        return False
    return True


def test_change_nobody_watches_interrupts_nobody(rig: Rig) -> None:
    rig.hypervisor.create_pair(rig.server, rig.client)
    assert not line_is_up(rig)
    assert rig.c.xirr() & 0xFFFFFF == 0


def test_change_pulses_the_source_of_hot_plug_events_once(rig: Rig) -> None:
    before = rig.c.watch_tree()
    server, _ = rig.hypervisor.create_pair(rig.server, rig.client)
    rig.hypervisor.remove_pair(server)
    assert line_is_up(rig)
    xirr = rig.c.xirr()
    assert xirr & 0xFFFFFF == rig.c.tree_source != 0
    assert rig.c.watch_tree() == before + 2
    rig.c.eoi(xirr)
    assert rig.c.xirr() & 0xFFFFFF == 0
    rig.hypervisor.create_pair(rig.server, rig.client)
    assert rig.c.xirr() & 0xFFFFFF == rig.c.tree_source


def test_tree_names_the_source_of_hot_plug_events(rig: Rig) -> None:
    sources = tree_of(rig).child("event-sources")
    assert sources is not None
    (event,) = sources.children
    assert event.name == "hot-plug-events"
    assert event.properties["interrupts"] == cells(rig.c.tree_source, 0)


def test_reboot_forgets_who_watched(rig: Rig) -> None:
    rig.c.watch_tree()
    rig.hypervisor.reboot(rig.client)
    rig.hypervisor.create_pair(rig.server, rig.client)
    assert not line_is_up(rig)


def test_unplugged_adapter_whose_interrupt_is_in_hand_can_be_ended(linked: Rig) -> None:
    other, _ = linked.hypervisor.create_pair(linked.server, linked.client)
    assert linked.c.vio_signal(linked.c_ua, 1) == 0
    assert linked.s.send_crq(linked.s_ua, 0x80 << 56, 0) == 0
    xirr = linked.c.xirr()
    assert xirr & 0xFFFFFF == linked.client_end.interrupt
    linked.hypervisor.remove_pair(linked.client_end)
    assert linked.c.eoi(xirr) == 0
    assert linked.c.eoi(xirr) == -4
    assert linked.c.xirr() >> 24 == 0xFF
    linked.c.watch_tree()
    linked.hypervisor.remove_pair(other)
    assert linked.c.xirr() & 0xFFFFFF == linked.c.tree_source
