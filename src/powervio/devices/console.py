"""The virtio console device (virtio 1.4, 5.3): byte streams between a client partition and its operator.

Each port has two bounded queues of bytes (`virtio/stream.py`); whoever is on the operator's side reads and writes
those, from any thread, and nothing else. What holds for every stream:

* Bytes arrive once and in order, over resets too: what a session took with it unseen is sent again, by the side that
  sent it, because bytes are forgotten, or passed on, only after the `flush` that showed them to the driver.
* Back-pressure in both directions: a transmit buffer stays in the ring while the operator does not read; the operator's
  `put` takes nothing while the driver gives no buffers or has the port closed.
* A console that nobody watches does not stop its partition: then the oldest output makes room for the newest, and
  `dropped` counts it. Who attaches finds the last output. A port that is no console waits instead.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from powervio.errors import LocalError, RemoteError
from powervio.virtio import console as con
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.queue import ByteOrder, DeviceQueue
from powervio.virtio.stream import ByteQueue

LARGEST_BUFFER = 128 * 1024
"""Bytes of one transmit buffer that are taken; a longer one is refused, so that memory stays bounded."""
_TURN = 32
"""Buffers of a queue before others of the partition get their turn."""


class Port:
    """One stream. `to_driver` and `from_driver` may be used from any thread; so may the methods."""

    can_close = True
    """The driver can close it; a virtual terminal's cannot."""

    def __init__(self, device: ConsoleDevice, number: int, name: str, *, console: bool, limit: int) -> None:
        self.number = number
        self.name = name
        self.console = console
        self.to_driver = ByteQueue(limit)
        self.from_driver = ByteQueue(limit)
        self.columns = self.rows = 0
        """Of the operator's terminal; 0 while nobody said."""
        self.attached = False
        """Whether somebody is on the operator's side."""
        self.ready = False
        """Whether the driver said PORT_READY in this session."""
        self.open = False
        """Whether the driver has it open."""
        self.closings = 0
        """How often the driver closed it after it was open."""
        self.removed = False
        self.dropped = 0
        """Bytes of output that were forgotten because nobody watched."""
        self.on_change: Callable[[], None] | None = None
        """Called in the device's thread when the driver opened or closed it, or it was removed."""
        self._device = device
        self._was_open = False
        self.to_driver.on_data = lambda: device.wake(con.receive_queue(number))
        self.from_driver.on_room = lambda: device.wake(con.transmit_queue(number))

    def attach(self) -> None:
        """The operator is there: PORT_OPEN 1. Raises `LocalError` when there is one already, or the port is gone."""
        if self.removed:
            raise LocalError(f"port {self.name or self.number} was removed")
        if self.attached:
            raise LocalError(f"port {self.name or self.number} has somebody attached already")
        self.attached = True
        self._device.in_thread(lambda: self._device.tell_open(self))

    def detach(self) -> None:
        """The operator left: PORT_OPEN 0. What was written before still arrives."""
        self.attached = False
        self.from_driver.on_data = self.on_change = None
        self._device.in_thread(lambda: self._device.tell_open(self))

    def resize(self, columns: int, rows: int) -> None:
        """The operator's terminal has this size now. Raises `LocalError` for what does not fit 16 bits."""
        if not (0 <= columns <= 0xFFFF and 0 <= rows <= 0xFFFF):
            raise LocalError(f"a terminal of {columns} columns and {rows} rows; expected up to 65535 of each")
        self._device.in_thread(lambda: self._device.set_size(self, columns, rows))

    def set_open(self, opened: bool) -> None:
        """For the device: what the driver says of its side."""
        if opened == self.open:
            return
        self.open = opened
        if opened:
            self._was_open = True
        elif self._was_open:
            self._was_open = False
            self.closings += 1
        if self.on_change is not None:
            self.on_change()

    def lose_session(self) -> None:
        """For the device: the driver is gone for now, which closes nothing on purpose."""
        self.ready = self.open = False


