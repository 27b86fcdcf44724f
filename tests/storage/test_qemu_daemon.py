"""The supervised qemu-storage-daemon: what goes wrong with it, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.storage import qemu_daemon
from powervio.storage.hostfile import ImageBusy
from powervio.storage.image import open_image
from powervio.storage.open import check_format, open_disk
from powervio.storage.qemu_daemon import QemuDaemon


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = str(tmp_path / "a, b=c.qcow2")  # a name with what QEMU's own options would stumble over
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, "16M"], check=True)
    return path


def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in the daemon's place."""
    program = tmp_path / "bin" / qemu_daemon.PROGRAM
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def test_it_serves_and_ends_and_leaves_nothing(image: str) -> None:
    daemon = QemuDaemon(image, "qcow2")
    pid = daemon.pid
    assert pid is not None
    assert os.path.exists(daemon.socket)
    daemon.stop()
    assert not os.path.exists(f"/proc/{pid}")
    assert not os.path.exists(os.path.dirname(daemon.socket))
    open_image(image).close()  # free


def test_image_that_it_cannot_open_is_told_in_its_words(image: str) -> None:
    with open(image, "r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 16)
    with pytest.raises(LocalError, match=r"cannot serve it as qcow2: .*version"):
        QemuDaemon(image, "qcow2")
    open_image(image).close()


def test_lock_is_ours_while_there_is_no_daemon_and_inherited_by_it(image: str) -> None:
    daemon = QemuDaemon(image, "qcow2")
    with pytest.raises(ImageBusy):
        open_image(image, read_only=True)
    with pytest.raises(ImageBusy):
        QemuDaemon(image, "qcow2")
    pid = daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    os.close(daemon._fd)  # as when powervio is killed: the daemon's last I/O may still be to come
    daemon._fd = -1
    with pytest.raises(ImageBusy):
        open_image(image)
    os.kill(pid, signal.SIGCONT)
    daemon.stop()
    open_image(image).close()


def test_two_read_one_image(image: str) -> None:
    first, second = (open_disk(image, image_format="qcow2", read_only=True) for _ in range(2))
    assert first.read_only
    assert first.size == second.size == 16 << 20
    with pytest.raises(ImageBusy):
        open_disk(image, image_format="qcow2")
    first.close()
    second.close()


def test_one_that_ignores_sigterm_is_killed(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "trap '' TERM\nwhile :; do sleep 0.05; done")
    monkeypatch.setattr(qemu_daemon, "STOP_LIMIT", 0.5)
    began = time.monotonic()
    with pytest.raises(LocalError, match="did not serve it in time"):
        QemuDaemon(image, "qcow2", start_limit=0.3)
    assert time.monotonic() - began < 10
    open_image(image, wait=5).close()  # the script's own `sleep` inherited the lock and may end a little later


def test_what_it_says_when_it_ends_at_once_is_told(image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(tmp_path, monkeypatch, "echo 'no disk today' >&2\nexit 1")
    with pytest.raises(LocalError, match=r"cannot serve it as qcow2: .*no disk today"):
        QemuDaemon(image, "qcow2")


def test_missing_program_is_named_with_its_package(image: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(LocalError, match="apt-get install qemu-system-common"):
        QemuDaemon(image, "qcow2")


@pytest.mark.parametrize("image_format", ["qcow2", "vmdk", "vhdx"])
def test_format_is_found_and_must_be_the_declared_one(tmp_path: Path, image_format: str) -> None:
    path = str(tmp_path / "image")
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, path, "16M"], check=True)
    check_format(path, image_format)
    check_format(path, "raw")
    with pytest.raises(
        LocalError, match=f'is a {image_format} image: serve what is in it with format = "{image_format}"'
    ):
        check_format(path, None)
    other = "vhdx" if image_format != "vhdx" else "qcow2"
    with pytest.raises(LocalError, match=f"is a {image_format} image; it is declared as {other}"):
        check_format(path, other)
    with pytest.raises(LocalError, match="is a"):
        open_disk(path)
