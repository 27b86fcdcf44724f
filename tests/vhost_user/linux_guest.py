"""Small Linux guests: a root file system with busybox, and two ways to boot it, User-Mode Linux and QEMU.

A guest runs a shell script and ends. Its console is what a test looks at.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from powervio.boot import initramfs, machine
from powervio.boot.cache import Cache, Kernel
from powervio.boot.kernel import decompress
from powervio.cli.peers import ADMIN_PATH

LIMIT = 100.0
"""Seconds for a guest, from power on to its end."""
UML_MODULES = Path("/usr/lib/uml/modules")
UML_MEMORY = "256M"


def admin_program(name: str) -> str:
    """Where a program is that a user's PATH may lack."""
    found = shutil.which(name, path=f"{os.environ['PATH']}:{ADMIN_PATH}")
    assert found is not None, name
    return found


_BEGIN = """#!/bin/sh
export PATH=/bin:/usr/bin
mount -t proc none /proc
mount -t sysfs none /sys
mount -t devtmpfs none /dev
for module in /modules/*; do insmod $module 2>/dev/null; done
cd /tmp
"""


def make_initramfs(
    folder: Path, script: str, modules: Sequence[Path], files: Mapping[str, bytes] | None = None
) -> Path:
    """A root with busybox, kernel modules, which are loaded in their order, and files; it runs a script and halts."""
    busybox = Path("/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    nodes = [initramfs.folder(name) for name in ("bin", "dev", "mnt", "modules", "proc", "sys", "tmp", "usr")]
    nodes.append(initramfs.file("bin/busybox", busybox.read_bytes(), 0o755))
    nodes += [initramfs.link(f"bin/{applet}", "busybox") for applet in applets if applet != "busybox"]
    nodes += [
        initramfs.link(name, f"usr/{name}") for name in ("lib", "lib64")
    ]  # of programs in /usr, if that is mounted
    for number, module in enumerate(modules):
        nodes.append(initramfs.file(f"modules/{number:02}-{module.name}", decompress(module.name, module.read_bytes())))
    nodes += [initramfs.file(name, content) for name, content in (files or {}).items()]
    nodes.append(initramfs.file("init", f"{_BEGIN}{script}echo DONE\npoweroff -f\n".encode(), 0o755))
    archive = folder / "initramfs"
    archive.write_bytes(initramfs.pack(nodes))
    return archive


class Guest:
    """A running guest: what its console says is there while it runs."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        self._text = ""
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stream:
            while piece := os.read(stream.fileno(), 65536):
                with self._changed:
                    self._text += piece.decode(errors="replace")
                    self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def console(self) -> str:
        """What it said until now."""
        with self._changed:
            return self._text

    def wait_for(self, pattern: str, start: int = 0) -> int:
        """Wait until the console says it, from a place on; where that ends."""
        found: list[re.Match[str]] = []

        def look() -> bool:
            match = re.compile(pattern).search(self._text, start)
            found.extend([match] if match else [])
            return bool(found) or not self._reader.is_alive()

        with self._changed:
            assert self._changed.wait_for(look, LIMIT), f"no {pattern!r} in {LIMIT} s:\n{self._text}"
            assert found, f"no {pattern!r}:\n{self._text}"
        return found[0].end()

    def finish(self) -> str:
        """Wait until it has run its script to the end and halted; its console."""
        self._process.wait(LIMIT)
        self._reader.join(LIMIT)
        assert re.search(r"^DONE\s*$", self._text, re.MULTILINE), self._text
        return self._text

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._reader.join(LIMIT)


# -- User-Mode Linux


def uml_module(name: str) -> Path:
    """A module of the kernel of User-Mode Linux."""
    (found,) = UML_MODULES.glob(f"*/kernel/**/{name}.ko")
    return found


def uml(folder: Path, initramfs: Path, *arguments: str) -> Guest:
    """Boot User-Mode Linux. Programs of the host are there after `mount -t hostfs -o ro,/usr none /usr`."""
    preloaded = folder / "uml_xstate.so"
    source = Path(__file__).with_name("uml_xstate.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", preloaded, source], check=True)
    command = ["linux.uml", f"mem={UML_MEMORY}", "con=null", "con0=fd:0,fd:1", f"initrd={initramfs}", *arguments]
    return Guest(command, {"LD_PRELOAD": str(preloaded)})


# -- Debian's kernel in QEMU


def debian_kernel(cache: Path) -> Kernel:
    """Debian's kernel, as `powervio boot` has it, from a folder that keeps it between runs."""
    return Cache(cache, print).get(machine.find("x86_64"))[0]


def make_tools_disk(folder: Path, *programs: str) -> Path:
    """A file system with programs of the host and their libraries, to be mounted at /usr."""
    tree = folder / "tools"
    (tree / "bin").mkdir(parents=True)
    (tree / "lib").mkdir()
    for program in programs:
        shutil.copy(program, tree / "bin")
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        for library in re.findall(r"(/\S+) \(0x", listed):
            shutil.copy(library, tree / "lib")
    (tree / "lib64").symlink_to("lib")
    size = sum(path.stat().st_size for path in tree.rglob("*"))
    image = folder / "tools.img"
    image.touch()
    os.truncate(image, size + size // 4 + (4 << 20))
    options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(tree)]
    subprocess.run([admin_program("mke2fs"), *options, image], check=True)
    return image


def qemu(kernel: Kernel, initramfs: Path, tools: Path, *arguments: str) -> Guest:
    """Boot QEMU with two processors; the disk of tools is vda."""
    return Guest(
        [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "512",
            "-object", "memory-backend-memfd,id=m,size=512M,share=on", "-machine", "q35,memory-backend=m",
            "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
            "-kernel", str(kernel.image), "-initrd", str(initramfs), "-append", "console=ttyS0 quiet panic=-1 reboot=t",
            "-drive", f"if=none,id=tools,file={tools},format=raw,readonly=on", "-device", "virtio-blk-pci,drive=tools",
            *arguments,
        ]
    )  # fmt: skip
