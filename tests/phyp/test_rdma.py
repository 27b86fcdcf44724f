"""hcall-rdma: one fault at a time, link and unlink, page crossing (papr-vio 2.3, 2.6, 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from powervio.papr.codes import ReturnCode

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
DATA = bytes(range(256)) * 64


def test_copy_rdma_remote_to_local_moves_the_bytes(linked: Rig) -> None:
    linked.client.memory[5 * PAGE + 3 : 5 * PAGE + 13] = b"from client"[:10]
    assert linked.s.copy_rdma(10, linked.remote, 5 * PAGE + 3, linked.local, 7 * PAGE + 5) == ReturnCode.H_SUCCESS
    assert bytes(linked.server.memory[7 * PAGE + 4 : 7 * PAGE + 16]) == b"\0from clien\0"


def test_copy_rdma_local_to_remote_moves_the_bytes(linked: Rig) -> None:
    linked.server.memory[7 * PAGE : 7 * PAGE + 4] = b"data"
    assert linked.s.copy_rdma(4, linked.local, 7 * PAGE, linked.remote, 9 * PAGE - 2) == ReturnCode.H_SUCCESS
    assert bytes(linked.client.memory[9 * PAGE - 3 : 9 * PAGE + 3]) == b"\0data\0"


def test_copy_rdma_local_to_local_moves_the_bytes(linked: Rig) -> None:
    linked.server.memory[7 * PAGE : 7 * PAGE + 4] = b"data"
    assert linked.s.copy_rdma(4, linked.local, 7 * PAGE, linked.local, 8 * PAGE) == ReturnCode.H_SUCCESS
    assert bytes(linked.server.memory[8 * PAGE : 8 * PAGE + 4]) == b"data"


def test_copy_rdma_between_two_clients_moves_the_bytes(linked: Rig) -> None:
    other = linked.hypervisor.create_partition("other", 16 * PAGE)
    server_end, client_end = linked.hypervisor.create_pair(linked.server, other, client_window=16 * PAGE)
    assert server_end.remote_pane is not None
    remote = server_end.remote_pane.liobn
    assert other.port.stuff_tce(client_end.window.liobn, 0, 2 * PAGE | 3, 16) == ReturnCode.H_SUCCESS
    assert linked.s.stuff_tce(server_end.window.liobn, 0, 2 * PAGE | 3, 16) == ReturnCode.H_SUCCESS
    assert other.port.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert linked.s.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS
    linked.client.memory[5 * PAGE : 5 * PAGE + 4] = b"data"
    assert linked.s.copy_rdma(4, linked.remote, 5 * PAGE, remote, 16) == ReturnCode.H_SUCCESS
    assert bytes(other.memory[2 * PAGE + 16 : 2 * PAGE + 20]) == b"data"


@pytest.mark.parametrize(("s_offset", "d_offset"), [(77, 1001), (1001, 77), (0, 1), (4095, 0), (5, 5)])
def test_copy_rdma_scattered_pages_unaligned_moves_the_bytes(linked: Rig, s_offset: int, d_offset: int) -> None:
    # both sides' pages in another order than their addresses
    images = [DATA[:PAGE].replace(b"\x01", bytes([page + 2])) for page in range(5)]
    for page in range(5):
        assert linked.c.put_tce(linked.window, (16 + page) * PAGE, (14 - page) * PAGE | 1) == ReturnCode.H_SUCCESS
        assert linked.s.put_tce(linked.local, (8 + page) * PAGE, (7 - page) * PAGE | 2) == ReturnCode.H_SUCCESS
        linked.client.memory[(14 - page) * PAGE : (15 - page) * PAGE] = images[page]
    code = linked.s.copy_rdma(4 * PAGE, linked.remote, 16 * PAGE + s_offset, linked.local, 8 * PAGE + d_offset)
    assert code == ReturnCode.H_SUCCESS
    got = b"".join(bytes(linked.server.memory[(7 - page) * PAGE : (8 - page) * PAGE]) for page in range(5))
    expected = b"".join(images)[s_offset : s_offset + 4 * PAGE]
    assert got == bytes(d_offset) + expected + bytes(PAGE - d_offset)


def test_copy_rdma_large_without_interpreter_lock_moves_the_bytes(rig: Rig) -> None:
    size = 1 << 20
    server = rig.hypervisor.create_partition("big server", 2 * size)
    client = rig.hypervisor.create_partition("big client", 2 * size)
    server_end, client_end = rig.hypervisor.create_pair(server, client, server_window=2 * size, client_window=2 * size)
    assert server_end.remote_pane is not None
    for page in range(2 * size // PAGE):
        assert server.port.put_tce(server_end.window.liobn, page * PAGE, page * PAGE | 3) == 0
        assert client.port.put_tce(client_end.window.liobn, page * PAGE, (2 * size - PAGE - page * PAGE) | 3) == 0
    assert server.port.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert client.port.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS
    server.memory[PAGE : PAGE + size] = DATA * (size // len(DATA))
    assert server.port.copy_rdma(size, server_end.window.liobn, PAGE, server_end.remote_pane.liobn, 2 * PAGE + 1) == 0
    back = size + 3 * PAGE
    assert (
        server.port.copy_rdma(
            size - 2 * PAGE, server_end.remote_pane.liobn, 2 * PAGE + 1, server_end.window.liobn, back - 2 * PAGE
        )
        == 0
    )
    assert server.memory[back - 2 * PAGE : back + size - 4 * PAGE] == server.memory[PAGE : PAGE + size - 2 * PAGE]


def test_copy_rdma_no_bytes_is_success(linked: Rig) -> None:
    assert linked.s.copy_rdma(0, linked.remote, 0, linked.local, 0) == ReturnCode.H_SUCCESS
    assert linked.s.copy_rdma(0, linked.remote, 32 * PAGE, linked.local, 16 * PAGE) == ReturnCode.H_SUCCESS


def test_copy_rdma_no_bytes_is_checked_all_the_same(linked: Rig) -> None:
    assert linked.s.copy_rdma(0, 0x666, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM
    assert linked.s.copy_rdma(0, linked.local, 0, linked.remote, 32 * PAGE + 1) == ReturnCode.H_DEST_PARM


@pytest.mark.parametrize("length", [-1, 1 << 63])
def test_copy_rdma_negative_length_is_parameter(linked: Rig, length: int) -> None:
    assert linked.s.copy_rdma(length, linked.remote, 0, linked.local, 0) == ReturnCode.H_PARAMETER


def test_copy_rdma_longer_than_max_virtual_dma_size_is_parameter(strict: Rig) -> None:
    assert strict.s.copy_rdma(0x2_0001, strict.remote, 0, strict.local, 0) == ReturnCode.H_PARAMETER


def test_copy_rdma_of_max_virtual_dma_size_is_not_parameter(strict: Rig) -> None:
    assert strict.s.copy_rdma(0x2_0000, strict.local, 0, strict.remote, 0) == ReturnCode.H_SOURCE_PARM


def test_copy_rdma_without_limit_longer_than_the_pane_is_source_parm(linked: Rig) -> None:
    assert linked.s.copy_rdma((1 << 63) - 1, linked.remote, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM


def test_copy_rdma_unknown_source_is_source_parm(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, 0x666, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM


def test_copy_rdma_unknown_destination_is_dest_parm(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, linked.remote, 0, 0x666, 0) == ReturnCode.H_DEST_PARM


def test_copy_rdma_partners_own_liobn_is_not_authorised(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, linked.window, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM
    assert linked.s.copy_rdma(8, linked.local, 0, linked.window, 0) == ReturnCode.H_DEST_PARM


def test_copy_rdma_by_the_client_reaches_only_itself(linked: Rig) -> None:
    assert linked.c.copy_rdma(8, linked.remote, 0, linked.window, 0) == ReturnCode.H_SOURCE_PARM
    assert linked.c.copy_rdma(8, linked.window, 0, linked.remote, 0) == ReturnCode.H_DEST_PARM
    assert linked.c.copy_rdma(8, linked.local, 0, linked.window, 0) == ReturnCode.H_SOURCE_PARM


def test_copy_rdma_source_beyond_the_pane_is_source_parm(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, linked.remote, 32 * PAGE - 7, linked.local, 0) == ReturnCode.H_SOURCE_PARM
    assert linked.s.copy_rdma(8, linked.remote, 2**64 - 8, linked.local, 0) == ReturnCode.H_SOURCE_PARM


def test_copy_rdma_destination_beyond_the_pane_is_dest_parm(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, linked.local, 0, linked.remote, 32 * PAGE - 7) == ReturnCode.H_DEST_PARM
    assert linked.s.copy_rdma(8, linked.local, 0, linked.remote, 2**64 - 4) == ReturnCode.H_DEST_PARM


def test_copy_rdma_unmapped_source_is_permission(linked: Rig) -> None:
    assert linked.s.copy_rdma(8, linked.remote, 20 * PAGE, linked.local, 0) == ReturnCode.H_PERMISSION


def test_copy_rdma_write_only_source_is_permission(linked: Rig) -> None:
    assert linked.c.put_tce(linked.window, 5 * PAGE, 5 * PAGE | 2) == ReturnCode.H_SUCCESS
    assert linked.s.copy_rdma(8, linked.remote, 5 * PAGE, linked.local, 0) == ReturnCode.H_PERMISSION
    assert linked.s.copy_rdma(8, linked.local, 0, linked.remote, 5 * PAGE) == ReturnCode.H_SUCCESS


def test_copy_rdma_read_only_destination_is_permission(linked: Rig) -> None:
    assert linked.c.put_tce(linked.window, 5 * PAGE, 5 * PAGE | 1) == ReturnCode.H_SUCCESS
    assert linked.s.copy_rdma(8, linked.local, 0, linked.remote, 5 * PAGE) == ReturnCode.H_PERMISSION
    assert linked.s.copy_rdma(8, linked.remote, 5 * PAGE, linked.local, 0) == ReturnCode.H_SUCCESS


def test_copy_rdma_unmapped_local_destination_is_permission(linked: Rig) -> None:
    assert linked.s.put_tce(linked.local, 5 * PAGE, 0) == ReturnCode.H_SUCCESS
    assert linked.s.copy_rdma(8, linked.remote, 0, linked.local, 5 * PAGE) == ReturnCode.H_PERMISSION


@pytest.mark.parametrize("tce", [0, 1])
def test_copy_rdma_crossing_into_a_forbidden_page_writes_nothing(linked: Rig, tce: int) -> None:
    assert linked.c.put_tce(linked.window, 6 * PAGE, 6 * PAGE | tce) == ReturnCode.H_SUCCESS
    linked.server.memory[PAGE : PAGE + 64] = b"x" * 64
    before = bytes(linked.client.memory)
    assert linked.s.copy_rdma(33, linked.local, PAGE, linked.remote, 6 * PAGE - 32) == ReturnCode.H_PERMISSION
    assert bytes(linked.client.memory) == before
    assert linked.s.copy_rdma(32, linked.local, PAGE, linked.remote, 6 * PAGE - 32) == ReturnCode.H_SUCCESS


def test_copy_rdma_forbidden_destination_far_behind_a_large_copy_writes_nothing(rig: Rig) -> None:
    server_end, client_end = rig.hypervisor.create_pair(rig.server, rig.client, client_window=64 * PAGE)
    assert server_end.remote_pane is not None
    rig.connect()
    assert rig.s.stuff_tce(server_end.window.liobn, 0, 3 * PAGE | 3, 64) == ReturnCode.H_SUCCESS
    assert rig.c.stuff_tce(client_end.window.liobn, 0, 4 * PAGE | 3, 63) == ReturnCode.H_SUCCESS
    assert rig.s.reg_crq(server_end.unit_address, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.c.reg_crq(client_end.unit_address, 0, PAGE) == ReturnCode.H_SUCCESS
    rig.server.memory[3 * PAGE : 4 * PAGE] = b"x" * PAGE
    before = bytes(rig.client.memory)
    code = rig.s.copy_rdma(64 * PAGE, server_end.window.liobn, 0, server_end.remote_pane.liobn, 0)
    assert code == ReturnCode.H_PERMISSION
    assert bytes(rig.client.memory) == before


# the link


def test_copy_rdma_before_both_registered_is_permission(rig: Rig) -> None:
    rig.map_all()
    assert rig.s.copy_rdma(8, rig.remote, 0, rig.local, 0) == ReturnCode.H_PERMISSION
    assert rig.s.reg_crq(rig.s_ua, 0, PAGE) == ReturnCode.H_CLOSED
    assert rig.s.copy_rdma(8, rig.local, 0, rig.remote, 0) == ReturnCode.H_PERMISSION
    assert rig.s.copy_rdma(0, rig.local, 0, rig.remote, 0) == ReturnCode.H_SUCCESS
    assert rig.c.reg_crq(rig.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert rig.s.copy_rdma(8, rig.local, 0, rig.remote, 0) == ReturnCode.H_SUCCESS


def test_copy_rdma_unlinked_range_beyond_the_pane_is_source_parm(rig: Rig) -> None:
    assert rig.s.copy_rdma(8, rig.remote, 32 * PAGE, rig.local, 0) == ReturnCode.H_SOURCE_PARM


@pytest.mark.parametrize("who", ["client", "server"])
def test_copy_rdma_after_either_end_is_freed_is_permission(linked: Rig, who: str) -> None:
    if who == "client":
        assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    else:
        assert linked.s.free_crq(linked.s_ua) == ReturnCode.H_SUCCESS
    assert linked.s.copy_rdma(8, linked.remote, PAGE, linked.local, PAGE) == ReturnCode.H_PERMISSION
    assert linked.s.read_rdma(linked.remote, PAGE, 8) == (ReturnCode.H_PERMISSION, b"")
    assert linked.s.write_rdma(linked.remote, PAGE, b"x") == ReturnCode.H_PERMISSION


def test_copy_rdma_after_relink_uses_the_new_mapping(linked: Rig) -> None:
    linked.client.memory[5 * PAGE : 5 * PAGE + 3] = b"old"
    linked.client.memory[6 * PAGE : 6 * PAGE + 3] = b"new"
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.put_tce(linked.window, 5 * PAGE, 6 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert linked.c.reg_crq(linked.c_ua, 0, PAGE) == ReturnCode.H_SUCCESS
    assert linked.s.read_rdma(linked.remote, 5 * PAGE, 3) == (ReturnCode.H_SUCCESS, b"new")


def test_copy_rdma_remapped_while_linked_is_used_at_once(linked: Rig) -> None:
    linked.client.memory[6 * PAGE : 6 * PAGE + 3] = b"new"
    assert linked.c.put_tce(linked.window, 5 * PAGE, 6 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert linked.s.read_rdma(linked.remote, 5 * PAGE, 3) == (ReturnCode.H_SUCCESS, b"new")


def test_copy_rdma_suspended_partner_stays_linked(linked: Rig) -> None:
    linked.hypervisor.suspend(linked.client)
    assert linked.s.copy_rdma(8, linked.remote, PAGE, linked.local, PAGE) == ReturnCode.H_SUCCESS


# H_WRITE_RDMA, H_READ_RDMA


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 47, 48])
def test_write_rdma_up_to_48_bytes_is_written(linked: Rig, length: int) -> None:
    data = DATA[1 : 1 + length]
    assert linked.s.write_rdma(linked.remote, 5 * PAGE - 4, data) == ReturnCode.H_SUCCESS
    assert bytes(linked.client.memory[5 * PAGE - 5 : 5 * PAGE - 4 + length + 1]) == b"\0" + data + b"\0"


@pytest.mark.parametrize("offset", [0, 8, 4088, 4, 4092])
def test_write_rdma_doubleword_is_written_and_nothing_beside_it(linked: Rig, offset: int) -> None:
    place = 6 * PAGE + offset
    before = bytes(linked.client.memory)
    data = bytes(range(0xF1, 0xF9))
    assert linked.s.write_rdma(linked.remote, place, data) == ReturnCode.H_SUCCESS
    assert bytes(linked.client.memory) == before[:place] + data + before[place + 8 :]


def test_write_rdma_49_bytes_is_parameter(linked: Rig) -> None:
    assert linked.s.write_rdma(linked.remote, 0, bytes(49)) == ReturnCode.H_PARAMETER


def test_write_rdma_registers_give_the_high_order_byte_first(linked: Rig) -> None:
    registers = (11, linked.remote, 5 * PAGE, int.from_bytes(b"high ord", "big"), int.from_bytes(b"er!_____", "big"))
    assert linked.s.hcall(0x128, *registers) == (ReturnCode.H_SUCCESS,)
    assert bytes(linked.client.memory[5 * PAGE : 5 * PAGE + 12]) == b"high order!\0"


@pytest.mark.parametrize("length", [49, 1 << 63, 2**64 - 1])
def test_write_rdma_register_length_out_of_range_is_parameter(linked: Rig, length: int) -> None:
    assert linked.s.hcall(0x128, length, linked.remote, 0) == (ReturnCode.H_PARAMETER,)


def test_write_rdma_local_pane_is_dest_parm(linked: Rig) -> None:
    assert linked.s.write_rdma(linked.local, 0, b"x") == ReturnCode.H_DEST_PARM


def test_write_rdma_unknown_liobn_is_dest_parm(linked: Rig) -> None:
    assert linked.s.write_rdma(0x666, 0, b"x") == ReturnCode.H_DEST_PARM


def test_write_rdma_by_the_client_is_dest_parm(linked: Rig) -> None:
    assert linked.c.write_rdma(linked.remote, 0, b"x") == ReturnCode.H_DEST_PARM
    assert linked.c.write_rdma(linked.window, 0, b"x") == ReturnCode.H_DEST_PARM


def test_write_rdma_beyond_the_pane_is_dest_parm(linked: Rig) -> None:
    assert linked.s.write_rdma(linked.remote, 32 * PAGE - 1, b"xy") == ReturnCode.H_DEST_PARM


def test_write_rdma_crossing_into_a_read_only_page_writes_nothing(linked: Rig) -> None:
    assert linked.c.put_tce(linked.window, 6 * PAGE, 6 * PAGE | 1) == ReturnCode.H_SUCCESS
    assert linked.s.write_rdma(linked.remote, 6 * PAGE - 1, b"xy") == ReturnCode.H_PERMISSION
    assert linked.client.memory[6 * PAGE - 1] == 0


def test_write_rdma_no_bytes_unlinked_is_success(rig: Rig) -> None:
    assert rig.s.write_rdma(rig.remote, 0, b"") == ReturnCode.H_SUCCESS


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 71, 72])
def test_read_rdma_up_to_72_bytes_is_read(linked: Rig, length: int) -> None:
    linked.client.memory[5 * PAGE - 4 : 5 * PAGE + 124] = DATA[:128]
    assert linked.s.read_rdma(linked.remote, 5 * PAGE - 4, length) == (ReturnCode.H_SUCCESS, DATA[:length])


def test_read_rdma_registers_hold_the_high_order_byte_first(linked: Rig) -> None:
    linked.client.memory[5 * PAGE : 5 * PAGE + 16] = b"high order!_____"
    result = linked.s.hcall(0x12C, 11, linked.remote, 5 * PAGE)
    assert result[:4] == (
        ReturnCode.H_SUCCESS,
        int.from_bytes(b"high ord", "big"),
        int.from_bytes(b"er!\0\0\0\0\0", "big"),
        0,
    )
    assert len(result) == 10


@pytest.mark.parametrize("length", [73, -1, 1 << 63])
def test_read_rdma_length_out_of_range_is_parameter(linked: Rig, length: int) -> None:
    assert linked.s.read_rdma(linked.remote, 0, length) == (ReturnCode.H_PARAMETER, b"")


def test_read_rdma_local_pane_is_source_parm(linked: Rig) -> None:
    assert linked.s.read_rdma(linked.local, 0, 1)[0] == ReturnCode.H_SOURCE_PARM


def test_read_rdma_unknown_liobn_is_source_parm(linked: Rig) -> None:
    assert linked.s.read_rdma(0x666, 0, 1)[0] == ReturnCode.H_SOURCE_PARM


def test_read_rdma_beyond_the_pane_is_source_parm(linked: Rig) -> None:
    assert linked.s.read_rdma(linked.remote, 32 * PAGE - 1, 2)[0] == ReturnCode.H_SOURCE_PARM


def test_read_rdma_write_only_page_is_permission(linked: Rig) -> None:
    assert linked.c.put_tce(linked.window, 6 * PAGE, 6 * PAGE | 2) == ReturnCode.H_SUCCESS
    assert linked.s.read_rdma(linked.remote, 6 * PAGE - 1, 2) == (ReturnCode.H_PERMISSION, b"")
