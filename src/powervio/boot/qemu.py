"""QEMU's command line for a guest, as a value.

Everything that QEMU speaks with is a socket that it inherits, by descriptor: no path could be left behind.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from powervio.boot import root
from powervio.boot.machine import Arch
from powervio.errors import LocalError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
LEAST_MEMORY = 128 << 20
MEMORY = "ram"
"""What QEMU calls the object that the guest's memory is in."""


@dataclass(frozen=True, slots=True)
class Channels:
    """Descriptors of the sockets that the guest's ports are at."""

    console: int
    control: int
    output: int
    errors: int


def parse_memory(text: str, arch: Arch) -> int:
    """Bytes of a size like 512M or 1G; raises `LocalError`."""
    found = re.fullmatch(r"(\d+)([KMG]?)(?:iB|B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise LocalError(f"memory {text!r}: expected a size like 512M or 1G")
    size = int(found[1]) * _UNITS[found[2].upper()]
    if size < LEAST_MEMORY:
        raise LocalError(f"memory {text}: a guest needs {LEAST_MEMORY >> 20}M at least")
    if size % arch.memory_step:
        raise LocalError(f"memory {text}: on {arch.name} expected a multiple of {arch.memory_step >> 20}M")
    return size


def memory_of_its_own(size: int) -> str:
    """Guest memory that QEMU makes, and shares with back ends that it hands it to."""
    return f"memory-backend-memfd,id={MEMORY},size={size},share=on"


def memory_in(fd: int, size: int) -> str:
    """Guest memory in a file that QEMU inherits, and the hypervisor has too (docs/gateway.md, G3.3)."""
    return f"memory-backend-file,id={MEMORY},size={size},mem-path=/proc/self/fd/{fd},share=on"


def vhost_user_options(sockets: Sequence[int]) -> list[str]:
    """Disks that vhost-user back ends serve at the other ends of sockets."""
    result = []
    for number, fd in enumerate(sockets):
        result += ["-chardev", f"socket,id=disk{number},fd={fd}"]
        result += ["-device", f"vhost-user-blk-pci,chardev=disk{number}"]
    return result


def door_options(fd: int, vectors: int) -> list[str]:
    """The hypervisor behind a door that a socket is connected to (docs/gateway.md, G1.3)."""
    return ["-chardev", f"socket,id=gate,fd={fd}", "-device", f"ivshmem-doorbell,chardev=gate,vectors={vectors}"]


def port_options(name: str, fd: int) -> list[str]:
    """A virtio-console port of this name, beside the guest's own, whose other end a socket is connected to."""
    return ["-chardev", f"socket,id={name},fd={fd}", "-device", f"virtserialport,chardev={name},name={name}"]


def virtfs_options(folder: str, tag: str) -> list[str]:
    """A folder that QEMU serves itself, by virtio-9p."""
    return [
        *("-fsdev", f"local,id={tag},path={folder.replace(',', ',,')},security_model=none,multidevs=remap"),
        *("-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
    ]


def command(
    arch: Arch,
    *,
    program: str,
    image: str,
    initramfs: str,
    memory: int,
    backend: str,
    channels: Channels,
    options: Sequence[str],
) -> list[str]:
    """The command; `backend` is the object that the memory is in. The guest ends when it panics."""
    append = f"console={arch.console} quiet panic=-1 {arch.append}".strip()
    result = [program, "-accel", "tcg", *(word.format(memory=MEMORY) for word in arch.machine)]
    result += ["-m", f"{memory >> 20}M", "-object", backend]
    result += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    result += ["-kernel", image, "-initrd", initramfs, "-append", append]
    result += ["-chardev", f"socket,id=console,fd={channels.console}", "-serial", "chardev:console"]
    result += ["-device", "virtio-serial-pci"]
    for name, fd in (
        (root.CONTROL, channels.control),
        (root.OUTPUT, channels.output),
        (root.ERRORS, channels.errors),
    ):
        result += port_options(name, fd)
    return [*result, *options]
