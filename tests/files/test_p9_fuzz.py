"""Whatever a client sends, the session answers by the protocol, and nothing outside of the share is touched."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.exploring import explore
from tests.files.p9_hostile import play


@pytest.mark.dual
@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=400))
def test_any_client(data: bytes) -> None:
    play(data)


def seeds(folder: Path) -> None:
    for number in range(40):
        (folder / f"seed-{number}").write_bytes(random.Random(number).randbytes(200))


def test_exploring(tmp_path: Path) -> None:
    seeds(tmp_path)
    explore(tmp_path, "tests.files.fuzz_p9", play, 1_000, 6)


@pytest.mark.slow
def test_exploring_for_long(tmp_path: Path) -> None:
    seeds(tmp_path)
    explore(tmp_path, "tests.files.fuzz_p9", play, 1_000_000, 300)
