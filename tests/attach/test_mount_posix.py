"""The POSIX table on a mount of a share: as on the file system below, but for what 9P cannot say. Needs root."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attach.p9_mounts import Mounted
from tests.attach.p9_servers import Ours
from tests.files.posix_suite import CASES, Actors, Case

DIFFERENT = {
    "a hole reads as zeroes": "9P2000.L has no message for SEEK_DATA and SEEK_HOLE",
    "fallocate": "nor for fallocate",
    "renameat2 with NOREPLACE": "nor has Trenameat flags",
    "renameat2 with EXCHANGE": "nor has Trenameat flags",
}
"""docs/mount-9p.md says the same."""


@pytest.fixture(scope="module", params=["0", "1"], ids=["uncached", "cached"])
def actors(request: pytest.FixtureRequest) -> Iterator[Actors]:
    with tempfile.TemporaryDirectory(prefix="powervio-posix-") as place:
        os.chmod(place, 0o755)
        server = Ours(Path(place))
        try:
            mounted = Mounted(server.address, Path(place, "mnt"), "--cache", request.param)
            try:
                folder = mounted.path / "files"
                folder.mkdir(mode=0o755)
                os.chmod(folder, 0o755)
                with Actors(folder) as started:
                    yield started
            finally:
                mounted.close()
        finally:
            server.kill()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_mount(actors: Actors, case: Case) -> None:
    problems = actors.run(case)
    assert bool(problems) is (case.title in DIFFERENT), problems


def test_differences_are_of_the_table() -> None:
    assert set(DIFFERENT) <= {case.title for case in CASES}
