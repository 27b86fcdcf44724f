"""The driver's parts are compiled once for all tests."""

from __future__ import annotations

import ctypes

import pytest

from .rig import build


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return build(tmp_path_factory.mktemp("rig"))
