"""Driver and device of a ring in two processes, on two cores: no lost wake-up, every buffer exactly once, in one piece.

Interpreted, the rings are not made for this (`memory/hw.py`: no fence between processes); so these tests are not dual.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.virtio.torture import AREA, TABLE, TABLES_AT, Options, shape, wait, written

from powervio.memory.area import MappedArea
from powervio.virtio.driver_ring import DriverRing

ROOT = Path(__file__).parents[2]


def drive(options: Options, ring: DriverRing, area: MappedArea, kick: int, call: int) -> dict[str, int]:
    """Be the driver until all buffers have come back; returns what happened."""
    choice = random.Random(options.seed)
    tables = list(range(options.size))
    used_tables: dict[int, int] = {}
    seen = bytearray(options.buffers)
    added = reaped = sleeps = 0
    while reaped < options.buffers:
        if choice.random() < 0.5:
            ring.disable_interrupts()
        full = False
        for _ in range(choice.randint(0, 2 * options.size)):
            if added == options.buffers:
                break
            segments, readable = shape(added, options.size)
            table = None
            if options.indirect and tables and len(segments) > 1 and choice.random() < 0.7:
                place = TABLES_AT + TABLE * tables[-1]
                table = (area.view[place : place + TABLE], place)
            if ring.add(segments, readable, added, table) < 0:
                full = True
                break
            if table is not None:
                used_tables[added] = tables.pop()
            added += 1
            if choice.random() < 0.1 and ring.publish():
                os.eventfd_write(kick, 1)
        if ring.publish():
            os.eventfd_write(kick, 1)
        got = ring.reap()
        while got is not None:
            number, length = got
            assert isinstance(number, int)
            assert length == written(number, options.size)
            seen[number] += 1
            reaped += 1
            if number in used_tables:
                tables.append(used_tables.pop(number))
            got = ring.reap()
        if (full or added == options.buffers) and reaped < added and not ring.enable_interrupts():
            sleeps += 1
            assert wait(call), f"no notification: {reaped} of {added} came back"
    assert seen == b"\x01" * options.buffers
    assert ring.in_flight == []
    assert ring.free_descriptors == options.size
    return {"added": added, "reaped": reaped, "sleeps": sleeps}


@pytest.mark.parametrize(
    "buffers", [40_000, pytest.param(2_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(600)])]
)
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
@pytest.mark.parametrize(
    ("size", "event_idx", "indirect", "in_order"),
    [
        (1, True, False, False),
        (2, False, True, False),
        (8, True, True, False),
        (64, True, False, True),
        (64, False, True, False),
        (256, True, True, False),
        (256, False, False, True),
    ],
)
def test_two_processes_lose_and_double_nothing(
    packed: bool, size: int, event_idx: bool, indirect: bool, in_order: bool, buffers: int
) -> None:
    size = size + 1 if packed and size > 2 else size  # no power of two
    options = Options(packed, size, event_idx, indirect, in_order, buffers, seed=size)
    area = MappedArea.create("torture", AREA)
    ring = options.driver(options.memory(area))  # clears it, so before the device looks
    kick, call = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
    command = [sys.executable, "-m", "tests.virtio.torture", str(area.fd), str(kick), str(call), options.json()]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    device = subprocess.Popen(
        command, pass_fds=(area.fd, kick, call), env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        happened = drive(options, ring, area, kick, call)
        out, _ = device.communicate(timeout=60)
    finally:
        device.kill()
        device.communicate()
        for fd in (kick, call):
            os.close(fd)
    assert device.returncode == 0
    served = json.loads(out)
    assert happened["added"] == happened["reaped"] == served["served"] == served["pushed"] == buffers
    assert happened["sleeps"] + served["sleeps"] > 0, "nobody was ever woken"
