"""A host interface as a port (AF_PACKET): frames of a real network, or of a veth or bridge, come and go here.

Frames have a virtio_net_hdr before them (PACKET_VNET_HDR), in the machine's byte order, so partial checksums and large
frames go through as they are. A VLAN tag, which the kernel takes out, comes beside the frame and is put in again. What
the host sends over the interface does not come here; all that comes from outside does, whoever it is for.
"""

from __future__ import annotations

import errno
import fcntl
import socket
from struct import Struct

from powervio.errors import LocalError
from powervio.network.frame import TAG_BYTES
from powervio.network.inside import inside
from powervio.network.port import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Frame, Port
from powervio.network.tap import interface_mtu

_HEADER = Struct("=BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset."""
_PLAIN = bytes(_HEADER.size)
_NEEDS_CSUM = 1
_DATA_VALID = 2
_GSO_TYPES = (0, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4)
_ROOM = _HEADER.size + 65535 + 64

_ETH_P_ALL = 3
_SOL_PACKET = 263
_ADD_MEMBERSHIP = 1
_AUXDATA = 8
_VNET_HDR = 15
_IGNORE_OUTGOING = 23
_PROMISCUOUS = Struct("=iHH8s")
_AUX = Struct("=IIIHHHH")
"""struct tpacket_auxdata: status, len, snaplen, mac, net, vlan_tci, vlan_tpid."""
_VLAN_VALID = 1 << 4
_TPID_VALID = 1 << 6
_AUX_ROOM = socket.CMSG_SPACE(_AUX.size)
_SIOCGIFNAME = 0x8910
_BUFFER = 4 << 20
"""Bytes that may wait in the kernel, if it lets us."""


class PacketPort(Port):
    """One interface, in promiscuous mode for as long as the port is there."""

    def __init__(self, interface: str, netns: str | None = None) -> None:
        """`netns`: where the interface is, see `inside`. Raises `LocalError`."""
        super().__init__()
        self.name = interface
        try:
            self._socket = inside(netns, self._open)
        except OSError as error:
            raise LocalError(f"interface {interface}: {error.strerror or error}") from error

    def _open(self) -> socket.socket:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
        try:
            for option in (_VNET_HDR, _AUXDATA, _IGNORE_OUTGOING):
                link.setsockopt(_SOL_PACKET, option, 1)
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
            index = self._index = socket.if_nametoindex(self.name)
            link.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, _PROMISCUOUS.pack(index, 1, 0, b""))
            self.mtu = interface_mtu(self.name)
            link.bind((self.name, _ETH_P_ALL))
        except OSError:
            link.close()
            raise
        return link

    def fileno(self) -> int:
        """See `Port`."""
        return self._socket.fileno()

    def send(self, frame: Frame) -> bool:
        """See `Port`."""
        header = _PLAIN
        if frame.needs:
            start, offset = frame.partial
            header = _HEADER.pack(_NEEDS_CSUM, frame.gso, frame.header_bytes, frame.gso_size, start, offset)
        try:
            try:
                self._socket.sendmsg((header, frame.data))
            except OSError as error:
                if error.errno != errno.ENETDOWN:
                    raise
                self._socket.sendmsg((header, frame.data))  # it was down: that is said once, whatever is true by now
        except OSError as error:
            reasons = {errno.ENETDOWN: "interface down", errno.EAGAIN: "queue full", errno.ENOBUFS: "queue full"}
            return self.drop(reasons.get(error.errno or 0, error.strerror or "failed"))
        self.sent += 1
        return True

    def receive(self) -> Frame | None:
        """See `Port`. An interface that is down has nothing; one that was deleted raises ENODEV."""
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
                data, beside, flags, _ = self._socket.recvmsg(_ROOM, _AUX_ROOM)
            except BlockingIOError:
                return None
            except OSError as error:
                if error.errno == errno.ENETDOWN:  # said once, when it goes down, and again when it goes away
                    fcntl.ioctl(self._socket, _SIOCGIFNAME, Struct("16xi20x").pack(self._index))
                    continue
                if error.errno != errno.EINVAL:
                    raise
                self.drop("unknown offload")
                continue
            frame = None if flags & socket.MSG_TRUNC else self._frame(data, beside)
            if frame is not None:
                return frame
            self.drop("malformed")

    @staticmethod
    def _frame(data: bytes, beside: list[tuple[int, int, bytes]]) -> Frame | None:
        if len(data) <= _HEADER.size + 12:
            return None
        flags, gso, header_bytes, gso_size, start, offset = _HEADER.unpack_from(data)
        frame: bytes | memoryview = memoryview(data)[_HEADER.size :]
        for level, kind, content in beside:
            if level == _SOL_PACKET and kind == _AUXDATA and len(content) >= _AUX.size:
                status, _, _, _, _, tci, tpid = _AUX.unpack_from(content)
                if status & _VLAN_VALID:
                    tag = (tpid if status & _TPID_VALID else 0x8100) << 16 | tci
                    frame = b"".join((frame[:12], tag.to_bytes(TAG_BYTES, "big"), frame[12:]))
                    start += TAG_BYTES
                    header_bytes += TAG_BYTES if header_bytes else 0
        if not flags & _NEEDS_CSUM:
            return None if gso else Frame(frame, None, flags & _DATA_VALID != 0)
        if start + offset + 2 > len(frame) or gso & ~GSO_ECN not in _GSO_TYPES:
            return None
        return Frame(frame, (start, offset), False, gso, gso_size, header_bytes)

    def close(self) -> None:
        """See `Port`."""
        self._socket.close()
