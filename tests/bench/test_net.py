"""`powervio bench net`: it runs, and what it counts; never how fast it is."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.system.harness import SOURCES

from powervio.bench.net import Result, Round


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "powervio", "bench", "net", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=110, check=False, env={"PYTHONPATH": SOURCES, "PATH": PATH}
    )


PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


@pytest.mark.parametrize("revision", [0, 1])
def test_both_ways_are_measured_and_copies_of_a_frame_are_few(revision: int) -> None:
    done = run("--json", "--seconds", "1", "--rounds", "1", "--revision", str(revision))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    (one,) = found["rounds"]
    assert min(one["ours"], one["loop"]) > 0
    assert found["ratio"] == one["ours"] / one["loop"]
    assert found["copies"] <= 3, found
    assert "pvbench" not in subprocess.check_output(["ip", "netns"], text=True)


def test_ratio_is_that_of_medians() -> None:
    result = Result(True, "one", 1, 1500, True, 1.0, [Round(1.0, 10.0), Round(2.0, 4.0), Round(8.0, 5.0)])
    assert (result.ours, result.loop, result.ratio) == (2.0, 5.0, 0.4)
