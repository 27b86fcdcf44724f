"""`powervio bench scale`, and what many clients on one VIO server cost: counts, never times."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from powervio.bench.cost import cost_of
from powervio.bench.crowd import IMAGE_BLOCKS, system_file
from powervio.bench.folder import scratch_folder
from powervio.bench.memory import ProcessMemory
from powervio.bench.reads import BLOCK, LoopReader, write_numbered
from powervio.bench.rig import Disk, Rig, costs_of
from powervio.drivers.block import BlockDriver, BlockRequest
from powervio.errors import LocalError
from powervio.memory.hw import is_in_memory
from powervio.storage.image import open_image
from powervio.system import descriptors
from powervio.system.config import Config
from powervio.system.load import parse
from powervio.system.sizing import server_need
from powervio.system.system import System
from powervio.virtio import block as blk

SIZE = IMAGE_BLOCKS * BLOCK


def scale(*words: str, limit: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command, under a `ulimit`."""
    command = ["sh", "-c", f'{limit or ":"}; exec "$@"', "sh", sys.executable, "-m", "powervio", "bench", "scale"]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, errors="replace", timeout=110, check=False
    )


def crowds(*words: str) -> list[dict[str, Any]]:
    result = scale("--json", *words)
    assert result.returncode == 0, result.stderr
    found: list[dict[str, Any]] = json.loads(result.stdout)["crowds"]
    return found


def config_of(clients: int, folder: Path) -> Config:
    for number in range(clients):
        write_numbered(folder / f"{number}.img", SIZE, number * IMAGE_BLOCKS)
    return parse(system_file(clients, folder, folder), "crowd.toml", folder)


