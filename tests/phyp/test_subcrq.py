"""hcall-sub-crq: registration, cookies, sending, and what ends a Sub-CRQ (papr-vio 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from tests.phyp.conftest import PAGE, Rig, make_rig

from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.vioctl import Vioctl
from powervio.phyp.policy import Policy
from powervio.vio.slots import CrqSlots

pytestmark = pytest.mark.dual

HEADER = 0x80 << 56
SLOTS = PAGE // 32
SENT = (HEADER | 1, 2, 3, 4)


@dataclass
class Sub:
    """The server's Sub-CRQ in its page 2."""

    rig: Rig
    cookie: int
    interrupt: int

    def drain(self) -> list[tuple[int, int, int, int]]:
        slots = CrqSlots(self.rig.server.memory[2 * PAGE : 3 * PAGE], 32)
        return list(iter(slots.next_wide, None))

    def send(self, *words: int) -> int:
        return self.rig.c.send_sub_crq(self.rig.c_ua, self.cookie, *(words or SENT))


@pytest.fixture
def sub(linked: Rig) -> Sub:
    code, cookie, interrupt = linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)
    assert code == ReturnCode.H_SUCCESS
    return Sub(linked, cookie, interrupt)


def test_reg_sub_crq_zeroes_every_header_and_nothing_else(linked: Rig) -> None:
    linked.server.memory[2 * PAGE : 3 * PAGE] = b"\xff" * PAGE
    assert linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)[0] == ReturnCode.H_SUCCESS
    assert linked.server.memory[2 * PAGE : 3 * PAGE] == (b"\0" + b"\xff" * 31) * SLOTS


def test_reg_sub_crq_interrupt_is_of_the_nodes_ranges_and_disabled(sub: Sub) -> None:
    ((first, count),) = sub.rig.server_end.node.interrupt_ranges
    assert first <= sub.interrupt < first + count
    assert sub.send() == ReturnCode.H_SUCCESS
    assert sub.rig.s.xirr() & 0xFF_FFFF == 0


def test_reg_sub_crq_without_the_partner_is_closed_and_registered(rig: Rig) -> None:
    rig.map_all()
    rig.s.reg_crq(rig.s_ua, 0, PAGE)
    code, cookie, _ = rig.s.reg_sub_crq(rig.s_ua, 2 * PAGE, PAGE)
    assert code == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(rig.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert rig.c.send_sub_crq(rig.c_ua, cookie, *SENT) == ReturnCode.H_SUCCESS


@pytest.mark.parametrize(
    ("ioba", "length"),
    [(2 * PAGE + 32, PAGE), (2 * PAGE, PAGE + 32), (2 * PAGE, 0), (15 * PAGE, 2 * PAGE), (2 * PAGE, 1 << 30)],
)
def test_reg_sub_crq_bad_range_is_parameter(linked: Rig, ioba: int, length: int) -> None:
    assert linked.s.reg_sub_crq(linked.s_ua, ioba, length) == (ReturnCode.H_PARAMETER, 0, 0)


def test_reg_sub_crq_longer_than_the_limit_is_parameter(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(Policy(max_sub_crq_length=PAGE))
    rig.connect()
    assert rig.s.reg_sub_crq(rig.s_ua, 2 * PAGE, 2 * PAGE)[0] == ReturnCode.H_PARAMETER
    rig.hypervisor.close()


def test_reg_sub_crq_no_partner_is_not_found(linked: Rig) -> None:
    linked.hypervisor.remove_adapter(linked.client_end)
    assert linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)[0] == ReturnCode.H_NOT_FOUND


def test_reg_sub_crq_more_than_there_are_is_resource(linked: Rig) -> None:
    for _ in range(16):
        assert linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)[0] == ReturnCode.H_SUCCESS
    assert linked.s.reg_sub_crq(linked.s_ua, 2 * PAGE, PAGE)[0] == ReturnCode.H_RESOURCE


def test_platform_without_sub_crqs_has_no_such_function() -> None:
    rig = make_rig(Policy(max_sub_crqs=0))
    rig.connect()
    assert rig.server_end.node.interrupt_ranges == ()
    assert rig.s.reg_sub_crq(rig.s_ua, 2 * PAGE, PAGE)[0] == ReturnCode.H_FUNCTION
    assert rig.s.free_sub_crq(rig.s_ua, 1) == ReturnCode.H_FUNCTION
    assert rig.s.send_sub_crq(rig.s_ua, 1, *SENT) == ReturnCode.H_FUNCTION
    assert rig.s.send_sub_crq_indirect(rig.s_ua, 1, 0, 1) == ReturnCode.H_FUNCTION
    assert rig.s.vioctl(rig.s_ua, Vioctl.DISABLE_ALL_VIO_INTERRUPTS) == (ReturnCode.H_PARAMETER,)
    rig.hypervisor.close()


