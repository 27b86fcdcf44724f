"""Guests that the system boots: stock Linux with disks of VIO servers, its console, its ends."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.system.linux_guest import GuestConsole
from powervio.system.load import parse

from .harness import House, wait_for

MIB = 1 << 20
SYSTEM = """
[[vios]]
name = "vios1"
process = true
[[lpar]]
name = "guest1"
guest = "linux"
arch = "x86_64"
memory = "256M"
[[lpar.disk]]
vios = "vios1"
image = "disk.img"
"""
LIMIT = 120.0


def declared(house: House, more: str = "") -> str:
    house.image("disk.img", 64 * MIB)
    (house.folder / "s.toml").write_text(SYSTEM + more)
    return "s.toml"


def linux(house: House) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(house.ok("ps", "--json"))["lpar"][0]["linux"]
    return found


class Console:
    """`powervio console`, typed at."""

    def __init__(self, house: House) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "powervio", "console", "guest1"],
            cwd=house.folder,
            env=house.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.popen.stdout is not None
        os.set_blocking(self.popen.stdout.fileno(), False)
        self.said = b""

    def type(self, line: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(f"{line}\n".encode())
        self.popen.stdin.flush()

    def wait_for(self, text: str, limit: float = LIMIT) -> None:
        assert self.popen.stdout is not None
        deadline = time.monotonic() + limit
        while text.encode() not in self.said:
            assert time.monotonic() < deadline, self.said.decode(errors="replace")
            self.said += self.popen.stdout.read() or b""
            time.sleep(0.02)

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.mark.timeout(300)  # the first boot of a run may have to fill the cache
def test_guest_goes_on_when_its_vio_server_is_killed_and_lets_go_of_a_disk_with_all_that_it_wrote(
    house: House, boot_cache: Path
) -> None:
    house.use_kernels(boot_cache)
    more = house.image("more.img", 16 * MIB)
    process = house.up(declared(house))
    console = Console(house)
    try:
        console.wait_for("# ")
        # two copies that go round the guest's cache, with many requests in flight
        console.type("for n in 0 24; do dd if=/dev/zero bs=1M count=24 | tr '\\0' x |")
        console.type(
            " dd of=/dev/vda bs=1M seek=$n iflag=fullblock oflag=direct 2>/dev/null & done; wait; echo wr''ote"
        )
        wait_for(lambda: any(house.folder.joinpath("disk.img").read_bytes()[: 48 * MIB : MIB]), LIMIT)
        (vios,) = json.loads(house.ok("ps", "--json"))["vios"]
        os.kill(vios["pid"], signal.SIGKILL)
        wait_for(lambda: "VIO server vios1 is terminated" in house.ok("ps"))
        assert "VIO server vios1, process" not in house.ok("ps")
        house.ok("activate", "vios1")
        console.wait_for("wrote")
        house.ok("attach", "guest1", "--image", "more.img")
        console.type("until [ -b /dev/vdb ]; do sleep 0.1; done; echo here | dd of=/dev/vdb 2>/dev/null; echo ca''ched")
        console.wait_for("cached")
        assert house.ok("detach", "guest1/3") == f"guest1/3: {more} is detached\n"
        assert more.read_bytes()[:4] == b"here"
        console.type("dmesg | grep -c 'I/O error'; ls /sys/block; echo lis''ted")
        console.wait_for("listed")
        assert b"\r\n0\r\n" in console.said
        assert linux(house)["state"] == "running"
        assert house.ok("terminate", "guest1").startswith("guest1 is terminated")
        assert linux(house)["reason"] == "killed (SIGKILL)"
        house.ok("activate", "guest1")
        assert house.refused("activate", "guest1").startswith("guest1 is ")
        console.wait_for("ls /sys/block")
        pid = linux(house)["pid"]
        process.kill()  # QEMU goes with the system
        wait_for(lambda: not os.path.exists(f"/proc/{pid}"))
    finally:
        console.close()
    image = (house.folder / "disk.img").read_bytes()
    assert image[: 48 * MIB] == b"x" * (48 * MIB)


def test_guest_that_cannot_be_booted_says_why_and_may_be_tried_again(house: House) -> None:
    house.environment["XDG_CACHE_HOME"] = str(house.image("no-folder", 1))
    process = house.up(declared(house, '[[lpar]]\nname = "guest2"\nguest = "door"\n'))
    wait_for(lambda: linux(house)["state"] == "terminated")
    assert f"{house.folder / 'no-folder'}" in linux(house)["reason"]
    assert house.ok("activate", "guest1") == "guest1 is starting\n"
    wait_for(lambda: linux(house)["state"] == "terminated")
    assert house.refused("terminate", "guest1") == "guest1 is terminated already"
    assert "guest1 is terminated: " in house.ok("ps")
    assert house.ok("console", "guest1") == ""  # it does not wait for a guest that is not there
    assert house.refused("terminate", "guest2").startswith("guest2 is a guest that somebody else starts and ends")
    assert house.refused("console", "guest1", "--port", "7").startswith('guest1 has no port "7"')
    house.end(process)


def test_system_with_a_guest_needs_its_qemu(house: House, tmp_path: Path) -> None:
    declared(house)
    (tmp_path / Path(sys.executable).name).symlink_to(sys.executable)
    result = house.run("up", "s.toml", PATH=str(tmp_path))
    assert result.stderr == (
        "powervio: qemu-system-x86_64, which guest1 runs in, is missing: apt-get install qemu-system-x86\n"
    )
    assert shutil.which("qemu-system-x86_64")


def test_console_keeps_the_last_output_until_somebody_attaches_and_then_waits_for_him() -> None:
    async def scenario() -> None:
        reading, writing = os.pipe()
        typed, typing = os.pipe()
        for fd in (reading, typing):
            os.set_blocking(fd, False)
        console = GuestConsole()
        console.resize = lambda columns, rows: None  # type: ignore[method-assign]  # a pipe has no size
        console.open(reading, typing)
        for _ in range(5):
            os.write(writing, b"a" * 16384)
            await asyncio.sleep(0.01)
        os.write(writing, b"end")
        await asyncio.sleep(0.01)
        console.attach()
        with pytest.raises(LocalError, match="somebody is attached"):
            console.attach()
        kept = console.from_driver.take(1 << 20)
        assert (len(kept), kept[-4:]) == (64 * 1024, b"aend")
        for _ in range(5):
            os.write(writing, b"b" * 16384)
            await asyncio.sleep(0.01)
        assert not console.from_driver.room
        console.to_driver.put(b"ls\n")
        await asyncio.sleep(0.01)
        assert os.read(typed, 10) == b"ls\n"
        read = 0
        while read < 5 * 16384:
            read += len(console.from_driver.take(16384))
            await asyncio.sleep(0.001)
        console.close()
        assert (console.closings, console.removed) == (1, True)
        console.detach()
        for fd in (reading, writing, typed, typing):
            os.close(fd)

    asyncio.run(asyncio.wait_for(scenario(), 20))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"256M"', '"64M"', "lpar[0].memory: 64M; Linux needs 128M at least"),
        (
            'guest = "linux"',
            'guest = "door"\nexec = "true"',
            'lpar[0].exec: whoever starts the guest says what it runs; expected guest = "linux" beside it',
        ),
        (
            'guest = "linux"\narch = "x86_64"',
            'exec = "true"',
            'lpar[0].exec: it is about guests that the system boots; expected guest = "linux" beside it',
        ),
        ('"linux"', '"windows"', 'lpar[0].guest: expected "door" or "linux", found "windows"'),
        (
            "[[lpar.disk]]",
            '[[lpar.console]]\nvios = "vios2"\n[[lpar.disk]]',
            "lpar[0].console[0]: a guest that the system boots has a console already, its serial port",
        ),
    ],
)
def test_mistake_about_a_guest_that_is_booted_is_told(house: House, old: str, new: str, problem: str) -> None:
    house.image("disk.img", MIB)
    text = SYSTEM.replace(old, new) + '[[vios]]\nname = "vios2"\n'
    with pytest.raises(LocalError) as caught:
        parse(text, "s.toml", house.folder)
    assert str(caught.value) == f"s.toml: {problem}"
