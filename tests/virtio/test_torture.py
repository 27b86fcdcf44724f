"""Driver and device of a ring on two processors: no lost wake-up, every buffer exactly once, in one piece.

All runs together take 10 s, with --all 60 s more. Interpreted, the rings are not made for two processes
(`memory/hw.py`: no fence between them), so what is dual here has both sides in one.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.virtio.torture import Options

from powervio.errors import LocalError
from powervio.memory.area import MappedArea
from powervio.testing.torture import AREA, MOST, TortureRing
from powervio.virtio.split_driver import SplitDriverRing

ROOT = Path(__file__).parents[2]
SIZES = (1, 2, 8, 64, 256)
COMBINATIONS = 16
SECONDS = 10.0 / COMBINATIONS / len(SIZES)
SECONDS_OF_ALL = 60.0 / COMBINATIONS / len(SIZES)
LIMIT = 30.0


class DeviceProcess:
    """The area, its eventfds, and the process that is the device in one run after the other."""

    def __init__(self) -> None:
        self.area = MappedArea.create("torture", AREA)
        self.kick, self.call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
        fds = (self.area.fd, self.kick, self.call)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.virtio.torture", *map(str, fds)],
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self, options: Options) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{options.json()}\n")
        self.process.stdin.flush()

    def result(self) -> tuple[str, dict[str, int]]:
        """Its failure, if any, and what it counted."""
        assert self.process.stdout is not None
        poller = select.poll()
        poller.register(self.process.stdout, select.POLLIN)
        assert poller.poll(LIMIT * 1000), "the device does not come to an end"
        values = json.loads(self.process.stdout.readline())
        return values.pop("failure"), values

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()
        for fd in (self.kick, self.call):
            os.close(fd)
        self.area.close()


@pytest.fixture(scope="module")
def device() -> Iterator[DeviceProcess]:
    made = DeviceProcess()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def processor() -> Iterator[None]:
    """The driver has one to itself; the device takes the last one."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:1])
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize(
    "seconds", [SECONDS, pytest.param(SECONDS_OF_ALL, marks=pytest.mark.slow)], ids=["short", "long"]
)
@pytest.mark.parametrize("in_order", [False, True], ids=["any-order", "in-order"])
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event-idx"])
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_two_processes_lose_and_double_nothing(
    device: DeviceProcess, packed: bool, indirect: bool, event_idx: bool, in_order: bool, seconds: float
) -> None:
    sleeps = notifications = 0
    for size in SIZES:
        size = size + 1 if packed and size > 2 else size  # no power of two
        options = Options(packed, size, event_idx, indirect, in_order, seed=size)
        driver = options.driver(device.area.view, device.kick, device.call)
        device.begin(options)
        failure = ""
        try:
            driver.run(seconds)
        except LocalError as error:
            failure = str(error)
        failure_there, served = device.result()
        assert (failure, failure_there) == ("", ""), options
        assert driver.lent == driver.taken == served["served"] == served["given"] > 0
        sleeps += min(driver.sleeps, served["sleeps"])
        notifications += min(driver.notifications, served["notifications"])
    assert sleeps > 0, "a side was never woken"
    assert notifications > 0


@pytest.mark.dual
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_two_threads_lose_and_double_nothing(packed: bool) -> None:
    area = MappedArea.create("torture", AREA)
    kick, call = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
    options = Options(packed, 8, event_idx=True, indirect=True, in_order=False, seed=1)
    driver = options.driver(area.view, kick, call)
    device = options.device(area.view, kick, call)
    thread = threading.Thread(target=device.run)
    thread.start()
    try:
        assert driver.run(0.1) > 0
    finally:
        thread.join(LIMIT)
        for fd in (kick, call):
            os.close(fd)
    assert not thread.is_alive()
    assert driver.lent == driver.taken == device.served == device.given


@pytest.mark.dual
def test_area_that_is_too_small_is_refused() -> None:
    view = memoryview(bytearray(AREA))
    ring = SplitDriverRing(2 * MOST, TortureRing(view))
    with pytest.raises(LocalError, match="expected up to 1024 in 2097152"):
        Options(False, 2 * MOST, False, False, False, 0).driver(view, 0, 0)
    assert ring.free_descriptors == 2 * MOST
