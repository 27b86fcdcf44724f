"""A TAP interface of Linux as a port: the kernel's network stack, or a bridge, is at the other end.

The descriptor has a virtio_net_hdr before each frame (IFF_VNET_HDR), little-endian whatever the machine is, so partial
checksums and frames that are to be segmented go through as they are: what a guest leaves to do, and what the kernel
does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from struct import Struct

from powervio.errors import LocalError
from powervio.network import tun
from powervio.network.inside import inside
from powervio.network.port import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Frame, Offload, Port
from powervio.network.segment import segments

_HEADER = Struct("<BBHHHH2x")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
_PLAIN = bytes(_HEADER.size)
_NEEDS_CSUM = 1
_DATA_VALID = 2
_ROOM = _HEADER.size + 65535 + 64
"""Bytes of the largest frame that can come, with some to spare."""
_GSO_TYPES = (GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4)
_TSO = Offload.TSO4 | Offload.TSO6
_USO = Offload.USO4 | Offload.USO6
_SIOCGIFMTU = 0x8921


def interface_mtu(name: str) -> int:
    """The MTU of an interface of the calling thread's network namespace. Raises `OSError`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        answer = fcntl.ioctl(asker, _SIOCGIFMTU, Struct("16si20x").pack(name.encode(), 0))
    mtu: int = Struct("16xi").unpack_from(answer)[0]
    return mtu


class TapPort(Port):
    """One TAP. It is made when it is not there, and then goes when the port is closed."""

    def __init__(self, name: str, netns: str | None = None, *, multi_queue: bool = False) -> None:
        """`netns`: the network namespace that it is in, see `inside`; `multi_queue`: the port is one of several of the
        TAP, see `queues`. Raises `LocalError`.
        """
        super().__init__()
        self.name = name
        inside(netns, lambda: self._open(tun.IFF_MULTI_QUEUE if multi_queue else 0))

    @classmethod
    def queues(cls, name: str, count: int, netns: str | None = None) -> list[TapPort]:
        """A TAP with several queues, a port for each. The kernel spreads what it sends by flow, and sends the frames of
        a flow to the queue that sent the last one of it. What one of them takes is so for all. Raises `LocalError`.
        """
        ports: list[TapPort] = []
        try:
            for _ in range(count):
                ports.append(cls(name, netns, multi_queue=True))
        except LocalError:
            for port in ports:
                port.close()
            raise
        return ports

    def _open(self, flags: int) -> None:
        self._fd = tun.open_queue(self.name, flags)
        self._has_uso = self._knows(Offload.CSUM | _USO)
        self._knows(Offload(0))
        self.mtu = interface_mtu(self.name)

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
            fcntl.ioctl(self._fd, tun.TUNSETOFFLOAD, int(offloads))
        except OSError:  # unknown to it, or the interface was deleted: `receive` will tell
            return False
        return True

    def close(self) -> None:
        """See `Port`."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