class ConsoleDevice(Device):
    """Ports of one client partition. Port 0 is its console."""

    device_id = con.DEVICE_ID
    queue_size = 32

    def __init__(
        self, *, ports: tuple[str, ...] = (), max_ports: int = 4, multiport: bool = True, limit: int = 64 * 1024
    ) -> None:
        """`ports` are names of streams beside the console; `limit` is bytes of each direction of each port.

        Without `multiport` there is the console alone. Raises `LocalError` for more ports than there can be.
        """
        super().__init__()
        if not 1 <= max_ports <= con.MAX_PORTS:
            raise LocalError(f"a console with up to {max_ports} ports; expected 1 to {con.MAX_PORTS}")
        self.multiport = multiport
        self.max_ports = max_ports if multiport else 1
        self.queue_count = con.queues_of(max_ports) if multiport else 2
        self.ports: dict[int, Port] = {}
        self.errors: dict[str, int] = {}
        """What the driver did that it must not, or that had no place to go, by kind."""
        self.bytes_in = 0
        """From the driver."""
        self.bytes_out = 0
        self._limit = limit
        self._ready = False
        self._control: deque[con.Control] = deque()
        self._negotiated = 0
        self._byteorder: ByteOrder = "little"
        self.add_port("console", console=True)
        for name in ports:
            self.add_port(name)

    # What the driver sees

    @property
    def features(self) -> int:
        """Device-type bits (5.3.3)."""
        return con.F_SIZE | con.F_EMERG_WRITE | (con.F_MULTIPORT if self.multiport else 0)

    def config(self, byteorder: ByteOrder) -> bytes:
        """The config space (5.3.4); emerg_wr reads as 0."""
        port = self.ports[0]
        values = {"cols": port.columns, "rows": port.rows, "max_nr_ports": self.max_ports, "emerg_wr": 0}
        return con.LAYOUT.pack(values, self.features, byteorder)

    def early_config(self, offset: int, length: int) -> bool:
        """An emergency write works before everything else does (5.3.4)."""
        return offset == con.EMERG_OFFSET and length == 4

    def write_config(self, offset: int, data: bytes, byteorder: ByteOrder) -> None:
        """`emerg_wr`: one character for the console (5.3.4); the only writable field."""
        _, value = con.LAYOUT.written(offset, data, self.features, byteorder)
        assert isinstance(value, int)
        self._output(self.ports[0], bytes((value & 0xFF,)))

    def start(self, session: DeviceSession) -> None:
        """Without MULTIPORT the console is usable at once; with it the driver says what is (5.3.5)."""
        super().start(session)
        self._negotiated = session.features
        self._byteorder = session.byteorder
        if not session.features & con.F_MULTIPORT:
            self.ports[0].ready = True
            self.ports[0].set_open(True)
        for port in self.ports.values():
            if port.to_driver:
                self.wake(con.receive_queue(port.number))

    def reset(self) -> None:
        """The driver will say again what it has ready and open; the bytes stay."""
        super().reset()
        self._ready = False
        self._control.clear()
        for port in self.ports.values():
            port.lose_session()

    # What the operator's side does

    def find(self, name: str) -> Port:
        """The port of this name, or with this number as its name. Raises `LocalError`."""
        for port in self.ports.values():
            if name in (port.name, str(port.number)):
                return port
        known = ", ".join(port.name for port in self.ports.values())
        raise LocalError(f'the console has no port "{name}"; it has {known}')

    def add_port(self, name: str, *, console: bool = False) -> Port:
        """A new port with the lowest free number; in the device's thread. Raises `LocalError` when there are enough."""
        number = next((number for number in range(self.max_ports) if number not in self.ports), None)
        if number is None:
            raise LocalError(f"the console has {self.max_ports} ports already, which is all it can have")
        if not name or len(name.encode()) > con.NAME_LIMIT or any(name == port.name for port in self.ports.values()):
            raise LocalError(f'"{name}" cannot be the name of a port: it is taken, empty or too long')
        port = Port(self, number, name, console=console, limit=self._limit)
        self.ports[number] = port
        if self._ready:
            self._send(con.Control(number, con.DEVICE_ADD, 0))
        return port

    def remove_port(self, port: Port) -> None:
        """Take a port away, with what is in it; in the device's thread. Raises `LocalError` for the console itself."""
        if port.number == 0 or self.ports.get(port.number) is not port:
            raise LocalError(f"port {port.name} cannot be removed: it is the console, or not there")
        del self.ports[port.number]
        port.removed = True
        port.lose_session()
        if self._ready:
            self._control = deque(entry for entry in self._control if entry.port != port.number or entry.event == 1)
            self._send(con.Control(port.number, con.DEVICE_REMOVE, 0))
            self.wake(con.transmit_queue(port.number))  # what the driver sent there is not kept from it
        if port.on_change is not None:
            port.on_change()

    def close(self) -> None:
        """The device is gone with its partition: operators who are attached are let go."""
        for port in self.ports.values():
            port.removed = True
            if port.on_change is not None:
                port.on_change()

    def tell_open(self, port: Port) -> None:
        """Tell the driver whether the operator's side is open; in the device's thread."""
        if port.ready:
            self._send_latest(con.Control(port.number, con.PORT_OPEN, int(port.attached)))
        self.wake(con.transmit_queue(port.number))  # a console without an operator takes everything

    def set_size(self, port: Port, columns: int, rows: int) -> None:
        """A new size: RESIZE, and for port 0 config too (5.3.6.2, 5.3.5); in the device's thread."""
        if (columns, rows) == (port.columns, port.rows):
            return
        port.columns, port.rows = columns, rows
        if port.ready:
            self._send_size(port)
        if port.number == 0:
            self.config_changed()

    def in_thread(self, call: Callable[[], None]) -> None:
        """Call in the device's thread, from any; at once while no transport gave it one."""
        if self.scheduler is None:
            call()
        else:
            self.scheduler.call_soon_threadsafe(call)

    def wake(self, index: int) -> None:
        """Ask for a turn with a queue, if there is such a queue now; from any thread."""
        session = self.session
        queue = None if session is None else session.queues.get(index)
        if queue is not None:
            queue.wake()

    # Queues

    def process(self, queue: DeviceQueue) -> None:
        """One queue's turn."""
        if queue.index > 1 and not self._negotiated & con.F_MULTIPORT:
            return  # there are no such queues then (5.3.2)
        if queue.index == con.CONTROL_RECEIVE:
            self._give_control(queue)
        elif queue.index == con.CONTROL_TRANSMIT:
            self._take_control(queue)
        elif queue.index % 2:
            self._take(self.ports.get(con.port_of(queue.index)), queue)
        else:
            self._give(self.ports.get(con.port_of(queue.index)), queue)

    def _give(self, port: Port | None, queue: DeviceQueue) -> None:
        """Receive queue: the operator's bytes into the driver's buffers, which else stay where they are."""
        if port is None:
            return
        sent = 0
        for _ in range(_TURN):
            if not port.open or sent >= len(port.to_driver):
                break
            request = queue.pop()
            if request is None:
                break
            data = port.to_driver.peek(sent, request.writable.length)
            if not data:
                self._count("no room")
            try:
                request.writable.write(0, data)
            except RemoteError:
                self._count("memory")
                data = b""
            request.complete(len(data))
            sent += len(data)
            self.requests += 1
        if not queue.flush():
            return
        port.to_driver.consume(sent)
        self.bytes_out += sent
        if port.open and port.to_driver and queue.available:
            queue.wake()

    def _take(self, port: Port | None, queue: DeviceQueue) -> None:
        """Transmit queue: the driver's bytes to the operator, as many buffers as there is room for."""
        taken: list[bytes] = []
        room = 0 if port is None else port.from_driver.room
        endless = port is None or (port.console and not port.attached)
        for _ in range(_TURN):
            if room <= 0 and not endless:
                break
            request = queue.pop()
            if request is None:
                break
            data = b""
            if request.readable.length > LARGEST_BUFFER:
                self._count("too long")
            else:
                try:
                    data = request.readable.read(0, request.readable.length)
                except RemoteError:
                    self._count("memory")
            request.complete(0)
            self.requests += 1
            taken.append(data)
            room -= len(data)
        if not queue.flush():
            return
        if port is None:
            if taken:
                self._count("no port")
            return
        for data in taken:
            self._output(port, data)
        if queue.available and (endless or port.from_driver.room):
            queue.wake()

    def _output(self, port: Port, data: bytes) -> None:
        self.bytes_in += len(data)
        if data:
            port.from_driver.put_all(data)
        if port.console and not port.attached:
            port.dropped += port.from_driver.trim()

    # Control messages (5.3.6.2)

    def _send(self, message: con.Control) -> None:
        self._control.append(message)
        self.wake(con.CONTROL_RECEIVE)

    def _send_latest(self, message: con.Control) -> None:
        """Only the last word of a kind on a port counts, so a driver that does not listen costs no memory."""
        kind = (message.port, message.event)
        self._control = deque(entry for entry in self._control if (entry.port, entry.event) != kind)
        self._send(message)

    def _send_size(self, port: Port) -> None:
        if self._negotiated & con.F_MULTIPORT:
            size = con.pack_size(port.columns, port.rows, self._byteorder)
            self._send_latest(con.Control(port.number, con.RESIZE, 0, size))

    def _give_control(self, queue: DeviceQueue) -> None:
        sent = 0
        while sent < len(self._control):
            request = queue.pop()
            if request is None:
                break
            data = self._control[sent].pack(self._byteorder)
            if len(data) > request.writable.length:
                self._count("no room")
                request.complete(0)
                continue
            try:
                request.writable.write(0, data)
            except RemoteError:
                self._count("memory")
                request.complete(0)
                continue
            request.complete(len(data))
            sent += 1
        if not queue.flush():
            return
        for _ in range(sent):
            self._control.popleft()

    def _take_control(self, queue: DeviceQueue) -> None:
        while (request := queue.pop()) is not None:
            try:
                data = request.readable.read(0, min(request.readable.length, con.CONTROL_BYTES))
                message = con.unpack_control(data, self._byteorder)
            except RemoteError:
                self._count("control")
            else:
                self._control_message(message)
            request.complete(0)

    def _control_message(self, message: con.Control) -> None:
        port = self.ports.get(message.port)
        if message.event == con.DEVICE_READY:
            if message.value == 1 and not self._ready:
                self._ready = True
                for number in sorted(self.ports):
                    self._send(con.Control(number, con.DEVICE_ADD, 0))
        elif port is None or not self._ready or message.event not in (con.PORT_READY, con.PORT_OPEN):
            self._count("control")
        elif message.event == con.PORT_READY:
            if message.value != 1:
                self._count("port refused")
            elif not port.ready:
                self._port_ready(port)
        elif not port.ready:
            self._count("control")
        else:
            port.set_open(message.value == 1)
            if port.open:
                self.wake(con.receive_queue(port.number))

    def _port_ready(self, port: Port) -> None:
        port.ready = True
        if port.console:
            self._send(con.Control(port.number, con.CONSOLE_PORT, 1))
        self._send(con.Control(port.number, con.PORT_NAME, 1, port.name.encode()))
        if port.columns and port.rows:
            self._send_size(port)
        if port.attached:
            self._send_latest(con.Control(port.number, con.PORT_OPEN, 1))

    def _count(self, kind: str) -> None:
        self.errors[kind] = self.errors.get(kind, 0) + 1

    # Moving to another server

    def state(self) -> dict[str, object]:
        """Ports with what is in them, and what the driver was told and said."""
        return {
            "ready": self._ready,
            "control": [[entry.port, entry.event, entry.value, entry.extra.hex()] for entry in self._control],
            "ports": [
                {
                    "number": port.number,
                    "name": port.name,
                    "console": port.console,
                    "ready": port.ready,
                    "open": port.open,
                    "size": [port.columns, port.rows],
                    "input": port.to_driver.peek(0, len(port.to_driver)).hex(),
                    "output": port.from_driver.peek(0, len(port.from_driver)).hex(),
                }
                for port in self.ports.values()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take these over; the ports have to be the same ones. Raises `LocalError` when they are not."""
        try:
            told = {entry["number"]: entry for entry in state["ports"]}
            if {n: (e["name"], e["console"]) for n, e in told.items()} != {
                port.number: (port.name, port.console) for port in self.ports.values()
            }:
                raise LocalError("the console that was handed over has other ports")
            for number, entry in told.items():
                port = self.ports[number]
                port.ready = bool(entry["ready"])
                port.columns, port.rows = entry["size"]
                port.to_driver.put_all(bytes.fromhex(entry["input"]))
                port.from_driver.put_all(bytes.fromhex(entry["output"]))
                port.set_open(bool(entry["open"]))
            self._ready = bool(state["ready"])
            self._control = deque(con.Control(p, e, v, bytes.fromhex(x)) for p, e, v, x in state["control"])
        except (KeyError, TypeError, ValueError) as error:
            raise LocalError(f"not the state of a console: {error!r}") from None
