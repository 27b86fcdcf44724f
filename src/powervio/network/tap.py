"""A TAP interface of Linux as a port: the kernel's network stack, or a bridge, is at the other end.

The descriptor has a virtio_net_hdr before each frame (IFF_VNET_HDR), little-endian whatever the machine is, so partial
checksums and frames that are to be segmented go through as they are: what a guest leaves to do, and what the kernel
does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import socket
from struct import Struct

from powervio.errors import LocalError
from powervio.network.port import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Frame, Offload, Port
from powervio.network.segment import segments

DEVICE = "/dev/net/tun"
_HEADER = Struct("<BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
_PLAIN = bytes(_HEADER.size)
_NEEDS_CSUM = 1
_DATA_VALID = 2
_ROOM = _HEADER.size + 65535 + 64
"""Bytes of the largest frame that can come, with some to spare."""
_GSO_TYPES = (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4)


def _write_request(number: int) -> int:
    """Of ioctl, with an int: some architectures have two bits for the direction, others three (asm/ioctl.h)."""
    three = platform.machine().startswith(("ppc", "mips", "sparc", "alpha"))
    return (0x8000_0000 if three else 0x4000_0000) | 4 << 16 | ord("T") << 8 | number


_TUNSETIFF = _write_request(202)
_TUNSETOFFLOAD = _write_request(208)
_TUNSETVNETHDRSZ = _write_request(216)
_TUNSETVNETLE = _write_request(220)
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_TSO = Offload.TSO4 | Offload.TSO6
_USO = Offload.USO4 | Offload.USO6
_SIOCGIFMTU = 0x8921
_NAME_BYTES = 15

_REASONS = {
    errno.EBUSY: "somebody has it already",
    errno.EPERM: "that takes root, or a TAP that was made for this user (ip tuntap add ... user USER)",
    errno.EINVAL: "there is an interface of that name that is no TAP, or one for several queues",
}


class TapPort(Port):
    """One TAP. It is made when it is not there, and then goes when the port is closed."""

    def __init__(self, name: str) -> None:
        """Raises `LocalError`."""
        super().__init__()
        if not name or len(name.encode()) > _NAME_BYTES or "/" in name or name.split() != [name]:
            raise LocalError(f'"{name}" cannot be the name of an interface; expected up to {_NAME_BYTES} characters')
        try:
            self._fd = os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise LocalError(f"{DEVICE}: {error.strerror}; a TAP needs the kernel's tun") from error
        try:
            self._begin(name)
        except OSError as error:
            os.close(self._fd)
            why = _REASONS.get(error.errno or 0, error.strerror)
            raise LocalError(f"TAP {name}: {why}") from error

    def _begin(self, name: str) -> None:
        request = Struct("16sH22x").pack(name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        answer = fcntl.ioctl(self._fd, _TUNSETIFF, request)
        self.name = answer[:16].rstrip(b"\0").decode()
        fcntl.ioctl(self._fd, _TUNSETVNETHDRSZ, Struct("=i").pack(_HEADER.size))
        fcntl.ioctl(self._fd, _TUNSETVNETLE, Struct("=i").pack(1))
        fcntl.ioctl(self._fd, _TUNSETOFFLOAD, 0)
        self._has_uso = self._knows(Offload.CSUM | _USO)
        self._knows(Offload(0))
        self.mtu = self._read_mtu()

    def _read_mtu(self) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            answer = fcntl.ioctl(asker, _SIOCGIFMTU, Struct("16si20x").pack(self.name.encode(), 0))
        mtu: int = Struct("16xi").unpack_from(answer)[0]
        return mtu

    def fileno(self) -> int:
        """See `Port`."""
        return self._fd

    def send(self, frame: Frame) -> bool:
        """See `Port`. Kernels before Linux 6.2 do not segment UDP: that is done here."""
        header = _PLAIN
        if frame.needs:
            if frame.gso & ~GSO_ECN == GSO_UDP_L4 and not self._has_uso:
                parts = segments(frame, partial=True)
                return self.drop("malformed") if not parts else all(map(self.send, parts))
            start, offset = frame.partial
            header = _HEADER.pack(_NEEDS_CSUM, frame.gso, frame.header_bytes, frame.gso_size, start, offset)
        try:
            os.writev(self._fd, (header, frame.data))
        except OSError as error:
            # EIO: the interface is down; EINVAL: a checksum or segments that the kernel does not accept
            return self.drop("interface down" if error.errno == errno.EIO else error.strerror or "failed")
        self.sent += 1
        return True

    def receive(self) -> Frame | None:
        """See `Port`. EBADFD: the interface was deleted."""
        while True:
            frame = self._rest.popleft() if self._rest else self._read()
            if frame is None:
                return None
            frame = self._fit(frame)
            if frame is not None:
                self.received += 1
                return frame

    def _read(self) -> Frame | None:
        while True:
            try:
                data = os.read(self._fd, _ROOM)
            except BlockingIOError:
                return None
            frame = self._frame(data)
            if frame is not None:
                return frame
            self.drop("malformed")

    @staticmethod
    def _frame(data: bytes) -> Frame | None:
        if len(data) <= _HEADER.size:
            return None
        flags, gso, header_bytes, gso_size, start, offset = _HEADER.unpack_from(data)
        frame = memoryview(data)[_HEADER.size :]
        if not flags & _NEEDS_CSUM:
            return None if gso else Frame(frame, None, flags & _DATA_VALID != 0)
        if start + offset + 2 > len(frame) or (gso and gso & ~GSO_ECN not in _GSO_TYPES):
            return None
        return Frame(frame, (start, offset), False, gso, gso_size, header_bytes)

    def take(self, offloads: Offload) -> None:
        """See `Port`: the kernel finishes and segments what is not taken."""
        super().take(offloads)
        asked = Offload(0)
        if offloads & Offload.CSUM:
            asked = offloads & (Offload.CSUM | _TSO)
            if asked & _TSO:
                asked |= offloads & Offload.ECN
            if self._has_uso and offloads & _USO == _USO:  # the kernel has no switch for each
                asked |= _USO
        self._knows(asked)

    def _knows(self, offloads: Offload) -> bool:
        """Set what the kernel leaves undone; whether it knows that all."""
        try:
            fcntl.ioctl(self._fd, _TUNSETOFFLOAD, int(offloads))
        except OSError:  # unknown to it, or the interface was deleted: `receive` will tell
            return False
        return True

    def close(self) -> None:
        """See `Port`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