def count_calls(work: Callable[[], object]) -> int:
    """How many functions Python calls meanwhile."""
    calls = 0

    def called(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def read_by_all(rig: Rig, buffers: list[tuple[Disk, Any]]) -> None:
    """One read of 4 KiB by each client, all in flight at once."""
    requests = []
    for disk, buffer in buffers:
        request = BlockRequest(blk.T_IN, BLOCK, BLOCK, ((buffer, 0, BLOCK),))
        requests.append(request)
        disk.driver.submit(request)
        disk.driver.kick()
    rig.wait_until(lambda: requests[-1].done and all(request.done for request in requests), "the reads")
    while rig.turn():
        pass
    assert not any(request.error for request in requests)


# -- what a request costs


@pytest.mark.dual
def test_cost_of_a_read_is_the_same_with_1_8_and_64_clients(tmp_path: Path) -> None:
    rounds = 4
    calls_of_python: dict[int, float] = {}
    for clients in (1, 8, 64):
        with ExitStack() as stack:
            rig = stack.enter_context(Rig(threaded=False, clients=clients, memory=8 << 20))
            buffers = []
            for number in range(clients):
                image = stack.enter_context(open_image(tmp_path / f"{clients}.{number}.img", create_size=SIZE))
                disk = rig.add_disk(image, BlockDriver(), client=number)
                buffers.append((disk, disk.client.allocate(BLOCK, mapped=False)))
            ledgers = [end.ledger for disk in rig.disks for end in (disk.client_adapter, disk.server_adapter)]
            ledgers += [partition.ledger for partition in rig.hypervisor.partitions.values()]
            read_by_all(rig, buffers)  # what is made at the first request is no cost of a request
            before = costs_of(ledgers)
            for _ in range(rounds):
                read_by_all(rig, buffers)
            spent = cost_of(costs_of(ledgers) - before, rounds * clients)
            assert spent.hcalls["total"] == 13.0
            assert spent.remote_copies["total"] == 5.0
            calls_of_python[clients] = count_calls(lambda: read_by_all(rig, buffers)) / clients  # noqa: B023
    # nothing looks at every adapter for each request: there are fewer calls, for the server's turns are shared
    assert calls_of_python[64] <= calls_of_python[8] <= calls_of_python[1]


# -- a system of many


def run_system(config: Config, scenario: Callable[[System], Any]) -> None:
    async def main() -> None:
        system = System(config)
        await system.start()
        try:
            await scenario(system)
        finally:
            await system.stop()

    asyncio.run(main())


def test_64_clients_start_and_each_reads_its_own_disk_through(tmp_path: Path) -> None:
    async def read_all(system: System) -> None:
        found = await asyncio.gather(*(disk.driver.read(0, SIZE) for disk in system.disks))
        for number, data in enumerate(found):
            assert data == (tmp_path / f"{number}.img").read_bytes()

    run_system(config_of(64, tmp_path), read_all)


def test_reader_notices_another_clients_block(tmp_path: Path) -> None:
    async def scenario(system: System) -> None:
        assert await LoopReader(system.disks[1], 2, numbered=True, first=IMAGE_BLOCKS).read_until(0.0) == 2
        with pytest.raises(LocalError, match="was read as"):
            await LoopReader(system.disks[1], 1, numbered=True).read_until(0.0)

    run_system(config_of(2, tmp_path), scenario)


@pytest.mark.parametrize("place", [None, Path("/dev/shm")], ids=["usual", "in-memory"])
def test_descriptors_of_partitions_and_disks_are_no_more_than_are_counted_before(place: Path | None) -> None:
    with scratch_folder("powervio-test-", place) as folder:
        config = config_of(8, folder)
        with open(folder / "0.img", "rb") as image:
            unmapped = 0 if is_in_memory(image.fileno()) else 8
        gc.collect()  # what earlier tests have left
        held = ProcessMemory.now().descriptors

        async def scenario(system: System) -> None:
            loop = 3  # its epoll, and both ends of what wakes it
            taken = ProcessMemory.now().descriptors - held - loop
            assert taken + unmapped == descriptors.needed(config) - descriptors.SPARE

        run_system(config, scenario)
        gc.collect()  # a mapping goes with the last view of it
        assert ProcessMemory.now().descriptors == held


def test_server_with_no_more_memory_than_is_asked_for_serves_all_its_disks(tmp_path: Path) -> None:
    disks = []
    for number in range(24):
        write_numbered(tmp_path / f"{number}.img", SIZE, number)
        disks.append(f'[[lpar.disk]]\nvios = "vios1"\nimage = "{number}.img"\nqueues = 16\n')

    def declared(memory: int) -> Config:
        text = f'[[vios]]\nname = "vios1"\nmemory = {memory}\n[[lpar]]\nname = "client1"\n{"".join(disks)}'
        return parse(text, "many.toml", tmp_path)

    least = server_need(declared(64 << 20).lpar[0].disk)
    with pytest.raises(LocalError, match=f"memory: {(least - 4096) >> 10}K; its devices need at least 5M"):
        declared(least - 4096)

    async def read_all(system: System) -> None:
        assert all(disk.server.channels == 16 for disk in system.disks)
        for number, disk in enumerate(system.disks):
            assert await disk.driver.read(0, SIZE) == (tmp_path / f"{number}.img").read_bytes()

    run_system(declared(least), read_all)


# -- the command


def test_json_has_an_entry_for_each_number_of_partitions(tmp_path: Path) -> None:
    found = crowds("--partitions", "2,4", "--seconds", "0.1", "--folder", str(tmp_path))
    assert [crowd["partitions"] for crowd in found] == [2, 4]
    for crowd in found:
        assert crowd["reads"] >= crowd["partitions"]
        assert crowd["remote_copies"]["total"] == 5.0
        assert crowd["hcalls"]["H_PUT_TCE"] == 2.0
        assert crowd["descriptors"] - 5 / crowd["partitions"] in (7, 8)  # 8 where the image is in memory, and mapped
        for seconds in ("check_seconds", "start_seconds", "stop_seconds", "report_seconds"):
            assert crowd[seconds] > 0
        assert crowd["reads_per_second"] > 0
        assert crowd["page_table_bytes"] > 0
        assert crowd["partition_bytes"] > 0
    assert not list(tmp_path.iterdir())


def test_idle_adapter_of_64_takes_less_than_a_quarter_of_a_mebibyte() -> None:
    (crowd,) = crowds("--partitions", "64", "--seconds", "0.1")
    assert 0 < crowd["resident_bytes"] < 256 << 10
    assert 0 < crowd["partition_bytes"] < 128 << 10


def test_screen_has_a_line_for_each_number_and_fits_80_columns() -> None:
    result = scale("--partitions", "1,3", "--seconds", "0.05")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    rows = [line.split() for line in lines if re.fullmatch(r"[\d., ]+", line)]
    assert [(row[0], len(row)) for row in rows if row] == [("1", 9), ("3", 9)]
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("wrong", ["0", "2,x", "", "4097", "-1"])
def test_number_of_partitions_that_is_none_is_wrong_usage(wrong: str) -> None:
    result = scale("--partitions", wrong)
    assert result.returncode == 2
    assert "expected numbers from 1 to 4096" in result.stderr.replace("\n", " ")


def test_soft_limit_of_descriptors_is_raised_and_hard_one_is_told(tmp_path: Path) -> None:
    words = ("--partitions", "20", "--seconds", "0.05", "--folder", str(tmp_path))
    raised = scale(*words, limit="ulimit -Sn 64")
    assert raised.returncode == 0, raised.stderr
    refused = scale(*words, limit="ulimit -n 64")
    assert refused.returncode == 1
    (line,) = refused.stderr.splitlines()
    assert re.search(r"21 partitions and their disks need about [23]\d\d file descriptors", line)
    assert "this process may have 64" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_1000_clients_cost_what_one_costs() -> None:
    (crowd,) = crowds("--partitions", "1000", "--seconds", "2")
    assert crowd["remote_copies"]["total"] == 5.0
    assert 12 < crowd["hcalls"]["total"] < 13.5
    assert crowd["descriptors"] == 8.01
    assert crowd["resident_bytes"] < 256 << 10
