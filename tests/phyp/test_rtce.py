"""Redirected DMA: every answer of its hcalls, what ends a copy, and what waits for an operation (papr-vio 2.4, 2.5)."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from powervio.errors import LocalError
from powervio.memory.abstract import Backing
from powervio.papr.codes import Hcall, ReturnCode
from powervio.papr.engine import MOVE, MOVE_CONTINUES, MOVE_TO_MEMORY, DmaFault
from powervio.phyp.physical import buffers_of
from powervio.phyp.policy import Policy
from powervio.storage.image import open_image

if TYPE_CHECKING:
    from tests.phyp.conftest import Rig

    from powervio.phyp.physical import PhysicalAdapter

pytestmark = pytest.mark.dual

PAGE = 4096
WINDOW = 8 * PAGE

SUCCESS = (ReturnCode.H_SUCCESS, 0)
PARAMETER = (ReturnCode.H_PARAMETER, 0)


class Medium(Backing):
    """A backing in memory, whose reads and writes can be made to fail."""

    read_only = False
    block_size = 512
    can_discard = False

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.size = len(data)
        self.error: OSError | None = None

    def read_into(self, position: int, buffer: memoryview) -> None:
        if self.error is not None:
            raise self.error
        buffer[:] = self.data[position : position + len(buffer)]

    def write_from(self, position: int, buffer: memoryview) -> None:
        if self.error is not None:
            raise self.error
        self.data[position : position + len(buffer)] = buffer

    def flush(self) -> None: ...

    def discard(self, position: int, length: int) -> None: ...

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None: ...

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]

    def close(self) -> None: ...


@pytest.fixture
def medium() -> Medium:
    return Medium(bytes(range(1, 256)) * 64 + bytes(64))


@pytest.fixture
def engine(linked: Rig) -> PhysicalAdapter:
    return linked.hypervisor.create_physical_adapter(linked.server, WINDOW)


@pytest.fixture
def impatient(new_rig: Callable[[Policy], Rig]) -> Iterator[Rig]:
    """Linked; what would wait for an operation gives up at once."""
    rig = new_rig(Policy(drain_limit=0.0))
    rig.connect()
    yield rig
    rig.hypervisor.close()


def put(rig: Rig, engine: PhysicalAdapter, page: int = 1, place: int = 0, count: int = 1) -> tuple[int, int]:
    return rig.s.put_rtce(rig.remote, page * PAGE, engine.liobn, place * PAGE, count)


def put_list(rig: Rig, engine: PhysicalAdapter, addresses: list[int], place: int = 0) -> tuple[int, int]:
    rig.server.memory[15 * PAGE : 15 * PAGE + 8 * len(addresses)] = b"".join(a.to_bytes(8, "big") for a in addresses)
    return rig.s.put_rtce_indirect(15 * PAGE, rig.remote, engine.liobn, place * PAGE, len(addresses))


# H_PUT_RTCE


def test_put_rtce_engine_moves_bytes_to_and_from_the_client(
    linked: Rig, engine: PhysicalAdapter, medium: Medium
) -> None:
    assert put(linked, engine, page=3, count=2) == SUCCESS
    engine.read(medium, 10, [(100, 5000)])
    assert bytes(linked.client.memory[3 * PAGE + 100 : 3 * PAGE + 5100]) == bytes(medium.data[10:5010])
    assert bytes(linked.client.memory[3 * PAGE : 3 * PAGE + 100]) == bytes(100)
    linked.client.memory[3 * PAGE : 3 * PAGE + 3] = b"abc"
    engine.write(medium, 0, [(0, 3)])
    assert medium.data[:4] == b"abc\x04"


@pytest.mark.parametrize("which", ["local", "window", "nobody"])
def test_put_rtce_not_a_second_pane_of_the_caller_is_parameter(
    linked: Rig, engine: PhysicalAdapter, which: str
) -> None:
    liobn = {"local": linked.local, "window": linked.window, "nobody": 0x666}[which]
    assert linked.s.put_rtce(liobn, 0, engine.liobn, 0, 1) == PARAMETER
    assert linked.s.put_rtce_indirect(0, liobn, engine.liobn, 0, 1) == PARAMETER
    assert linked.s.remove_rtce(liobn, 0, engine.liobn, 0, 1) == ReturnCode.H_PARAMETER


@pytest.mark.parametrize("which", ["local", "remote", "other", "nobody"])
def test_put_rtce_not_a_physical_adapter_of_the_caller_is_parameter(
    linked: Rig, engine: PhysicalAdapter, which: str
) -> None:
    other = linked.hypervisor.create_physical_adapter(linked.client, WINDOW)
    liobn = {"local": linked.local, "remote": linked.remote, "other": other.liobn, "nobody": 0x666}[which]
    assert linked.s.put_rtce(linked.remote, 0, liobn, 0, 1) == PARAMETER
    assert linked.s.put_rtce_indirect(0, linked.remote, liobn, 0, 1) == PARAMETER
    assert linked.s.remove_rtce(linked.remote, 0, liobn, 0, 1) == ReturnCode.H_PARAMETER


@pytest.mark.parametrize(
    ("r_ioba", "ioba", "count"),
    [(32 * PAGE, 0, 0), (31 * PAGE, 0, 2), (0, 8 * PAGE, 0), (0, 7 * PAGE, 2), (0, 0, 2**64 - 1), (2**63, 0, 1)],
)
def test_put_rtce_beyond_a_window_is_parameter(
    linked: Rig, engine: PhysicalAdapter, r_ioba: int, ioba: int, count: int
) -> None:
    assert linked.s.put_rtce(linked.remote, r_ioba, engine.liobn, ioba, count) == PARAMETER
    assert linked.s.remove_rtce(linked.remote, r_ioba, engine.liobn, ioba, count) == ReturnCode.H_PARAMETER
    assert linked.client_end.ledger.redirected_pages == 0


def test_put_rtce_no_pages_is_success(linked: Rig, engine: PhysicalAdapter) -> None:
    assert put(linked, engine, count=0) == SUCCESS


def test_put_rtce_low_bits_of_addresses_are_ignored(linked: Rig, engine: PhysicalAdapter, medium: Medium) -> None:
    assert linked.s.put_rtce(linked.remote, PAGE + 5, engine.liobn, 6, 1) == SUCCESS
    engine.read(medium, 0, [(0, 1)])
    assert linked.client.memory[PAGE] == 1


def test_put_rtce_unmapped_page_is_remote_parm_and_earlier_pages_stay(
    linked: Rig, engine: PhysicalAdapter, medium: Medium
) -> None:
    linked.c.put_tce(linked.window, 3 * PAGE, 0)
    assert put(linked, engine, page=1, count=4) == (ReturnCode.H_REMOTE_PARM, 2)
    engine.read(medium, 0, [(0, 2 * PAGE)])
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(2 * PAGE, 1)])
    assert linked.server_end.ledger.redirected_pages == 2


def test_put_rtce_not_linked_is_remote_parm(rig: Rig) -> None:
    engine = rig.hypervisor.create_physical_adapter(rig.server, WINDOW)
    rig.map_all()
    assert put(rig, engine) == (ReturnCode.H_REMOTE_PARM, 0)
    assert put_list(rig, engine, [PAGE]) == (ReturnCode.H_REMOTE_PARM, 0)
    assert rig.s.remove_rtce(rig.remote, 0, engine.liobn, 0, 1) == ReturnCode.H_SUCCESS


def test_put_rtce_second_copy_of_an_entry_is_resource(linked: Rig, engine: PhysicalAdapter) -> None:
    assert put(linked, engine, page=2) == SUCCESS
    assert put(linked, engine, page=1, place=1, count=3) == (ReturnCode.H_RESOURCE, 1)
    assert put(linked, engine, page=2) == (ReturnCode.H_RESOURCE, 0)


def test_put_rtce_same_copy_again_is_in_use_where_more_are_allowed(new_rig: Callable[[Policy], Rig]) -> None:
    rig = new_rig(Policy(max_redirected_mappings=2))
    rig.connect()
    engine = rig.hypervisor.create_physical_adapter(rig.server, WINDOW)
    assert put(rig, engine, page=2, place=2) == SUCCESS
    assert put(rig, engine, page=1, place=1, count=2) == (ReturnCode.H_IN_USE, 1)
    assert put(rig, engine, page=2, place=3) == SUCCESS
    assert put(rig, engine, page=2, place=4) == (ReturnCode.H_RESOURCE, 0)
    rig.hypervisor.close()


def test_put_rtce_over_another_copy_ends_that_one(linked: Rig, engine: PhysicalAdapter, medium: Medium) -> None:
    assert put(linked, engine, page=1) == SUCCESS
    assert put(linked, engine, page=2) == SUCCESS
    engine.read(medium, 0, [(0, 1)])
    assert (linked.client.memory[PAGE], linked.client.memory[2 * PAGE]) == (0, 1)
    assert put(linked, engine, page=1, place=1) == SUCCESS


@pytest.mark.parametrize(("access", "reads", "writes"), [(1, False, True), (2, True, False), (3, True, True)])
def test_copy_keeps_the_access_bits_of_the_client(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, access: int, reads: bool, writes: bool
) -> None:
    """TCE_READ lets a device read memory, which is a write to the medium."""
    linked.c.put_tce(linked.window, PAGE, 9 * PAGE | access)
    assert put(linked, engine) == SUCCESS
    for works, move in ((reads, engine.read), (writes, engine.write)):
        if works:
            move(medium, 0, [(0, 8)])
        else:
            with pytest.raises(DmaFault, match="expected entries that are valid"):
                move(medium, 0, [(0, 8)])


# H_PUT_RTCE_INDIRECT


def test_put_rtce_indirect_pages_come_in_the_order_of_the_list(
    linked: Rig, engine: PhysicalAdapter, medium: Medium
) -> None:
    assert put_list(linked, engine, [5 * PAGE, 2 * PAGE, 9 * PAGE]) == SUCCESS
    engine.read(medium, 0, [(0, 3 * PAGE)])
    for position, page in enumerate((5, 2, 9)):
        place = slice(page * PAGE, (page + 1) * PAGE)
        assert bytes(linked.client.memory[place]) == bytes(medium.data[position * PAGE : (position + 1) * PAGE])


@pytest.mark.parametrize(("address", "count"), [(8, 1), (16 * PAGE, 1), (2**63, 1), (PAGE, 513), (PAGE, 9)])
def test_put_rtce_indirect_bad_list_is_parameter(
    linked: Rig, engine: PhysicalAdapter, address: int, count: int
) -> None:
    assert linked.s.put_rtce_indirect(address, linked.remote, engine.liobn, 0, count) == PARAMETER


def test_put_rtce_indirect_address_beyond_the_pane_is_remote_parm_with_nothing_mapped(
    linked: Rig, engine: PhysicalAdapter
) -> None:
    assert put_list(linked, engine, [PAGE, 32 * PAGE]) == (ReturnCode.H_REMOTE_PARM, 1)
    assert linked.server_end.ledger.redirected_pages == 0


def test_put_rtce_indirect_unmapped_page_is_remote_parm_and_earlier_pages_stay(
    linked: Rig, engine: PhysicalAdapter
) -> None:
    assert put_list(linked, engine, [PAGE, 20 * PAGE, 2 * PAGE]) == (ReturnCode.H_REMOTE_PARM, 1)
    assert linked.server_end.ledger.redirected_pages == 1


def test_put_rtce_indirect_page_named_twice_is_resource(linked: Rig, engine: PhysicalAdapter) -> None:
    assert put_list(linked, engine, [PAGE, PAGE]) == (ReturnCode.H_RESOURCE, 1)


# H_REMOVE_RTCE


def test_remove_rtce_leaves_the_value_without_access(linked: Rig, engine: PhysicalAdapter, medium: Medium) -> None:
    assert put(linked, engine, count=2) == SUCCESS
    assert linked.s.remove_rtce(linked.remote, PAGE, engine.liobn, 0, 2, 7 * PAGE | 3) == ReturnCode.H_SUCCESS
    assert linked.s.get_tce(engine.liobn, PAGE) == (ReturnCode.H_SUCCESS, 7 * PAGE)
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(0, 1)])
    assert put(linked, engine, count=2) == SUCCESS


def test_remove_rtce_of_what_was_not_mapped_is_success(linked: Rig, engine: PhysicalAdapter) -> None:
    assert linked.s.remove_rtce(linked.remote, 0, engine.liobn, 0, 8) == ReturnCode.H_SUCCESS


# the raw registers


def test_registers_carry_the_count_of_pages_mapped(linked: Rig, engine: PhysicalAdapter) -> None:
    linked.c.put_tce(linked.window, 2 * PAGE, 0)
    call = linked.s.hcall
    assert call(Hcall.H_PUT_RTCE, linked.remote, PAGE, engine.liobn, 0, 2) == (ReturnCode.H_REMOTE_PARM, 1)
    assert call(Hcall.H_REMOVE_RTCE, linked.remote, PAGE, engine.liobn, 0, 2, 0) == (ReturnCode.H_SUCCESS,)
    assert call(Hcall.H_PUT_RTCE_INDIRECT, 0, linked.remote, engine.liobn, 0, 0) == SUCCESS
    assert linked.c.hcall(Hcall.H_LIOBN_ATTRIBUTES, linked.window, 0, 0) == (ReturnCode.H_SUCCESS, 1)


# H_LIOBN_ATTRIBUTES


def test_liobn_attributes_bit_bucket_is_allowed_at_first_and_changes(linked: Rig) -> None:
    assert linked.c.liobn_attributes(linked.window, 0, 0) == (ReturnCode.H_SUCCESS, 1)
    assert linked.c.liobn_attributes(linked.window, 1, 0) == (ReturnCode.H_SUCCESS, 0)
    assert linked.c.liobn_attributes(linked.window, 1, 1) == (ReturnCode.H_SUCCESS, 1)


def test_liobn_attributes_other_bits_are_constrained(linked: Rig, engine: PhysicalAdapter) -> None:
    assert linked.c.liobn_attributes(linked.window, 1, 2) == (ReturnCode.H_CONSTRAINED, 0)
    assert linked.s.liobn_attributes(engine.liobn, 0, 1) == (ReturnCode.H_CONSTRAINED, 0)
    assert linked.s.liobn_attributes(engine.liobn, 0, 0) == SUCCESS


def test_liobn_attributes_not_the_callers_own_is_parameter(linked: Rig) -> None:
    for liobn in (linked.remote, linked.window, 0x666):
        assert linked.s.liobn_attributes(liobn, 0, 1) == PARAMETER


# the owner's own pages


def test_engine_reaches_the_pages_that_the_owner_maps_itself(
    linked: Rig, engine: PhysicalAdapter, medium: Medium
) -> None:
    assert linked.s.put_tce(engine.liobn, PAGE, 4 * PAGE | 2) == ReturnCode.H_SUCCESS
    assert linked.s.get_tce(engine.liobn, PAGE) == (ReturnCode.H_SUCCESS, 4 * PAGE | 2)
    engine.read(medium, 0, [(PAGE + 1, 2)])
    assert bytes(linked.server.memory[4 * PAGE : 4 * PAGE + 3]) == b"\0\1\2"
    assert linked.s.put_tce(engine.liobn, PAGE, 16 * PAGE | 2) == ReturnCode.H_PARAMETER
    assert linked.s.put_tce(engine.liobn, 8 * PAGE, 3) == ReturnCode.H_PARAMETER


def test_get_tce_of_a_copy_is_partial(linked: Rig, engine: PhysicalAdapter) -> None:
    put(linked, engine)
    assert linked.s.get_tce(engine.liobn, 0) == (ReturnCode.H_PARTIAL, 0xFFFF_FFFF_FFFF_F003)


@pytest.mark.parametrize("way", ["put", "stuff", "list"])
def test_own_entry_over_a_copy_ends_it(linked: Rig, engine: PhysicalAdapter, medium: Medium, way: str) -> None:
    put(linked, engine, count=2)
    if way == "put":
        assert linked.s.put_tce(engine.liobn, 0, 5 * PAGE | 3) == ReturnCode.H_SUCCESS
    elif way == "stuff":
        assert linked.s.stuff_tce(engine.liobn, 0, 5 * PAGE | 3, 1) == ReturnCode.H_SUCCESS
    else:
        linked.server.memory[15 * PAGE : 15 * PAGE + 8] = (5 * PAGE | 3).to_bytes(8, "big")
        assert linked.s.put_tce_indirect(engine.liobn, 0, 15 * PAGE, 1) == ReturnCode.H_SUCCESS
    engine.read(medium, 0, [(0, PAGE + 1)])
    assert (linked.server.memory[5 * PAGE], linked.client.memory[PAGE], linked.client.memory[2 * PAGE]) == (1, 0, 17)


def test_rdma_does_not_take_the_window_of_a_physical_adapter(linked: Rig, engine: PhysicalAdapter) -> None:
    linked.s.put_tce(engine.liobn, 0, 3)
    assert linked.s.copy_rdma(8, engine.liobn, 0, linked.local, 0) == ReturnCode.H_SOURCE_PARM
    assert linked.s.copy_rdma(8, linked.local, 0, engine.liobn, 0) == ReturnCode.H_DEST_PARM


# operations


@pytest.mark.parametrize("segment", [(8 * PAGE, 1), (7 * PAGE, PAGE + 1), (-1, 1), (0, -1), (2**64, 1), (0, PAGE)])
def test_operation_where_nothing_is_mapped_fails_alone(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, segment: tuple[int, int]
) -> None:
    put(linked, engine, place=1)
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(PAGE, 8), segment])
    assert linked.client.memory[PAGE] == 0
    assert engine.in_flight == linked.client.pins == 0
    engine.read(medium, 0, [(PAGE, 8)])


def test_operation_error_of_the_medium_reaches_the_owner_and_pins_nothing(
    linked: Rig, engine: PhysicalAdapter, medium: Medium
) -> None:
    put(linked, engine)
    medium.error = OSError(5, "broken")
    for move in (engine.read, engine.write):
        with pytest.raises(OSError, match="broken"):
            move(medium, 0, [(0, 8)])
    assert linked.client.pins == 0
    assert linked.server_end.ledger.redirected_bytes == 0
    assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_SUCCESS


def test_operation_counts_bytes_at_both_ends(linked: Rig, engine: PhysicalAdapter, medium: Medium) -> None:
    put(linked, engine, count=2)
    linked.s.put_tce(engine.liobn, 2 * PAGE, 3 * PAGE | 3)
    engine.read(medium, 0, [(5, 2 * PAGE + 100), (0, 10)])
    for end in (linked.server_end, linked.client_end):
        assert (end.ledger.redirected_pages, end.ledger.redirected_bytes) == (2, 2 * PAGE - 5 + 10)
        assert end.ledger.rdma_bytes == 0


# several moves as one operation


IN, OUT, MORE = MOVE_TO_MEMORY, 0, MOVE_CONTINUES


def list_of(*moves: tuple[int, int, int, int]) -> bytearray:
    """Moves as `(position, address, length, flags)`."""
    return bytearray(b"".join(MOVE.pack(*move, 77) for move in moves))


def results(moves: bytearray) -> list[int]:
    return [result for *_, result in MOVE.iter_unpack(moves)]


@pytest.fixture(params=["file", "methods"])
def disk(request: pytest.FixtureRequest, medium: Medium, tmp_path: Path) -> Iterator[Backing]:
    """The same bytes, moved by descriptor and by methods."""
    if request.param == "methods":
        yield medium
        return
    path = tmp_path / "disk.img"
    path.write_bytes(medium.data)
    with open_image(path) as image:
        yield image


def read_back(disk: Backing, position: int, length: int) -> bytes:
    found = bytearray(length)
    disk.read_into(position, memoryview(found))
    return bytes(found)


def test_moves_of_several_requests_are_one_operation(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, disk: Backing
) -> None:
    before = bytes(medium.data)
    put(linked, engine, page=3, count=3)
    linked.s.put_tce(engine.liobn, 3 * PAGE, 9 * PAGE | 3)
    linked.client.memory[5 * PAGE : 5 * PAGE + 4] = b"abcd"
    linked.server.memory[9 * PAGE : 9 * PAGE + 4] = b"efgh"
    moves = list_of(
        (512, 100, PAGE, IN),
        (0, 2 * PAGE, 2, OUT),
        (0, 3 * PAGE, 4, OUT | MORE),
        (0, 2 * PAGE + 2, 2, MORE),
        (1024, 3 * PAGE + 100, 8, IN),
        (7, 2 * PAGE + 1000, 0, IN),
    )
    assert engine.move_all(disk, moves, 6) == 0
    assert results(moves) == [0, 0, 77, 77, 0, 0]
    assert bytes(linked.client.memory[3 * PAGE + 100 : 4 * PAGE + 100]) == before[512 : 512 + PAGE]
    assert read_back(disk, 0, 9) == b"abefghcd" + before[8:9]
    assert bytes(linked.server.memory[9 * PAGE + 100 : 9 * PAGE + 108]) == before[1024:1032]
    assert engine.in_flight == linked.client.pins == linked.server.pins == 0
    for end in (linked.server_end, linked.client_end):
        assert end.ledger.redirected_bytes == PAGE + 4
    assert engine.move_all(disk, list_of((0, 0, 1, IN)), 1) == 0
    assert linked.client_end.ledger.redirected_bytes == PAGE + 5


def test_request_that_the_disk_refuses_fails_alone_and_counts_nothing(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, tmp_path: Path
) -> None:
    path = tmp_path / "disk.img"
    path.write_bytes(medium.data)
    put(linked, engine, count=3)
    moves = list_of((0, 0, 512, IN), (len(medium.data) - 8, PAGE, 512, IN), (512, 2 * PAGE, 512, IN))
    with open_image(path) as disk:
        assert engine.move_all(disk, moves, 3) == 1
        assert results(moves) == [0, errno.EINVAL, 0]
        assert linked.client_end.ledger.redirected_bytes == 1024
        os.truncate(path, 1024)
        moves = list_of((0, 0, 512, OUT), (1024, PAGE, 512, IN), (512, 2 * PAGE, 512, IN), (2**63, 0, 1, OUT))
        assert engine.move_all(disk, moves, 4) == 3
        assert results(moves) == [errno.EIO, errno.EIO, 0, errno.EINVAL]
    assert bytes(linked.client.memory[3 * PAGE : 3 * PAGE + 512]) == bytes(medium.data[512:1024])
    assert path.stat().st_size == 1024
    assert linked.client_end.ledger.redirected_bytes == 1536


def test_moves_with_a_bad_segment_move_nothing(linked: Rig, engine: PhysicalAdapter, disk: Backing) -> None:
    put(linked, engine)
    for bad in ((0, PAGE, 1, IN), (0, 8 * PAGE - 1, 2, IN), (0, 2**64 - 1, 2, IN), (0, 0, 2**64 - 1, OUT)):
        with pytest.raises(DmaFault):
            engine.move_all(disk, list_of((0, 0, 8, IN), bad), 2)
    with pytest.raises(DmaFault, match="2 moves in a list of 32 bytes"):
        engine.move_all(disk, list_of((0, 0, 8, IN)), 2)
    assert linked.client.memory[PAGE] == 0
    assert engine.in_flight == linked.client.pins == 0
    assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_SUCCESS


def test_more_moves_than_ever_before(linked: Rig, engine: PhysicalAdapter, medium: Medium, disk: Backing) -> None:
    put(linked, engine, count=8)
    for count in (1, 63, 64, 65, 500):
        moves = list_of(*((number, 16 * number, 1, IN) for number in range(count)))
        assert engine.move_all(disk, moves, count) == 0
        assert linked.client.memory[PAGE : PAGE + 16 * count : 16].tolist() == list(medium.data[:count])


def test_file_that_is_cut_off_within_an_operation_gives_all_of_a_block_or_an_error(
    linked: Rig, engine: PhysicalAdapter, memory_folder: Path
) -> None:
    """The rest of a last page reads as zeroes through a mapping, without a fault: only the file's length tells."""
    path, block, count = memory_folder / "disk.img", bytes(range(1, 129)) * 32, 10000
    path.write_bytes(block)
    put(linked, engine)
    moves = list_of(*[(0, 0, PAGE, IN)] * count)
    chance = random.Random(4096)
    with open_image(path) as disk:
        for cut in range(16):
            pause = chance.uniform(0.0001, 0.001)
            cutter = threading.Timer(pause, os.truncate, (path, 512))
            if cut:  # the first operation makes the page known
                cutter.start()
            engine.move_all(disk, moves, count)
            read = bytes(linked.client.memory[PAGE : 2 * PAGE])
            assert results(moves)[-1] == errno.EIO or read == block
            if cut:
                cutter.join()
            path.write_bytes(block)


