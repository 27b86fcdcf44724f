"""The tree beside a real directory (`tree_model`), in a process that is root."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .posix_suite import ROOT

_PROGRAM = Path(__file__).with_name("tree_model.py")


@pytest.mark.dual
def test_same_results_as_a_real_directory(pytestconfig: pytest.Config) -> None:
    examples = "1000" if pytestconfig.getoption("--all") else "60"
    keep = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH", "POWERVIO_INTERPRETED") if name in os.environ]
    command = [*ROOT, "env", *keep, sys.executable, str(_PROGRAM), examples]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=110)
    assert result.returncode == 0, result.stderr
