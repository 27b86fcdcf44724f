"""Captures: what goes through a port, written to a pcapng file, which Wireshark and tcpdump read.

Frames are written as they are: one that is to be segmented is one, and a checksum that is partial is not right yet.
(draft-ietf-opsawg-pcapng: sections 4.1 to 4.3)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from struct import pack
from typing import BinaryIO

from powervio.network.port import Frame, Offload, Port

_SECTION = 0x0A0D0D0A
_INTERFACE = 1
_PACKET = 6
_ORDER = 0x1A2B3C4D
_ETHERNET = 1
_SNAPLEN = 1 << 18
_IF_NAME = 2
_IF_TSRESOL = 9
_USER = 4
_FLAGS = 2
_INBOUND = 1
_OUTBOUND = 2


def _option(code: int, value: bytes) -> bytes:
    return pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    length = 12 + len(body)
    return pack("<II", kind, length) + body + pack("<I", length)


class PcapngWriter:
    """A file with the frames of one or several ports, from any thread."""

    def __init__(self, file: BinaryIO, clock: Callable[[], int] = time.time_ns) -> None:
        """`clock`: nanoseconds since 1970. The file is closed by whoever opened it."""
        self._file = file
        self._clock = clock
        self._lock = threading.Lock()
        self._interfaces = 0
        section = pack("<IHHq", _ORDER, 1, 0, -1) + _option(_USER, b"powervio") + _option(0, b"")
        file.write(_block(_SECTION, section))

    def interface(self, name: str) -> int:
        """A port whose frames will follow: its number."""
        options = _option(_IF_NAME, name.encode()) + _option(_IF_TSRESOL, b"\x09") + _option(0, b"")
        with self._lock:
            self._file.write(_block(_INTERFACE, pack("<HHI", _ETHERNET, 0, _SNAPLEN) + options))
            self._interfaces += 1
            return self._interfaces - 1

    def frame(self, interface: int, data: bytes | memoryview, *, received: bool) -> None:
        """A frame that the port's owner received, or sent. Raises `OSError`."""
        kept = data[:_SNAPLEN]
        with self._lock:
            now = self._clock()
            fields = pack("<IIIII", interface, now >> 32, now & 0xFFFF_FFFF, len(kept), len(data))
            direction = _INBOUND if received else _OUTBOUND
            options = _option(_FLAGS, pack("<I", direction)) + _option(0, b"")
            self._file.write(_block(_PACKET, b"".join((fields, kept, bytes(-len(kept) % 4), options))))


class Capture(Port):
    """A port before another one, which writes down what goes through. It is closed with that one."""

    def __init__(self, port: Port, writer: PcapngWriter) -> None:
        """The port is the capture's from now on."""
        super().__init__()
        self.port = port
        self.name = port.name
        self.mtu = port.mtu
        self.dropped = port.dropped
        self._writer: PcapngWriter | None = writer
        self._interface = writer.interface(port.name)
        port.on_arrival = self._arrived

    def fileno(self) -> int:
        """See `Port`."""
        return self.port.fileno()

    def send(self, frame: Frame) -> bool:
        """See `Port`. What was dropped is not written."""
        if not self.port.send(frame):
            return False
        self.sent += 1
        self._write(frame, received=False)
        return True

    def receive(self) -> Frame | None:
        """See `Port`."""
        frame = self.port.receive()
        if frame is not None:
            self.received += 1
            self._write(frame, received=True)
        return frame

    def take(self, offloads: Offload) -> None:
        """See `Port`."""
        super().take(offloads)
        self.port.take(offloads)

    def close(self) -> None:
        """See `Port`."""
        self.stop()
        self.port.close()

    def stop(self) -> None:
        """Write no more; the port goes on."""
        self._writer = None

    @property
    def stopped(self) -> bool:
        """Whether nothing is written any more: by `stop`, or because the file could not be written."""
        return self._writer is None

    def _arrived(self) -> None:
        if self.on_arrival is not None:
            self.on_arrival()

    def _write(self, frame: Frame, *, received: bool) -> None:
        if self._writer is not None:
            try:
                self._writer.frame(self._interface, frame.data, received=received)
            except OSError:  # a disk that is full does not end a network
                self.stop()