# changes under a copy


@pytest.mark.parametrize("way", ["put", "stuff", "list"])
def test_change_of_an_entry_with_a_copy_ends_the_copy(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, way: str
) -> None:
    put(linked, engine, count=2)
    if way == "put":
        assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_SUCCESS
    elif way == "stuff":
        assert linked.c.stuff_tce(linked.window, 0, 0, 2) == ReturnCode.H_SUCCESS
    else:
        linked.client.memory[15 * PAGE : 15 * PAGE + 8] = (5 * PAGE | 3).to_bytes(8, "big")
        assert linked.c.put_tce_indirect(linked.window, PAGE, 15 * PAGE, 1) == ReturnCode.H_SUCCESS
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(0, 1)])
    engine.read(medium, 0, [(PAGE, 1)])


@pytest.mark.parametrize("way", ["put", "stuff", "list"])
def test_change_without_bit_bucket_is_resource_until_removed(linked: Rig, engine: PhysicalAdapter, way: str) -> None:
    linked.c.liobn_attributes(linked.window, 1, 0)
    put(linked, engine)
    linked.client.memory[15 * PAGE : 15 * PAGE + 16] = bytes(16)

    def change() -> int:
        if way == "put":
            return linked.c.put_tce(linked.window, PAGE, 0)
        if way == "stuff":
            return linked.c.stuff_tce(linked.window, 0, 0, 32)
        return linked.c.put_tce_indirect(linked.window, 0, 15 * PAGE, 2)

    assert change() == ReturnCode.H_RESOURCE
    assert linked.c.get_tce(linked.window, PAGE) == (ReturnCode.H_SUCCESS, PAGE | 3)
    assert linked.c.get_tce(linked.window, 0) == (ReturnCode.H_SUCCESS, 3)
    assert linked.c.put_tce(linked.window, 2 * PAGE, 0) == ReturnCode.H_SUCCESS
    assert linked.s.remove_rtce(linked.remote, PAGE, engine.liobn, 0, 1) == ReturnCode.H_SUCCESS
    assert change() == ReturnCode.H_SUCCESS


