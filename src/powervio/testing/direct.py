"""A device and its driver connected by mapped memory: no hypervisor, no partitions, one thread.

What device and driver authors test with first. The rings are the real ones, the bytes are in one memory that both
sides reach, and nothing happens until `run`, or as the `schedule` that was given decides::

    link = DirectLink(BlockDevice(backing), driver := BlockDriver())
    link.connect()
    driver.submit(...)
    link.run()

A session can be lost at any point (`disconnect`) and another begun (`connect`), as often as a test likes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Backing, Payload, RingMemory
from powervio.memory.area import PAGE_SIZE, MappedArea
from powervio.testing.clock import ManualScheduler
from powervio.virtio.device import Device, DeviceSession
from powervio.virtio.device_ring import DeviceRing
from powervio.virtio.driver import Driver
from powervio.virtio.driver_ring import DriverRing
from powervio.virtio.packed_device import PackedDeviceRing
from powervio.virtio.packed_driver import PackedDriverRing
from powervio.virtio.queue import Buffer, BufferSlice, ByteOrder, DeviceQueue, DriverQueue, DriverTransport, Segment
from powervio.virtio.split_device import SplitDeviceRing
from powervio.virtio.split_driver import SplitDriverRing
from powervio.virtio.split_layout import available_bytes, descriptors_bytes, used_bytes

VERSION_1 = 1 << 32
BASE = 0x1000_0000
"""Device address of the memory's first byte: not 0, so that an offset taken for an address is noticed."""
TABLE_BYTES = 2048
"""Of one indirect table: 128 descriptors."""


class DirectMemory:
    """The driver's memory, given out by pages and reached by the device at `BASE` and up."""

    def __init__(self, size: int) -> None:
        self._area = MappedArea.create("direct", size)
        self.view = self._area.view
        self._next = 0
        self._free: dict[int, list[int]] = {}

    def allocate(self, length: int) -> Buffer:
        """Zeroed pages for `length` bytes. Raises `LocalError` when there are no more."""
        pages = max(PAGE_SIZE, length + -length % PAGE_SIZE)
        free = self._free.get(pages)
        if free:
            start = free.pop()
            self.view[start : start + pages] = bytes(pages)
        else:
            start = self._next
            if start + pages > len(self.view):
                raise LocalError(f"the memory of {len(self.view)} bytes has no {pages} left")
            self._next = start + pages
        return Buffer(self.view[start : start + length], start, BASE + start)

    def release(self, buffer: Buffer) -> None:
        """Take pages back."""
        pages = max(PAGE_SIZE, buffer.length + -buffer.length % PAGE_SIZE)
        self._free.setdefault(pages, []).append(buffer.address)

    def reach(self, address: int, length: int) -> memoryview:
        """What the device sees at an address. Raises `RemoteError` for what is not this memory."""
        start = address - BASE
        if start < 0 or start + length > len(self.view):
            raise RemoteError(f"{length} bytes at {address:#x} are not the driver's memory")
        return self.view[start : start + length]

    def close(self) -> None:
        """Unmap it."""
        self.view.release()
        self._area.close()


class MappedRing(RingMemory):
    """The areas of a queue, both sides' own memory; those of a split ring are large enough for a packed one."""

    def __init__(self, memory: DirectMemory, size: int) -> None:
        self._memory = memory
        self._buffers = [
            memory.allocate(bytes_of(size)) for bytes_of in (descriptors_bytes, available_bytes, used_bytes)
        ]
        self.descriptors, self.available, self.used = (buffer.view for buffer in self._buffers)

    def fetch_table(self, address: int, length: int) -> memoryview:
        """The table where the driver put it."""
        return self._memory.reach(address, length)

    def release(self) -> None:
        """Give the areas back."""
        for buffer in self._buffers:
            self._memory.release(buffer)


