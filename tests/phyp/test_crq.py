"""hcall-crq and H_VIO_SIGNAL: one fault at a time, transport events, wrap-around (papr-vio 1.5, 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powervio.papr.codes import ReturnCode
from powervio.vio.slots import CrqSlots

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
SLOTS = 256
MESSAGE = 0x80 << 56
INITIALIZE = 0xC001 << 48
FAILED = (0xFF01 << 48, 0)
DEREGISTERED = (0xFF02 << 48, 0)
SUSPENDED = (0xFF06 << 48, 0)
OVERLAID = 0x20 << 32


def server_slots(rig: Rig) -> CrqSlots:
    return CrqSlots(rig.server.memory[:PAGE])


def client_slots(rig: Rig) -> CrqSlots:
    return CrqSlots(rig.client.memory[:PAGE])


def drain(slots: CrqSlots) -> list[tuple[int, int]]:
    return list(iter(slots.next, None))


# H_REG_CRQ


def test_reg_crq_first_end_is_closed_and_registered(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_RESOURCE


def test_reg_crq_second_end_is_success(rig: Rig) -> None:
    rig.map_all()
    assert rig.c.reg_crq(rig.c_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_SUCCESS


def test_reg_crq_unknown_unit_address_is_parameter(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(0x3000_0999, 0, PAGE) == ReturnCode.H_PARAMETER


def test_reg_crq_unaligned_address_is_parameter(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 16, PAGE) == ReturnCode.H_PARAMETER


@pytest.mark.parametrize("length", [0, 16, PAGE + 16, -PAGE])
def test_reg_crq_bad_length_is_parameter(rig: Rig, length: int) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, length) == ReturnCode.H_PARAMETER


def test_reg_crq_last_page_unmapped_is_parameter(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.put_tce(rig.local, 3 * PAGE, 0) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(rig.s_ua, 0, 3 * PAGE) == ReturnCode.H_CLOSED
    assert rig.s.free_crq(rig.s_ua) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(rig.s_ua, 0, 4 * PAGE) == ReturnCode.H_PARAMETER


def test_reg_crq_read_only_page_is_parameter(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.put_tce(rig.local, 0, 1) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_PARAMETER


def test_reg_crq_beyond_the_pane_is_parameter(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 15 * PAGE, 2 * PAGE) == ReturnCode.H_PARAMETER
    assert rig.s.reg_crq(rig.s_ua, -PAGE, 2 * PAGE) == ReturnCode.H_PARAMETER


def test_reg_crq_longer_than_the_limit_is_parameter(strict: Rig) -> None:
    assert strict.s.free_crq(strict.s_ua) == ReturnCode.H_SUCCESS
    assert strict.s.reg_crq(strict.s_ua, 0, 3 * PAGE) == ReturnCode.H_PARAMETER
    assert strict.s.reg_crq(strict.s_ua, 0, 2 * PAGE) == ReturnCode.H_SUCCESS


def test_reg_crq_no_partner_is_not_found(rig: Rig) -> None:
    rig.map_all()
    rig.hypervisor.remove_adapter(rig.client_end)
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_NOT_FOUND


def test_reg_crq_terminated_partner_is_closed(rig: Rig) -> None:
    rig.map_all()
    rig.hypervisor.terminate(rig.client)
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED


def test_reg_crq_stale_header_is_not_cleared(rig: Rig) -> None:
    rig.map_all()
    rig.server.memory[0] = 0x80
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(rig.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert rig.c.send_crq(rig.c_ua, MESSAGE, 0) == ReturnCode.H_DROPPED


def test_reg_crq_again_starts_at_the_first_slot(linked: Rig) -> None:
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 1) == ReturnCode.H_SUCCESS
    assert linked.s.free_crq(linked.s_ua) == ReturnCode.H_SUCCESS
    linked.server.memory[:PAGE] = bytes(PAGE)
    assert linked.s.reg_crq(linked.s_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 2) == ReturnCode.H_SUCCESS
    assert drain(server_slots(linked)) == [(MESSAGE, 2)]


# H_FREE_CRQ


def test_free_crq_registered_tells_the_partner(linked: Rig) -> None:
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert drain(server_slots(linked)) == [DEREGISTERED]


def test_free_crq_unregistered_is_success_without_event(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.free_crq(rig.c_ua) == ReturnCode.H_SUCCESS
    assert drain(server_slots(rig)) == []


def test_free_crq_unknown_unit_address_is_parameter(rig: Rig) -> None:
    assert rig.c.free_crq(rig.c_ua + 1) == ReturnCode.H_PARAMETER


def test_free_crq_messages_before_the_event_stay_in_order(linked: Rig) -> None:
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 1) == ReturnCode.H_SUCCESS
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.reg_crq(linked.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS
    assert drain(server_slots(linked)) == [(MESSAGE, 1), DEREGISTERED, (INITIALIZE, 0)]


def test_free_crq_tces_persist(linked: Rig) -> None:
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.get_tce(linked.window, PAGE) == (ReturnCode.H_SUCCESS, PAGE | 3)


# H_SEND_CRQ


def test_send_crq_element_is_big_endian(linked: Rig) -> None:
    high, low = 0x8001_0203_0405_0607, 0x08090A0B_0C0D0E0F
    assert linked.c.send_crq(linked.c_ua, high, low) == ReturnCode.H_SUCCESS
    assert bytes(linked.server.memory[:17]) == bytes([0x80, *range(1, 16), 0])


def test_send_crq_unknown_unit_address_is_parameter(linked: Rig) -> None:
    assert linked.c.send_crq(0x1234, MESSAGE, 0) == ReturnCode.H_PARAMETER


@pytest.mark.parametrize("header", [0x00, 0x01, 0x7F, 0xFF])
def test_send_crq_forbidden_header_is_parameter(linked: Rig, header: int) -> None:
    assert linked.c.send_crq(linked.c_ua, header << 56, 0) == ReturnCode.H_PARAMETER
    assert drain(server_slots(linked)) == []


@pytest.mark.parametrize("header", [0x80, 0xC0, 0x81, 0xBF, 0xC1, 0xFE])
def test_send_crq_header_with_top_bit_is_sent(linked: Rig, header: int) -> None:
    assert linked.c.send_crq(linked.c_ua, header << 56, 0) == ReturnCode.H_SUCCESS
    assert drain(server_slots(linked)) == [(header << 56, 0)]


@pytest.mark.parametrize("header", [0x81, 0xBF, 0xC1, 0xFE])
def test_send_crq_reserved_header_strict_is_parameter(strict: Rig, header: int) -> None:
    assert strict.c.send_crq(strict.c_ua, header << 56, 0) == ReturnCode.H_PARAMETER


@pytest.mark.parametrize("header", [0x80, 0xC0])
def test_send_crq_defined_header_strict_is_sent(strict: Rig, header: int) -> None:
    assert strict.c.send_crq(strict.c_ua, header << 56, 0) == ReturnCode.H_SUCCESS


def test_send_crq_own_end_unregistered_is_closed(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.send_crq(rig.c_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED


def test_send_crq_partner_unregistered_is_closed(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.s.send_crq(rig.s_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED


def test_send_crq_partner_removed_is_closed(linked: Rig) -> None:
    linked.hypervisor.remove_adapter(linked.client_end)
    assert linked.s.send_crq(linked.s_ua, MESSAGE, 0) == ReturnCode.H_CLOSED


def test_send_crq_bad_header_on_closed_connection_is_parameter(rig: Rig) -> None:
    assert rig.s.send_crq(rig.s_ua, 0, 0) == ReturnCode.H_PARAMETER


def test_send_crq_both_registered_race_delivers_both(linked: Rig) -> None:
    assert linked.s.send_crq(linked.s_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS
    assert drain(server_slots(linked)) == [(INITIALIZE, 0)]
    assert drain(client_slots(linked)) == [(INITIALIZE, 0)]


def test_send_crq_full_queue_is_dropped_and_drained_queue_takes_more(linked: Rig) -> None:
    for number in range(SLOTS):
        assert linked.c.send_crq(linked.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 999) == ReturnCode.H_DROPPED
    slots = server_slots(linked)
    assert slots.next() == (MESSAGE, 0)
    assert linked.c.send_crq(linked.c_ua, MESSAGE, SLOTS) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 999) == ReturnCode.H_DROPPED
    assert [low for _, low in drain(slots)] == list(range(1, SLOTS + 1))


def test_send_crq_three_times_round_keeps_order(linked: Rig) -> None:
    slots = server_slots(linked)
    for number in range(3 * SLOTS + 5):
        assert linked.c.send_crq(linked.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS
        assert slots.next() == (MESSAGE, number)
    assert slots.next() is None


def test_send_crq_slot_left_out_of_order_blocks(linked: Rig) -> None:
    for number in range(SLOTS):
        assert linked.c.send_crq(linked.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS
    for number in range(1, SLOTS):
        linked.server.memory[16 * number] = 0
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 0) == ReturnCode.H_DROPPED


def test_send_crq_queue_of_two_pages_crosses_into_other_memory(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.put_tce(rig.local, PAGE, 9 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(rig.s_ua, 0, 2 * PAGE) == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(rig.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    for number in range(SLOTS + 1):
        assert rig.c.send_crq(rig.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS
    assert rig.server.memory[PAGE] == 0
    assert CrqSlots(rig.server.memory[9 * PAGE : 10 * PAGE]).next() == (MESSAGE, SLOTS)


def test_send_crq_remapped_queue_page_is_used_at_once(linked: Rig) -> None:
    assert linked.s.put_tce(linked.local, 0, 9 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 7) == ReturnCode.H_SUCCESS
    assert linked.server.memory[0] == 0
    assert CrqSlots(linked.server.memory[9 * PAGE : 10 * PAGE]).next() == (MESSAGE, 7)


@pytest.mark.parametrize("tce", [0, 1, 2])
def test_send_crq_unusable_queue_page_is_closed(linked: Rig, tce: int) -> None:
    assert linked.s.put_tce(linked.local, 0, tce) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 0) == ReturnCode.H_CLOSED
    assert linked.s.put_tce(linked.local, 0, 3) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, MESSAGE, 0) == ReturnCode.H_SUCCESS


def test_send_crq_client_and_server_in_one_partition_works(rig: Rig) -> None:
    rig.map_all()
    server_end, client_end = rig.hypervisor.create_pair(rig.client, rig.client)
    for page, end in enumerate((server_end, client_end)):
        assert rig.c.put_tce(end.window.liobn, 0, page * PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.c.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS
    assert rig.c.send_crq(client_end.unit_address, MESSAGE, 5) == ReturnCode.H_SUCCESS
    assert CrqSlots(rig.client.memory[:PAGE]).next() == (MESSAGE, 5)


# transport events on a full queue


def fill(rig: Rig) -> None:
    for number in range(SLOTS):
        assert rig.c.send_crq(rig.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS


def test_event_on_full_queue_overlays_the_newest(linked: Rig) -> None:
    fill(linked)
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    elements = drain(server_slots(linked))
    assert [low for _, low in elements[:-1]] == list(range(SLOTS - 1))
    assert elements[-1][0] == DEREGISTERED[0] | OVERLAID
    assert linked.server.memory[PAGE - 16 + 3] == 0x20
    assert linked.server_end.lost_events == 0


def test_event_on_full_queue_does_not_advance(linked: Rig) -> None:
    slots = server_slots(linked)
    for number in range(3):
        assert linked.c.send_crq(linked.c_ua, MESSAGE, number) == ReturnCode.H_SUCCESS
        assert slots.next() is not None
    fill(linked)
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.reg_crq(linked.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert [high for high, _ in drain(slots)][-2:] == [MESSAGE, DEREGISTERED[0] | OVERLAID]
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS
    assert slots.next() == (INITIALIZE, 0)


def test_event_on_full_queue_interrupts(linked: Rig) -> None:
    fill(linked)
    assert linked.s.vio_signal(linked.s_ua, 1) == ReturnCode.H_SUCCESS
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.s.xirr() & 0xFF_FFFF == linked.server_end.interrupt


def test_event_on_full_queue_without_overlay_is_lost(strict: Rig) -> None:
    fill(strict)
    assert strict.c.free_crq(strict.c_ua) == ReturnCode.H_SUCCESS
    assert drain(server_slots(strict))[-1] == (MESSAGE, SLOTS - 1)
    assert strict.server_end.lost_events == 1


def test_event_two_in_a_row_on_full_queue_newest_wins(linked: Rig) -> None:
    fill(linked)
    linked.hypervisor.suspend(linked.client)
    linked.hypervisor.terminate(linked.client)
    assert drain(server_slots(linked))[-1][0] == FAILED[0] | OVERLAID


def test_event_on_full_queue_with_the_newest_freed_out_of_order_is_lost(linked: Rig) -> None:
    fill(linked)
    linked.server.memory[PAGE - 16] = 0
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.server.memory[PAGE - 16] == 0
    assert linked.server_end.lost_events == 1


def test_event_on_unmapped_queue_is_counted_as_lost(linked: Rig) -> None:
    assert linked.s.put_tce(linked.local, 0, 0) == ReturnCode.H_SUCCESS
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.server_end.lost_events == 1


# H_ENABLE_CRQ and suspension


def test_suspend_tells_both_ends_and_closes_both_directions(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    assert drain(server_slots(linked)) == [SUSPENDED]
    assert drain(client_slots(linked)) == [SUSPENDED]
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED
    assert linked.s.send_crq(linked.s_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED


def test_enable_crq_after_suspension_opens_both_directions(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    assert linked.c.enable_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS
    assert linked.s.send_crq(linked.s_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS


def test_enable_crq_by_the_other_end_leaves_it_closed(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    assert linked.s.enable_crq(linked.s_ua) == ReturnCode.H_SUCCESS
    assert linked.s.send_crq(linked.s_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED


def test_enable_crq_enabled_is_harmless(linked: Rig) -> None:
    assert linked.c.enable_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.send_crq(linked.c_ua, INITIALIZE, 0) == ReturnCode.H_SUCCESS


def test_enable_crq_unregistered_does_not_register(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.enable_crq(rig.c_ua) == ReturnCode.H_SUCCESS
    assert rig.s.send_crq(rig.s_ua, INITIALIZE, 0) == ReturnCode.H_CLOSED


def test_enable_crq_unknown_unit_address_is_parameter(rig: Rig) -> None:
    assert rig.c.enable_crq(5) == ReturnCode.H_PARAMETER


# H_VIO_SIGNAL


def test_vio_signal_unknown_unit_address_is_parameter(rig: Rig) -> None:
    assert rig.c.vio_signal(5, 1) == ReturnCode.H_PARAMETER


def test_vio_signal_undefined_bits_are_ignored(linked: Rig) -> None:
    assert linked.s.vio_signal(linked.s_ua, 2**64 - 1) == ReturnCode.H_SUCCESS
    assert linked.server_end.interrupt_enabled
    assert linked.s.vio_signal(linked.s_ua, 2) == ReturnCode.H_SUCCESS
    assert not linked.server_end.interrupt_enabled


def test_vio_signal_undefined_bits_strict_is_parameter_and_changes_nothing(strict: Rig) -> None:
    assert strict.s.vio_signal(strict.s_ua, 3) == ReturnCode.H_PARAMETER
    assert not strict.server_end.interrupt_enabled
    assert strict.s.vio_signal(strict.s_ua, 1) == ReturnCode.H_SUCCESS


def test_vio_signal_disabled_by_registration_and_by_free(linked: Rig) -> None:
    assert linked.s.vio_signal(linked.s_ua, 1) == ReturnCode.H_SUCCESS
    assert linked.s.free_crq(linked.s_ua) == ReturnCode.H_SUCCESS
    assert not linked.server_end.interrupt_enabled
    assert linked.s.vio_signal(linked.s_ua, 1) == ReturnCode.H_SUCCESS
    assert linked.s.reg_crq(linked.s_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert not linked.server_end.interrupt_enabled
