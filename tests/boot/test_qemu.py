"""Command lines, sizes and disks, as values."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from powervio.boot import machine, qemu
from powervio.boot.processes import Disk
from powervio.errors import LocalError

CHANNELS = qemu.Channels(console=10, control=11, output=12, errors=13)


def command(arch: str, options: list[str] | None = None) -> list[str]:
    return qemu.command(
        machine.find(arch), program="/bin/qemu", image="IMAGE", initramfs="ARCHIVE", memory=1 << 30, channels=CHANNELS,
        backend=qemu.memory_of_its_own(1 << 30), options=options or [],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arch", "board", "append"),
    [
        ("x86_64", "q35,memory-backend=ram", "console=ttyS0 quiet panic=-1 reboot=t"),
        (
            "ppc64le",
            "pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off,memory-backend=ram",
            "console=hvc0 quiet panic=-1",
        ),
    ],
)
def test_each_architecture_has_its_machine(arch: str, board: str, append: str) -> None:
    words = command(arch)
    options = dict(pairwise(words))
    assert (options["-machine"], options["-append"], options["-accel"]) == (board, append, "tcg")
    assert options["-object"] == "memory-backend-memfd,id=ram,size=1073741824,share=on"
    assert options["-m"] == "1024M"
    assert (options["-kernel"], options["-initrd"]) == ("IMAGE", "ARCHIVE")


def test_disks_and_ports_are_at_inherited_sockets() -> None:
    words = command("x86_64", qemu.vhost_user_options([20, 21]))
    chardevs = [word for option, word in pairwise(words) if option == "-chardev"]
    assert chardevs == [
        "socket,id=console,fd=10", "socket,id=powervio.control,fd=11", "socket,id=powervio.output,fd=12",
        "socket,id=powervio.errors,fd=13", "socket,id=disk0,fd=20", "socket,id=disk1,fd=21",
    ]  # fmt: skip
    assert [word for word in words if word.startswith("vhost-user-blk")] == [
        "vhost-user-blk-pci,chardev=disk0",
        "vhost-user-blk-pci,chardev=disk1",
    ]


def test_a_hypervisor_is_at_an_inherited_socket_and_has_the_memory_s_file() -> None:
    assert qemu.door_options(20, 32) == [
        "-chardev", "socket,id=gate,fd=20", "-device", "ivshmem-doorbell,chardev=gate,vectors=32",
    ]  # fmt: skip
    assert qemu.memory_in(21, 4096) == "memory-backend-file,id=ram,size=4096,mem-path=/proc/self/fd/21,share=on"


@pytest.mark.parametrize(
    ("text", "size"), [("512M", 512 << 20), ("1g", 1 << 30), ("262144K", 256 << 20), ("1GiB", 1 << 30)]
)
def test_memory_is_a_size(text: str, size: int) -> None:
    assert qemu.parse_memory(text, machine.find("ppc64le")) == size


@pytest.mark.parametrize(
    ("text", "arch", "said"),
    [
        ("much", "x86_64", "expected a size like 512M or 1G"),
        ("64M", "x86_64", "128M at least"),
        ("300M", "ppc64le", "a multiple of 256M"),
    ],
)
def test_memory_that_a_guest_cannot_have_is_refused(text: str, arch: str, said: str) -> None:
    with pytest.raises(LocalError, match=said):
        qemu.parse_memory(text, machine.find(arch))


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(LocalError, match=r"unknown architecture 's390x': expected x86_64 or ppc64le"):
        machine.find("s390x")
    assert machine.of_this_machine() in machine.ARCHES


def test_a_disk_is_a_file_with_options(tmp_path: Path) -> None:
    image = str(tmp_path / "a,b.img")
    Path(image).touch()
    (tmp_path / "c.qcow2").touch()
    assert Disk.parse(image) == Disk(image)
    assert Disk.parse(f"{image},readonly") == Disk(image, True)
    assert Disk.parse(f"{image},format=vmdk,readonly") == Disk(image, True, "vmdk")
    assert Disk.parse(f"{tmp_path}/c.qcow2") == Disk(f"{tmp_path}/c.qcow2", False, "qcow2")
    assert Disk.parse(f"{tmp_path}/c.qcow2,format=raw").format == "raw"
    assert Disk.parse("nbd://host/export,readonly") == Disk("nbd://host/export", True)
    with pytest.raises(LocalError, match="no such file"):
        Disk.parse(f"{image},readwrite")
    with pytest.raises(LocalError, match="unknown format 'vdi'"):
        Disk.parse(f"{image},format=vdi")
