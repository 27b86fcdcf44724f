"""QEMU with Debian's kernel: a front end that connects again, and a driver that takes as many queues as it can.

Requests in flight are on a record that QEMU keeps, so the driver of the guest never hears that a back end died.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vhost_user.linux_guest import LIMIT, debian_kernel, make_initramfs, make_tools_disk, qemu
from tests.vhost_user.program import end, finish, start

MIB = 1 << 20
SIZE = 32 * MIB
DEPTH = 64
FIO = (
    "fio --name=verify --ioengine=libaio --direct=1 --bs=4k --rw=randwrite --verify=crc32c --verify_fatal=1 "
    f"--iodepth={DEPTH} --size={SIZE}"
)


class BackEnds:
    """Processes of `powervio vhost-user`; none outlives its test."""

    def __init__(self) -> None:
        self._all: list[subprocess.Popen[str]] = []

    def start(self, device: str, path: Path, *arguments: str) -> subprocess.Popen[str]:
        """Serve a device at a socket."""
        process = start(device, "--socket-path", str(path), *arguments)
        self._all.append(process)
        return process

    def close(self) -> None:
        for process in self._all:
            if process.poll() is None:
                print(end(process, signal.SIGKILL))


@pytest.fixture
def back_ends() -> Iterator[BackEnds]:
    made = BackEnds()
    yield made
    made.close()


def wait_until_written(image: Path, size: int) -> None:
    """Until the guest has written so many bytes to a sparse image."""
    deadline = time.monotonic() + LIMIT
    while image.stat().st_blocks * 512 < size:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def wait_until_changed(image: Path) -> None:
    """Until something more is written to an image."""
    deadline = time.monotonic() + LIMIT
    before = image.stat().st_mtime_ns
    while image.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_no_write_is_lost_when_the_back_end_is_killed(
    tmp_path: Path, pytestconfig: pytest.Config, back_ends: BackEnds, packed: bool
) -> None:
    script = f"""
        mount -r /dev/vda /usr
        export LD_LIBRARY_PATH=/usr/lib
        echo "QUEUES $(ls /sys/block/vdb/mq | wc -l) PACKED $(cut -c 35 /sys/block/vdb/device/features)"
        echo "RANDOM $(dd if=/dev/hwrng bs=64 count=4 iflag=fullblock 2>/dev/null | wc -c)"
        (while sleep 0.1; do read reads writes < /sys/block/vdb/inflight; echo "WRITES $writes"; done) &
        {FIO} --filename=/dev/vdb --output=log
        echo "STATUS $?"
        cat log
    """
    assert pytestconfig.cache is not None
    kernel = debian_kernel(pytestconfig.cache.mkdir("linux"))
    tools = make_tools_disk(tmp_path, "/usr/bin/fio")
    initramfs = make_initramfs(tmp_path, script, kernel.modules)
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, SIZE)
    path = tmp_path / "disk"
    rings = ["--packed"] if packed else []

    def serve(*arguments: str) -> subprocess.Popen[str]:
        return back_ends.start("block", path, "--image", str(image), "--queues", "2", *rings, *arguments)

    random = back_ends.start("rng", tmp_path / "rng")
    disk = serve()
    with qemu(
        kernel, initramfs, tools,
        "-chardev", f"socket,id=disk,path={path},reconnect=1",
        "-device", f"vhost-user-blk-pci,chardev=disk,num-queues=2,packed={'on' if packed else 'off'}",
        "-chardev", f"socket,id=rng,path={tmp_path}/rng", "-device", "vhost-user-rng-pci,chardev=rng",
    ) as guest:  # fmt: skip
        guest.wait_for(f"QUEUES 2 PACKED {int(packed)}")
        guest.wait_for("RANDOM 256")
        wait_until_written(image, SIZE // 8)
        end(disk, signal.SIGKILL)  # in the middle of it, at full speed
        disk = serve("--requests-per-second", "1", "--burst-requests", "1")
        for _ in range(2):  # with the second the device has long had all of them in its hands
            wait_until_changed(image)
        guest.wait_for(f"WRITES {DEPTH}", len(guest.console))
        end(disk, signal.SIGKILL)
        disk = serve()
        console = guest.finish()
    status, said = end(disk)
    assert (status, finish(random)) == (0, 0)
    assert "STATUS 0" in console, console
    # what has just ended may not have been replaced
    again = sum(map(int, re.findall(r"(\d+) requests that were in flight", said)))
    assert DEPTH - 4 <= again <= DEPTH, said
    verify = [*FIO.split(), f"--filename={image}", "--verify_only"]
    verified = subprocess.run(verify, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert verified.returncode == 0, verified.stdout + verified.stderr
