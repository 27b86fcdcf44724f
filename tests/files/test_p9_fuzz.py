"""Whatever a client sends, the session answers by the protocol, and nothing outside of the share is touched."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.files.p9_hostile import play


@pytest.mark.dual
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_client(data: bytes) -> None:
    play(data)


def explore(folder: Path, runs: int, seconds: int) -> None:
    """Let libFuzzer look for more, for so many runs and seconds at most; then play all of it to the compiled modules.

    Without atheris, which is not there for every machine, the inputs to begin with are all.
    """
    for number in range(40):
        (folder / f"seed-{number}").write_bytes(random.Random(number).randbytes(200))
    if importlib.util.find_spec("atheris") is not None:
        ended = subprocess.run(
            [
                sys.executable, "-m", "tests.files.fuzz_p9", str(folder), "-seed=1", "-len_control=0",
                f"-runs={runs}", f"-max_total_time={seconds}",
            ],
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "POWERVIO_INTERPRETED": "1",
                "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
            },
        )  # fmt: skip
        found = [path.read_bytes().hex() for path in folder.glob("crash-*")]
        assert (ended.returncode, found) == (0, []), ended.stderr[-8000:]
    for path in sorted(folder.iterdir()):
        try:
            play(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"compiled: {path.read_bytes().hex()}") from error


def test_exploring(tmp_path: Path) -> None:
    explore(tmp_path, 1_000, 6)


@pytest.mark.slow
def test_exploring_for_long(tmp_path: Path) -> None:
    explore(tmp_path, 1_000_000, 300)
