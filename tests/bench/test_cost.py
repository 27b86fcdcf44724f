"""What a random read of 4 KiB costs, exactly. Whoever changes a number here says in the commit why it changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from powervio.bench.cost import RDMA_CALLS, Cost, PerRequest, count_costs
from powervio.bench.reads import write_numbered
from powervio.storage.image import open_image

# Alone: kick and used notification are a message and an interrupt each; the server copies in descriptors with the
# available ring and the header behind it, the data, the used element, the used index, and writes the status.
DEPTH_1 = {
    "H_COPY_RDMA": 4.0,
    "H_EOI": 2.0,
    "H_PUT_TCE": 2.0,
    "H_SEND_CRQ": 2.0,
    "H_WRITE_RDMA": 1.0,
    "H_XIRR": 2.0,
    "total": 13.0,
}
# 32 together share everything but the copies of their data: messages, interrupts, mapping and unmapping, descriptors
# with headers (1 copy), statuses (1), used elements and index (2).
DEPTH_32 = {
    "H_COPY_RDMA": 1.0938,
    "H_EOI": 0.0625,
    "H_PUT_TCE_INDIRECT": 0.0312,
    "H_SEND_CRQ": 0.0625,
    "H_STUFF_TCE": 0.0312,
    "H_WRITE_RDMA": 0.0312,
    "H_XIRR": 0.0625,
    "total": 1.375,
}
# With a physical adapter the data of all 32 are two calls.
REDIRECTED_32 = {
    **DEPTH_32,
    "H_COPY_RDMA": 0.0938,
    "H_PUT_RTCE": 0.0312,
    "H_REMOVE_RTCE": 0.0312,
    "total": 0.4375,
}
# A packed ring: the used descriptor is one aligned doubleword, which needs no index behind it.
PACKED_1 = {**DEPTH_1, "H_COPY_RDMA": 2.0, "H_WRITE_RDMA": 2.0, "total": 12.0}
# The first used descriptor of a batch goes by itself, as the index of a split ring does; here and there a run of
# descriptors goes over the end of the ring, and is two copies.
PACKED_32 = {**DEPTH_32, "H_WRITE_RDMA": 0.0625, "total": 1.4062}
PACKED_REDIRECTED_32 = {**REDIRECTED_32, "H_WRITE_RDMA": 0.0625, "total": 0.4688}
# IN_ORDER: 32 requests have one used descriptor.
IN_ORDER_REDIRECTED_32 = {**PACKED_REDIRECTED_32, "H_COPY_RDMA": 0.0469, "total": 0.4219}


def costs(folder: Path, revision: int, **options: bool) -> dict[int, Cost]:
    path = folder / "numbered.img"
    write_numbered(path, 1 << 20)
    with open_image(path, read_only=True) as image:
        return count_costs(image, revision, **options)


def cost(calls: PerRequest, copies: float) -> Cost:
    """These calls, and the remote copies among them."""
    among = {name: count for name, count in calls.items() if name in RDMA_CALLS}
    return Cost(calls, {**among, "total": copies})


def without_mapping(calls: PerRequest, total: float) -> PerRequest:
    rest = {name: count for name, count in calls.items() if not name.endswith(("_TCE", "_TCE_INDIRECT"))}
    return {**rest, "total": total}


@pytest.mark.dual
@pytest.mark.parametrize("revision", [0, 1])
def test_cost_of_a_read_at_depth_1_and_32(tmp_path: Path, revision: int) -> None:
    assert costs(tmp_path, revision) == {1: cost(DEPTH_1, 5.0), 32: cost(DEPTH_32, 1.125)}


@pytest.mark.dual
@pytest.mark.parametrize("revision", [0, 1])
def test_redirected_dma_moves_the_data_of_a_batch_by_two_calls(tmp_path: Path, revision: int) -> None:
    found = costs(tmp_path, revision, redirect=True)
    assert found == {1: cost(DEPTH_1, 5.0), 32: cost(REDIRECTED_32, 0.125)}


@pytest.mark.parametrize("revision", [0, 1])
def test_buffers_that_stay_mapped_save_the_calls_that_map_them(tmp_path: Path, revision: int) -> None:
    found = costs(tmp_path, revision, keep_mapped=True)
    assert found[1] == cost(without_mapping(DEPTH_1, 11.0), 5.0)
    assert found[32] == cost(without_mapping(DEPTH_32, 1.3125), 1.125)


@pytest.mark.dual
def test_cost_of_a_read_over_packed_rings(tmp_path: Path) -> None:
    assert costs(tmp_path, 1, packed=True) == {1: cost(PACKED_1, 4.0), 32: cost(PACKED_32, 1.1562)}


@pytest.mark.dual
def test_cost_of_a_read_with_everything_that_saves_calls(tmp_path: Path) -> None:
    """The figures that matter: at most 12 calls alone, at most 1 at depth 32, with the same settings."""
    found = costs(tmp_path, 1, packed=True, redirect=True)
    assert found == {1: cost(PACKED_1, 4.0), 32: cost(PACKED_REDIRECTED_32, 0.1562)}
    found = costs(tmp_path, 1, packed=True, in_order=True, redirect=True)
    assert found == {1: cost(PACKED_1, 4.0), 32: cost(IN_ORDER_REDIRECTED_32, 0.1094)}


def test_in_order_costs_a_split_ring_the_same(tmp_path: Path) -> None:
    assert costs(tmp_path, 1, in_order=True) == costs(tmp_path, 1)
