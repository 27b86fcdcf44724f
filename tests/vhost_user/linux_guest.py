"""Small Linux guests: a root file system with busybox, and two ways to boot it, User-Mode Linux and QEMU.

A guest runs a shell script and ends. Its console is what a test looks at.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
for module in /modules/*; do insmod $module 2>/dev/null; done
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


# -- Debian's kernel in QEMU

KERNEL = "linux-image-cloud-amd64"
QEMU_MODULES = (  # of virtio and virtio_ring either needs the other, in one version or another
    "virtio", "virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk",
    "virtio-rng",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel of Debian, unpacked."""

    image: Path
    modules: tuple[Path, ...]
    """Those of `QEMU_MODULES` that are not built in, in an order in which they can be loaded."""


def debian_kernel(cache: Path) -> Kernel:
    """Debian's kernel for virtual machines, unpacked and not installed, from a folder that keeps it between runs."""
    folder = cache / "kernel"
    if not folder.is_dir():
        package = _download_kernel(cache)
        unpacked = Path(tempfile.mkdtemp(dir=cache))
        wanted = ["./boot/vmlinuz-*", *sorted({f"./lib/modules/*/{name}.ko*" for name in QEMU_MODULES})]
        with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as archive:
            # what is built in is not in the archive, of which tar complains
            subprocess.run(["tar", "-x", "-C", unpacked, "--wildcards", *wanted], stdin=archive.stdout, check=False)
        assert archive.returncode == 0
        unpacked.rename(folder)
        package.unlink()
    (image,) = folder.glob("boot/vmlinuz-*")
    modules = []
    for name in QEMU_MODULES:
        modules += sorted(folder.glob(f"lib/modules/*/kernel/**/{name}.ko*"))
    return Kernel(image, tuple(modules))


def _download_kernel(cache: Path) -> Path:
    """Its package, by the system's lists of packages; if these are missing or old, by new lists in the cache."""
    own = [f"-oDir::State::lists={cache}/lists", f"-oDir::Cache={cache}/apt"]
    for folder in ("lists", "apt/archives"):
        (cache / folder / "partial").mkdir(parents=True, exist_ok=True)
    said = ""
    for options in ([], own):
        commands = [["apt-get", *options, "update"]] if options else []
        commands.append(["apt-cache", *options, "depends", KERNEL])
        for command in commands:
            result = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
            said += result.stderr
        for package in re.findall(r"Depends: (linux-image-\S+)", result.stdout):
            command = ["apt-get", "-q", *options, "download", package]
            result = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
            said += result.stderr
            for found in cache.glob(f"{package}_*.deb"):
                if result.returncode == 0:
                    return found
    raise AssertionError(f"no {KERNEL}:\n{said}")


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
