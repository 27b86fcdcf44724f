"""The system behind a guest of `powervio boot`, with a process of ours in place of QEMU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.gateway.harness import Process

from powervio.boot.machine import find
from powervio.boot.processes import Disk
from powervio.boot.waiting import wait
from powervio.errors import LocalError
from powervio.storage.image import open_image
from powervio.system.booted import CRQ, GUEST, Session, started
from powervio.testing.partition_process import BLOCK, content

from .harness import House

MIB = 1 << 20
ARCH = find("x86_64")
MEMORY = 16 * MIB


@pytest.fixture(autouse=True)
def run_folder(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(house.folder))


def test_disks_are_served_and_what_was_written_is_in_the_images(house: House) -> None:
    images = [house.image(f"{name}.img", MIB) for name in "ab"]
    disks = [Disk(str(images[0])), Disk(str(images[1]), read_only=True)]
    with started(ARCH, MEMORY, disks) as running:
        process = Process("disk", running.door(GUEST).path)
        try:
            assert process.line() == "ready"
            assert process.ask("write 0 4 1 4") == "good"
        finally:
            process.close()
        slots = [disk.client_adapter.slot for disk in running.system.disks]
        assert slots == sorted(slots)
        assert [disk.image.read_only for disk in running.system.disks] == [False, True]
    written = images[0].read_bytes()
    assert [written[n * BLOCK : (n + 1) * BLOCK] == content(1, n) for n in range(4)] == [True] * 4
    open_image(images[1]).close()


def test_a_session_that_the_hypervisor_ends_is_seen(house: House) -> None:
    with started(ARCH, MEMORY, []) as running:
        session = Session(running.door(GUEST))
        try:
            assert not wait([session.fileno()], [], 0.2)[0]  # the greeting is for QEMU
            assert not session.has_failed()
            running.door(GUEST).close()
            assert wait([session.fileno()], [], 10)[0]
            assert session.has_failed()
        finally:
            session.close()
    assert session.say_why() == "the hypervisor has ended the guest's session"


def test_qemu_is_told_of_descriptors_that_it_inherits(house: House) -> None:
    with CRQ.serve(ARCH, MEMORY, []) as served:
        memory, connection = served.pass_fds
        assert os.fstat(memory).st_size == MEMORY
        assert f"mem-path=/proc/self/fd/{memory}," in served.memory
        assert f"socket,id=gate,fd={connection}" in served.options
    assert list(house.run_folder.iterdir()) == []


def test_a_disk_that_cannot_be_served_is_named_as_the_user_named_it(house: House) -> None:
    image = house.image("a.img", MIB)
    with open_image(image), pytest.raises(LocalError) as caught, started(ARCH, MEMORY, [Disk(str(image))]):
        raise AssertionError("it started")
    assert str(caught.value).startswith((str(image), f"image {image}", f"disk {image}"))
    assert "lpar" not in str(caught.value)


PROGRAM = """
import sys
from powervio.boot.machine import find
from powervio.boot.waiting import wait
from powervio.system.booted import started
with started(find("x86_64"), 16 << 20, []):
    print("up", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_by_the_next(house: House) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGKILL)
    left = list(house.run_folder.iterdir())
    assert len(left) == 1
    with started(ARCH, MEMORY, []):
        assert not left[0].exists()
    assert list(house.run_folder.iterdir()) == []


def test_a_guest_s_failure_comes_out_as_it_is(house: House) -> None:
    class Failed(LocalError):
        pass

    with pytest.raises(Failed, match="boot: lpar"), started(ARCH, MEMORY, []):
        raise Failed("boot: lpar[0].disk[0]: it failed")


def test_a_qcow2_disk_has_its_daemon(house: House, tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "4M"], check=True)
    with started(ARCH, MEMORY, [Disk(str(image), format="qcow2")]) as running:
        assert [disk.image.size for disk in running.system.disks] == [4 * MIB]
