"""The guest's part of `powervio bench files`: its folders, its figures, and a real run that says nothing of speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powervio.bench import machine
from powervio.bench.files import KINDS
from powervio.bench.files_guest import WORKS, Result, Row, Work, compare, fill
from powervio.cli.files import files as command
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
    facts = machine.conditions() | {"load_average_after": 0.25, "rounds": 3}
    show(Result({**dict.fromkeys(("arch", "guest_kernel", "mount", "filesystem"), "x"), **facts}, 0.5, [row]))
    said = " ".join(capsys.readouterr().out.split())
    assert "1.00 (0.50-2.00)" in said
    assert "Others used 0.50 of the" in said


def test_every_work_can_be_done_alone_and_again(tmp_path: Path) -> None:
    fill(tmp_path / "folder")
    for work in WORKS:
        for _ in range(2):
            for words in (work.before, work.command):
                command = ["sh", "-ec", words.replace("@", str(tmp_path / "folder"))]
                done = subprocess.run(command, capture_output=True, timeout=60, check=False)
                assert done.returncode == 0, (work.name, done.stderr)


def test_kinds_of_both_parts_are_chosen_by_name() -> None:
    words = ["--kinds", "guest-copy, read,guest-small-reads"]
    chosen = command.make_context("files", words).params["kinds"]
    assert [kind.name for kind in chosen] == ["read", "small-reads", "copy"]
    assert [isinstance(kind, Work) for kind in chosen] == [False, True, True]
    assert command.make_context("files", ["--guest"]).params["kinds"] == list(KINDS)


@pytest.mark.slow
@pytest.mark.timeout(400)  # the first one fills the cache
def test_real_run(boot_cache: Path) -> None:
    options = "--guest --json --kinds getattr --seconds 0.1 --rounds 1 --arch x86_64 --cache"
    done = subprocess.run(
        [sys.executable, "-m", "powervio", "bench", "files", *options.split(), str(boot_cache)],
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
