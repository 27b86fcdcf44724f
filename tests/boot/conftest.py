"""One cache of kernels for all tests of a run, kept between runs; with its limits a boot cannot hold up a run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def boot_cache(pytestconfig: pytest.Config) -> Path:
    assert pytestconfig.cache is not None
    return Path(pytestconfig.cache.mkdir("linux"))