def test_send_sub_crq_element_arrives_as_it_was_sent(sub: Sub) -> None:
    assert sub.send() == ReturnCode.H_SUCCESS
    assert sub.send(HEADER, 2**64 - 1, 0, 7) == ReturnCode.H_SUCCESS
    assert sub.drain() == [SENT, (HEADER, 2**64 - 1, 0, 7)]
    assert sub.rig.client_end.ledger.snapshot()["crq_messages"] == 2


def test_send_sub_crq_interrupts_when_h_vioctl_enabled_it(sub: Sub) -> None:
    assert sub.rig.s.vioctl(sub.rig.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, sub.interrupt) == (0,)
    sub.send()
    assert sub.rig.s.xirr() & 0xFF_FFFF == sub.interrupt
    assert sub.rig.server_end.ledger.snapshot()["interrupts"] == 1


@pytest.mark.parametrize("header", [0x00, 0x7F, 0x81, 0xC0, 0xFF])
def test_send_sub_crq_header_other_than_80_is_parameter(sub: Sub, header: int) -> None:
    assert sub.send(header << 56, 0, 0, 0) == ReturnCode.H_PARAMETER


def test_send_sub_crq_own_cookie_is_parameter(sub: Sub) -> None:
    assert sub.rig.s.send_sub_crq(sub.rig.s_ua, sub.cookie, *SENT) == ReturnCode.H_PARAMETER


def test_send_sub_crq_unknown_unit_address_is_parameter(sub: Sub) -> None:
    assert sub.rig.c.send_sub_crq(sub.rig.c_ua + 1, sub.cookie, *SENT) == ReturnCode.H_PARAMETER


def test_send_sub_crq_full_queue_is_dropped_and_there_is_room_again(sub: Sub) -> None:
    for _ in range(SLOTS):
        assert sub.send() == ReturnCode.H_SUCCESS
    assert sub.send() == ReturnCode.H_DROPPED
    assert len(sub.drain()) == SLOTS
    assert sub.send() == ReturnCode.H_SUCCESS


def test_send_sub_crq_unmapped_queue_is_closed(sub: Sub) -> None:
    sub.rig.s.put_tce(sub.rig.local, 2 * PAGE, 0)
    assert sub.send() == ReturnCode.H_CLOSED


def test_send_sub_crq_before_the_crq_is_registered_is_closed(rig: Rig) -> None:
    rig.map_all()
    _, cookie, _ = rig.s.reg_sub_crq(rig.s_ua, 2 * PAGE, PAGE)
    assert rig.c.send_sub_crq(rig.c_ua, cookie, *SENT) == ReturnCode.H_CLOSED


def test_free_sub_crq_makes_its_cookie_unknown_for_good(sub: Sub) -> None:
    assert sub.rig.s.free_sub_crq(sub.rig.s_ua, sub.cookie) == ReturnCode.H_SUCCESS
    assert sub.rig.s.free_sub_crq(sub.rig.s_ua, sub.cookie) == ReturnCode.H_PARAMETER
    _, cookie, interrupt = sub.rig.s.reg_sub_crq(sub.rig.s_ua, 2 * PAGE, PAGE)
    assert (cookie != sub.cookie, interrupt) == (True, sub.interrupt)
    assert sub.send() == ReturnCode.H_PARAMETER


def test_free_sub_crq_of_the_partner_is_parameter(sub: Sub) -> None:
    assert sub.rig.c.free_sub_crq(sub.rig.c_ua, sub.cookie) == ReturnCode.H_PARAMETER


def test_interrupt_accepted_before_the_sub_crq_is_freed_can_be_ended(sub: Sub) -> None:
    sub.rig.s.vioctl(sub.rig.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, sub.interrupt)
    sub.send()
    xirr = sub.rig.s.xirr()
    sub.rig.s.free_crq(sub.rig.s_ua)
    assert sub.rig.s.eoi(xirr) == ReturnCode.H_SUCCESS


def test_free_crq_frees_every_sub_crq(sub: Sub) -> None:
    sub.rig.s.free_crq(sub.rig.s_ua)
    assert len(sub.rig.server_end.sub_crqs) == 0
    sub.rig.s.reg_crq(sub.rig.s_ua, 0, PAGE)
    assert sub.send() == ReturnCode.H_PARAMETER


