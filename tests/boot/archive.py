"""Debian packages made here, and an archive of them that apt takes for its only source."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import subprocess
from collections.abc import Mapping
from pathlib import Path

from powervio.boot.packages import of_this_machine

MODULES = {
    "virtio_pci": ("virtio",),
    "virtio": ("virtio_ring",),
    "virtio_ring": (),
    "virtio_blk": ("virtio", "of-no-hint"),
    "virtio_console": (),
    "ext4": ("jbd2", "built_in"),
    "jbd2": (),
    "of_no_hint": ("deeper",),
    "deeper": (),
    "other": (),
}


def module(needs: tuple[str, ...]) -> bytes:
    """What looks like a module that needs others."""
    return b"\x7fELF...\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0name=x\0"


def make_package(
    deb: Path,
    name: str,
    files: Mapping[str, bytes | Path],
    *,
    version: str = "1",
    architecture: str = "amd64",
    depends: str = "",
) -> Path:
    """A package, by dpkg-deb; an absolute path is a hard link to another of its files, another a symbolic link."""
    tree = deb.with_suffix(".tree")
    fields = {"Package": name, "Version": version, "Architecture": architecture, "Maintainer": "x <x@x>"}
    fields |= {"Depends": depends} if depends else {}
    for path, content in files.items():
        place = tree / path
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
            place.chmod(0o755 if "bin/" in path else 0o644)
        elif content.is_absolute():
            place.hardlink_to(tree / content.relative_to("/"))
        else:
            place.symlink_to(content)
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text("".join(f"{k}: {v}\n" for k, v in fields.items()) + "Description: x\n")
    subprocess.run(["dpkg-deb", "--root-owner-group", "-Znone", "-b", tree, deb], check=True, capture_output=True)
    return deb


def make_kernel(
    deb: Path,
    *,
    name: str = "linux-image-x",
    version: str = "6.9-1",
    architecture: str = "amd64",
    image: bytes = b"image",
    modules: Mapping[str, tuple[str, ...]] = MODULES,
) -> Path:
    """A package of a kernel, with modules in several compressions."""
    files = {"boot/vmlinuz-6.9": image, "lib/modules/6.9/modules.builtin": b"kernel/lib/built-in.ko\n"}
    for number, (stem, needs) in enumerate(modules.items()):
        pack, end = ((lambda data: data, ""), (lzma.compress, ".xz"), (gzip.compress, ".gz"))[number % 3]
        files[f"lib/modules/6.9/kernel/drivers/{stem}.ko{end}"] = pack(module(needs))
    return make_package(deb, name, files, version=version, architecture=architecture)


HEADERS_MAKEFILE = b"modules:\n\t@echo warnings=$(W); $(CC) -c -o $(M)/driver.ko $(M)/driver.c\n"
"""What stands for that of a kernel: it makes one object of one source."""


def make_headers(folder: Path, version: str, *, makefile: bytes = HEADERS_MAKEFILE) -> list[Path]:
    """The three packages of a kernel's headers."""
    name = f"linux-headers-{version}"
    tree = f"usr/src/{name}"
    flavour = {
        f"{tree}-amd64/Makefile": f"include /usr/src/{name}-common/Makefile\n".encode(),
        f"{tree}-amd64/.kernelvariables": b"CC = $(CROSS_COMPILE)gcc-1\n",
    }
    common = {
        f"{tree}-common/{path}": b"" for path in ("include/linux/a.h", "include/drm/b.h", "arch/x86/c", "arch/arm/d")
    }
    common |= {f"{tree}-common/Makefile": makefile, f"usr/share/doc/{name}/copyright": b"x"}
    needs = f"{name}-common (= {version}), linux-kbuild-{version} (>= {version}), linux-compiler-gcc"
    kbuild = {f"usr/lib/linux-kbuild-{version}/scripts/tool": b"#!/bin/sh\n"}
    host = of_this_machine()
    return [
        make_package(folder / f"{name}-amd64.deb", f"{name}-amd64", flavour, version=version, depends=needs),
        make_package(folder / f"{name}-common.deb", f"{name}-common", common, version=version, architecture="all"),
        make_package(
            folder / f"kbuild-{version}.deb", f"linux-kbuild-{version}", kbuild, version=version, architecture=host
        ),
    ]


class Archive:
    """An archive of packages in a folder, and the configuration with which apt knows no other."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        (folder / "sources").write_text(f"deb [trusted=yes] file:{folder} ./\n")
        self.configuration = folder / "apt.conf"
        """For the variable APT_CONFIG."""
        self.configuration.write_text(f'Dir::Etc::sourcelist "{folder}/sources";\nDir::Etc::sourceparts "-";\n')
        self._write("")

    def add(self, deb: Path) -> Path:
        """Put a package in; where it is."""
        place = self._folder / deb.name
        deb.rename(place)
        control = subprocess.run(["dpkg-deb", "-f", place], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(place.read_bytes()).hexdigest()
        lists = (self._folder / "Packages").read_text()
        self._write(f"{lists}{control}Filename: ./{deb.name}\nSize: {place.stat().st_size}\nSHA256: {digest}\n\n")
        return place

    def _write(self, lists: str) -> None:
        (self._folder / "Packages").write_text(lists)
