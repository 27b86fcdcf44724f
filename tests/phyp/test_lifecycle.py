"""Partitions and pairs: creation, removal, reboot, death (papr-vio 2.3, 3.9), and what callers do wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powervio.errors import LocalError
from powervio.papr.codes import ReturnCode
from powervio.papr.nodes import DmaWindow
from powervio.phyp.hypervisor import Hypervisor
from powervio.vio.slots import CrqSlots

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
MESSAGE = 0x80 << 56
FAILED = (0xFF01 << 48, 0)
DEREGISTERED = (0xFF02 << 48, 0)


def drain(slots: CrqSlots) -> list[tuple[int, int]]:
    return list(iter(slots.next, None))


def test_create_pair_nodes_describe_the_adapters(rig: Rig) -> None:
    server = rig.s.nodes[rig.s_ua]
    client = rig.c.nodes[rig.c_ua]
    assert (server.name, server.device_type, server.compatible) == (
        "virtio-host",
        "virtio-host",
        ("powervio,virtio-host",),
    )
    assert (client.name, client.device_type, client.compatible) == ("virtio", "virtio", ("powervio,virtio",))
    assert (server.is_server, client.is_server) == (True, False)
    assert server.location_code == "U9117.MMA.0000001-V1-C2-T1"
    assert client.location_code == "U9117.MMA.0000001-V2-C2-T1"
    assert server.windows == (DmaWindow(rig.local, 16 * PAGE), DmaWindow(rig.remote, 32 * PAGE))
    assert client.windows == (DmaWindow(rig.window, 32 * PAGE),)
    assert (server.unit_address, client.unit_address) == (0x3000_0002, 0x3000_0002)


def test_create_pair_liobns_and_sources_are_unique(rig: Rig) -> None:
    pairs = [rig.hypervisor.create_pair(rig.server, rig.client) for _ in range(4)]
    liobns = [window.liobn for pair in pairs for end in pair for window in end.node.windows]
    assert len({*liobns, rig.local, rig.remote, rig.window}) == len(liobns) + 3
    assert len({end.interrupt for end, _ in pairs}) == 4


def test_create_pair_names_of_the_server_can_be_given(rig: Rig) -> None:
    server, client = rig.hypervisor.create_pair(
        rig.server,
        rig.client,
        name="v-scsi",
        device_type="vscsi",
        compatible=("IBM,v-scsi",),
        server_name="v-scsi-host",
        server_device_type="v-scsi-host",
        server_compatible=("IBM,v-scsi-host",),
    )
    assert (server.node.name, server.node.device_type, server.node.compatible) == (
        "v-scsi-host",
        "v-scsi-host",
        ("IBM,v-scsi-host",),
    )
    assert client.node.device_type == "vscsi"


def test_create_pair_slots_asked_for_are_used(rig: Rig) -> None:
    server, client = rig.hypervisor.create_pair(rig.server, rig.client, server_slot=0x10, client_slot=7)
    assert (server.unit_address, client.unit_address) == (0x3000_0010, 0x3000_0007)
    assert client.node.location_code.endswith("-V2-C7-T1")


def test_create_pair_occupied_slot_is_local_error(rig: Rig) -> None:
    with pytest.raises(LocalError, match="slot 2 of partition server holds virtio-host already"):
        rig.hypervisor.create_pair(rig.server, rig.client, server_slot=2)


def test_create_pair_occupied_client_slot_leaves_the_server_unchanged(rig: Rig) -> None:
    nodes = dict(rig.s.nodes)
    with pytest.raises(LocalError, match="slot 2 of partition client"):
        rig.hypervisor.create_pair(rig.server, rig.client, client_slot=2)
    assert rig.s.nodes == nodes


def test_create_pair_slot_out_of_range_is_local_error(rig: Rig) -> None:
    with pytest.raises(LocalError, match="slots are 0 to 65535"):
        rig.hypervisor.create_pair(rig.server, rig.client, server_slot=65536)


@pytest.mark.parametrize("window", [0, -PAGE, 100])
def test_create_pair_bad_window_is_local_error(rig: Rig, window: int) -> None:
    with pytest.raises(LocalError, match="positive multiple of 4096"):
        rig.hypervisor.create_pair(rig.server, rig.client, client_window=window)


@pytest.mark.parametrize("size", [0, 4095, -PAGE])
def test_create_partition_bad_memory_size_is_local_error(size: int) -> None:
    with Hypervisor() as hypervisor, pytest.raises(LocalError, match="memory of partition p"):
        hypervisor.create_partition("p", size)


def test_create_partition_ids_and_names_are_unique(rig: Rig) -> None:
    with pytest.raises(LocalError, match="id 2 belongs to client already"):
        rig.hypervisor.create_partition("other", PAGE, 2)
    with pytest.raises(LocalError, match="named client already"):
        rig.hypervisor.create_partition("client", PAGE)
    with pytest.raises(LocalError, match="not in 1 to 65535"):
        rig.hypervisor.create_partition("other", PAGE, 0)
    assert rig.hypervisor.create_partition("other", PAGE).partition_id == 3
    assert rig.hypervisor.create_partition("more", PAGE, 9).port.partition_id == 9


def test_hypervisor_max_virtual_dma_size_below_the_minimum_is_local_error() -> None:
    with pytest.raises(LocalError, match="131072 or more"):
        Hypervisor(max_virtual_dma_size=0x1_FFFF)
    with Hypervisor(max_virtual_dma_size=0x2_0000) as hypervisor:
        assert hypervisor.create_partition("p", PAGE).port.max_virtual_dma_size == 0x2_0000


def test_remove_pair_both_ends_are_unknown(linked: Rig) -> None:
    linked.hypervisor.remove_pair(linked.client_end)
    assert dict(linked.s.nodes) == {}
    assert dict(linked.c.nodes) == {}
    assert linked.s.send_crq(linked.s_ua, MESSAGE, 0) == ReturnCode.H_PARAMETER
    assert linked.c.put_tce(linked.window, 0, 0) == ReturnCode.H_PARAMETER
    assert linked.s.copy_rdma(8, linked.remote, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM


def test_remove_pair_slot_and_pair_can_be_made_again(linked: Rig) -> None:
    linked.hypervisor.remove_pair(linked.server_end)
    server_end, _ = linked.hypervisor.create_pair(linked.server, linked.client)
    assert server_end.slot == 2
    assert server_end.window.liobn != linked.local


def test_remove_pair_twice_is_local_error(linked: Rig) -> None:
    linked.hypervisor.remove_pair(linked.server_end)
    with pytest.raises(LocalError, match="was removed from partition server already"):
        linked.hypervisor.remove_pair(linked.server_end)


def test_remove_adapter_partner_sees_it_deregister(linked: Rig) -> None:
    linked.hypervisor.remove_adapter(linked.client_end)
    assert drain(CrqSlots(linked.server.memory[:PAGE])) == [DEREGISTERED]
    assert linked.s.copy_rdma(8, linked.remote, 0, linked.local, 0) == ReturnCode.H_PERMISSION


def test_terminate_partner_is_told_and_cut_off(linked: Rig) -> None:
    linked.hypervisor.terminate(linked.client)
    assert drain(CrqSlots(linked.server.memory[:PAGE])) == [FAILED]
    assert linked.s.copy_rdma(8, linked.remote, PAGE, linked.local, PAGE) == ReturnCode.H_PERMISSION
    assert linked.s.send_crq(linked.s_ua, MESSAGE, 0) == ReturnCode.H_CLOSED


def test_terminate_tells_every_partner(linked: Rig) -> None:
    other = linked.hypervisor.create_partition("other", 2 * PAGE)
    server_end, client_end = linked.hypervisor.create_pair(linked.server, other)
    assert linked.s.put_tce(server_end.window.liobn, 0, 9 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert other.port.put_tce(client_end.window.liobn, 0, 3) == ReturnCode.H_SUCCESS
    assert other.port.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    linked.hypervisor.terminate(linked.server)
    assert drain(CrqSlots(linked.client.memory[:PAGE])) == [FAILED]
    assert drain(CrqSlots(other.memory[:PAGE])) == [FAILED]


def test_terminate_hcalls_of_the_dead_partition_give_return_codes(linked: Rig) -> None:
    port = linked.c
    linked.hypervisor.terminate(linked.client)
    assert port.put_tce(linked.window, 0, 3) == ReturnCode.H_PARAMETER
    assert port.reg_crq(linked.c_ua, 0, PAGE) == ReturnCode.H_PARAMETER
    assert port.xirr() & 0xFF_FFFF == 0
    assert port.eoi(0xFF << 24 | 0x1000) == ReturnCode.H_PARAMETER
    assert port.cppr(0xFF) == ReturnCode.H_SUCCESS


def test_terminate_twice_is_local_error(linked: Rig) -> None:
    linked.hypervisor.terminate(linked.client)
    with pytest.raises(LocalError, match="client is not running"):
        linked.hypervisor.terminate(linked.client)
    with pytest.raises(LocalError, match="client is not running"):
        linked.hypervisor.create_pair(linked.server, linked.client)


def test_terminate_survivor_can_be_paired_again(linked: Rig) -> None:
    linked.hypervisor.terminate(linked.client)
    linked.hypervisor.remove_pair(linked.server_end)
    client = linked.hypervisor.create_partition("client", 4 * PAGE)
    server_end, client_end = linked.hypervisor.create_pair(linked.server, client)
    assert server_end.slot == 2
    assert linked.s.put_tce(server_end.window.liobn, 0, 3) == ReturnCode.H_SUCCESS
    assert client.port.put_tce(client_end.window.liobn, 0, 3) == ReturnCode.H_SUCCESS
    assert linked.s.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert client.port.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS


def test_terminate_partition_that_is_its_own_partner_works(rig: Rig) -> None:
    server_end, client_end = rig.hypervisor.create_pair(rig.client, rig.client)
    for page, end in enumerate((server_end, client_end)):
        assert rig.c.put_tce(end.window.liobn, 0, page * PAGE | 3) == ReturnCode.H_SUCCESS
        rig.c.reg_crq(end.unit_address, 0, PAGE)
    rig.hypervisor.terminate(rig.client)
    assert not server_end.registered


def test_reboot_counts_as_free_and_clears(linked: Rig) -> None:
    linked.client.memory[9 * PAGE] = 1
    linked.hypervisor.reboot(linked.client)
    assert drain(CrqSlots(linked.server.memory[:PAGE])) == [DEREGISTERED]
    assert bytes(linked.client.memory) == bytes(16 * PAGE)
    assert linked.c.get_tce(linked.window, PAGE) == (ReturnCode.H_SUCCESS, 0)
    assert linked.s.copy_rdma(8, linked.remote, PAGE, linked.local, PAGE) == ReturnCode.H_PERMISSION
    assert linked.s.get_tce(linked.local, PAGE) == (ReturnCode.H_SUCCESS, PAGE | 3)


def test_fail_tells_every_partner_ff01_and_the_partition_boots_again(linked: Rig) -> None:
    linked.server.memory[9 * PAGE] = 1
    linked.hypervisor.fail(linked.server)
    assert drain(CrqSlots(linked.client.memory[:PAGE])) == [FAILED]
    assert bytes(linked.server.memory) == bytes(16 * PAGE)
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 1) == ReturnCode.H_CLOSED
    linked.hypervisor.reboot(linked.server)  # whatever was left; it had no queue, so nobody is told
    assert drain(CrqSlots(linked.client.memory[:PAGE])) == []
    linked.map_all()
    assert linked.s.reg_crq(linked.s_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 1) == ReturnCode.H_SUCCESS


def test_reboot_without_a_queue_tells_nobody(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    rig.hypervisor.reboot(rig.client)
    assert drain(CrqSlots(rig.server.memory[:PAGE])) == []


def test_reboot_partition_connects_again(linked: Rig) -> None:
    linked.hypervisor.reboot(linked.client)
    assert linked.c.put_tce(linked.window, 0, 4 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert linked.c.reg_crq(linked.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert linked.s.send_crq(linked.s_ua, MESSAGE, 1) == ReturnCode.H_SUCCESS
    assert drain(CrqSlots(linked.client.memory[4 * PAGE : 5 * PAGE])) == [(MESSAGE, 1)]


def test_close_twice_is_harmless(linked: Rig) -> None:
    linked.hypervisor.close()
    linked.hypervisor.close()
    assert linked.hypervisor.partitions == {}


def test_create_pair_without_a_free_slot_is_local_error(rig: Rig) -> None:
    for slot in range(2, 0x1_0000):
        rig.client.slots.setdefault(slot, rig.client_end)
    with pytest.raises(LocalError, match="partition client has an adapter in each of its 65536 slots"):
        rig.hypervisor.create_pair(rig.server, rig.client)
    assert len(rig.server.slots) == 1
    for slot in range(3, 0x1_0000):
        del rig.client.slots[slot]