def test_change_refused_for_its_own_fault_ends_no_copy(linked: Rig, engine: PhysicalAdapter, medium: Medium) -> None:
    put(linked, engine)
    assert linked.c.put_tce(linked.window, PAGE, 99 * PAGE | 3) == ReturnCode.H_PARAMETER
    engine.read(medium, 0, [(0, 1)])


@pytest.mark.parametrize("remove", [False, True], ids=["mapped", "removed meanwhile"])
def test_change_returns_only_after_the_operation_has_ended(
    linked: Rig, engine: PhysicalAdapter, medium: Medium, remove: bool
) -> None:
    put(linked, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    if remove:
        assert linked.s.remove_rtce(linked.remote, PAGE, engine.liobn, 0, 1) == ReturnCode.H_SUCCESS
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(linked.c.put_tce(linked.window, PAGE, 0)))
    thread.start()
    thread.join(0.05)
    assert codes == []
    assert linked.c.get_tce(linked.window, PAGE) == (ReturnCode.H_SUCCESS, PAGE | 3)  # the lock is free meanwhile
    with pytest.raises(DmaFault):
        engine.begin([(0, 16)], to_memory=True)
    buffers_of(operation)[0][:] = bytes(medium.data[:16])
    engine.end(operation, moved=True)
    thread.join(10)
    assert codes == [ReturnCode.H_SUCCESS]
    assert linked.c.get_tce(linked.window, PAGE) == (ReturnCode.H_SUCCESS, 0)
    assert linked.client_end.ledger.tce_updates == 17


