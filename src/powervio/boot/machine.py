"""What there is to know of each architecture of a guest: a table. Everything else of this room is the same for all."""

from __future__ import annotations

import platform
from dataclasses import dataclass

from powervio.errors import LocalError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture."""

    name: str
    """As Linux and QEMU call it."""
    debian: str
    """As Debian calls it."""
    gnu: str
    """As GNU's compilers call a Linux of it."""
    linux: str
    """Its folder in the kernel's sources."""
    kernel: str
    """The package that depends on the newest kernel."""
    qemu: str
    """QEMU's program."""
    qemu_package: str
    machine: tuple[str, ...]
    """QEMU's options for the machine; `{memory}` stands for the name of the memory back end."""
    console: str
    """The terminal of the first serial port."""
    append: str = ""
    """More words for the kernel's command line."""
    memory_step: int = MIB
    """Bytes of which the memory is a multiple."""
    page: int = 4096
    """Bytes of a page of memory, as Debian's kernels have it."""


ARCHES = {
    arch.name: arch
    for arch in (
        Arch(
            name="x86_64",
            debian="amd64",
            gnu="x86_64-linux-gnu",
            linux="x86",
            kernel="linux-image-amd64",
            qemu="qemu-system-x86_64",
            qemu_package="qemu-system-x86",
            machine=("-machine", "q35,memory-backend={memory}", "-cpu", "max"),
            console="ttyS0",
            append="reboot=t",
        ),
        Arch(
            name="ppc64le",
            debian="ppc64el",
            gnu="powerpc64le-linux-gnu",
            linux="powerpc",
            kernel="linux-image-powerpc64le",
            qemu="qemu-system-ppc64",
            qemu_package="qemu-system-ppc",
            # x-vof: no SLOF, which takes 5 s; the cap-* are what TCG does not have and warns of
            machine=(
                "-machine",
                "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off"
                ",memory-backend={memory}",
                "-cpu",
                "power9",
            ),
            console="hvc0",
            memory_step=256 * MIB,
            page=64 * 1024,
        ),
    )
}


def find(name: str) -> Arch:
    """The architecture of a name; raises `LocalError`."""
    arch = ARCHES.get(name)
    if arch is None:
        raise LocalError(f"unknown architecture {name!r}: expected {' or '.join(ARCHES)}")
    return arch


def of_this_machine() -> str:
    """This machine's own architecture if a guest can have it, or x86_64."""
    name = platform.machine()
    return name if name in ARCHES else "x86_64"
