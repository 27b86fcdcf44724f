"""A network device at a port of the test's own, and a raw driver, joined directly."""

from __future__ import annotations

from collections.abc import Callable

from tests.devices.net_frames import ALL, MAC

from powervio.devices.net import NetDevice
from powervio.network.port import Frame, Port
from powervio.testing.direct import DirectLink, whole
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import net
from powervio.virtio.queue import Segment


class QueuePort(Port):
    """What is sent is kept; what arrives is what a test puts there."""

    name = "queue"

    def __init__(self, mtu: int = 1500) -> None:
        super().__init__()
        self.mtu = mtu
        self.out: list[Frame] = []
        self.arriving: list[Frame] = []
        self.full = False

    def send(self, frame: Frame) -> bool:
        if self.full:
            return self.drop("full")
        self.out.append(
            Frame(bytes(frame.data), frame.partial, frame.valid, frame.gso, frame.gso_size, frame.header_bytes)
        )
        return True

    def put(self, *frames: bytes | Frame) -> None:
        self.arriving += [frame if isinstance(frame, Frame) else Frame(frame) for frame in frames]
        if self.on_arrival is not None:
            self.on_arrival()

    def receive(self) -> Frame | None:
        return self.arriving.pop(0) if self.arriving else None


class Joined:
    """A device at a `QueuePort` and a raw driver."""

    def __init__(
        self,
        features: int = ALL,
        *,
        mtu: int | None = None,
        big_endian: bool = False,
        packed: bool = False,
        in_order: bool = False,
        framing: Callable[[Segment], list[Segment]] = whole,
        queue_size: int = 128,
        pairs: int = 1,
        queues: int = 2,
    ) -> None:
        self.port = QueuePort()
        self.device = NetDevice(self.port, mac=MAC, mtu=mtu, pairs=pairs)
        self.driver = RawDriver(features, queues=queues)
        self.driver.device_id = net.DEVICE_ID  # type: ignore[misc]
        self.link = DirectLink(
            self.device,
            self.driver,
            byteorder="big" if big_endian else "little",
            packed=packed,
            in_order=in_order,
            framing=framing,
            queue_size=queue_size,
        )
        self.link.connect()

    def transmit(self, *parts: bytes, pair: int = 0) -> Exchange:
        exchange = self.driver.send(list(parts), [], 2 * pair + net.TRANSMIT)
        self.link.run()
        return exchange

    def offer(self, *lengths: int, pair: int = 0) -> Exchange:
        exchange = self.driver.send([], list(lengths), 2 * pair + net.RECEIVE)
        self.link.run()
        return exchange

    def command(self, *parts: bytes, answer: int = 1) -> bytes:
        """Send a command, and what is answered, up to so many bytes."""
        exchange = self.driver.send(list(parts), [answer], 2 * self.device.pairs)
        self.link.run()
        assert exchange.times == 1
        assert exchange.used is not None
        return exchange.answer[: exchange.used]

    def arrive(self, *frames: bytes | Frame) -> None:
        self.port.put(*frames)
        self.link.run()
