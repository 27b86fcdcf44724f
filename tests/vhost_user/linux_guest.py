"""Small Linux guests: a root file system with busybox, booted by User-Mode Linux.

A guest runs a shell script and ends. Its console is what a test looks at.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

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
for module in /modules/*; do insmod $module; done
cd /tmp
"""


def make_initramfs(
    folder: Path, script: str, modules: Sequence[Path], files: Mapping[str, bytes] | None = None
) -> Path:
    """A root with busybox, kernel modules, which are loaded in their order, and files; it runs a script and halts."""
    root = folder / "root"
    for name in ("bin", "dev", "mnt", "modules", "proc", "sys", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin")
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        if applet != "busybox":
            (root / "bin" / applet).symlink_to("busybox")
    for name in ("lib", "lib64"):  # of programs in /usr, if that is mounted
        (root / name).symlink_to(f"usr/{name}")
    for number, module in enumerate(modules):
        target = root / "modules" / f"{number:02}-{module.name.removesuffix('.xz')}"
        data = module.read_bytes()
        target.write_bytes(lzma.decompress(data) if module.suffix == ".xz" else data)
    for name, content in (files or {}).items():
        (root / name).write_bytes(content)
    (root / "init").write_text(f"{_BEGIN}{script}echo DONE\npoweroff -f\n")
    (root / "init").chmod(0o755)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = folder / "initramfs"
    with archive.open("wb") as out:
        subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=names.encode(), cwd=root, stdout=out, check=True)
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