def test_change_of_a_page_in_flight_gives_up_at_the_limit_with_the_entry_as_it_was(impatient: Rig) -> None:
    rig = impatient
    engine = rig.hypervisor.create_physical_adapter(rig.server, WINDOW)
    put(rig, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    assert rig.c.put_tce(rig.window, PAGE, 0) == ReturnCode.H_RESOURCE
    assert rig.c.stuff_tce(rig.window, 0, 0, 4) == ReturnCode.H_RESOURCE
    assert rig.c.get_tce(rig.window, 0) == (ReturnCode.H_SUCCESS, 3)
    assert rig.c.put_tce(rig.window, 2 * PAGE, 0) == ReturnCode.H_SUCCESS
    engine.end(operation, moved=True)
    assert rig.c.stuff_tce(rig.window, 0, 0, 4) == ReturnCode.H_SUCCESS


def test_partition_whose_hcalls_do_not_wait_has_resource_at_once(linked: Rig, engine: PhysicalAdapter) -> None:
    put(linked, engine)
    linked.client.waits = False
    operation = engine.begin([(0, 16)], to_memory=True)
    assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_RESOURCE
    assert linked.hypervisor.waiting == 0
    engine.end(operation, moved=True)
    assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_SUCCESS


def test_change_that_waits_for_a_partition_that_dies_is_parameter(linked: Rig, engine: PhysicalAdapter) -> None:
    put(linked, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(linked.c.put_tce(linked.window, PAGE, 0)))
    thread.start()
    thread.join(0.05)
    linked.hypervisor.terminate(linked.client)
    engine.end(operation, moved=True)
    thread.join(10)
    assert codes == [ReturnCode.H_PARAMETER]


# the end of the link


@pytest.mark.parametrize("who", ["client", "server"])
def test_free_crq_ends_the_copies(linked: Rig, engine: PhysicalAdapter, medium: Medium, who: str) -> None:
    put(linked, engine)
    port, address = (linked.c, linked.c_ua) if who == "client" else (linked.s, linked.s_ua)
    assert port.free_crq(address) == ReturnCode.H_SUCCESS
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(0, 1)])
    port.reg_crq(address, 0, PAGE)
    with pytest.raises(DmaFault):
        engine.read(medium, 0, [(0, 1)])
    assert put(linked, engine) == SUCCESS


