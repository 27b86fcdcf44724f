"""The POSIX table on the host's own file system: what shares are compared with has to be as the table says."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .posix_suite import CASES, ROOT, Actors, Case


@pytest.fixture(scope="module")
def actors() -> Iterator[Actors]:
    with tempfile.TemporaryDirectory(prefix="powervio-posix-") as place:
        os.chmod(place, 0o755)
        folder = Path(place, "files")
        subprocess.run([*ROOT, "mkdir", "-m", "755", str(folder)], check=True)
        with Actors(folder) as started:
            yield started
        subprocess.run([*ROOT, "rm", "-r", str(folder)], check=True)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_host(actors: Actors, case: Case) -> None:
    assert actors.run(case) == []