class MappedPayload(Payload):
    """Data of a request where they are. Counts what a remote transport would pay for: `moves`, one for each segment."""

    moves = 0

    def __init__(self, memory: DirectMemory, segments: list[Segment]) -> None:
        self._memory = memory
        self._segments = segments
        self.length = sum(length for _, length in segments)

    def _pieces(self, offset: int, length: int) -> list[memoryview]:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} of a payload of {self.length}")
        pieces = []
        for address, size in self._segments:
            if length and offset < size:
                count = min(size - offset, length)
                pieces.append(self._memory.reach(address + offset, count))
                MappedPayload.moves += 1
                length -= count
                offset = 0
            else:
                offset -= min(offset, size)
        return pieces

    def read(self, offset: int, length: int) -> bytes:
        """Copy out."""
        return b"".join(self._pieces(offset, length))

    def write(self, offset: int, data: bytes) -> None:
        """Copy in."""
        for piece in self._pieces(offset, len(data)):
            piece[:] = data[: len(piece)]
            data = data[len(piece) :]

    def fill_from(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """Read from the backing, segment by segment."""
        for piece in self._pieces(offset, length):
            backing.read_into(position, piece)
            position += len(piece)

    def drain_to(self, backing: Backing, position: int, offset: int, length: int) -> None:
        """Write to the backing, segment by segment."""
        for piece in self._pieces(offset, length):
            backing.write_from(position, piece)
            position += len(piece)


class DirectDriverQueue(DriverQueue):
    """The driver's side of a queue of a `DirectLink`."""

    def __init__(self, link: DirectLink, index: int, ring: DriverRing, indirect: bool) -> None:
        self.index = index
        self.size = ring.size
        self.ring = ring
        self._link = link
        self._indirect = indirect
        self._spare: list[Buffer] = []
        self._tables: list[Buffer] = []

    def add(self, readable: Sequence[BufferSlice], writable: Sequence[BufferSlice], token: object) -> bool:
        """Make a buffer available."""
        segments = []
        for buffer, offset, length in (*readable, *writable):
            if buffer.device_address is None or offset < 0 or offset + length > buffer.length:
                raise LocalError(f"slice of {length} bytes at {offset} of a buffer of {buffer.length}")
            segments.append((buffer.device_address + offset, length))
        segments = [part for segment in segments for part in self._link.framing(segment)]
        count = len(readable) if self._link.framing is whole else self._readable(readable)
        if not self._indirect or len(segments) < 2:
            return self.ring.add(segments, count, (token, None)) >= 0
        table = self._spare.pop() if self._spare else self._link.memory.allocate(TABLE_BYTES)
        assert table.device_address is not None
        if self.ring.add(segments, count, (token, table), (table.view, table.device_address)) < 0:
            self._spare.append(table)
            return False
        self._tables.append(table)
        return True

    def _readable(self, readable: Sequence[BufferSlice]) -> int:
        return sum(len(self._link.framing(((buffer.device_address or 0) + at, n))) for buffer, at, n in readable)

    def kick(self) -> None:
        """Publish; the link processes the queue when it runs."""
        if self.ring.publish():
            self._link.kicked(self.index)

    def reap(self) -> tuple[object, int] | None:
        """The next used buffer."""
        used = self.ring.reap()
        if used is None:
            return None
        pair, written = used
        assert isinstance(pair, tuple)
        token, table = pair
        if table is not None:
            self._tables.remove(table)
            self._spare.append(table)
        return token, written

    def release(self) -> None:
        """Give the tables back."""
        for table in (*self._spare, *self._tables):
            self._link.memory.release(table)


def whole(segment: Segment) -> list[Segment]:
    """Descriptors as the driver asked for them."""
    return [segment]


def bytewise(segment: Segment) -> list[Segment]:
    """Short parts in descriptors of one byte, long ones with a byte split off at both ends: framing must not matter."""
    address, length = segment
    if length <= 32:
        return [(address + at, 1) for at in range(length)]
    return [(address, 1), (address + 1, length - 2), (address + length - 1, 1)]


class _DirectTransport(DriverTransport):
    """One session as the driver sees it."""

    def __init__(self, link: DirectLink, features: int, queues: Sequence[DriverQueue]) -> None:
        self._link = link
        self.features = features
        self.byteorder: ByteOrder = link.byteorder
        self.queues = queues

    def config(self) -> bytes:
        return self._link.device.config(self.byteorder)

    def write_config(self, offset: int, data: bytes) -> None:
        self._link.device.write_config(offset, data, self.byteorder)

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        return self._link.memory.allocate(length)

    def release(self, buffer: Buffer) -> None:
        self._link.memory.release(buffer)


class DirectLink:
    """One device, one driver, and the memory between them."""

    def __init__(
        self,
        device: Device,
        driver: Driver,
        *,
        byteorder: ByteOrder = "little",
        indirect: bool = False,
        event_idx: bool = False,
        packed: bool = False,
        in_order: bool = False,
        queue_size: int = 128,
        memory: int = 64 << 20,
        framing: Callable[[Segment], list[Segment]] = whole,
        schedule: Callable[[Callable[[], None]], object] | None = None,
    ) -> None:
        """`byteorder` "big" makes it a legacy device of a big-endian guest, whose rings cannot be `packed`. `memory` is
        bytes.

        `framing` cuts what the driver adds into descriptors: `whole`, `bytewise` or a test's own. `schedule` is
        called with `run` whenever a side tells the other (an event loop's `call_soon`); without it a test runs it.
        """
        self.device = device
        self.driver = driver
        self.byteorder = byteorder
        self.indirect = indirect
        self.event_idx = event_idx
        self.packed = packed
        self.in_order = in_order
        self.queue_size = queue_size
        self.memory = DirectMemory(memory)
        self.framing = framing
        self.features = 0
        self.kicks = 0
        """Kicks the driver sent."""
        self.notifications = 0
        """Used notifications the device sent."""
        self._schedule = schedule
        self.scheduler = ManualScheduler()
        """The device's turns and time; `advance` lets time pass."""
        self._kicked: set[int] = set()
        self._notified: set[int] = set()
        self._rings: list[MappedRing] = []
        self.device_queues: list[DeviceQueue] = []
        self.driver_queues: list[DirectDriverQueue] = []
        device.on_config_change = driver.config_changed
        device.scheduler = self.scheduler

    def connect(self) -> None:
        """Begin a session: negotiate, make the rings, start both."""
        version = VERSION_1 if self.byteorder == "little" else 0
        self.features = self.driver.select_features(self.device.features) & self.device.features | version
        count = self.driver.queue_count(self.features, self.device.config(self.byteorder), self.byteorder)
        if not 1 <= count <= self.device.queue_count:
            raise LocalError(f"the driver wants {count} queues, the device has {self.device.queue_count}")
        size = min(self.queue_size, self.device.queue_size)
        for index in range(count):
            ring = MappedRing(self.memory, size)
            driver_ring, device_ring = self._make_rings(size, ring)
            self._rings.append(ring)
            self.driver_queues.append(DirectDriverQueue(self, index, driver_ring, self.indirect))
            self.device_queues.append(DeviceQueue(index, device_ring, self._payload, self.notified, wake=self.woken))
        self.device.start(DeviceSession(self.features, self.byteorder, dict(enumerate(self.device_queues))))
        self.driver.start(_DirectTransport(self, self.features, self.driver_queues))

    def _make_rings(self, size: int, memory: MappedRing) -> tuple[DriverRing, DeviceRing]:
        event_idx, indirect, in_order = self.event_idx, self.indirect, self.in_order
        if self.packed:
            return (
                PackedDriverRing(size, memory, event_idx=event_idx, indirect=indirect, in_order=in_order),
                PackedDeviceRing(size, memory, event_idx=event_idx, indirect=indirect, in_order=in_order),
            )
        big = self.byteorder == "big"
        return (
            SplitDriverRing(size, memory, big_endian=big, event_idx=event_idx, indirect=indirect, in_order=in_order),
            SplitDeviceRing(size, memory, big_endian=big, event_idx=event_idx, indirect=indirect, in_order=in_order),
        )

    def disconnect(self) -> None:
        """Lose the session: both sides' rings are gone, whatever is in them. What the device published stays reaped if
        the test called `run_driver` before; a real transport lets the driver reap it in any case."""
        self.device.reset()
        for device_queue in self.device_queues:
            device_queue.live = False
        self.driver.stop()
        for queue in self.driver_queues:
            queue.release()
        for ring in self._rings:
            ring.release()
        self.device_queues, self.driver_queues, self._rings = [], [], []
        self._kicked.clear()
        self._notified.clear()

    def close(self) -> None:
        """End the session, if there is one, and unmap the memory."""
        if self.device_queues:
            self.disconnect()
        self.memory.close()

    def _payload(self, queue: DeviceQueue, segments: list[Segment]) -> Payload:
        return MappedPayload(self.memory, segments)

    def kicked(self, index: int) -> None:
        """The driver's notification."""
        self.kicks += 1
        self._kicked.add(index)
        if self._schedule is not None:
            self._schedule(self.run)

    def notified(self, index: int) -> None:
        """The device's notification."""
        self.notifications += 1
        self._notified.add(index)
        if self._schedule is not None:
            self._schedule(self.run)

    def woken(self, queue: DeviceQueue) -> None:
        """The device wants a turn with a queue; in any thread."""

        def turn() -> None:
            if queue.woken():
                self.device.process(queue)
                queue.flush()

        self.scheduler.call_soon_threadsafe(turn)
        if self._schedule is not None:
            self._schedule(self.run)

    def advance(self, seconds: float) -> None:
        """Let time pass for the device, and run what comes of it."""
        self.scheduler.advance(seconds)
        self.run()

    def run_device(self) -> None:
        """Let the device serve the queues that it was kicked for, and those that it asked for itself."""
        while self._kicked or self.scheduler.busy:
            self.scheduler.run()
            if not self._kicked:
                continue
            queue = self.device_queues[self._kicked.pop()]
            while True:
                queue.ring.refresh()
                self.device.process(queue)
                if not queue.ring.enable_notifications():
                    break
            queue.flush()

    def run_driver(self) -> None:
        """Let the driver finish what the device gave back."""
        while self._notified:
            queue = self.driver_queues[self._notified.pop()]
            self.driver.completed(queue)
            while queue.ring.enable_interrupts():
                self.driver.completed(queue)

    def run(self) -> None:
        """Run both sides until neither has anything to do."""
        while self._kicked or self._notified or self.scheduler.busy:
            self.run_device()
            self.run_driver()