@pytest.mark.parametrize("who", ["client", "server"])
def test_free_crq_operation_in_flight_is_long_busy_and_admits_no_new_one(
    linked: Rig, engine: PhysicalAdapter, who: str
) -> None:
    put(linked, engine)
    operation = engine.begin([(0, 16)], to_memory=False)
    port, address = (linked.c, linked.c_ua) if who == "client" else (linked.s, linked.s_ua)
    assert port.free_crq(address) == ReturnCode.H_LONG_BUSY_ORDER_1_MSEC
    assert linked.s.send_crq(linked.s_ua, 0x80 << 56, 0) == ReturnCode.H_SUCCESS
    assert put(linked, engine, page=2) == (ReturnCode.H_REMOTE_PARM, 0)
    assert port.free_crq(address) == ReturnCode.H_LONG_BUSY_ORDER_1_MSEC
    engine.end(operation, moved=True)
    assert port.free_crq(address) == ReturnCode.H_SUCCESS
    assert linked.s.send_crq(linked.s_ua, 0x80 << 56, 0) == ReturnCode.H_CLOSED


def test_free_crq_live_copy_without_bit_bucket_is_resource(linked: Rig, engine: PhysicalAdapter) -> None:
    linked.c.liobn_attributes(linked.window, 1, 0)
    put(linked, engine)
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_RESOURCE
    assert put(linked, engine, page=2, place=1) == SUCCESS
    assert linked.s.remove_rtce(linked.remote, PAGE, engine.liobn, 0, 2) == ReturnCode.H_SUCCESS
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS


