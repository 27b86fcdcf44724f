"""The load generator over CRQ: what a request costs, and what becomes of it when something is not well."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from powervio.bench.cost import cost_of
from powervio.bench.generator import measure_generated
from powervio.bench.load_crq import CrqDisk
from powervio.bench.reads import BLOCK, write_numbered
from powervio.bench.rig import Rig
from powervio.errors import LocalError, RemoteError
from powervio.storage.image import open_image
from powervio.transport.crq.redirect import REDIRECT_MIN

BLOCKS = 64


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    write_numbered(path, BLOCKS * BLOCK)
    return path


@contextmanager
def served(
    path: Path, *, threaded: bool = False, revision: int = 1, packed: bool = True, writable: bool = False
) -> Iterator[CrqDisk]:
    with (
        open_image(path, read_only=not writable) as backing,
        Rig(threaded=threaded, redirect_min=REDIRECT_MIN) as rig,
        CrqDisk(rig, backing, revision=revision, packed=packed) as disk,
    ):
        yield disk


@pytest.mark.dual
@pytest.mark.parametrize(("depth", "calls"), [(1, 12.0), (32, 0.4688)])
def test_request_costs_what_one_of_the_block_driver_costs(image: Path, depth: int, calls: float) -> None:
    """`test_cost` has the same numbers: nothing is saved by a request that stays mapped or is held back."""
    with served(image) as disk:
        load = disk.load(depth)
        for _ in range(2):
            load.run(0.0)
        before = disk.disk.costs()
        assert sum(load.run(0.0) for _ in range(8)) == 8 * depth
        cost = cost_of(disk.disk.costs() - before, 8 * depth).hcalls
        assert cost["total"] == calls
        mapping = {name: count for name, count in cost.items() if "_TCE" in name}
        assert mapping == ({"H_PUT_TCE": 2.0} if depth == 1 else {"H_PUT_TCE_INDIRECT": 0.0312, "H_STUFF_TCE": 0.0312})


@pytest.mark.dual
@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize(("revision", "packed"), [(0, False), (1, False), (1, True)])
def test_loads_of_one_disk_take_turns_and_leave_nothing_mapped(
    image: Path, revision: int, packed: bool, threaded: bool
) -> None:
    with served(image, threaded=threaded, revision=revision, packed=packed) as disk:
        assert disk.blocks == BLOCKS
        space = disk.disk.client._dma
        deep, single = disk.load(32), disk.load(1)
        deep.run(0.0)
        free = space.free_pages
        counts = [load.run(0.02) for load in (deep, single, deep)]
        assert min(counts) > 0
        assert deep.requests == 32 + counts[0] + counts[2]
        assert disk.disk.device.requests == deep.requests + single.requests
        assert space.free_pages == free


@pytest.mark.dual
def test_writes_put_the_numbers_where_the_device_said_so(image: Path) -> None:
    with served(image, writable=True) as disk:
        load = disk.load(16, writes=True, first=5000)
        assert load.run(0.02) > 0
    content = image.read_bytes()
    for block in range(BLOCKS):
        number = (5000 if load.touched[block] else 0) + block
        assert (
            content[block * BLOCK :][:8] == content[block * BLOCK :][BLOCK - 8 : BLOCK] == number.to_bytes(8, "little")
        )


@pytest.mark.dual
def test_wrong_data_is_told(image: Path) -> None:
    image.write_bytes(bytes(BLOCKS * BLOCK))
    with served(image) as disk, pytest.raises(LocalError, match="was read as 0x0 at its start"):
        disk.load(4).run(1.0)


@pytest.mark.dual
def test_load_ends_with_its_session(image: Path) -> None:
    with served(image) as disk:
        load = disk.load(4)
        load.run(0.0)
        disk.disk.client.stop()
        with pytest.raises(RemoteError, match="session is over"):
            load.run(1.0)


def test_generator_runs_over_both_transports_in_both_arrangements(image: Path) -> None:
    with open_image(image, read_only=True) as backing:
        rows = measure_generated(backing, image, 0.1, 2, 1, packed=True)
    assert [(row.arrangement, row.depth) for row in rows] == [
        ("one_processor", 1),
        ("one_processor", 32),
        ("two_processors", 1),
        ("two_processors", 32),
    ]
    for row in rows:
        assert min(row.crq_requests, row.vhost_user_requests) > 0
        assert len(row.crq) == len(row.vhost_user) == 2
        if row.arrangement == "one_processor":
            assert row.cost.hcalls["total"] < (13 if row.depth == 1 else 1)
