"""hcall-term and hcall-vty: order of checks, what is all or nothing, who reaches whom, when there is an interrupt."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from powervio.papr.codes import Hcall
from powervio.papr.port import HcallPort
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.vterm import BUFFER, create_vterm

PAGE = 4096
SUCCESS, BUSY, CLOSED, PARAMETER, RESOURCE = 0, 1, 2, -4, -16
ALL_ONES = (1 << 64) - 1


class Rig:
    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.server = self.hypervisor.create_partition("vios1", 16 * PAGE)
        self.client = self.hypervisor.create_partition("client1", 16 * PAGE)
        self.server_end, self.client_end = create_vterm(self.hypervisor, self.server, self.client)
        self.s: HcallPort = self.server.port
        self.c: HcallPort = self.client.port
        self.s_ua, self.c_ua = self.server_end.unit_address, self.client_end.unit_address

    def connect(self) -> None:
        assert self.s.register_vterm(self.s_ua, self.client.partition_id, self.c_ua) == SUCCESS

    def interrupt(self, port: HcallPort) -> int:
        """The source of an interrupt, ended; 0 if there is none."""
        xirr = port.xirr()
        if xirr & 0xFFFFFF:
            port.eoi(xirr)
        return xirr & 0xFFFFFF

    def info(self, partner: int, ua: int, page: int = 0) -> tuple[int, bytes]:
        code = self.s.vterm_partner_info(self.s_ua, partner, ua, page)
        return code, bytes(self.server.memory[page : page + 64])


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.hypervisor.close()


@pytest.fixture
def open_rig(rig: Rig) -> Rig:
    rig.connect()
    return rig


def read(port: HcallPort, ua: int) -> bytes:
    code, *registers = port.get_term_char(ua)
    assert code == SUCCESS
    length, high, low = registers
    return (high << 64 | low).to_bytes(16, "big")[:length]


def test_nodes_are_those_of_papr(rig: Rig) -> None:
    client, server = rig.client_end.node, rig.server_end.node
    assert (client.name, client.device_type, client.compatible) == ("vty", "serial", ("hvterm1",))
    assert (server.name, server.device_type, server.compatible) == ("vty-server", "serial-server", ("hvterm2",))
    assert (client.is_server, server.is_server) == (False, True)
    assert client.unit_address == 0x3000_0000
    assert client.windows == server.windows == ()


def test_characters_go_both_ways_from_the_top_of_the_registers(open_rig: Rig) -> None:
    rig = open_rig
    assert rig.c.hcall(Hcall.H_PUT_TERM_CHAR, rig.c_ua, 3, 0x6162_6300_0000_0000, 0) == (SUCCESS,)
    assert rig.s.hcall(Hcall.H_GET_TERM_CHAR, rig.s_ua) == (SUCCESS, 3, 0x6162_6300_0000_0000, 0)
    assert rig.s.put_term_char(rig.s_ua, b"0123456789abcdef") == SUCCESS
    assert read(rig.c, rig.c_ua) == b"0123456789abcdef"
    assert read(rig.c, rig.c_ua) == b""


def test_put_term_char_checks_in_order(rig: Rig) -> None:
    assert rig.c.hcall(Hcall.H_PUT_TERM_CHAR, 0x3000_0099, 17, 0, 0) == (PARAMETER,)
    assert rig.c.hcall(Hcall.H_PUT_TERM_CHAR, rig.c_ua, 17, 0, 0) == (CLOSED,)
    rig.connect()
    assert rig.c.hcall(Hcall.H_PUT_TERM_CHAR, rig.c_ua, 17, 0, 0) == (PARAMETER,)
    assert rig.c.hcall(Hcall.H_PUT_TERM_CHAR, rig.c_ua, ALL_ONES, 0, 0) == (PARAMETER,)
    assert rig.c.put_term_char(rig.c_ua, b"") == SUCCESS
    assert read(rig.s, rig.s_ua) == b""


def test_put_term_char_without_room_is_busy_and_takes_nothing(open_rig: Rig) -> None:
    rig = open_rig
    for _ in range(BUFFER // 16):
        assert rig.c.put_term_char(rig.c_ua, b"x" * 16) == SUCCESS
    assert rig.c.put_term_char(rig.c_ua, b"y") == BUSY
    assert rig.c.put_term_char(rig.c_ua, b"") == SUCCESS
    assert read(rig.s, rig.s_ua) == b"x" * 16
    assert rig.c.put_term_char(rig.c_ua, b"z" * 16) == SUCCESS
    rest = b"".join(iter(lambda: read(rig.s, rig.s_ua), b""))
    assert rest == b"x" * (BUFFER - 16) + b"z" * 16


def test_unit_address_0_is_the_lowest_vty(open_rig: Rig) -> None:
    assert open_rig.c.put_term_char(0, b"early") == SUCCESS
    assert read(open_rig.s, open_rig.s_ua) == b"early"
    assert open_rig.s.put_term_char(0, b"x") == PARAMETER


def test_terminal_calls_on_another_adapter_are_parameter(rig: Rig) -> None:
    server, client = rig.hypervisor.create_pair(rig.server, rig.client)
    assert rig.c.put_term_char(client.unit_address, b"x") == PARAMETER
    assert rig.c.get_term_char(client.unit_address) == (PARAMETER,)
    assert rig.s.register_vterm(server.unit_address, rig.client.partition_id, rig.c_ua) == PARAMETER
    assert rig.s.free_vterm(server.unit_address) == PARAMETER
    assert rig.c.register_vterm(rig.c_ua, rig.server.partition_id, rig.s_ua) == PARAMETER
    assert rig.c.vterm_partner_info(rig.c_ua, ALL_ONES, ALL_ONES, 0) == PARAMETER
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == PARAMETER


def test_interrupt_on_empty_to_non_empty_only(open_rig: Rig) -> None:
    rig = open_rig
    rig.c.vio_signal(rig.c_ua, 1)
    rig.s.put_term_char(rig.s_ua, b"a")
    assert rig.interrupt(rig.c) == rig.client_end.interrupt
    rig.s.put_term_char(rig.s_ua, b"b")
    assert rig.interrupt(rig.c) == 0
    assert read(rig.c, rig.c_ua) == b"ab"
    rig.s.put_term_char(rig.s_ua, b"c")
    assert rig.interrupt(rig.c) == rig.client_end.interrupt
    assert rig.client_end.ledger.snapshot()["interrupts"] == 2


def test_interrupt_on_open_to_closed(open_rig: Rig) -> None:
    rig = open_rig
    rig.c.vio_signal(rig.c_ua, 1)
    assert rig.s.free_vterm(rig.s_ua) == SUCCESS
    assert rig.interrupt(rig.c) == rig.client_end.interrupt
    assert rig.s.free_vterm(rig.s_ua) == SUCCESS
    assert rig.interrupt(rig.c) == 0


def test_what_was_sent_before_the_end_is_still_received(open_rig: Rig) -> None:
    rig = open_rig
    rig.s.put_term_char(rig.s_ua, b"last")
    rig.s.free_vterm(rig.s_ua)
    assert read(rig.c, rig.c_ua) == b"last"
    assert rig.c.get_term_char(rig.c_ua) == (CLOSED,)
    assert rig.c.put_term_char(rig.c_ua, b"x") == CLOSED


def test_new_connection_finds_nothing_of_the_old(open_rig: Rig) -> None:
    rig = open_rig
    rig.s.put_term_char(rig.s_ua, b"old")
    rig.c.put_term_char(rig.c_ua, b"old")
    rig.s.free_vterm(rig.s_ua)
    rig.connect()
    assert (read(rig.c, rig.c_ua), read(rig.s, rig.s_ua)) == (b"", b"")


def test_register_vterm_only_what_is_configured_and_free(rig: Rig) -> None:
    other = rig.hypervisor.create_partition("client2", 16 * PAGE)
    _, other_vty = create_vterm(rig.hypervisor, rig.server, other)
    assert rig.s.register_vterm(rig.s_ua, other.partition_id, other_vty.unit_address) == PARAMETER
    assert rig.s.register_vterm(rig.s_ua, 99, rig.c_ua) == PARAMETER
    rig.connect()
    assert rig.s.register_vterm(rig.s_ua, rig.client.partition_id, rig.c_ua) == RESOURCE


def test_vterm_partner_info_names_each_once(rig: Rig) -> None:
    other = rig.hypervisor.create_partition("client2", 16 * PAGE)
    _, other_vty = create_vterm(rig.hypervisor, rig.server, other)
    rig.server_end.configured.append(other_vty)
    places = []
    last = (ALL_ONES, ALL_ONES)
    while True:
        code, page = rig.info(*last)
        assert code == SUCCESS
        last = int.from_bytes(page[:8], "big"), int.from_bytes(page[8:16], "big")
        if last == (ALL_ONES, ALL_ONES):
            break
        places.append((*last, page[16:].split(b"\0")[0].decode()))
    assert places == [
        (rig.client.partition_id, rig.c_ua, rig.client_end.node.location_code),
        (other.partition_id, other_vty.unit_address, other_vty.node.location_code),
    ]


@pytest.mark.parametrize("page", [1, 2048, 16 * PAGE, 1 << 60, ALL_ONES & ~0xFFF])
def test_vterm_partner_info_with_a_bad_page_is_parameter(page: int, rig: Rig) -> None:
    assert rig.s.vterm_partner_info(rig.s_ua, ALL_ONES, ALL_ONES, page) == PARAMETER


def test_vterm_partner_info_after_nobody_is_parameter(rig: Rig) -> None:
    assert rig.info(77, rig.c_ua)[0] == PARAMETER
    assert rig.info(rig.client.partition_id, ALL_ONES)[0] == PARAMETER


def test_death_of_the_client_closes_and_interrupts(open_rig: Rig) -> None:
    rig = open_rig
    rig.s.vio_signal(rig.s_ua, 1)
    rig.c.put_term_char(rig.c_ua, b"bye")
    assert rig.interrupt(rig.s) == rig.server_end.interrupt
    assert read(rig.s, rig.s_ua) == b"bye"
    rig.hypervisor.terminate(rig.client)
    assert rig.interrupt(rig.s) == rig.server_end.interrupt
    assert rig.s.get_term_char(rig.s_ua) == (CLOSED,)
    assert rig.info(ALL_ONES, ALL_ONES)[1][:8] == b"\xff" * 8


def test_reboot_of_the_server_closes_and_interrupts(open_rig: Rig) -> None:
    rig = open_rig
    rig.c.vio_signal(rig.c_ua, 1)
    rig.hypervisor.reboot(rig.server)
    assert rig.interrupt(rig.c) == rig.client_end.interrupt
    assert rig.c.put_term_char(rig.c_ua, b"x") == CLOSED
    rig.connect()
    assert rig.c.put_term_char(rig.c_ua, b"x") == SUCCESS


def test_function_sets_are_named(rig: Rig) -> None:
    from powervio.phyp.registry import function_sets

    assert {"hcall-term", "hcall-vty"} <= set(function_sets())
