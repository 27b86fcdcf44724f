"""Signals at demo and bench: the temporary folder, and requests in flight."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from powervio.bench.folder import scratch_folder
from powervio.bench.reads import AwaitReader, write_numbered
from powervio.bench.rig import Rig
from powervio.drivers.block import BlockDriver
from powervio.storage.image import open_image


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


@pytest.mark.timeout(30)
@pytest.mark.parametrize("threaded", [False, True])
def test_signal_with_requests_in_flight_ends_the_rig(threaded: bool, tmp_path: Path, ended: None) -> None:
    path = tmp_path / "numbered.img"
    write_numbered(path, 1 << 20)
    with open_image(path, read_only=True) as image, Rig(threaded=threaded) as rig:
        reader = AwaitReader(rig.add_disk(image, BlockDriver()), 32)
        timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(SystemExit):
            reader.run_for(20)
        timer.join()
        assert rig.disks[0].driver.in_flight == 0
