"""What a large read or write costs by copying and by redirected DMA, exactly: the server's calls that move its data.

Beside them every request costs the same either way: header, status, ring, kick, used notification, interrupts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.phyp.ledger import Costs
from powervio.storage.image import open_image
from powervio.transport.crq.redirect import REDIRECT_MIN
from powervio.virtio import block as blk

KIB = 1024
# bytes: (calls in all, copies of data, bytes by RDMA beside the ring, pages redirected) copied, then redirected
TABLE = {
    4 * KIB: ((13, 1, 4096, 0), (14, 0, 0, 1)),
    64 * KIB: ((13, 1, 65536, 0), (14, 0, 0, 16)),
    256 * KIB: ((13, 1, 262144, 0), (14, 0, 0, 64)),
    512 * KIB: ((14, 2, 524288, 0), (14, 0, 0, 128)),
}
RINGS = 3
"""Copies of a request that are not data."""
RING_BYTES = 8192
"""What these move fits twice: descriptors, available ring, and what is behind them up to the header."""


def one_request(folder: Path, kind: int, size: int, redirect_min: int | None) -> Costs:
    """What one request costs both ends."""
    with (
        open_image(folder / f"{kind}.{size}.{redirect_min}.img", create_size=4 << 20) as image,
        Rig(threaded=False, redirect_min=redirect_min) as rig,
    ):
        disk = rig.add_disk(image, BlockDriver(buffers=4, buffer_size=4096))
        buffer = disk.client.allocate(size, mapped=False)
        spent: list[Costs] = []
        for _ in range(2):  # what is made at the first request is no cost of a request
            done: list[BlockRequest] = []
            before = disk.costs()
            disk.driver.submit(BlockRequest(kind, 0, size, ((buffer, 0, size),), done.append))
            disk.driver.kick()
            rig.wait_until(lambda done=done: bool(done), "the request")  # type: ignore[misc]
            assert done[0].error is None
            rig.turn()
            spent.append(disk.costs() - before)
        return spent[-1]


@pytest.mark.dual
@pytest.mark.parametrize("kind", [blk.T_IN, blk.T_OUT], ids=["read", "write"])
@pytest.mark.parametrize("size", TABLE)
def test_cost_of_a_large_request_copied_and_redirected(tmp_path: Path, kind: int, size: int) -> None:
    found = []
    for redirect_min in (None, 4 * KIB):
        spent = one_request(tmp_path, kind, size, redirect_min)
        copies = spent["hcalls"]["H_COPY_RDMA"] - RINGS
        # both ends count bytes and pages
        data = spent["rdma_bytes"] // 2 // 4096 * 4096 - RING_BYTES
        found.append((sum(spent["hcalls"].values()), copies, data, spent["redirected_pages"] // 2))
        assert spent["redirected_bytes"] // 2 == (0 if redirect_min is None else size)
        assert spent["rdma_bytes"] // 2 - data < 4096 + RING_BYTES
    assert tuple(found) == TABLE[size]


@pytest.mark.dual
def test_redirection_by_default_begins_at_256_kib(tmp_path: Path) -> None:
    assert REDIRECT_MIN == 256 * KIB
    for size, redirected in ((252 * KIB, False), (256 * KIB, True)):
        spent = one_request(tmp_path, blk.T_IN, size, REDIRECT_MIN)
        assert ("H_PUT_RTCE" in spent["hcalls"]) == redirected
