"""Console device: feature bits, config layout, control messages, queue numbers (virtio 1.4, 5.3).

Integers are little-endian, or in the guest's order in legacy devices (5.3.4.1, 5.3.6.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

from powervio.errors import RemoteError
from powervio.virtio import features, ids
from powervio.virtio.config import Field, Layout
from powervio.virtio.features import Feature

DEVICE_ID = ids.CONSOLE

# Feature bits (5.3.3), as masks
F_SIZE = 1 << 0
F_MULTIPORT = 1 << 1
F_EMERG_WRITE = 1 << 2

features.register(
    DEVICE_ID, (Feature(F_SIZE, "SIZE"), Feature(F_MULTIPORT, "MULTIPORT"), Feature(F_EMERG_WRITE, "EMERG_WRITE"))
)

LAYOUT = Layout(
    (
        Field("cols", 0, 2, F_SIZE),
        Field("rows", 2, 2, F_SIZE),
        Field("max_nr_ports", 4, 4, F_MULTIPORT),
        Field("emerg_wr", 8, 4, F_EMERG_WRITE, writable=True),
    )
)
"""The config space (5.3.4)."""
EMERG_OFFSET = 8

# Control events (5.3.6.2)
DEVICE_READY = 0
"""Driver: it is there (1), or cannot go on (0)."""
DEVICE_ADD = 1
DEVICE_REMOVE = 2
PORT_READY = 3
"""Driver: the port can be used (1), or not (0)."""
CONSOLE_PORT = 4
"""Device: the port is for a console; the driver answers with PORT_OPEN 1."""
RESIZE = 5
"""Device: columns and rows follow. (Linux has read them in the other order for long.)"""
PORT_OPEN = 6
"""Both: the port is open (1) or closed (0) on the sender's side."""
PORT_NAME = 7
"""Device: the name follows, UTF-8 without a terminating zero."""

CONTROL_BYTES = 8
NAME_LIMIT = 240
"""Bytes of a port's name that fit into a control buffer of 256 with its header."""
CONTROL_RECEIVE = 2
"""Queue numbers of the control queues; there with MULTIPORT only (5.3.2)."""
CONTROL_TRANSMIT = 3
MAX_PORTS = 512

_HEADER = {"little": Struct("<IHH"), "big": Struct(">IHH")}
_SIZE = {"little": Struct("<HH"), "big": Struct(">HH")}


@dataclass(frozen=True, slots=True)
class Control:
    """One control message."""

    port: int
    event: int
    value: int
    extra: bytes = b""
    """What follows: the name, or the size."""

    def pack(self, byteorder: str) -> bytes:
        """As bytes."""
        return _HEADER[byteorder].pack(self.port, self.event, self.value) + self.extra


def unpack_control(data: bytes, byteorder: str) -> Control:
    """Raises `RemoteError` for what is shorter than a header."""
    if len(data) < CONTROL_BYTES:
        raise RemoteError(f"a control message of {len(data)} bytes; expected {CONTROL_BYTES} or more")
    port, event, value = _HEADER[byteorder].unpack(data[:CONTROL_BYTES])
    return Control(port, event, value, data[CONTROL_BYTES:])


def pack_size(columns: int, rows: int, byteorder: str) -> bytes:
    """What follows RESIZE."""
    return _SIZE[byteorder].pack(columns, rows)


def unpack_size(extra: bytes, byteorder: str) -> tuple[int, int]:
    """Columns and rows. Raises `RemoteError` for another length."""
    if len(extra) != 4:
        raise RemoteError(f"a size of {len(extra)} bytes; expected 4")
    columns, rows = _SIZE[byteorder].unpack(extra)
    return columns, rows


def receive_queue(port: int) -> int:
    """Number of the queue that brings a port's data to the driver (5.3.2)."""
    return 0 if port == 0 else 2 + 2 * port


def transmit_queue(port: int) -> int:
    """Number of the queue that brings a port's data to the device."""
    return receive_queue(port) + 1


def port_of(queue: int) -> int:
    """The port of a data queue."""
    return 0 if queue < 2 else queue // 2 - 1


def queues_of(ports: int) -> int:
    """How many queues a device with so many ports has under MULTIPORT."""
    return 2 + 2 * ports
