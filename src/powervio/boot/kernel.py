"""A kernel as it comes in a Debian package: its image, and the modules that a guest needs, in an order to load them.

Kernel packages have no modules.dep; what a module needs is in its own `.modinfo`.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from powervio.boot import commands
from powervio.errors import LocalError

NEEDED = ("virtio_pci", "virtio_blk", "virtio_console", "ext4")
"""Modules without which a guest is of no use, in the order in which they are wanted."""
WANTED = ("crc32c_generic", *NEEDED, "virtio_net", "virtio_rng", "9pnet_virtio", "9p")
"""All that are kept if the kernel has them. ext4 asks for crc32c by a name that is no module's."""
_HINTS = (
    "virtio", "virtio_ring", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "jbd2", "mbcache", "crc16", "libcrc32c",
    "failover", "net_failover", "rng_core", "9pnet", "fscache", "netfs",
)  # fmt: skip
"""What they need in the kernels of today: so the package is read once. What else they need costs a second pass."""

UNPACK_LIMIT = 180.0
"""Seconds to read a package once."""
_ASK_LIMIT = 30.0
_DEPENDS = re.compile(rb"\0depends=([\w,-]*)\0")
_PARAMETER = re.compile(rb"\0parmtype=(\w+):")
_PVH_NOTE = re.compile(rb"\x04\0\0\0[\x04\x08]\0\0\0\x12\0\0\0Xen\0")
"""An ELF note of the name Xen and the type XEN_ELFNOTE_PHYS32_ENTRY, 18."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What was taken out of a kernel package."""

    image: bytes
    """What QEMU boots."""
    modules: Mapping[str, bytes]
    """Uncompressed, by name."""
    order: tuple[str, ...]
    """Names of `modules`: each comes after what it needs."""


def module_name(path: str) -> str | None:
    """A module's name by the name of its file, or None if it is no module's file."""
    stem, dot, rest = PurePosixPath(path).name.partition(".ko")
    return stem.replace("-", "_") if dot and rest in ("", ".xz", ".gz", ".zst") else None


def depends(module: bytes) -> tuple[str, ...]:
    """Names of the modules that a module needs, as it says itself."""
    found = _DEPENDS.search(module)
    return tuple(name.replace("-", "_") for name in found[1].decode().split(",") if name) if found else ()


def parameters(module: bytes) -> frozenset[str]:
    """Names of the parameters that a module can be loaded with, as it says itself."""
    return frozenset(name.decode() for name in _PARAMETER.findall(module))


def loading_order(needs: Mapping[str, Collection[str]], wanted: Collection[str], builtin: Collection[str]) -> list[str]:
    """What has to be loaded for `wanted`, each after what it needs.

    `needs` has the modules that are there; wanted ones that are not are left out. Raises `LocalError` when one needs
    what is neither there nor built in.
    """
    order: list[str] = []
    seen: set[str] = set()

    def visit(name: str, by: str) -> None:
        if name in seen or name in builtin:
            return
        if name not in needs:
            raise LocalError(f"the kernel's module {by} needs {name}, which its package does not have")
        seen.add(name)
        for other in needs[name]:
            visit(other, name)
        order.append(name)

    for name in wanted:
        if name in needs:
            visit(name, name)
    return order


