"""What a random read of 4 KiB costs, exactly. Whoever changes a number here says in the commit why it changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from powervio.bench.cost import RDMA_CALLS, Cost, PerRequest, count_costs
from powervio.bench.reads import write_numbered
from powervio.storage.image import open_image

# Alone: kick and used notification are a message and an interrupt each; the server copies in descriptors with the
# available ring, the data, the used element, the used index, reads the header and writes the status.
DEPTH_1 = {
    "H_COPY_RDMA": 4.0,
    "H_EOI": 2.0,
    "H_PUT_TCE": 2.0,
    "H_READ_RDMA": 1.0,
    "H_SEND_CRQ": 2.0,
    "H_WRITE_RDMA": 1.0,
    "H_XIRR": 2.0,
    "total": 14.0,
}
# 32 together share the messages, the interrupts, the calls that map and unmap, and all copies of the ring (3 of them).
DEPTH_32 = {
    "H_COPY_RDMA": 1.0938,
    "H_EOI": 0.0625,
    "H_PUT_TCE_INDIRECT": 0.0312,
    "H_READ_RDMA": 1.0,
    "H_SEND_CRQ": 0.0625,
    "H_STUFF_TCE": 0.0312,
    "H_WRITE_RDMA": 1.0,
    "H_XIRR": 0.0625,
    "total": 3.3438,
}
# A packed ring: the used descriptor is one aligned doubleword, which needs no index behind it.
PACKED_1 = {**DEPTH_1, "H_COPY_RDMA": 2.0, "H_WRITE_RDMA": 2.0, "total": 13.0}
# The first used descriptor of a batch goes by itself, as the index of a split ring does; here and there a run of
# descriptors goes over the end of the ring, and is two copies.
PACKED_32 = {**DEPTH_32, "H_COPY_RDMA": 1.0938, "H_WRITE_RDMA": 1.0312, "total": 3.375}
# IN_ORDER: 32 requests have one used descriptor. A batch has one copy of descriptors (with those over the end), one of
# used.
PACKED_IN_ORDER_32 = {**DEPTH_32, "H_COPY_RDMA": 1.0469, "H_WRITE_RDMA": 1.0312, "total": 3.3281}
COPIES_1 = {"H_COPY_RDMA": 4.0, "H_READ_RDMA": 1.0, "H_WRITE_RDMA": 1.0, "total": 6.0}
COPIES_32 = {"H_COPY_RDMA": 1.0938, "H_READ_RDMA": 1.0, "H_WRITE_RDMA": 1.0, "total": 3.0938}


def costs(
    folder: Path, revision: int, *, keep_mapped: bool = False, packed: bool = False, in_order: bool = False
) -> dict[int, Cost]:
    path = folder / "numbered.img"
    write_numbered(path, 1 << 20)
    with open_image(path, read_only=True) as image:
        return count_costs(image, revision, keep_mapped=keep_mapped, packed=packed, in_order=in_order)


def copies_of(calls: PerRequest) -> PerRequest:
    """The remote copies among these calls, with their total."""
    copies = {name: count for name, count in calls.items() if name in RDMA_CALLS}
    return {**copies, "total": round(sum(copies.values()), 4)}


def without_mapping(calls: PerRequest, total: float) -> PerRequest:
    rest = {name: count for name, count in calls.items() if not name.endswith(("_TCE", "_TCE_INDIRECT"))}
    return {**rest, "total": total}


@pytest.mark.dual
@pytest.mark.parametrize("revision", [0, 1])
def test_cost_of_a_read_at_depth_1_and_32(tmp_path: Path, revision: int) -> None:
    assert costs(tmp_path, revision) == {1: Cost(DEPTH_1, COPIES_1), 32: Cost(DEPTH_32, COPIES_32)}


@pytest.mark.parametrize("revision", [0, 1])
def test_buffers_that_stay_mapped_save_the_calls_that_map_them(tmp_path: Path, revision: int) -> None:
    found = costs(tmp_path, revision, keep_mapped=True)
    assert found[1] == Cost(without_mapping(DEPTH_1, 12.0), COPIES_1)
    assert found[32] == Cost(without_mapping(DEPTH_32, 3.2812), COPIES_32)


@pytest.mark.dual
@pytest.mark.parametrize(("in_order", "depth_32"), [(False, PACKED_32), (True, PACKED_IN_ORDER_32)])
def test_cost_of_a_read_over_packed_rings(tmp_path: Path, in_order: bool, depth_32: PerRequest) -> None:
    found = costs(tmp_path, 1, packed=True, in_order=in_order)
    assert found == {1: Cost(PACKED_1, copies_of(PACKED_1)), 32: Cost(depth_32, copies_of(depth_32))}


def test_in_order_costs_a_split_ring_the_same(tmp_path: Path) -> None:
    assert costs(tmp_path, 1, in_order=True) == costs(tmp_path, 1)
