"""H_XIRR, H_EOI, H_CPPR and the line: pulses, priorities, what is lost and what is not (papr-vio 3.4)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from powervio.papr.codes import ReturnCode

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
MESSAGE = 0x80 << 56
OPEN = 0xFF << 24
BUSY = 5 << 24


def line(rig: Rig) -> int:
    """How often the server's line was written since the last look."""
    try:
        return os.eventfd_read(rig.s.interrupt_fd)
    except BlockingIOError:
        return 0


def send(rig: Rig) -> None:
    assert rig.c.send_crq(rig.c_ua, MESSAGE, 0) == ReturnCode.H_SUCCESS


def listen(rig: Rig) -> int:
    """Enable the server's interrupt; returns its source number."""
    assert rig.s.vio_signal(rig.s_ua, 1) == ReturnCode.H_SUCCESS
    return rig.server_end.interrupt


def second_pair(rig: Rig) -> tuple[int, int]:
    """Another connection of the same partitions, interrupts on: the server's source, the client's unit address."""
    server_end, client_end = rig.hypervisor.create_pair(rig.server, rig.client, server_window=PAGE, client_window=PAGE)
    assert rig.s.put_tce(server_end.window.liobn, 0, 14 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.c.put_tce(client_end.window.liobn, 0, 14 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS
    assert rig.s.vio_signal(server_end.unit_address, 1) == ReturnCode.H_SUCCESS
    return server_end.interrupt, client_end.unit_address


def test_xirr_nothing_pending_is_source_zero(linked: Rig) -> None:
    assert linked.s.xirr() == OPEN
    assert linked.s.xirr() == OPEN


def test_xirr_after_a_message_returns_the_source_and_the_priority_before(linked: Rig) -> None:
    source = listen(linked)
    send(linked)
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | source
    assert linked.s.xirr() == BUSY


def test_pulse_disabled_source_is_not_latched(linked: Rig) -> None:
    send(linked)
    listen(linked)
    assert line(linked) == 0
    assert linked.s.xirr() == OPEN


def test_pulse_pending_source_is_lost(linked: Rig) -> None:
    source = listen(linked)
    send(linked)
    send(linked)
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | source
    assert linked.s.eoi(OPEN | source) == ReturnCode.H_SUCCESS
    assert linked.s.xirr() == OPEN
    assert linked.server_end.ledger.snapshot()["interrupts"] == 1


def test_pulse_accepted_source_is_lost_until_eoi(linked: Rig) -> None:
    source = listen(linked)
    send(linked)
    assert linked.s.xirr() == OPEN | source
    send(linked)
    assert linked.s.eoi(OPEN | source) == ReturnCode.H_SUCCESS
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN
    send(linked)
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | source


def test_pulse_second_source_waits_for_the_first_to_end(linked: Rig) -> None:
    first = listen(linked)
    second, other = second_pair(linked)
    send(linked)
    assert linked.s.xirr() == OPEN | first
    line(linked)
    assert linked.c.send_crq(other, MESSAGE, 0) == ReturnCode.H_SUCCESS
    assert line(linked) == 0
    assert linked.s.xirr() == BUSY
    assert linked.s.eoi(OPEN | first) == ReturnCode.H_SUCCESS
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | second


def test_pulse_two_sources_assert_the_line_once_and_again_after_eoi(linked: Rig) -> None:
    first = listen(linked)
    second, other = second_pair(linked)
    send(linked)
    assert linked.c.send_crq(other, MESSAGE, 0) == ReturnCode.H_SUCCESS
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | first
    assert linked.s.eoi(OPEN | first) == ReturnCode.H_SUCCESS
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | second
    assert linked.s.eoi(OPEN | second) == ReturnCode.H_SUCCESS
    assert line(linked) == 0


@pytest.mark.parametrize("priority", [0, 4, 5])
def test_cppr_as_favoured_as_the_source_holds_it_back(linked: Rig, priority: int) -> None:
    source = listen(linked)
    assert linked.s.cppr(priority) == ReturnCode.H_SUCCESS
    send(linked)
    assert line(linked) == 0
    assert linked.s.xirr() == priority << 24
    assert linked.s.cppr(0xFF) == ReturnCode.H_SUCCESS
    assert line(linked) == 1
    assert linked.s.xirr() == OPEN | source


def test_cppr_just_less_favoured_than_the_source_lets_it_through(linked: Rig) -> None:
    source = listen(linked)
    assert linked.s.cppr(6) == ReturnCode.H_SUCCESS
    send(linked)
    assert linked.s.xirr() == 6 << 24 | source


def test_cppr_raised_and_lowered_asserts_the_line_again(linked: Rig) -> None:
    listen(linked)
    send(linked)
    assert line(linked) == 1
    assert linked.s.cppr(0) == ReturnCode.H_SUCCESS
    assert linked.s.cppr(0xFF) == ReturnCode.H_SUCCESS
    assert line(linked) == 1


def test_cppr_takes_the_low_byte(linked: Rig) -> None:
    assert linked.s.cppr(0x1_07) == ReturnCode.H_SUCCESS
    assert linked.s.xirr() == 7 << 24


def test_eoi_restores_the_priority_of_before(linked: Rig) -> None:
    source = listen(linked)
    assert linked.s.cppr(9) == ReturnCode.H_SUCCESS
    send(linked)
    xirr = linked.s.xirr()
    assert linked.s.eoi(xirr) == ReturnCode.H_SUCCESS
    assert xirr == 9 << 24 | source
    assert linked.s.xirr() == 9 << 24


@pytest.mark.parametrize("source", [0, 1, 0xFF_FFFF])
def test_eoi_unknown_source_is_parameter_and_changes_nothing(linked: Rig, source: int) -> None:
    assert linked.s.eoi(3 << 24 | source) == ReturnCode.H_PARAMETER
    assert linked.s.xirr() == OPEN


def test_eoi_source_not_accepted_stays_pending(linked: Rig) -> None:
    source = listen(linked)
    send(linked)
    assert linked.s.eoi(OPEN | source) == ReturnCode.H_SUCCESS
    assert linked.s.xirr() == OPEN | source


def test_eoi_source_of_another_partition_is_unknown(linked: Rig) -> None:
    source, _ = second_pair(linked)
    linked.hypervisor.remove_adapter(linked.client_end)
    assert linked.c.eoi(OPEN | (source + 0x1000)) == ReturnCode.H_PARAMETER


def test_line_filled_by_its_owner_does_not_fail_the_sender(linked: Rig) -> None:
    listen(linked)
    os.eventfd_write(linked.s.interrupt_fd, 2**64 - 2)
    send(linked)
    assert linked.s.xirr() & 0xFF_FFFF == linked.server_end.interrupt


def test_remove_pair_pending_interrupt_is_dropped(linked: Rig) -> None:
    listen(linked)
    send(linked)
    linked.hypervisor.remove_pair(linked.server_end)
    assert linked.s.xirr() == OPEN


def test_reboot_forgets_interrupts_and_priority(linked: Rig) -> None:
    listen(linked)
    send(linked)
    assert linked.s.cppr(0) == ReturnCode.H_SUCCESS
    linked.hypervisor.reboot(linked.server)
    assert line(linked) == 0
    assert linked.s.xirr() == OPEN


# -- sources with an eventfd of their own


@pytest.fixture
def own(linked: Rig) -> Iterator[int]:
    """Where the server's source may be directed to."""
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    linked.server.interrupts.direct_back()
    os.close(fd)


def told(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def test_directed_source_is_told_there_each_time_and_not_by_the_line(linked: Rig, own: int) -> None:
    source = listen(linked)
    assert linked.server.interrupts.direct(source, own)
    send(linked)
    send(linked)
    assert told(own) == 2
    assert line(linked) == 0
    assert linked.s.xirr() == OPEN
    assert linked.server_end.ledger.snapshot()["interrupts"] == 2
    assert linked.server.interrupts.direct(source, -1)
    send(linked)
    assert told(own) == 0
    assert linked.s.xirr() == OPEN | source


def test_pending_source_is_told_when_it_is_directed(linked: Rig, own: int) -> None:
    source = listen(linked)
    send(linked)
    assert linked.server.interrupts.direct(source, own)
    assert told(own) == 1
    assert linked.s.xirr() == OPEN


def test_directed_sources_tell_when_the_partition_is_resumed(linked: Rig, own: int) -> None:
    source = listen(linked)
    assert linked.server.interrupts.direct(source, own)
    linked.server.interrupts.hold(True)
    send(linked)
    assert told(own) == 0
    linked.server.interrupts.hold(False)
    assert told(own) == 1


def test_source_that_is_not_there_cannot_be_directed(linked: Rig, own: int) -> None:
    assert not linked.server.interrupts.direct(0x999, own)


def test_reboot_directs_sources_back(linked: Rig, own: int) -> None:
    source = listen(linked)
    assert linked.server.interrupts.direct(source, own)
    linked.hypervisor.reboot(linked.server)
    linked.server.interrupts.pulse(source)
    assert told(own) == 0
    assert linked.s.xirr() == OPEN | source
