"""A house of its own for each test of a running system."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import House


@pytest.fixture
def house() -> Iterator[House]:
    # Not tmp_path: the path of a Unix socket has at most 107 bytes.
    folder = Path(tempfile.mkdtemp(prefix="pvio-", dir="/tmp"))
    made = House(folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder)
