"""`./run` where it cannot do what it has to."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_unbuilt_checkout_that_cannot_be_written_is_told_with_the_way_out(tmp_path: Path) -> None:
    for name in ("run", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    namespace = ["unshare", "--map-root-user", "--mount"]
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.fail("this test needs an unprivileged user namespace", pytrace=False)
    script = 'mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"; exec "$0/run" doctor'
    result = subprocess.run(
        [*namespace, "sh", "-ec", script, str(tmp_path)], check=False, capture_output=True, text=True
    )
    assert result.returncode == 1, result
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"run: {tmp_path} cannot be written to")
    assert "pip install" in line
