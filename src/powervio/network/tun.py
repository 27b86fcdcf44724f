"""The kernel's tun driver: descriptors of TAP interfaces, with a virtio_net_hdr before each frame."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from struct import Struct

from powervio.errors import LocalError

DEVICE = "/dev/net/tun"
NAME_BYTES = 15
IFF_MULTI_QUEUE = 0x0100
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_REQUEST = Struct("16sH22x")
_NUMBER = Struct("=i")


def _write_request(number: int) -> int:
    """Of ioctl, with an int: some architectures have two bits for the direction, others three (asm/ioctl.h)."""
    three = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
    return (0x8000_0000 if three else 0x4000_0000) | 4 << 16 | ord("T") << 8 | number


TUNSETIFF = _write_request(202)
TUNSETOFFLOAD = _write_request(208)
TUNSETVNETHDRSZ = _write_request(216)
TUNSETVNETLE = _write_request(220)
TUNSETCARRIER = _write_request(226)

F_CSUM = 1
F_TSO4 = 2
F_TSO6 = 4
F_ECN = 8
F_USO = 0x60
"""Both kinds; kernels before Linux 6.2 know none."""

_REASONS = {
    errno.EBUSY: "somebody has it already",
    errno.EPERM: "that takes root, or a TAP that was made for this user (ip tuntap add ... user USER)",
    errno.EINVAL: "there is an interface of that name that is no TAP, or one for another number of queues",
    errno.E2BIG: "it has as many queues as there may be",
}


def check_name(name: str) -> None:
    """Raise `LocalError` for what cannot be the name of an interface."""
    if not name or len(name.encode()) > NAME_BYTES or "/" in name or name.split() != [name] or name in (".", ".."):
        raise LocalError(f'"{name}" cannot be the name of an interface; expected up to {NAME_BYTES} characters')


def open_queue(name: str, flags: int = 0) -> int:
    """A descriptor, not waiting, of one queue of a TAP in the calling thread's namespace; the interface is made if it
    is not there, and goes with its last descriptor.

    Headers have 12 bytes and are little-endian, and the kernel finishes everything, until the caller says otherwise.
    Raises `LocalError`.
    """
    check_name(name)
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise LocalError(f"{DEVICE}: {error.strerror}; a TAP needs the kernel's tun") from error
    try:
        fcntl.ioctl(fd, TUNSETIFF, _REQUEST.pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR | flags))
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, _NUMBER.pack(12))
        fcntl.ioctl(fd, TUNSETVNETLE, _NUMBER.pack(1))
        fcntl.ioctl(fd, TUNSETOFFLOAD, 0)
    except OSError as error:
        os.close(fd)
        why = _REASONS.get(error.errno or 0, error.strerror)
        raise LocalError(f"TAP {name}: {why}") from error
    return fd