def decompress(name: str, data: bytes) -> bytes:
    """A file's content, by its magic number."""
    if data.startswith(b"\xfd7zXZ"):
        return lzma.LZMADecompressor().decompress(data)
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        if shutil.which("zstd") is None:
            raise LocalError(f"{name} is compressed with zstd, which is missing: apt-get install zstd")
        # what follows the compressed data is no part of it
        done = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, timeout=_ASK_LIMIT, check=False)
        if not done.stdout:
            raise LocalError(f"{name} cannot be decompressed: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout
    return data


def bootable(image: bytes) -> bytes:
    """The image that QEMU starts soonest: of an x86 bzImage the ELF file in it, if it can be entered by PVH.

    The bzImage's own decompressor takes seconds under TCG. Linux: Documentation/arch/x86/boot.rst (payload_offset).
    """
    if image[0x202:0x206] != b"HdrS":
        return image
    start = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    try:
        inner = decompress("the kernel's image", image[start + offset : start + offset + length])
    except (LocalError, lzma.LZMAError, OSError, EOFError):
        return image
    return inner if inner.startswith(b"\x7fELF") and _PVH_NOTE.search(inner) else image


def control_field(deb: Path, field: str) -> str:
    """A field of a package's control file; raises `LocalError` if it is no package."""
    if not deb.is_file():
        raise LocalError(f"{deb}: no such file")
    command = ["dpkg-deb", "--field", str(deb), field]
    try:
        done = commands.run(command, os.environ, limit=_ASK_LIMIT, late=f"dpkg-deb to read {deb}")
    except FileNotFoundError:
        raise LocalError("dpkg-deb is missing: kernels are taken out of Debian packages with it") from None
    if done.returncode or not done.stdout.strip():
        raise LocalError(f"{deb} is not a Debian package")
    return done.stdout.strip()


def read_package(deb: Path) -> Contents:
    """Take image and modules out of a kernel package; raises `LocalError`."""
    asked = {*WANTED, *_HINTS}
    found = _members(deb, asked)
    image = _image(deb, found)
    lines = found.get("modules.builtin", b"").decode().split()
    builtin = {name for line in lines if (name := module_name(line))}
    modules: dict[str, bytes] = {}
    needs: dict[str, tuple[str, ...]] = {}
    while True:
        modules |= {name: data for name, data in found.items() if name in asked}
        needs = {name: depends(data) for name, data in modules.items()}
        missing = {other for names in needs.values() for other in names} - builtin - asked
        if not missing:
            break
        asked |= missing
        found = _members(deb, missing)
    for name in NEEDED:
        if name not in modules and name not in builtin:
            raise LocalError(f"{deb.name}: the kernel has no {name}")
    order = tuple(loading_order(needs, WANTED, builtin))
    return Contents(image, {name: modules[name] for name in order}, order)


def _image(deb: Path, found: Mapping[str, bytes]) -> bytes:
    names = [name for name in found if name.startswith("vmlinu")]
    if len(names) != 1:
        raise LocalError(f"{deb.name} is no package of a kernel: it has {len(names)} files boot/vmlinu*")
    return bootable(found[names[0]])


def _members(deb: Path, modules: Collection[str]) -> dict[str, bytes]:
    """The image, the list of what is built in, and these modules, in one pass over the package."""

    def is_wanted(path: PurePosixPath) -> str | None:
        if path.parent.name == "boot" and re.match(r"vmlinu[xz]-", path.name):
            return path.name
        name = path.name if path.name == "modules.builtin" else module_name(path.name)
        return name if name in modules or name == "modules.builtin" else None

    found = files(deb, is_wanted)
    return {name: decompress(name, data) if name in modules else data for name, data in found.items()}


def files(deb: Path, is_wanted: Callable[[PurePosixPath], str | None]) -> dict[str, bytes]:
    """Files of a package, each under the name that `is_wanted` gives to its path, if it gives one.

    Raises `LocalError`.
    """
    found: dict[str, bytes] = {}
    with opened(deb) as members:
        for member, read in members:
            name = is_wanted(PurePosixPath(member.name)) if member.isfile() else None
            if name is not None:
                found[name] = read()
    return found


@contextmanager
def opened(deb: Path) -> Iterator[Iterator[tuple[tarfile.TarInfo, Callable[[], bytes]]]]:
    """A package's members in their order, each with a function that reads the content of a file. Within
    `UNPACK_LIMIT`; raises `LocalError`."""
    command = ["dpkg-deb", "--fsys-tarfile", str(deb)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        limit = threading.Timer(UNPACK_LIMIT, process.kill)
        limit.daemon = True
        limit.start()
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                yield ((member, partial(_read, archive, member)) for member in archive)
        except (tarfile.TarError, EOFError) as error:
            said = str(error) if limit.is_alive() else f"reading it took more than {UNPACK_LIMIT:.0f} s"
            raise LocalError(f"{deb.name} cannot be unpacked: {said}") from error
        finally:
            limit.cancel()
            process.kill()


def _read(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = archive.extractfile(member)
    return b"" if content is None else content.read()
