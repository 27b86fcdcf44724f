"""DMA mapping by TCE hcalls: what is mapped, for whom, and how many calls it takes (papr-vio 10.2)."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.papr.codes import HcallError, ReturnCode
from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.phyp.hypervisor import Hypervisor
from powervio.vio.dma import DmaSpace, PartitionPages
from powervio.vio.ranges import RangeExhausted

pytestmark = pytest.mark.dual


@pytest.fixture
def hypervisor() -> Iterator[Hypervisor]:
    with Hypervisor() as machine:
        yield machine


def make(hypervisor: Hypervisor, window: int = 256 << 20) -> tuple[DmaSpace, PartitionPages, object]:
    server = hypervisor.create_partition("vios1", 16 << 20)
    client = hypervisor.create_partition("client1", 64 << 20)
    _, adapter = hypervisor.create_pair(server, client, client_window=window)
    pages = PartitionPages(client.port.memory)
    return DmaSpace(client.port, pages, adapter.node.windows[0]), pages, adapter


def calls(adapter: object) -> dict[str, int]:
    return dict(adapter.ledger.snapshot()["hcalls"])  # type: ignore[attr-defined]


def test_map_of_one_page_takes_one_put_and_one_to_clear(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    address = pages.allocate(4096)
    ioba = dma.map(address + 100, 50, TCE_READ)
    assert ioba % 4096 == 100
    assert dma._port.get_tce(dma.liobn, ioba) == (ReturnCode.H_SUCCESS, address | TCE_READ)
    dma.unmap(ioba, 50)
    assert dma._port.get_tce(dma.liobn, ioba)[1] & TCE_ACCESS == 0
    assert calls(adapter) == {"H_PUT_TCE": 2, "H_GET_TCE": 2}


def test_map_across_pages_takes_one_indirect_call_for_each_512(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    length = 600 * 4096
    address = pages.allocate(length)
    ioba = dma.map(address, length, TCE_ACCESS)
    for page in (0, 511, 512, 599):
        assert dma._port.get_tce(dma.liobn, ioba + page * 4096)[1] == address + page * 4096 | TCE_ACCESS
    dma.unmap(ioba, length)
    assert dma._port.get_tce(dma.liobn, ioba + 599 * 4096)[1] & TCE_ACCESS == 0
    assert calls(adapter) == {"H_PUT_TCE_INDIRECT": 2, "H_STUFF_TCE": 2, "H_GET_TCE": 5}


def test_map_on_a_platform_without_multi_tce_falls_back_to_single_calls(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    dma._port.put_tce_indirect = lambda *args: ReturnCode.H_FUNCTION  # type: ignore[method-assign]
    dma._port.stuff_tce = lambda *args: ReturnCode.H_FUNCTION  # type: ignore[method-assign]
    address = pages.allocate(3 * 4096)
    ioba = dma.map(address, 3 * 4096, TCE_READ)
    assert dma._port.get_tce(dma.liobn, ioba + 8192)[1] == address + 8192 | TCE_READ
    dma.unmap(ioba, 3 * 4096)
    assert dma._port.get_tce(dma.liobn, ioba + 8192)[1] & TCE_ACCESS == 0
    assert calls(adapter)["H_PUT_TCE"] == 6


def test_full_window_is_refused_and_usable_again_after_unmap(hypervisor: Hypervisor) -> None:
    dma, pages, _ = make(hypervisor, window=1 << 20)
    address = pages.allocate(4096)
    mapped = [dma.map(address, 4096, TCE_READ) for _ in range(255)]
    assert 0 not in mapped  # page 0 of a window is never handed out
    with pytest.raises(RangeExhausted):
        dma.map(address, 4096, TCE_READ)
    dma.unmap(mapped.pop(), 4096)
    dma.map(address, 4096, TCE_READ)


def test_shared_piece_is_one_for_all_and_free_after_the_last(hypervisor: Hypervisor) -> None:
    first, pages, adapter = make(hypervisor)
    _, more = hypervisor.create_pair(hypervisor.partitions[1], hypervisor.partitions[2], client_window=16 << 20)
    second = DmaSpace(first._port, pages, more.node.windows[0])
    free = pages.free_bytes
    one, two = first.share(64 << 10), second.share(64 << 10)
    assert one.address == two.address
    assert pages.free_bytes == free - (64 << 10)
    one.view[:4] = b"both"
    assert bytes(two.view[:4]) == b"both"
    assert calls(adapter) == calls(more) == {"H_PUT_TCE_INDIRECT": 1}
    first.unshare(one)
    assert first._port.get_tce(second.liobn, two.ioba) == (ReturnCode.H_SUCCESS, two.address | TCE_ACCESS)
    assert pages.allocate(64 << 10) != two.address
    second.unshare(two)
    assert pages.free_bytes == free - (64 << 10)


def test_shared_piece_for_which_the_window_has_no_room_is_given_back(hypervisor: Hypervisor) -> None:
    dma, pages, _ = make(hypervisor, window=64 << 10)
    free = pages.free_bytes
    with pytest.raises(RangeExhausted):
        dma.share(64 << 10)
    assert pages.free_bytes == free


# mappings that are made and taken away together


def entry(dma: DmaSpace, ioba: int) -> int:
    return dma._port.get_tce(dma.liobn, ioba)[1]


def test_planned_pieces_are_mapped_by_one_call_and_unmapped_by_one(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    addresses = [pages.allocate(4096) for _ in range(32)]
    iobas = [dma.plan(address, 4096, TCE_READ) for address in addresses]
    assert calls(adapter) == {}
    assert [entry(dma, ioba) for ioba in iobas] == [0] * 32
    dma.commit()
    assert [entry(dma, ioba) for ioba in iobas] == [address | TCE_READ for address in addresses]
    dma.unmap_all([(ioba, 4096) for ioba in reversed(iobas)])
    assert [entry(dma, ioba) & TCE_ACCESS for ioba in iobas] == [0] * 32
    found = calls(adapter)
    del found["H_GET_TCE"]
    assert found == {"H_PUT_TCE_INDIRECT": 1, "H_STUFF_TCE": 1}


def test_one_planned_page_takes_the_short_calls(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    ioba = dma.plan(pages.allocate(4096) + 8, 8, TCE_READ)
    dma.commit()
    dma.commit()
    dma.unmap_all([(ioba, 8)])
    assert calls(adapter) == {"H_PUT_TCE": 2}


def test_piece_that_was_only_planned_is_never_mapped(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    address, before = pages.allocate(8192), dma.free_pages
    given_up, kept = dma.plan(address, 8192, TCE_READ), dma.plan(address, 4096, TCE_READ)
    dma.unmap_all([(given_up, 8192)])
    dma.commit()
    assert entry(dma, given_up) == 0
    assert entry(dma, kept) == address | TCE_READ
    assert calls(adapter)["H_PUT_TCE"] == 1
    dma.unmap_all([(kept, 4096)])
    assert dma.free_pages == before


def test_batches_of_a_random_order_stay_side_by_side(hypervisor: Hypervisor) -> None:
    """What ends in another order than it began costs no more when the next batch is mapped."""
    dma, pages, adapter = make(hypervisor)
    address = pages.allocate(4096)
    choice = random.Random(4)
    held = [dma.plan(address, 4096, TCE_READ) for _ in range(64)]
    dma.commit()
    before = calls(adapter)
    for _ in range(200):
        choice.shuffle(held)
        gone, held = held[:32], held[32:]
        dma.unmap_all([(ioba, 4096) for ioba in gone])
        held += [dma.plan(address, 4096, TCE_READ) for _ in range(32)]
        dma.commit()
    after = calls(adapter)
    maps = sum(after[name] - before.get(name, 0) for name in ("H_PUT_TCE_INDIRECT",))
    assert 200 <= maps <= 202  # here and there over the end of the range


def test_piece_outside_the_partition_s_memory_is_refused_before_it_is_planned(hypervisor: Hypervisor) -> None:
    dma, pages, adapter = make(hypervisor)
    size = len(pages.memory)
    dma.unmap_all([(dma.plan(4096, 10, TCE_READ), 10)])
    before = dma.free_pages
    for address, length in ((size, 1), (size - 4096, 4097), (1 << 40, 512), (-4096, 512)):
        with pytest.raises(LocalError, match="not in the partition's memory"):
            dma.plan(address, length, TCE_READ)
    dma.plan(size - 4096, 4096, TCE_READ)
    dma.commit()
    assert (dma.free_pages, calls(adapter)) == (before - 1, {"H_PUT_TCE": 1})


def test_pages_for_streaming_mappings_are_found_in_a_window_that_is_in_pieces(hypervisor: Hypervisor) -> None:
    dma, _, _ = make(hypervisor, window=64 * 4096)
    held = [dma.allocate(4096) for _ in range(63)]
    for memory in held[::2]:
        dma.release(memory)
    assert dma.free_pages == 32
    made = [(dma.plan(4096, 100, TCE_READ), 100) for _ in range(32)]
    dma.commit()
    assert mapped(dma, made) == [True] * 32
    with pytest.raises(RangeExhausted):
        dma.plan(4096, 100, TCE_READ)
    dma.unmap_all(made)
    assert dma.free_pages == 32


def test_what_stays_mapped_may_take_the_pages_of_streaming_mappings(hypervisor: Hypervisor) -> None:
    dma, _, _ = make(hypervisor, window=64 * 4096)
    before = dma.free_pages
    streaming = [(dma.plan(4096, 100, TCE_READ), 100)]
    dma.commit()
    held = [dma.allocate(4096) for _ in range(62)]
    with pytest.raises(RangeExhausted):
        dma.allocate(4096)
    for memory in held:
        dma.release(memory)
    dma.unmap_all(streaming)
    assert dma.free_pages == before


class Refusing:
    """A port whose calls that change TCEs fail from the one that the test says, until it says otherwise."""

    def __init__(self, port: object) -> None:
        self._port = port
        self.left = 1 << 30

    def _next(self, name: str, *arguments: int) -> int:
        self.left -= 1
        code = ReturnCode.H_RESOURCE if self.left < 0 else getattr(self._port, name)(*arguments)
        return int(code)

    def put_tce(self, *arguments: int) -> int:
        return self._next("put_tce", *arguments)

    def stuff_tce(self, *arguments: int) -> int:
        return self._next("stuff_tce", *arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self._port, name)


def pieces(dma: DmaSpace, address: int, count: int) -> list[tuple[int, int]]:
    """So many mappings of a page; no two are side by side."""
    made = [(dma.plan(address, 4096, TCE_READ), 4096) for _ in range(2 * count)]
    dma.unmap_all(made[1::2])
    return made[::2]


def mapped(dma: DmaSpace, made: list[tuple[int, int]]) -> list[bool]:
    return [bool(entry(dma, ioba) & TCE_ACCESS) for ioba, _ in made]


def test_commit_that_fails_leaves_planned_what_is_not_mapped(hypervisor: Hypervisor) -> None:
    dma, pages, _ = make(hypervisor)
    address, before = pages.allocate(4096), dma.free_pages
    dma._port = port = Refusing(dma._port)  # type: ignore[assignment]
    made = pieces(dma, address, 4)
    port.left = 2
    with pytest.raises(HcallError):
        dma.commit()
    assert mapped(dma, made) == [True, True, False, False]
    port.left = 1 << 30
    dma.commit()
    assert mapped(dma, made) == [True] * 4
    dma.unmap_all(made)
    assert (mapped(dma, made), dma.free_pages) == ([False] * 4, before)


def test_unmapping_that_fails_says_what_is_left_and_can_be_tried_again(hypervisor: Hypervisor) -> None:
    dma, pages, _ = make(hypervisor)
    address, before = pages.allocate(4096), dma.free_pages
    dma._port = port = Refusing(dma._port)  # type: ignore[assignment]
    made = pieces(dma, address, 4)
    dma.commit()
    left = [*made, (dma.plan(address, 4096, TCE_READ), 4096)]
    port.left = 2
    with pytest.raises(HcallError):
        dma.unmap_all(left)
    assert (mapped(dma, made), left, dma.free_pages) == ([False, False, True, True], made[2:], before - 2)
    port.left = 1 << 30
    dma.unmap_all(left)
    assert (mapped(dma, made), dma.free_pages) == ([False] * 4, before)


@given(
    st.lists(
        st.tuples(st.sampled_from(["plan", "commit", "unmap"]), st.integers(1, 3 * 4096), st.integers(0, 4095)),
        max_size=60,
    )
)
def test_planned_mappings_follow_a_model(steps: list[tuple[str, int, int]]) -> None:
    with Hypervisor() as machine:
        dma, pages, _ = make(machine, window=64 * 4096)
        address, before = pages.allocate(4 * 4096), dma.free_pages
        planned: list[tuple[int, int, int]] = []
        mapped: list[tuple[int, int, int]] = []
        for what, length, offset in steps:
            if what == "plan":
                try:
                    ioba = dma.plan(address + offset, length, TCE_READ)
                except RangeExhausted:
                    continue
                planned.append((ioba, offset, length))
            elif what == "commit":
                dma.commit()
                mapped += planned
                planned.clear()
            else:
                gone = [*mapped[length % 3 :: 3], *planned[offset % 2 :: 2]]
                dma.unmap_all([(ioba, size) for ioba, _, size in gone])
                mapped = [one for one in mapped if one not in gone]
                planned = [one for one in planned if one not in gone]
            expected: dict[int, int] = {}
            for ioba, place, size in mapped:
                for page in range((place + size + 4095) // 4096):
                    number = ioba // 4096 + page
                    assert number not in expected, "two pieces have one I/O page"
                    expected[number] = address + 4096 * page | TCE_READ
            found = {number: entry(dma, number * 4096) for number in range(64)}
            assert {number: tce for number, tce in found.items() if tce & TCE_ACCESS} == expected
        dma.unmap_all([(ioba, size) for ioba, _, size in (*mapped, *planned)])
        assert dma.free_pages == before
