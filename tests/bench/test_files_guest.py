"""The guest's part of `powervio bench files`: its folders, its figures, and a real run that says nothing of speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powervio.bench.files_guest import WORKS, Result, Row, compare, fill
from powervio.cli.files_guest import show
from powervio.errors import LocalError


def test_folders_are_the_same_every_time_and_a_difference_is_found(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    fill(ours)
    fill(theirs)
    compare(ours, theirs)
    (theirs / "tree" / "folder3" / "file4").write_bytes(b"other")
    with pytest.raises(LocalError, match="folder3/file4"):
        compare(ours, theirs)
    (theirs / "more").touch()
    with pytest.raises(LocalError, match="more"):
        compare(ours, theirs)


def test_table_has_medians_and_ratios_of_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    row = Row(WORKS[0], [(1.0, 0.5), (1.0, 1.0), (0.5, 1.0)])
    assert (row.ratio, row.ratios) == (1.0, [0.5, 1.0, 2.0])
    names = ("arch", "guest_kernel", "mount", "filesystem", "processors", "load_average_before", "load_average_after")
    show(Result({**dict.fromkeys(names, "x"), "rounds": 3}, [row]))
    assert "1.00 (0.50-2.00)" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(400)  # the first one fills the cache
def test_real_run(boot_cache: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "powervio",
        "bench",
        "files",
        "--guest",
        "--json",
        "--rounds",
        "1",
        "--kinds",
        "getattr",
    ]
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--arch", "x86_64", "--cache", str(boot_cache)],
        capture_output=True,
        timeout=350,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr.decode()
    rows = json.loads(done.stdout)["guest"]["rows"]
    assert [row["work"] for row in rows] == [work.name for work in WORKS]
    assert all(row["messages"] > 90 and row["ratio"] > 0 for row in rows)
    assert all(7 < row["each"]["total"] < 16 for row in rows)
