"""The temporary folder of demo and bench."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from powervio.bench.folder import scratch_folder


@pytest.fixture
def ended() -> Iterator[None]:
    """SIGTERM raises, as it does in the command."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(number)

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("moment", ["mkdtemp", "rmtree"])
def test_signal_while_the_folder_is_made_or_removed_leaves_nothing(
    moment: str, tmp_path: Path, ended: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = {"mkdtemp": tempfile, "rmtree": shutil}[moment]
    act = getattr(module, moment)

    def signalled(*arguments: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        result = act(*arguments, **options)
        os.kill(os.getpid(), signal.SIGTERM)
        return result

    entered = []
    with monkeypatch.context() as patch:
        patch.setattr(module, moment, signalled)
        with pytest.raises(SystemExit), scratch_folder("x-", tmp_path) as folder:
            entered.append(folder)
    assert list(tmp_path.iterdir()) == []
    assert bool(entered) is (moment == "rmtree")
