"""H_VIOCTL: its order of checks and its sub-functions (papr-vio 1.6)."""

from __future__ import annotations

import pytest
from tests.phyp.conftest import PAGE, Rig

from powervio.papr.codes import ReturnCode
from powervio.papr.vioctl import Vioctl, output_descriptor
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.suspension import SuspendAborted

SERVER_ONLY = [
    Vioctl.DISABLE_MIGRATION,
    Vioctl.ENABLE_MIGRATION,
    Vioctl.GET_PARTNER_INFO,
    Vioctl.GET_MAX_REDIRECTED_MAPPINGS,
    Vioctl.ENABLE_PREPARE_FOR_SUSPEND,
    Vioctl.READY_FOR_SUSPEND,
]

OF_LAN = [
    Vioctl.GET_ILLAN_NUMBER_VLAN_IDS,
    Vioctl.GET_ILLAN_VLAN_ID_LIST,
    Vioctl.GET_ILLAN_SWITCH_ID,
    Vioctl.GET_ILLAN_SWITCHING_MODE,
    Vioctl.DISABLE_INACTIVE_TRUNK_RECEPTION,
    Vioctl.ILLAN_MAC_SCAN,
]
"""There when `powervio.native.lan` is (tests/native/test_lan_hcalls.py)."""
IMPLEMENTED = [number for number in Vioctl if number not in OF_LAN]


@pytest.mark.parametrize("number", [0x00, 0x01, 0x0D, 0x15, 0x17, 0x1F, 2**64 - 1])
def test_unknown_sub_function_is_not_found_even_for_an_unknown_adapter(linked: Rig, number: int) -> None:
    assert linked.s.vioctl(linked.s_ua, number) == (ReturnCode.H_NOT_FOUND,)
    assert linked.s.vioctl(1, number) == (ReturnCode.H_NOT_FOUND,)


@pytest.mark.parametrize("number", IMPLEMENTED)
def test_unknown_unit_address_is_parameter(linked: Rig, number: Vioctl) -> None:
    assert linked.s.vioctl(1, number) == (ReturnCode.H_PARAMETER,)


@pytest.mark.parametrize("number", SERVER_ONLY)
def test_sub_function_for_servers_on_a_client_is_parameter(linked: Rig, number: Vioctl) -> None:
    assert linked.c.vioctl(linked.c_ua, number) == (ReturnCode.H_PARAMETER,)


@pytest.mark.parametrize("number", IMPLEMENTED)
def test_unused_parameters_that_are_not_zero_are_parameter(linked: Rig, number: Vioctl) -> None:
    assert linked.s.vioctl(linked.s_ua, number, 0, 0, 1) == (ReturnCode.H_PARAMETER,)
    assert linked.s.vioctl(linked.s_ua, number, 0, 1, 0) == (ReturnCode.H_PARAMETER,)


def test_get_partner_info_tells_id_address_and_location_and_zeroes_the_rest(linked: Rig) -> None:
    linked.server.memory[2 * PAGE : 3 * PAGE] = b"\xff" * PAGE
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, output_descriptor(100, 2 * PAGE)) == (0,)
    written = bytes(linked.server.memory[2 * PAGE : 2 * PAGE + 100])
    assert written[:8] == (2).to_bytes(8, "big")
    assert written[8:16] == linked.c_ua.to_bytes(8, "big")
    assert written[16:] == linked.client_end.node.location_code.encode().ljust(84, b"\0")
    assert linked.server.memory[2 * PAGE + 100] == 0xFF


def test_get_partner_info_buffer_over_two_pages(linked: Rig) -> None:
    linked.s.put_tce(linked.local, 3 * PAGE, 5 * PAGE | 3)
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, output_descriptor(64, 3 * PAGE - 8)) == (0,)
    assert linked.server.memory[5 * PAGE : 5 * PAGE + 8] == linked.c_ua.to_bytes(8, "big")


def test_get_partner_info_short_buffer_is_constrained_before_its_address_is_looked_at(linked: Rig) -> None:
    descriptor = output_descriptor(16, 0xFFFF_0000)
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, descriptor) == (ReturnCode.H_CONSTRAINED,)


@pytest.mark.parametrize("descriptor", [output_descriptor(100, 0xFFFF_0000), 1 << 56 | output_descriptor(100, PAGE)])
def test_get_partner_info_bad_descriptor_is_parameter(linked: Rig, descriptor: int) -> None:
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, descriptor) == (ReturnCode.H_PARAMETER,)


def test_get_partner_info_read_only_page_is_parameter(linked: Rig) -> None:
    linked.s.put_tce(linked.local, 2 * PAGE, 2 * PAGE | 1)
    descriptor = output_descriptor(100, 2 * PAGE)
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, descriptor) == (ReturnCode.H_PARAMETER,)


def test_get_partner_info_without_a_partner_is_closed(linked: Rig) -> None:
    linked.hypervisor.remove_adapter(linked.client_end)
    descriptor = output_descriptor(100, 2 * PAGE)
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_PARTNER_INFO, descriptor) == (ReturnCode.H_CLOSED,)


