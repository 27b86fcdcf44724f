"""What frames cost over CRQ, exactly, with mergeable buffers that lie side by side.

Whoever changes a number here says in the commit why it changed.
"""

from __future__ import annotations

import pytest
from tests.devices.net_frames import MAC, TCP4, ipv4, tcp

from powervio.bench.cost import RDMA_CALLS
from powervio.devices.net import NetDevice
from powervio.network.loopback import LoopbackPort
from powervio.network.port import Frame
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import net

WIRE = bytes(12) + ipv4(tcp(1460), 6)
"""1500 bytes and an Ethernet header, behind a virtio-net header."""


class Wire(LoopbackPort):
    """What is sent is kept, and does not come back."""

    def __init__(self) -> None:
        super().__init__()
        self.out: list[Frame] = []

    def send(self, frame: Frame) -> bool:
        self.out.append(frame)
        return True


class Connected:
    """A pair of partitions; buffers of a driver that has them all in one piece of memory."""

    def __init__(self, *, packed: bool = False, in_order: bool = False) -> None:
        self.port = Wire()
        self.device = NetDevice(self.port, mac=MAC)
        self.driver = RawDriver(queues=2)
        self.driver.device_id = net.DEVICE_ID  # type: ignore[misc]
        self.pair = PartitionPair(self.device, self.driver, packed=packed, in_order=in_order).start()
        self._before = self.pair.server_adapter.ledger.snapshot()

    def offer(self, count: int, length: int) -> list[Exchange]:
        exchanges = [self.driver.send([], [length], net.RECEIVE) for _ in range(count)]
        self.pair.settle()
        return exchanges

    def copies(self) -> int:
        """Remote copies since the last look."""
        now = self.pair.server_adapter.ledger.snapshot()
        since, self._before = now - self._before, now
        return sum(count for name, count in since["hcalls"].items() if name in RDMA_CALLS)


@pytest.mark.dual
@pytest.mark.parametrize(
    ("packed", "in_order", "sent", "received"), [(False, False, 4, 6), (True, False, 4, 6), (True, True, 3, 6)]
)
def test_frames_of_1500_bytes_under_load(packed: bool, in_order: bool, sent: int, received: int) -> None:
    connected = Connected(packed=packed, in_order=in_order)
    exchanges = connected.offer(64, 1600)
    connected.copies()
    given = [connected.driver.send([WIRE], [], net.TRANSMIT) for _ in range(64)]
    connected.pair.settle()
    assert connected.copies() == sent
    assert [frame.data for frame in connected.port.out] == [WIRE[12:]] * 64
    for _ in range(64):
        connected.port.put(Frame(WIRE[12:]))
    connected.pair.settle()
    assert connected.copies() == received
    assert all(exchange.used == 0 for exchange in given)
    assert {exchange.answer[: exchange.used] for exchange in exchanges} == {bytes(10) + b"\1\0" + WIRE[12:]}
    # what was copied along behind a frame is nobody else's
    assert {bytes(exchange.answer[exchange.used or 0 :]) for exchange in exchanges[:-1]} <= {bytes(74), b"\xee" * 74}
    connected.pair.close()


@pytest.mark.dual
def test_frames_of_1500_bytes_in_buffers_far_apart() -> None:
    connected = Connected()
    connected.offer(32, 8192)
    connected.copies()
    for _ in range(32):
        connected.driver.send([bytes(12), WIRE[12:]], [], net.TRANSMIT)
        connected.driver.send([bytes(70_000)], [], net.TRANSMIT)  # too long for a frame: it is not even read
    connected.pair.settle()
    sent = connected.copies()
    for _ in range(32):
        connected.port.put(Frame(WIRE[12:]))
    connected.pair.settle()
    received = connected.copies()
    assert len(connected.port.out) == connected.device.to_driver.frames == 32
    assert sent + received <= 3 * 32  # of 1500 bytes, both ways: the bound of the project
    assert (sent, received) == (35, 34)
    connected.pair.close()


@pytest.mark.dual
def test_large_frames_cross_as_one() -> None:
    connected = Connected()
    data = ipv4(tcp(64_000), 6)
    exchanges = connected.offer(64, 4096)
    connected.copies()
    for _ in range(4):
        connected.driver.send([TCP4, data], [], net.TRANSMIT)
    connected.pair.settle()
    sent = connected.copies()
    for frame in connected.port.out:
        connected.port.put(frame)
    connected.pair.settle()
    received = connected.copies()
    assert [frame.gso for frame in connected.port.out] == [net.GSO_TCPV4] * 4
    assert connected.device.to_driver.frames == 4
    whole = b"".join(exchange.answer[: exchange.used] for exchange in exchanges if exchange.used)
    assert whole.count(data[:14]) == 4
    assert (sent, received) == (4, 6)
    connected.pair.close()
