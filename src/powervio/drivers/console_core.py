"""The virtio console driver without I/O: ports, their buffers, control messages (virtio 1.4, 5.3).

A program reads a port's `incoming` and writes its `outgoing` (`virtio/stream.py`). Buffers are lent to the device only
as far as `incoming` has room, so a program that does not read stops its operator, and nothing is kept without bound.
What the device had not confirmed when a session ended is sent again in the next one, in order, before anything newer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from powervio.errors import LocalError, RemoteError
from powervio.virtio import console as con
from powervio.virtio.driver import Driver
from powervio.virtio.queue import Buffer, ByteOrder, DriverQueue, DriverTransport
from powervio.virtio.stream import ByteQueue

PIECE = 4096
"""Bytes of one data buffer."""
LIMIT = 64 * 1024
"""Bytes of each direction of a port that may wait here."""
SENDING = 4
"""Transmit buffers of a port that the device may have at once."""
_CONTROL_PIECE = 256
_CONTROL_BUFFERS = 8


class DriverPort:
    """One stream, as the programs of the partition have it. It outlives sessions."""

    def __init__(self, core: ConsoleCore, number: int) -> None:
        self.number = number
        self.name = ""
        self.console = False
        """Whether the device says that it is for a console."""
        self.incoming = ByteQueue(LIMIT)
        self.outgoing = ByteQueue(LIMIT)
        self.present = False
        """Whether the device has it in this session."""
        self.removed = False
        """Whether the device took it away."""
        self.opened = False
        """Whether a program has it open: what the device is told."""
        self.host_open = False
        """Whether somebody is on the other side."""
        self.columns = self.rows = 0
        self.lost = 0
        """Bytes that were written and never confirmed, because the device took the port away."""
        self.on_change: Callable[[], None] | None = None
        """Called when any of this changed."""
        self.sending: dict[int, tuple[Buffer, bytes]] = {}
        self.lent = 0
        """Receive buffers that the device has."""
        self.incoming.on_room = lambda: core.refill(self)
        self.outgoing.on_data = lambda: core.pump(self)
        self._core = core

    @property
    def drained(self) -> bool:
        """Whether everything that was written is confirmed."""
        return not self.outgoing and not self.sending

    def read(self, length: int) -> bytes:
        """Up to `length` bytes that have arrived."""
        data = self.incoming.take(length)
        self._core.refill(self)
        return data

    def set_open(self, opened: bool) -> None:
        """A program opens or closes it; the device is told now or when it is there."""
        self.opened = opened
        if self.present:
            self._core.send_control(self.number, con.PORT_OPEN, int(opened))


@dataclass(slots=True)
class _Lent:
    """What the token of a buffer stands for."""

    kind: str
    buffer: Buffer
    port: DriverPort | None = None
    number: int = 0


class ConsoleCore(Driver):
    """Ports by number. Without MULTIPORT there is port 0 alone."""

    device_id = con.DEVICE_ID

    def __init__(self, *, max_ports: int = 32) -> None:
        """`max_ports` is how many are used of a device that has more."""
        self.ports: dict[int, DriverPort] = {}
        self.errors: dict[str, int] = {}
        """What the device did that it must not, by kind."""
        self.requests = 0
        """Buffers that came back."""
        self.on_port: Callable[[DriverPort], None] | None = None
        """Called when a port appears for the first time."""
        self._wanted_ports = max_ports
        self._usable = 1
        self._transport: DriverTransport | None = None
        self._multiport = False
        self._byteorder: ByteOrder = "little"
        self._spare: dict[int, list[Buffer]] = {PIECE: [], _CONTROL_PIECE: []}
        self._out: dict[int, _Lent] = {}
        self._control: list[bytes] = []
        self._tokens = 0

    def port(self, number: int) -> DriverPort:
        """The port with a number, made here if the device has not named it yet."""
        found = self.ports.get(number)
        if found is None:
            found = self.ports[number] = DriverPort(self, number)
            if self.on_port is not None:
                self.on_port(found)
        return found

    # Sessions

    def select_features(self, offered: int) -> int:
        """All there are."""
        return offered & (con.F_SIZE | con.F_MULTIPORT | con.F_EMERG_WRITE)

    def queue_count(self, features: int, config: bytes, byteorder: ByteOrder) -> int:
        """As many as the ports need."""
        if not features & con.F_MULTIPORT:
            return 2
        ports = con.LAYOUT.unpack(config, features, byteorder).get("max_nr_ports", 1)
        assert isinstance(ports, int)
        return con.queues_of(max(1, min(ports, self._wanted_ports)))

    def start(self, transport: DriverTransport) -> None:
        """See `Driver`: with MULTIPORT, DEVICE_READY is the first word (5.3.5)."""
        self._transport = transport
        self._byteorder = transport.byteorder
        self._multiport = bool(transport.features & con.F_MULTIPORT)
        self._usable = (len(transport.queues) - 2) // 2 if self._multiport else 1
        if self._multiport:
            for _ in range(min(_CONTROL_BUFFERS, transport.queues[con.CONTROL_RECEIVE].size)):
                self._lend_control()
            transport.queues[con.CONTROL_RECEIVE].kick()
            self.send_control(0, con.DEVICE_READY, 1)
        else:
            port = self.port(0)
            port.console = port.host_open = True
            self._appear(port)
            self.config_changed()

    def stop(self) -> None:
        """See `Driver`: what is not confirmed goes in front of what waits."""
        self._transport = None
        self._control.clear()
        for entry in self._out.values():
            self._spare[PIECE if entry.kind in ("in", "out") else _CONTROL_PIECE].append(entry.buffer)
        self._out.clear()
        for port in self.ports.values():
            unconfirmed = b"".join(data for _, data in port.sending.values())
            port.sending.clear()
            port.lent = 0
            port.present = port.host_open = False
            if unconfirmed:
                port.outgoing.put_back(unconfirmed)
            self._changed(port)

    def snapshot(self) -> dict[str, Any]:
        """What is on its way in either direction; whose program it was is not known any more."""
        return {
            "ports": [
                {
                    "number": port.number,
                    "incoming": port.incoming.peek(0, len(port.incoming)).hex(),
                    "outgoing": port.outgoing.peek(0, len(port.outgoing)).hex(),
                }
                for port in self.ports.values()
            ]
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """See `Driver`."""
        try:
            for entry in snapshot["ports"]:
                if not 0 <= entry["number"] < con.MAX_PORTS:
                    raise ValueError(f"port {entry['number']}")
                port = self.port(entry["number"])
                port.incoming.put_all(bytes.fromhex(entry["incoming"]))
                port.outgoing.put_all(bytes.fromhex(entry["outgoing"]))
        except (KeyError, TypeError, ValueError) as error:
            raise LocalError(f"not the state of a console's driver: {error!r}") from None

    def config_changed(self) -> None:
        """See `Driver`: without MULTIPORT the size of port 0 is told here (5.3.5)."""
        if self._transport is None or self._multiport or not self._transport.features & con.F_SIZE:
            return
        values = con.LAYOUT.unpack(self._transport.config(), self._transport.features, self._byteorder)
        columns, rows = values.get("cols", 0), values.get("rows", 0)
        if isinstance(columns, int) and isinstance(rows, int) and columns and rows:
            self._resized(self.port(0), columns, rows)

    def emergency_write(self, character: int) -> None:
        """Put one character out by config space, needing no queue. Raises `LocalError` when there is no session."""
        if self._transport is not None and self._transport.features & con.F_EMERG_WRITE:
            self._transport.write_config(con.EMERG_OFFSET, character.to_bytes(4, self._byteorder))

    # Buffers

    def completed(self, queue: DriverQueue) -> None:
        """See `Driver`."""
        touched: set[int] = set()
        while (used := queue.reap()) is not None:
            token, written = used
            assert isinstance(token, int)
            entry = self._out.pop(token)
            self.requests += 1
            data = bytes(entry.buffer.view[:written]) if entry.kind in ("in", "control in") else b""
            self._spare[PIECE if entry.kind in ("in", "out") else _CONTROL_PIECE].append(entry.buffer)
            if entry.port is not None:
                touched.add(entry.number)
                if entry.kind == "in":
                    entry.port.lent -= 1
                    if data:
                        entry.port.incoming.put_all(data)
                    else:
                        self._count("empty")
                else:
                    entry.port.sending.pop(token, None)
                    self._changed(entry.port)
            elif entry.kind == "control in":
                self._control_message(data)
                if self._transport is not None:
                    self._lend_control()
                    self._transport.queues[con.CONTROL_RECEIVE].kick()
            else:
                self._push_control()
        for number in touched:
            self.refill(self.ports[number])
            self.pump(self.ports[number])

    def refill(self, port: DriverPort) -> None:
        """Lend the device receive buffers, as many as what they may bring has room."""
        if self._transport is None or not port.present:
            return
        queue = self._transport.queues[con.receive_queue(port.number)]
        added = False
        while (port.lent + 1) * PIECE <= port.incoming.room and self._lend(queue, "in", port, b""):
            port.lent += 1
            added = True
        if added:
            queue.kick()

    def pump(self, port: DriverPort) -> None:
        """Send what waits."""
        if self._transport is None or not port.present:
            return
        queue = self._transport.queues[con.transmit_queue(port.number)]
        added = False
        while port.outgoing and len(port.sending) < SENDING:
            data = port.outgoing.peek(0, PIECE)
            if not self._lend(queue, "out", port, data):
                break
            # first to `sending`, then out of the queue: whoever is told of room finds all books in order
            port.outgoing.consume(len(data))
            added = True
        if added:
            queue.kick()

    def _lend(self, queue: DriverQueue, kind: str, port: DriverPort, data: bytes) -> bool:
        assert self._transport is not None
        spare = self._spare[PIECE]
        buffer = spare.pop() if spare else self._transport.allocate(PIECE, mapped=True)
        token = self._tokens
        if kind == "in":
            added = queue.add((), ((buffer, 0, PIECE),), token)
        else:
            buffer.view[: len(data)] = data
            added = queue.add(((buffer, 0, len(data)),), (), token)
        if not added:
            spare.append(buffer)
            return False
        self._tokens += 1
        self._out[token] = _Lent(kind, buffer, port, port.number)
        if kind == "out":
            port.sending[token] = (buffer, data)
        return True

    # Control messages

    def send_control(self, number: int, event: int, value: int) -> None:
        """Tell the device; waits here while its queue is full."""
        if self._multiport and self._transport is not None:
            self._control.append(con.Control(number, event, value).pack(self._byteorder))
            self._push_control()

    def _push_control(self) -> None:
        if self._transport is None:
            return
        queue = self._transport.queues[con.CONTROL_TRANSMIT]
        added = False
        while self._control:
            spare = self._spare[_CONTROL_PIECE]
            buffer = spare.pop() if spare else self._transport.allocate(_CONTROL_PIECE, mapped=True)
            message = self._control[0]
            buffer.view[: len(message)] = message
            if not queue.add(((buffer, 0, len(message)),), (), self._tokens):
                spare.append(buffer)
                break
            self._control.pop(0)
            self._out[self._tokens] = _Lent("control out", buffer)
            self._tokens += 1
            added = True
        if added:
            queue.kick()

    def _lend_control(self) -> None:
        assert self._transport is not None
        spare = self._spare[_CONTROL_PIECE]
        buffer = spare.pop() if spare else self._transport.allocate(_CONTROL_PIECE, mapped=True)
        if self._transport.queues[con.CONTROL_RECEIVE].add((), ((buffer, 0, _CONTROL_PIECE),), self._tokens):
            self._out[self._tokens] = _Lent("control in", buffer)
            self._tokens += 1
        else:
            spare.append(buffer)

    def _control_message(self, data: bytes) -> None:
        try:
            message = con.unpack_control(data, self._byteorder)
            if message.event == con.DEVICE_ADD:
                self._added(message.port)
                return
            port = self.ports.get(message.port)
            if port is None or not port.present:
                self._count("no port")
            elif message.event == con.RESIZE:
                self._resized(port, *con.unpack_size(message.extra, self._byteorder))
            else:
                self._port_message(port, message)
        except RemoteError:
            self._count("control")

    def _added(self, number: int) -> None:
        if number >= self._usable:
            self._count("port number")
            self.send_control(number, con.PORT_READY, 0)
            return
        if number in self.ports and self.ports[number].present:
            self._count("port exists")
            return
        port = self.port(number)
        port.removed = False
        self._appear(port)
        self.send_control(number, con.PORT_READY, 1)
        if port.opened:
            self.send_control(number, con.PORT_OPEN, 1)

    def _appear(self, port: DriverPort) -> None:
        port.present = True
        self.refill(port)
        self.pump(port)
        self._changed(port)

    def _port_message(self, port: DriverPort, message: con.Control) -> None:
        if message.event == con.DEVICE_REMOVE:
            port.present = port.host_open = False
            port.removed = True
            # what the device had and what waited has no place to go: said, not hidden
            port.lost += len(port.outgoing) + sum(len(data) for _, data in port.sending.values())
            port.sending.clear()
            port.outgoing.take(len(port.outgoing))
        elif message.event == con.CONSOLE_PORT:
            port.console = True
            port.set_open(True)  # the answer that 5.3.6.2.2 asks for
        elif message.event == con.PORT_OPEN:
            port.host_open = message.value == 1
        elif message.event == con.PORT_NAME:
            port.name = message.extra.rstrip(b"\0").decode(errors="replace")
        else:
            self._count("control")
            return
        self._changed(port)

    def _resized(self, port: DriverPort, columns: int, rows: int) -> None:
        if (columns, rows) != (port.columns, port.rows):
            port.columns, port.rows = columns, rows
            self._changed(port)

    def _changed(self, port: DriverPort) -> None:
        if port.on_change is not None:
            port.on_change()

    def _count(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1
