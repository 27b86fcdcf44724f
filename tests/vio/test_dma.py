"""DMA mapping by TCE hcalls: what is mapped, for whom, and how many calls it takes (papr-vio 10.2)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from powervio.papr.codes import ReturnCode
from powervio.papr.tce import TCE_ACCESS, TCE_READ
from powervio.phyp.hypervisor import Hypervisor
from powervio.vio.dma import DmaSpace, PartitionPages
from powervio.vio.ranges import RangeExhausted


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
