"""Deaths of a back end after each of its stores: see `deaths`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vhost_user.deaths import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_death_after_any_store_loses_nothing_and_touches_nothing_that_the_driver_has_back(kind: str) -> None:
    """In a program of its own, because only interpreted modules can be stopped between two stores."""
    command = [sys.executable, "-m", "tests.vhost_user.deaths", kind]
    environment = {**os.environ, "POWERVIO_INTERPRETED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    root = Path(__file__).parents[2]
    run = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["deaths"] >= 600
    assert result["repeated"] >= 100