def test_terminate_memory_lives_until_the_last_operation_has_ended(linked: Rig, engine: PhysicalAdapter) -> None:
    linked.c.liobn_attributes(linked.window, 1, 0)  # no excuse for a death
    put(linked, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    area = linked.client.area
    linked.hypervisor.terminate(linked.client)
    buffers_of(operation)[0][:15] = b"sixteen bytes.."
    assert bytes(area.view[PAGE : PAGE + 15]) == b"sixteen bytes.."
    engine.end(operation, moved=True)
    with pytest.raises(ValueError, match="released"):
        area.view[0]
    with pytest.raises(DmaFault):
        engine.begin([(0, 1)], to_memory=True)


def test_terminate_server_with_an_operation_in_flight_still_pins_the_client(
    linked: Rig, engine: PhysicalAdapter
) -> None:
    put(linked, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    linked.hypervisor.terminate(linked.server)
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_LONG_BUSY_ORDER_1_MSEC
    with pytest.raises(DmaFault):
        engine.begin([(0, 1)], to_memory=True)
    engine.end(operation, moved=True)
    assert linked.c.free_crq(linked.c_ua) == ReturnCode.H_SUCCESS
    assert linked.c.put_tce(linked.window, PAGE, 0) == ReturnCode.H_SUCCESS


def test_reboot_with_an_operation_in_flight_clears_no_memory(impatient: Rig) -> None:
    rig = impatient
    engine = rig.hypervisor.create_physical_adapter(rig.server, WINDOW)
    put(rig, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    rig.client.memory[9 * PAGE] = 9
    with pytest.raises(LocalError, match="1 DMA operations are still at work on its memory"):
        rig.hypervisor.reboot(rig.client)
    assert rig.client.memory[9 * PAGE] == 9
    engine.end(operation, moved=True)
    rig.hypervisor.reboot(rig.client)
    assert rig.client.memory[9 * PAGE] == 0


def test_reboot_of_the_server_empties_its_engines_table(linked: Rig, engine: PhysicalAdapter) -> None:
    put(linked, engine)
    linked.s.put_tce(engine.liobn, PAGE, 3)
    linked.hypervisor.reboot(linked.server)
    for ioba in (0, PAGE):
        with pytest.raises(DmaFault):
            engine.begin([(ioba, 1)], to_memory=True)


def test_remove_pair_waits_for_operations(impatient: Rig) -> None:
    rig = impatient
    engine = rig.hypervisor.create_physical_adapter(rig.server, WINDOW)
    put(rig, engine)
    operation = engine.begin([(0, 16)], to_memory=True)
    with pytest.raises(LocalError, match="still at work"):
        rig.hypervisor.remove_pair(rig.client_end)
    assert put(rig, engine) == (ReturnCode.H_REMOTE_PARM, 0)
    engine.end(operation, moved=True)
    rig.hypervisor.remove_pair(rig.client_end)
    assert dict(rig.c.nodes) == {}


def test_physical_adapter_bad_window_is_local_error(rig: Rig) -> None:
    with pytest.raises(LocalError, match="positive multiple of 4096"):
        rig.hypervisor.create_physical_adapter(rig.server, 100)


def test_physical_adapter_is_seen_from_the_port(linked: Rig, engine: PhysicalAdapter) -> None:
    (seen,) = linked.s.engines
    assert seen.node.window.size == WINDOW
    assert seen.node.location_code == "U9117.MMA.0000001-P1-C1"
    assert list(linked.c.engines) == []
