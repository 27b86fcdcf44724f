"""hcall-tce and hcall-multi-tce: one fault at a time (papr-vio 1.4, 2.1, 2.2)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from powervio.papr.codes import ReturnCode
from powervio.phyp.tce import TceTable

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

pytestmark = pytest.mark.dual

PAGE = 4096
ENTRIES = 32
TOP_BITS = 0xFFFF_FFFF_FFFF_F000


def put_list(rig: Rig, address: int, *entries: int) -> None:
    rig.client.memory[address : address + 8 * len(entries)] = struct.pack(f">{len(entries)}Q", *entries)


def entries(rig: Rig) -> list[int]:
    return [rig.c.get_tce(rig.window, index * PAGE)[1] for index in range(ENTRIES)]


def test_put_tce_good_page_is_stored(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 3 * PAGE, 5 * PAGE | 1) == ReturnCode.H_SUCCESS
    assert rig.c.get_tce(rig.window, 3 * PAGE) == (ReturnCode.H_SUCCESS, 5 * PAGE | 1)


def test_put_tce_low_bits_of_ioba_are_ignored(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 3 * PAGE + 0x123, 5 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.c.get_tce(rig.window, 3 * PAGE + 0xFFF) == (ReturnCode.H_SUCCESS, 5 * PAGE | 3)


def test_put_tce_last_entry_of_the_window_succeeds(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, (ENTRIES - 1) * PAGE, 3) == ReturnCode.H_SUCCESS


def test_put_tce_first_entry_beyond_the_window_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, ENTRIES * PAGE, 3) == ReturnCode.H_PARAMETER


def test_put_tce_highest_address_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 2**64 - 1, 3) == ReturnCode.H_PARAMETER


def test_put_tce_unknown_liobn_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce(0x666, 0, 3) == ReturnCode.H_PARAMETER


def test_put_tce_liobn_of_another_partition_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce(rig.local, 0, 3) == ReturnCode.H_PARAMETER
    assert rig.s.get_tce(rig.local, 0) == (ReturnCode.H_SUCCESS, 0)


def test_put_tce_second_pane_is_parameter(linked: Rig) -> None:
    assert linked.s.put_tce(linked.remote, 0, 0) == ReturnCode.H_PARAMETER
    assert linked.c.get_tce(linked.window, 0) == (ReturnCode.H_SUCCESS, 3)


def test_put_tce_last_page_of_memory_succeeds(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 0, 15 * PAGE | 3) == ReturnCode.H_SUCCESS


@pytest.mark.parametrize("access", [1, 2, 3])
def test_put_tce_page_beyond_memory_is_parameter(rig: Rig, access: int) -> None:
    assert rig.c.put_tce(rig.window, 0, 16 * PAGE | access) == ReturnCode.H_PARAMETER
    assert rig.c.put_tce(rig.window, 0, TOP_BITS | access) == ReturnCode.H_PARAMETER
    assert rig.c.get_tce(rig.window, 0) == (ReturnCode.H_SUCCESS, 0)


def test_put_tce_without_access_keeps_an_unchecked_page(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 0, TOP_BITS) == ReturnCode.H_SUCCESS
    assert rig.c.get_tce(rig.window, 0) == (ReturnCode.H_SUCCESS, TOP_BITS)


def test_put_tce_reserved_bits_are_kept(rig: Rig) -> None:
    assert rig.c.put_tce(rig.window, 0, PAGE | 0xFFC | 3) == ReturnCode.H_SUCCESS
    assert rig.c.get_tce(rig.window, 0) == (ReturnCode.H_SUCCESS, PAGE | 0xFFF)


def test_get_tce_beyond_the_window_is_parameter(rig: Rig) -> None:
    assert rig.c.get_tce(rig.window, ENTRIES * PAGE)[0] == ReturnCode.H_PARAMETER


def test_get_tce_unknown_liobn_is_parameter(rig: Rig) -> None:
    assert rig.c.get_tce(0x666, 0)[0] == ReturnCode.H_PARAMETER


def test_get_tce_second_pane_is_parameter(linked: Rig) -> None:
    assert linked.s.get_tce(linked.remote, 0)[0] == ReturnCode.H_PARAMETER


def test_stuff_tce_range_is_filled_and_nothing_else(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 4 * PAGE, 2 * PAGE | 1, 3) == ReturnCode.H_SUCCESS
    assert entries(rig) == [0] * 4 + [2 * PAGE | 1] * 3 + [0] * (ENTRIES - 7)


def test_stuff_tce_zero_clears_the_range_and_nothing_else(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 0, PAGE | 3, ENTRIES) == ReturnCode.H_SUCCESS
    assert rig.c.stuff_tce(rig.window, PAGE, 0, 30) == ReturnCode.H_SUCCESS
    assert entries(rig) == [PAGE | 3] + [0] * 30 + [PAGE | 3]


def test_stuff_tce_no_entries_is_success(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 0, PAGE | 3, 0) == ReturnCode.H_SUCCESS
    assert entries(rig) == [0] * ENTRIES


def test_stuff_tce_count_to_the_end_succeeds(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 31 * PAGE, PAGE | 3, 1) == ReturnCode.H_SUCCESS


def test_stuff_tce_count_beyond_the_end_is_parameter_and_stores_nothing(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 31 * PAGE, PAGE | 3, 2) == ReturnCode.H_PARAMETER
    assert rig.c.stuff_tce(rig.window, 31 * PAGE, PAGE | 3, 2**64 - 1) == ReturnCode.H_PARAMETER
    assert entries(rig) == [0] * ENTRIES


def test_stuff_tce_address_beyond_the_window_is_parameter(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, ENTRIES * PAGE, 0, 0) == ReturnCode.H_PARAMETER


def test_stuff_tce_unknown_liobn_is_parameter(rig: Rig) -> None:
    assert rig.c.stuff_tce(0x666, 0, 0, 1) == ReturnCode.H_PARAMETER


def test_stuff_tce_second_pane_is_parameter(linked: Rig) -> None:
    assert linked.s.stuff_tce(linked.remote, 0, 0, 1) == ReturnCode.H_PARAMETER


def test_stuff_tce_page_beyond_memory_is_parameter(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 0, 16 * PAGE | 1, 2) == ReturnCode.H_PARAMETER
    assert entries(rig) == [0] * ENTRIES


def test_stuff_tce_no_entries_of_a_page_beyond_memory_is_parameter(rig: Rig) -> None:
    assert rig.c.stuff_tce(rig.window, 0, 16 * PAGE | 1, 0) == ReturnCode.H_PARAMETER


def test_stuff_tce_513_entries_by_default_succeeds(rig: Rig) -> None:
    _, client_end = rig.hypervisor.create_pair(rig.server, rig.client, client_window=1024 * PAGE)
    assert rig.c.stuff_tce(client_end.window.liobn, 0, PAGE | 3, 513) == ReturnCode.H_SUCCESS


def test_stuff_tce_512_entries_strict_succeeds(strict: Rig) -> None:
    _, client_end = strict.hypervisor.create_pair(strict.server, strict.client, client_window=1024 * PAGE)
    assert strict.c.stuff_tce(client_end.window.liobn, 0, PAGE | 3, 512) == ReturnCode.H_SUCCESS


def test_stuff_tce_513_entries_strict_is_p4(strict: Rig) -> None:
    _, client_end = strict.hypervisor.create_pair(strict.server, strict.client, client_window=1024 * PAGE)
    assert strict.c.stuff_tce(client_end.window.liobn, 0, PAGE | 3, 513) == ReturnCode.H_P4
    assert strict.c.get_tce(client_end.window.liobn, 0) == (ReturnCode.H_SUCCESS, 0)


def test_stuff_tce_whole_large_window_is_cleared(rig: Rig) -> None:
    # what Linux does at boot, on a table of many host pages, with entries at the edges of the pages of the table
    _, client_end = rig.hypervisor.create_pair(rig.server, rig.client, client_window=256 << 20)
    liobn = client_end.window.liobn
    used = [0, 511, 512, 513, 1024, 32767, 32768, 65534, 65535]
    for index in used:
        assert rig.c.put_tce(liobn, index * PAGE, PAGE | 3) == ReturnCode.H_SUCCESS
    assert rig.c.stuff_tce(liobn, 511 * PAGE, 0, 65536 - 511 - 1) == ReturnCode.H_SUCCESS
    assert [rig.c.get_tce(liobn, index * PAGE)[1] for index in used] == [PAGE | 3] + [0] * 7 + [PAGE | 3]


def test_put_tce_indirect_list_is_stored_big_endian(rig: Rig) -> None:
    put_list(rig, 2 * PAGE, 5 * PAGE | 3, 0, 7 * PAGE | 1)
    assert rig.c.put_tce_indirect(rig.window, PAGE, 2 * PAGE, 3) == ReturnCode.H_SUCCESS
    assert entries(rig)[:5] == [0, 5 * PAGE | 3, 0, 7 * PAGE | 1, 0]


def test_put_tce_indirect_bad_last_entry_stores_nothing(rig: Rig) -> None:
    put_list(rig, 2 * PAGE, PAGE | 3, PAGE | 3, 16 * PAGE | 3)
    assert rig.c.put_tce_indirect(rig.window, 0, 2 * PAGE, 3) == ReturnCode.H_PARAMETER
    assert entries(rig) == [0] * ENTRIES


def test_put_tce_indirect_full_page_of_512_succeeds(rig: Rig) -> None:
    _, client_end = rig.hypervisor.create_pair(rig.server, rig.client, client_window=1024 * PAGE)
    put_list(rig, 15 * PAGE, *[index % 16 * PAGE | 3 for index in range(512)])
    assert rig.c.put_tce_indirect(client_end.window.liobn, 512 * PAGE, 15 * PAGE, 512) == ReturnCode.H_SUCCESS
    assert rig.c.get_tce(client_end.window.liobn, 1023 * PAGE) == (ReturnCode.H_SUCCESS, 15 * PAGE | 3)


def test_put_tce_indirect_513_entries_is_parameter(rig: Rig) -> None:
    _, client_end = rig.hypervisor.create_pair(rig.server, rig.client, client_window=1024 * PAGE)
    assert rig.c.put_tce_indirect(client_end.window.liobn, 0, 2 * PAGE, 513) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_unaligned_list_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(rig.window, 0, 2 * PAGE + 8, 1) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_list_beyond_memory_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(rig.window, 0, 16 * PAGE, 1) == ReturnCode.H_PARAMETER
    assert rig.c.put_tce_indirect(rig.window, 0, TOP_BITS, 1) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_range_beyond_the_window_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(rig.window, 31 * PAGE, 2 * PAGE, 2) == ReturnCode.H_PARAMETER
    assert rig.c.put_tce_indirect(rig.window, 32 * PAGE, 2 * PAGE, 0) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_no_entries_is_success(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(rig.window, 0, 2 * PAGE, 0) == ReturnCode.H_SUCCESS


def test_put_tce_indirect_unknown_liobn_is_parameter(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(0x666, 0, 2 * PAGE, 1) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_second_pane_is_parameter(linked: Rig) -> None:
    assert linked.s.put_tce_indirect(linked.remote, 0, 2 * PAGE, 1) == ReturnCode.H_PARAMETER


def test_put_tce_indirect_negative_liobn_without_mtt_is_function(rig: Rig) -> None:
    assert rig.c.put_tce_indirect(-1, 0, 2 * PAGE, 1) == ReturnCode.H_FUNCTION


def test_put_tce_indirect_list_inside_its_own_mapping_is_snapshot(rig: Rig) -> None:
    # the list maps the page that holds the list: nothing that the call stores can change what it reads
    put_list(rig, 2 * PAGE, 2 * PAGE | 3)
    assert rig.c.put_tce_indirect(rig.window, 2 * PAGE, 2 * PAGE, 1) == ReturnCode.H_SUCCESS
    assert entries(rig)[2] == 2 * PAGE | 3


# the table itself


def test_translate_checks_the_page_against_the_memory_again() -> None:
    table = TceTable(4 * PAGE, memoryview(bytearray(2 * PAGE)))
    assert table.put(0, 2 * PAGE) == ReturnCode.H_SUCCESS
    assert table.put(PAGE, PAGE) == ReturnCode.H_SUCCESS
    assert table.translate(5, 0) == -1
    assert table.translate(PAGE + 5, 0) == PAGE + 5
    assert not table.allows(0, 1, 0)


def test_retire_lets_go_of_the_memory() -> None:
    memory = bytearray(2 * PAGE)
    table = TceTable(4 * PAGE, memoryview(memory))
    assert table.put(0, 3) == ReturnCode.H_SUCCESS
    table.retire()
    memory.clear()  # raises BufferError while somebody holds a view
    assert table.translate(0, 3) == -1
    assert table.put(0, 3) == ReturnCode.H_PARAMETER
