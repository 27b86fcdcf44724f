"""Stock Debian kernels in QEMU, end to end, each boot with a limit."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from fcntl import ioctl
from pathlib import Path

import pytest
from tests.boot.program import COMMAND, children, run, start, wait_until_gone
from tests.vhost_user.linux_guest import admin_program

from powervio.boot import run as run_boot
from powervio.boot.guest import GuestFailed, Terminal
from powervio.boot.machine import Arch, find
from powervio.boot.processes import Disk
from powervio.boot.transport import Served
from powervio.boot.waiting import wait
from powervio.system.booted import CRQ, GUEST, Session, started
from powervio.system.threaded import ThreadedSystem

MIB = 1 << 20
VHOST_USER = ("--transport", "vhost-user")
WAYS = pytest.mark.parametrize(
    ("arch", "way"),
    [
        ("x86_64", ("--memory", "3G")),  # some of it is above 4 GiB, so addresses are not offsets (G3.2)
        ("ppc64le", ()),
        ("x86_64", VHOST_USER),
        pytest.param("ppc64le", VHOST_USER, marks=pytest.mark.slow),
    ],
)
pytestmark = pytest.mark.timeout(300)  # the first test fills the cache


def make_disk(folder: Path, content: bytes) -> Path:
    """An ext4 file system with one file, named `file`."""
    tree = folder / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(content)
    image = folder / "disk.img"
    image.touch()
    os.truncate(image, 32 * MIB)
    subprocess.run([admin_program("mke2fs"), "-q", "-F", "-t", "ext4", "-d", tree, image], check=True)
    return image


@WAYS
def test_a_command_in_a_stock_kernel_reads_and_writes_our_disks(
    tmp_path: Path, boot_cache: Path, arch: str, way: tuple[str, ...]
) -> None:
    content = os.urandom(3 * MIB)
    first = make_disk(tmp_path, content)
    second = tmp_path / "second.img"
    pattern = bytes(range(256)) * 4096
    second.write_bytes(pattern)
    command = """
        mount /dev/vda /mnt && sha256sum /mnt/file >&2 && echo new >/mnt/new
        echo ko >/dev/vdb || echo "READ-ONLY $(cat /sys/block/vdb/ro)" >&2
        uname -m >&2
        echo "SERVED BY $(ls /sys/bus/virtio_vio/devices 2>/dev/null | wc -l) ADAPTERS" >&2
        echo '<0>kernel message' >/dev/kmsg
        cat /dev/vdb
        exit 7
    """
    disks = ("--disk", str(first), "--disk", f"{second},readonly")
    done = run(boot_cache, *way, "--arch", arch, *disks, "--exec", command)
    said = done.stderr.decode()
    assert done.returncode == 7, said
    assert done.stdout == pattern  # every byte, and nothing else: no carriage return, no message of the kernel
    adapters = f"SERVED BY {0 if way == VHOST_USER else 2} ADAPTERS"
    for line in (adapters, f"{hashlib.sha256(content).hexdigest()}  /mnt/file", "READ-ONLY 1", f"\n{arch}\n"):
        assert line in said
    assert "console" not in said
    # the file system was unmounted, and is as sound as it was
    checked = subprocess.run([admin_program("e2fsck"), "-fn", first], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    assert "recover" not in checked.stdout
    written = subprocess.run(
        [admin_program("debugfs"), "-R", "cat new", first], capture_output=True, text=True, check=True
    )
    assert written.stdout == "new\n"
    assert second.read_bytes() == pattern


def test_what_the_command_leaves_running_does_not_hold_it_up(boot_cache: Path, tmp_path: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "1G"], check=True)
    command = """
        (while :; do echo more; sleep 1; done) &
        cat /sys/block/vda/size
        mkfs.ext4 -q /dev/vda && e2fsck -f -n /dev/vda && no-such-program
    """
    done = run(boot_cache, "--arch", "x86_64", "--disk", str(image), "--package", "e2fsprogs", "--exec", command)
    assert done.returncode == 127, done.stderr.decode()
    assert b"2097152" in done.stdout.split()
    assert b"no-such-program: not found" in done.stderr


def test_a_panic_is_told_with_its_reason_and_the_console_is_kept(boot_cache: Path) -> None:
    done = run(boot_cache, "--arch", "ppc64le", "--exec", "echo before; sleep 1; echo c >/proc/sysrq-trigger; sleep 60")
    said = done.stderr.decode()
    assert (done.returncode, done.stdout) == (1, b"before\n")
    assert "powervio: the guest died before its command had ended: Kernel panic - not syncing" in said
    log = Path(said.split("its console is in ")[1].strip())
    assert "sysrq triggered crash" in log.read_text()


def test_a_guest_that_hangs_is_ended(boot_cache: Path, tmp_path: Path) -> None:
    image = make_disk(tmp_path, b"")
    done = run(boot_cache, "--arch", "x86_64", "--disk", str(image), "--timeout", "9", "--exec", "sleep 600")
    assert done.returncode == 1
    assert re.search("powervio: (the command did not end|waited 9 s for the guest)", done.stderr.decode())
    # nobody has the disk any more
    done = run(boot_cache, "--arch", "ppc64le", "--timeout", "1", "--disk", str(image), "--exec", "true")
    assert "powervio: waited 1 s for the guest to start\n" in done.stderr.decode()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_behind(
    boot_cache: Path, tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = make_disk(tmp_path, b"")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    run_folder = tmp_path / "powervio"
    process = start(boot_cache, "--arch", "x86_64", "--disk", str(image), "--exec", "sleep 600")
    theirs = children(process.pid)
    assert len(theirs) == 1  # QEMU
    process.send_signal(number)
    assert process.wait(20) == (128 + number if number != signal.SIGKILL else -number)
    assert process.stderr is not None
    with process.stderr as stderr:
        assert b"Traceback" not in stderr.read()
    wait_until_gone(theirs)
    if number != signal.SIGKILL:
        assert list(boot_cache.glob(f"logs/*-{process.pid}.log")) == []
        assert list(run_folder.iterdir()) == []


def test_a_back_end_that_dies_ends_the_guest(boot_cache: Path, tmp_path: Path) -> None:
    image = make_disk(tmp_path, b"")
    process = start(
        boot_cache, *VHOST_USER, "--arch", "x86_64", "--disk", str(image), "--exec", "while :; do cat /dev/vda; done"
    )
    theirs = children(process.pid)
    (back_end,) = [pid for pid in theirs if b"vhost-user\0block" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(back_end, signal.SIGKILL)
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read().decode()
    assert process.wait(20) == 1
    assert f"powervio: disk {image}: its back end ended, killed by SIGKILL" in said
    wait_until_gone(theirs)


@pytest.mark.slow
def test_a_hypervisor_that_ends_the_session_ends_the_guest(boot_cache: Path, tmp_path: Path) -> None:
    """The session alone: if the process of the hypervisor ends, so does QEMU, as above."""
    disks = (Disk(str(make_disk(tmp_path, b""))),)
    systems: list[ThreadedSystem] = []

    @contextmanager
    def serve(arch: Arch, memory: int, disks: Sequence[Disk]) -> Iterator[Served]:
        with started(arch, memory, disks) as running, closing(Session(running.door(GUEST))) as session:
            systems.append(running)
            yield session.served()

    def say(text: str) -> None:
        if "running the command" in text:
            systems[0].door(GUEST).close()

    plan = run_boot.Plan(find("x86_64"), 256 * MIB, boot_cache, replace(CRQ, serve=serve), disks, "sleep 600")
    with pytest.raises(GuestFailed, match=r"^the hypervisor has ended the guest's session"):
        run_boot.run(plan, say, Terminal(0, 1))


def test_what_qemu_says_when_it_does_not_start_is_told(boot_cache: Path, tmp_path: Path) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text("#!/bin/sh\necho 'qemu: no such machine' >&2\nexit 1\n")
    program.chmod(0o755)
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = run(boot_cache, "--arch", "x86_64", "--exec", "true", environment=path)
    assert done.returncode == 1
    assert "powervio: QEMU ended with status 1: qemu: no such machine\n" in done.stderr.decode()


class Screen:
    """A terminal, and who looks at it."""

    def __init__(self, *arguments: str) -> None:
        self._terminal, theirs = pty.openpty()
        self.resize(theirs, 33, 101)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self.text = b""

    def resize(self, fd: int | None, lines: int, columns: int) -> None:
        ioctl(self._terminal if fd is None else fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if fd is None:
            self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def wait_for(self, text: bytes) -> None:
        deadline = time.monotonic() + 90
        start = len(self.text)
        while text not in self.text[start:]:
            assert time.monotonic() < deadline, self.text
            if wait([self._terminal], [], 1)[0]:
                self.text += os.read(self._terminal, 65536)

    def finish(self) -> int:
        deadline = time.monotonic() + 60
        with suppress(OSError):  # nobody has the other end any more
            while time.monotonic() < deadline:
                if wait([self._terminal], [], 0.1)[0]:
                    self.text += os.read(self._terminal, 65536)
        return self.process.wait(10)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._terminal)


@pytest.mark.parametrize(("arch", "end"), [("x86_64", "\x1d"), ("ppc64le", "poweroff\r")])
def test_a_console_at_a_terminal(boot_cache: Path, tmp_path: Path, arch: str, end: str) -> None:
    image = make_disk(tmp_path, b"content\n")
    screen = Screen("--arch", arch, "--cache", str(boot_cache), "--disk", str(image))
    try:
        screen.wait_for(b"# ")
        screen.type("stty size; echo $((6 * 7)); mount /dev/vda /mnt; echo new >/mnt/new; cat /mnt/file\r")
        screen.wait_for(b"33 101\r\n42\r\ncontent\r\n")
        screen.resize(None, 20, 60)
        screen.type("while [ \"$(stty size)\" != '20 60' ]; do sleep 0.1; done\r")
        screen.type("sh -c \"echo re''sized; exec sleep 600\"\r")
        screen.wait_for(b"resized\r\n")
        screen.type("\x03")
        screen.wait_for(b"# ")
        screen.type(end)
        assert screen.finish() == 0, screen.text
    finally:
        screen.close()
    checked = subprocess.run([admin_program("e2fsck"), "-fn", image], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def test_a_console_of_pipes_takes_all_of_its_input_and_ends_with_it(boot_cache: Path) -> None:
    lines = b"".join(b"echo line %d\n" % number for number in range(2000))
    done = subprocess.run(
        [*COMMAND, "--cache", str(boot_cache), "--arch", "x86_64", "--timeout", "200"],
        input=b"stty -echo; exec sh -c 'cat >/tmp/lines; wc -c </tmp/lines; md5sum </tmp/lines'\n" + lines,
        capture_output=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert f"{len(lines)}\r\n{hashlib.md5(lines).hexdigest()}  -".encode() in done.stdout, done.stdout
    assert b"reboot: Power down" in done.stdout
