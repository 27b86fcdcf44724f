"""Coverage-guided search for inputs that a test's `play` does not survive (atheris, libFuzzer)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def explore(folder: Path, module: str, play: Callable[[bytes], object], runs: int, seconds: int) -> None:
    """Let libFuzzer look for more inputs than are in a folder, for so many runs and seconds at most, by a module that
    plays them interpreted; then play all of it to the compiled modules.

    Without atheris, which is not there for every machine, the inputs to begin with are all.
    """
    if importlib.util.find_spec("atheris") is not None:
        ended = subprocess.run(
            [
                sys.executable, "-m", module, str(folder), "-seed=1", "-len_control=0",
                f"-runs={runs}", f"-max_total_time={seconds}",
            ],
            capture_output=True,
            text=True,
            timeout=seconds + 120,
            check=False,
            cwd=_ROOT,
            env={
                **os.environ,
                "POWERVIO_INTERPRETED": "1",
                "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path]),
            },
        )  # fmt: skip
        found = [path.read_bytes().hex() for path in folder.glob("crash-*")]
        assert (ended.returncode, found) == (0, []), ended.stderr[-8000:]
    for path in sorted(folder.iterdir()):
        try:
            play(path.read_bytes())
        except Exception as error:
            raise AssertionError(f"compiled: {path.read_bytes().hex()}") from error
