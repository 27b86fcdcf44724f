"""The programs and files of the system that powervio works with: one table for `doctor` and for `./run test`.

Nothing here is needed to start powervio. A row says which Debian package gives the thing and what it is good for.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

ADMIN_PATH = "/usr/sbin:/sbin"
"""Where mke2fs and e2fsck are; a user's PATH often lacks it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One program or file, the package that gives it, and what it enables."""

    name: str
    """A program's name, or what a file is called."""
    package: str
    """The Debian package; empty if no package gives it (a device of the kernel)."""
    enables: str
    tests: bool = False
    """Whether `./run test` needs it."""
    file: Path | None = None
    """Where it is, if it is no program."""

    def find(self) -> str | None:
        """Where it is, or None."""
        if self.file is not None:
            return str(self.file) if self.file.exists() else None
        return shutil.which(self.name, path=f"{os.environ.get('PATH', os.defpath)}:{ADMIN_PATH}")


PYTHON_H = Path(sysconfig.get_path("include"), "Python.h")

PEERS = (
    Peer("gcc", "gcc", "the compiled hot path; boot: the driver of guests", tests=True),
    Peer("stdio.h", "libc6-dev", "the compiled hot path", tests=True, file=Path("/usr/include/stdio.h")),
    Peer("Python.h", "python3-dev", "the compiled hot path", tests=True, file=PYTHON_H),
    Peer("mke2fs", "e2fsprogs", "file systems on served disks, in demo and tests", tests=True),
    Peer("e2fsck", "e2fsprogs", "proof that a served file system is sound", tests=True),
    Peer("nbdcopy", "libnbd-bin", "copying to and from an attached disk", tests=True),
    Peer("nbdinfo", "libnbd-bin", "looking at an attached disk", tests=True),
    Peer("file", "file", "what nbdinfo says of a disk's content", tests=True),
    Peer("nbdkit", "nbdkit", "another NBD program in front of or behind an attached disk", tests=True),
    Peer("fio", "fio", "data verification and throughput on attached disks", tests=True),
    Peer("qemu-img", "qemu-utils", "making and comparing images", tests=True),
    Peer("qemu-io", "qemu-utils", "single reads, writes and discards over NBD", tests=True),
    Peer("qemu-storage-daemon", "qemu-system-common", "qcow2, vmdk and vhdx images; bench vhost-user", tests=True),
    Peer("dtc", "device-tree-compiler", "reading the device trees that the hypervisor hands out", tests=True),
    Peer("linux.uml", "user-mode-linux", "a real Linux kernel as the driver of vhost-user devices", tests=True),
    Peer("qemu-system-x86_64", "qemu-system-x86", "virtual machines that use our devices; boot", tests=True),
    Peer("qemu-system-ppc64", "qemu-system-ppc", "boot --arch ppc64le", tests=True),
    Peer("apt-get", "apt", "boot: kernels and busybox, fetched into a cache", tests=True),
    Peer("dpkg-deb", "dpkg", "boot: what is in these packages", tests=True),
    Peer("setpriv", "util-linux", "boot: guests that end when powervio is killed", tests=True),
    Peer("make", "make", "boot: the driver of guests, built for their kernel", tests=True),
    Peer(
        "powerpc64le-linux-gnu-gcc",
        "gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross",  # the second has the kernel's headers, for guest_io
        "the same for boot --arch ppc64le",
        tests=True,
    ),
    Peer("busybox", "busybox-static", "the programs of a small Linux guest", tests=True),
    Peer("cpio", "cpio", "the root file system of a small Linux guest", tests=True),
    Peer("dpdk-testpmd", "dpdk-dev", "DPDK's virtio-user driver at vhost-user network devices", tests=True),
    Peer("ip", "iproute2", "TAP interfaces in a network of their own", tests=True),
    Peer("iperf3", "iperf3", "streams between network adapters; bench net", tests=True),
    Peer("tcpdump", "tcpdump", "what a network adapter's interface sees", tests=True),
    Peer("tshark", "tshark", "reading captures of ports", tests=True),
    Peer("ping", "iputils-ping", "a kernel's own network stack behind a TAP", tests=True),
    Peer("diod", "diod", "a 9P server and clients that do not know us; bench files", tests=True),
    Peer("git", "git", "clones and their checks on a mounted share", tests=True),
    Peer("rsync", "rsync", "copies with hard links, ACLs and attributes on a mounted share", tests=True),
    Peer("setfacl", "acl", "POSIX ACLs on a mounted share", tests=True),
    Peer("/dev/fuse", "", "mounting shares (needs the kernel's FUSE, and root)", file=Path("/dev/fuse")),
    Peer("nbd-client", "nbd-client", "attached disks as /dev/nbdN (needs the kernel's nbd)"),
)


def missing(*, for_tests: bool = False) -> tuple[Peer, ...]:
    """The rows that are not there; with `for_tests` only those that `./run test` needs."""
    return tuple(peer for peer in PEERS if (peer.tests or not for_tests) and peer.find() is None)


def install_command(peers: tuple[Peer, ...]) -> list[str]:
    """The command that installs the packages of these rows; empty if no package gives them."""
    packages = sorted({name for peer in peers if peer.package for name in peer.package.split()})
    return ["apt-get", "install", "-y", "--no-install-recommends", *packages] if packages else []