def test_get_partner_uuid_is_the_partner_partition_s(linked: Rig) -> None:
    code, high, low = linked.c.vioctl(linked.c_ua, Vioctl.GET_PARTNER_UUID)
    assert (code, high << 64 | low) == (0, linked.server.uuid.int)


def test_get_max_redirected_mappings_tells_what_is_beyond_the_guaranteed_one(linked: Rig) -> None:
    extra = linked.hypervisor.policy.max_redirected_mappings - 1
    assert linked.s.vioctl(linked.s_ua, Vioctl.GET_MAX_REDIRECTED_MAPPINGS) == (0, extra, extra)


def test_disabled_migration_refuses_suspension_until_enabled(linked: Rig) -> None:
    assert linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_MIGRATION) == (ReturnCode.H_PARAMETER,)
    assert linked.s.vioctl(linked.s_ua, Vioctl.DISABLE_MIGRATION) == (0,)
    with pytest.raises(SuspendAborted, match="has disabled migration"):
        linked.hypervisor.suspend(linked.client)
    assert linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_MIGRATION) == (0,)
    linked.hypervisor.suspend(linked.client)


def test_disable_migration_is_cancelled_by_free_crq(linked: Rig) -> None:
    linked.s.vioctl(linked.s_ua, Vioctl.DISABLE_MIGRATION)
    linked.s.free_crq(linked.s_ua)
    assert linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_MIGRATION) == (ReturnCode.H_PARAMETER,)


def test_disable_migration_without_a_connection_is_closed(linked: Rig) -> None:
    linked.c.free_crq(linked.c_ua)
    assert linked.s.vioctl(linked.s_ua, Vioctl.DISABLE_MIGRATION) == (ReturnCode.H_CLOSED,)


def test_disable_all_vio_interrupts_is_for_the_crq_too(linked: Rig) -> None:
    _, cookie, number = linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)
    for source in (linked.server_end.interrupt, number):
        assert linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, source) == (0,)
    assert linked.s.vioctl(linked.s_ua, Vioctl.DISABLE_ALL_VIO_INTERRUPTS) == (0,)
    linked.c.send_crq(linked.c_ua, 0x80 << 56, 0)
    linked.c.send_sub_crq(linked.c_ua, cookie, 0x80 << 56, 0, 0, 0)
    assert linked.s.xirr() & 0xFF_FFFF == 0


def test_disable_vio_interrupt_is_for_one_source(linked: Rig) -> None:
    _, cookie, number = linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)
    linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, linked.server_end.interrupt)
    linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, number)
    assert linked.s.vioctl(linked.s_ua, Vioctl.DISABLE_VIO_INTERRUPT, number) == (0,)
    linked.c.send_sub_crq(linked.c_ua, cookie, 0x80 << 56, 0, 0, 0)
    assert linked.s.xirr() & 0xFF_FFFF == 0
    linked.c.send_crq(linked.c_ua, 0x80 << 56, 0)
    assert linked.s.xirr() & 0xFF_FFFF == linked.server_end.interrupt


def test_interrupt_number_of_nothing_registered_is_parameter(linked: Rig) -> None:
    ((first, count),) = linked.server_end.node.interrupt_ranges
    for source in (0, first, first + count, linked.client_end.node.interrupt_ranges[0][0] + 100):
        assert linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, source) == (ReturnCode.H_PARAMETER,)


def test_prepare_for_suspend_longer_than_30_s_is_parameter(linked: Rig) -> None:
    number = Vioctl.ENABLE_PREPARE_FOR_SUSPEND
    assert linked.s.vioctl(linked.s_ua, number, 30_001) == (ReturnCode.H_PARAMETER,)
    assert linked.s.vioctl(linked.s_ua, number, 30_000)[0] == ReturnCode.H_SUCCESS


def test_ready_for_suspend_without_prepare_after_the_last_reg_crq_is_constrained(linked: Rig) -> None:
    assert linked.s.vioctl(linked.s_ua, Vioctl.READY_FOR_SUSPEND) == (ReturnCode.H_CONSTRAINED,)
    linked.s.vioctl(linked.s_ua, Vioctl.ENABLE_PREPARE_FOR_SUSPEND, 1000)
    assert linked.s.vioctl(linked.s_ua, Vioctl.READY_FOR_SUSPEND) == (0,)
    linked.s.free_crq(linked.s_ua)
    linked.s.reg_crq(linked.s_ua, 0, PAGE)
    assert linked.s.vioctl(linked.s_ua, Vioctl.READY_FOR_SUSPEND) == (ReturnCode.H_CONSTRAINED,)


def test_function_sets_name_the_new_calls() -> None:
    from powervio.phyp.registry import function_sets

    Hypervisor().close()
    assert {"hcall-sub-crq", "hcall-vioctl", "hcall-suspend"} <= set(function_sets())