def test_partner_s_free_crq_closes_and_keeps_the_sub_crq(sub: Sub) -> None:
    sub.rig.c.free_crq(sub.rig.c_ua)
    assert sub.send() == ReturnCode.H_CLOSED
    sub.rig.c.reg_crq(sub.rig.c_ua, 0, PAGE)
    assert sub.send() == ReturnCode.H_SUCCESS


def test_suspension_disables_sub_crqs_with_the_crq(sub: Sub) -> None:
    sub.rig.hypervisor.suspend(sub.rig.client)
    sub.rig.hypervisor.resume(sub.rig.client)
    assert sub.send() == ReturnCode.H_CLOSED
    sub.rig.c.enable_crq(sub.rig.c_ua)
    assert sub.send() == ReturnCode.H_SUCCESS


def test_terminated_partition_leaves_no_sub_crq(sub: Sub) -> None:
    sub.rig.hypervisor.terminate(sub.rig.server)
    assert sub.send() == ReturnCode.H_PARAMETER


def test_events_are_not_put_into_sub_crqs(sub: Sub) -> None:
    sub.rig.c.free_crq(sub.rig.c_ua)
    assert sub.drain() == []


# H_SEND_SUB_CRQ_INDIRECT


def place(rig: Rig, *elements: tuple[int, int, int, int], at: int = 4 * PAGE) -> None:
    data = b"".join(word.to_bytes(8, "big") for element in elements for word in element)
    rig.client.memory[at : at + len(data)] = data


def indirect(sub: Sub, count: int, ioba: int = 4 * PAGE) -> int:
    return sub.rig.c.send_sub_crq_indirect(sub.rig.c_ua, sub.cookie, ioba, count)


@pytest.mark.parametrize("count", [1, 2, 16])
def test_send_sub_crq_indirect_sends_all_with_one_interrupt(sub: Sub, count: int) -> None:
    elements = [(HEADER | n, n, n, n) for n in range(count)]
    place(sub.rig, *elements)
    sub.rig.s.vioctl(sub.rig.s_ua, Vioctl.ENABLE_VIO_INTERRUPT, sub.interrupt)
    assert indirect(sub, count) == ReturnCode.H_SUCCESS
    assert sub.drain() == elements
    assert sub.rig.server_end.ledger.snapshot()["interrupts"] == 1
    assert sub.rig.client_end.ledger.snapshot()["crq_messages"] == count
    assert sub.rig.client_end.ledger.snapshot()["hcalls"]["H_SEND_SUB_CRQ_INDIRECT"] == 1


@pytest.mark.parametrize("count", [0, 17, 128])
def test_send_sub_crq_indirect_bad_count_is_parameter(sub: Sub, count: int) -> None:
    place(sub.rig, *[SENT] * 16)
    assert indirect(sub, count) == ReturnCode.H_PARAMETER


def test_send_sub_crq_indirect_across_a_page_is_parameter(sub: Sub) -> None:
    assert indirect(sub, 2, 5 * PAGE - 32) == ReturnCode.H_PARAMETER


def test_send_sub_crq_indirect_page_without_read_access_is_parameter(sub: Sub) -> None:
    place(sub.rig, SENT)
    sub.rig.c.put_tce(sub.rig.window, 4 * PAGE, 4 * PAGE | 2)
    assert indirect(sub, 1) == ReturnCode.H_PARAMETER


def test_send_sub_crq_indirect_one_bad_header_sends_none(sub: Sub) -> None:
    place(sub.rig, SENT, SENT, (0xC0 << 56, 0, 0, 0))
    assert indirect(sub, 3) == ReturnCode.H_PARAMETER
    assert sub.drain() == []


def test_send_sub_crq_indirect_without_room_for_all_sends_none(sub: Sub) -> None:
    place(sub.rig, SENT, SENT)
    for _ in range(SLOTS - 1):
        sub.send()
    assert indirect(sub, 2) == ReturnCode.H_DROPPED
    assert len(sub.drain()) == SLOTS - 1
    assert indirect(sub, 2) == ReturnCode.H_SUCCESS  # around the end of the queue


def test_sub_crq_calls_count_at_the_adapter(sub: Sub) -> None:
    sub.send()
    sub.rig.c.hcall(Hcall.H_SEND_SUB_CRQ, sub.rig.c_ua, 0)
    sub.rig.c.hcall(Hcall.H_SEND_SUB_CRQ, 1, 0)
    assert sub.rig.client_end.ledger.snapshot()["hcalls"]["H_SEND_SUB_CRQ"] == 2
    assert sub.rig.client.ledger.snapshot()["hcalls"]["H_SEND_SUB_CRQ"] == 1
