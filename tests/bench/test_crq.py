"""`powervio bench crq`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from powervio.bench.reads import AwaitReader, BatchReader, write_numbered
from powervio.bench.rig import Disk, Rig
from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError
from powervio.storage.image import open_image


def powervio(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "powervio", *words]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=100, check=False)


def read(path: Path, act: Callable[[Disk], object], *, threaded: bool = False) -> None:
    with open_image(path, read_only=True) as image, Rig(threaded=threaded) as rig:
        act(rig.add_disk(image, BlockDriver()))


def test_json_has_rates_and_costs_of_both_depths(tmp_path: Path) -> None:
    result = powervio("bench", "crq", "--json", "--seconds", "0.1", "--size", "1M", "--folder", str(tmp_path))
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    for depth in (1, 32):
        for place in (values, values["one_thread"], values["two_threads"]):
            assert place[f"iops_qd{depth}"] > 0
            assert place[f"await_iops_qd{depth}"] > 0
            assert place[f"remote_copies_per_request_qd{depth}"]["total"] > 0
    assert values["hcalls_per_request_qd1"]["total"] == 12.0
    assert values["hcalls_per_request_qd1_kept_mapped"]["total"] == 10.0
    assert values["hcalls_per_request_qd32"]["total"] < 1.0
    assert values["ring"] == "packed"
    assert values["hcalls_per_request_qd32"]["H_SEND_CRQ"] == 0.0625
    assert values["verified_reads"] > 0
    for arrangement in ("one_processor", "two_processors"):
        for depth in (1, 32):
            assert values["generator"][arrangement][f"crq_iops_qd{depth}"] > 0
            assert values["generator"][arrangement][f"vhost_user_iops_qd{depth}"] > 0
    assert values["crq_over_vhost_user"] == values["generator"]["one_processor"]["crq_over_vhost_user_qd32"] > 0
    assert values["image_folder"] == str(tmp_path)
    assert not list(tmp_path.iterdir())


def test_screen_shows_every_call_and_fits_80_columns() -> None:
    result = powervio("bench", "crq", "--seconds", "0.05", "--size", "1M", "--revision", "0")
    assert result.returncode == 0, result.stderr
    for word in ("H_SEND_CRQ", "H_COPY_RDMA", "depth 32", "await", "two threads", "remote copies", "vhost-user"):
        assert word in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize("size", ["3x", "4096", "1048577", ""])
def test_size_that_is_none_is_wrong_usage(size: str) -> None:
    result = powervio("bench", "crq", "--size", size)
    assert result.returncode == 2
    assert "--size" in result.stderr


@pytest.mark.parametrize("threaded", [False, True])
@pytest.mark.parametrize("kind", [BatchReader, AwaitReader])
def test_reader_notices_a_block_with_another_number(
    tmp_path: Path, kind: type[BatchReader] | type[AwaitReader], threaded: bool
) -> None:
    path = tmp_path / "numbered.img"
    write_numbered(path, 1 << 20)
    read(path, lambda disk: kind(disk, 4, numbered=True).run_for(0.02), threaded=threaded)
    with open(path, "r+b") as file:
        for block in range(256):
            file.seek(block * 4096 + 4088)
            file.write(b"\xff")
    with pytest.raises(LocalError, match=r"block \d+ was read as"):
        read(path, lambda disk: kind(disk, 4, numbered=True).run_for(5.0), threaded=threaded)


def test_batch_reader_reads_as_often_as_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "numbered.img"
    write_numbered(path, 1 << 20)

    def act(disk: Disk) -> None:
        assert BatchReader(disk, 32, numbered=True).run(100) == 100
        assert disk.device.requests == disk.driver.requests == 100
        assert BatchReader(disk, 32).run(3) == 3

    read(path, act)
