"""Frames from client to client of one VIO server: what arrives, and what stays the devices' Python's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.devices.net_frames import ALL, TCP4, header, ipv4, tcp
from tests.network.switching import MAC, ethernet, tag

from powervio.devices.net import NetDevice
from powervio.devices.net_relay import Relay
from powervio.network.frame import Frame
from powervio.network.port import Offload
from powervio.network.switch import PortOptions, Switch, SwitchPort
from powervio.phyp.hypervisor import Hypervisor
from powervio.testing.raw import Exchange, RawDriver
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import net

PLAIN = header()
WITHOUT_ANY_OFFLOAD = net.F_MAC | net.F_MRG_RXBUF | (1 << 32)


def segment(payload: int, to: bytes = MAC[2]) -> bytes:
    """A frame with TCP from the first client."""
    return to + MAC[1] + ipv4(tcp(payload), 6)[12:]


class Client:
    """A client partition with a raw driver, whose device is at a port of the switch."""

    def __init__(self, house: House, number: int, features: int, packed: bool, **options: Any) -> None:
        self.mac = MAC[number]
        partition = house.hypervisor.create_partition(f"client{number}", 16 << 20)
        ends = house.hypervisor.create_pair(house.server_partition, partition)
        self.port = house.switch.add(PortOptions(name=partition.name, mac=self.mac, **options))
        self.device = NetDevice(self.port, mac=self.mac, relay=house.relay)
        self.driver = RawDriver(features, queues=2)
        self.driver.device_id = net.DEVICE_ID  # type: ignore[misc]
        self.kernel = PartitionKernel(partition.port)
        self.server = VirtioCrq(house.server, ends[0].node, self.device)
        self.server.start()
        self.end = VirtioVio(self.kernel, ends[1].node, self.driver, packed=packed)
        self.end.start()
        self._adapter = ends[1]

    def buffers(self, count: int, length: int = 70_000) -> list[Exchange]:
        return [self.driver.send([], [length], net.RECEIVE) for _ in range(count)]

    def transmit(self, *parts: bytes) -> Exchange:
        return self.driver.send(list(parts), [], net.TRANSMIT)


class House:
    """A hypervisor, a VIO server, and clients at one switch; everybody has turns in one thread."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.switch = Switch(seed=1)
        self.relay = Relay(self.switch)
        self.server_partition = self.hypervisor.create_partition("vios1", 16 << 20)
        self.server = PartitionKernel(self.server_partition.port)
        self.clients: list[Client] = []

    def client(self, *, features: int = ALL, packed: bool = False, **options: Any) -> Client:
        client = Client(self, len(self.clients) + 1, features, packed, **options)
        self.clients.append(client)
        self.settle()
        return client

    def port(self, **options: Any) -> SwitchPort:
        return self.switch.add(PortOptions(name="other", **options))

    def settle(self) -> None:
        kernels = [self.server, *(client.kernel for client in self.clients)]
        for _ in range(10_000):
            worked = [kernel.poll() for kernel in kernels]
            if not any(worked):
                return
        raise AssertionError("partitions go round in circles")

    def close(self) -> None:
        for kernel in (self.server, *(client.kernel for client in self.clients)):
            kernel.close()
        self.hypervisor.close()
        self.switch.close()


@pytest.fixture
def house() -> Iterator[House]:
    built = House()
    yield built
    built.close()


def received(exchanges: list[Exchange]) -> list[bytes]:
    """What is in the buffers that were used, one after the other."""
    return [exchange.answer[: exchange.used] for exchange in exchanges if exchange.used is not None]


@pytest.mark.dual
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("length", [60, 255, 256, 257, 4083, 4084, 4085, 9014])
def test_a_frame_arrives_as_it_was_sent(house: House, packed: bool, length: int) -> None:
    one, two = house.client(packed=packed, mtu=9000), house.client(packed=packed, mtu=9000)
    buffers = two.buffers(4)
    house.settle()
    data = ethernet(two.mac, one.mac, payload=length - 14)
    sent = one.transmit(PLAIN + data)
    house.settle()
    assert sent.used == 0
    assert received(buffers) == [bytes(10) + b"\1\0" + data]
    assert house.relay.forwarded == 1
    assert one.device.from_driver.frames == two.device.to_driver.frames == 1
    assert one.device.from_driver.bytes == two.device.to_driver.bytes == length
    assert (one.port.counters().sent, two.port.counters().received) == (1, 1)
    assert two.port.counters().received_bytes == length


@pytest.mark.dual
@pytest.mark.parametrize("parts", [(12,), (12, 80, 2000), (5, 7, 14, 30_000), (1,) * 40])
def test_a_large_frame_goes_from_client_to_client(house: House, parts: tuple[int, ...]) -> None:
    one, two = house.client(), house.client()
    buffers = two.buffers(8, 20_000)
    house.settle()
    data = TCP4 + segment(64_000)
    pieces = []
    for length in parts:
        pieces.append(data[:length])
        data = data[length:]
    one.transmit(*pieces, data)
    house.settle()
    whole = b"".join([*pieces, data])
    assert b"".join(received(buffers)) == TCP4[:10] + b"\4\0" + whole[12:]
    assert [exchange.used for exchange in buffers[:5]] == [20_000, 20_000, 20_000, len(whole) - 60_000, None]
    assert house.relay.forwarded == 1


@pytest.mark.dual
def test_many_frames_keep_their_order_also_when_buffers_run_out(house: House) -> None:
    one, two = house.client(), house.client()
    buffers = two.buffers(5, 2000)
    house.settle()
    frames = [ethernet(two.mac, one.mac, payload=50 + number, first=number) for number in range(100)]
    for data in frames[:60]:
        one.transmit(PLAIN + data)
    house.settle()
    assert len(received(buffers)) == 5
    assert two.port.waiting == 55
    for data in frames[60:]:
        one.transmit(PLAIN + data)
    buffers += two.buffers(40, 2000)
    house.settle()
    buffers += two.buffers(60, 2000)
    house.settle()
    assert [data[12:] for data in received(buffers)] == frames
    assert two.port.waiting == 0
    before = house.relay.forwarded
    one.transmit(PLAIN + frames[0])
    house.settle()
    assert house.relay.forwarded == before + 1  # nothing waits any more
    assert one.device.from_driver.frames == two.device.to_driver.frames == 101


@pytest.mark.dual
def test_small_buffers_of_several_frames(house: House) -> None:
    one, two = house.client(), house.client()
    buffers = two.buffers(30, 600)
    house.settle()
    frames = [ethernet(two.mac, one.mac, payload=1400, first=number) for number in range(8)]
    for data in frames:
        one.transmit(PLAIN + data)
    house.settle()
    found = received(buffers)
    assert len(found) == 24
    assert [b"".join(found[at : at + 3])[12:] for at in range(0, 24, 3)] == frames
    assert {found[at][10] for at in range(0, 24, 3)} == {3}


@pytest.mark.dual
@pytest.mark.parametrize(
    ("sender", "receiver", "sent", "arrives"),
    [
        ({"pvid": 10}, {"pvid": 10}, None, None),
        ({"pvid": 10}, {"pvid": 1, "vlans": (10,)}, None, 10),
        ({"pvid": 1, "vlans": (10,)}, {"pvid": 10}, 10, None),
        ({"pvid": 1, "vlans": (10,)}, {"pvid": 1, "vlans": (10,)}, 10, 10),
    ],
)
@pytest.mark.parametrize("payload", [80, 20_000])
def test_tags(
    house: House, sender: dict[str, Any], receiver: dict[str, Any], sent: int | None, arrives: int | None,
    payload: int,
) -> None:  # fmt: skip
    one, two = house.client(**sender), house.client(**receiver)
    buffers = two.buffers(4)
    house.settle()
    bare = segment(payload)
    moved = 4 if sent is not None else 0
    out = tag(bare, sent) if sent is not None else bare
    for _ in range(2):
        one.transmit(header(net.H_NEEDS_CSUM, net.GSO_TCPV4, 54 + moved, 1400, 34 + moved, 16) + out)
    house.settle()
    moved = 4 if arrives is not None else 0
    expected = header(net.H_NEEDS_CSUM, net.GSO_TCPV4, 54 + moved, 1400, 34 + moved, 16)[:10] + b"\1\0"
    expected += tag(bare, arrives) if arrives is not None else bare
    assert received(buffers) == [expected, expected]
    assert house.relay.forwarded == 2


@pytest.mark.dual
def test_other_vlans_hear_nothing(house: House) -> None:
    one, two = house.client(pvid=10), house.client(pvid=20)
    buffers = two.buffers(4)
    house.settle()
    for to in (two.mac, b"\xff" * 6):
        one.transmit(PLAIN + ethernet(to, one.mac))
    house.settle()
    assert received(buffers) == []
    assert one.device.from_driver.dropped == {"port": 2}


@pytest.mark.dual
def test_a_receiver_that_takes_no_offload_gets_segments(house: House) -> None:
    one, two = house.client(), house.client(features=WITHOUT_ANY_OFFLOAD)
    buffers = two.buffers(8, 2000)
    house.settle()
    one.transmit(TCP4 + segment(4000))
    one.transmit(PLAIN + ethernet(two.mac, one.mac))
    house.settle()
    assert [len(data) for data in received(buffers)] == [12 + 54 + 1448, 12 + 54 + 1448, 12 + 54 + 1104, 12 + 60]
    assert house.relay.forwarded == 0  # what follows must not come before


@pytest.mark.dual
def test_frames_for_all_and_for_ports_elsewhere(house: House) -> None:
    one, two, three = house.client(), house.client(), house.client()
    elsewhere = house.port(mac=MAC[9])
    buffers = {client: client.buffers(4) for client in (two, three)}
    house.settle()
    everybody = ethernet(b"\xff" * 6, one.mac)
    large = segment(30_000, MAC[9])
    one.transmit(PLAIN + everybody)
    one.transmit(TCP4 + large)
    one.transmit(PLAIN + ethernet(two.mac, one.mac, payload=99))
    house.settle()
    assert received(buffers[three]) == [bytes(10) + b"\1\0" + everybody]
    assert [data[12:] for data in received(buffers[two])] == [everybody, ethernet(two.mac, one.mac, payload=99)]
    elsewhere.take(Offload.CSUM | Offload.TSO4)
    assert elsewhere.receive() == Frame(everybody)
    assert elsewhere.receive() == Frame(large, (34, 16), False, net.GSO_TCPV4, 1448, 54)
    assert one.device.from_driver.frames == 3
    assert one.port.sent == 3


@pytest.mark.dual
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (PLAIN + bytes(10), "too short"),
        (PLAIN + ethernet(MAC[2], MAC[1], payload=1501), "too long"),
        (PLAIN + ethernet(MAC[2], MAC[1], payload=70_000), "too long"),
        (header(net.H_NEEDS_CSUM, 0, 0, 0, 60, 40) + ethernet(MAC[2], MAC[1]), "checksum outside"),
        (header(net.H_NEEDS_CSUM, net.GSO_TCPV4, 54, 0, 34, 16) + segment(4000), "segmentation"),
        (header(0, net.GSO_TCPV4, 54, 1448, 34, 16) + segment(4000), "segmentation"),
        (header(net.H_NEEDS_CSUM, 99, 54, 1448, 34, 16) + segment(4000), "not negotiated"),
        (PLAIN + ethernet(MAC[2], MAC[5]), "port"),
    ],
    ids=["short", "long", "longest", "checksum", "size", "flag", "kind", "source"],
)
def test_what_is_refused_and_what_comes_after_it(house: House, data: bytes, reason: str) -> None:
    one, two = house.client(), house.client()
    buffers = two.buffers(8)
    house.settle()
    good = [ethernet(two.mac, one.mac, payload=60 + number, first=number) for number in range(3)]
    sent = [one.transmit(PLAIN + good[0]), one.transmit(data), *(one.transmit(PLAIN + frame) for frame in good[1:])]
    house.settle()
    assert [data[12:] for data in received(buffers)] == good
    assert one.device.from_driver.dropped == {reason: 1}
    assert [exchange.used for exchange in sent] == [0] * 4
    assert one.device.requests == 4


@pytest.mark.dual
def test_what_is_not_the_drivers_to_give(house: House) -> None:
    """Nobody learns anything of memory that is not mapped, and others' frames go on."""
    one, two = house.client(), house.client()
    buffers = two.buffers(8)
    house.settle()
    assert one.driver.transport is not None
    queue = one.driver.transport.queues[net.TRANSMIT]
    for length in (100, 20_000):
        gone = one.driver.transport.allocate(32_768, mapped=True)
        gone.view[:12] = TCP4
        gone.view[12:5000] = segment(5000)[: 5000 - 12]
        assert queue.add([(gone, 0, length)], [], Exchange(gone, 0, 0))
        one.transmit(PLAIN + ethernet(two.mac, one.mac))
        one.driver.transport.release(gone)
    house.settle()
    assert [data[12:] for data in received(buffers)] == [ethernet(two.mac, one.mac)] * 2
    assert one.device.from_driver.dropped == {"memory": 2}


@pytest.mark.dual
def test_receive_buffers_that_are_not_mapped_go_back_empty(house: House) -> None:
    one, two = house.client(), house.client()
    assert two.driver.transport is not None
    gone = two.driver.transport.allocate(65_536, mapped=True)
    lost = Exchange(gone, 0, 0)
    assert two.driver.transport.queues[net.RECEIVE].add([], [(gone, 0, 65_536)], lost)
    buffers = two.buffers(1)
    house.settle()
    two.driver.transport.release(gone)
    for number in range(2):
        one.transmit(PLAIN + ethernet(two.mac, one.mac, first=number))
    house.settle()
    assert lost.used == 0
    assert [data[12:] for data in received(buffers)] == [ethernet(two.mac, one.mac, first=1)]
    assert two.device.to_driver.dropped == {"memory": 1}


@pytest.mark.dual
def test_bad_receive_buffers(house: House) -> None:
    one, two = house.client(), house.client()
    bad = [two.driver.send([b"x"], [2000], net.RECEIVE), two.driver.send([], [4], net.RECEIVE)]
    buffers = two.buffers(1)
    house.settle()
    one.transmit(PLAIN + ethernet(two.mac, one.mac))
    house.settle()
    assert [exchange.used for exchange in bad] == [0, 0]
    assert [data[12:] for data in received(buffers)] == [ethernet(two.mac, one.mac)]
    assert two.device.bad_buffers == 2


@pytest.mark.dual
def test_filters_links_and_suspended_devices(house: House) -> None:
    one, two = house.client(), house.client()
    buffers = two.buffers(8)
    house.settle()
    frame = PLAIN + ethernet(two.mac, one.mac)
    two.device.set_link(False)
    house.settle()
    one.transmit(frame)
    house.settle()
    assert received(buffers) == []
    assert two.device.to_driver.dropped == {"link down": 1}
    two.device.set_link(True)
    house.settle()
    one.device.set_link(False)
    house.settle()
    one.transmit(frame)
    house.settle()
    assert one.device.from_driver.dropped == {"link down": 1}
    one.device.set_link(True)
    house.settle()
    two.end.suspend(lambda error: None)
    house.settle()
    one.transmit(frame)
    house.settle()
    assert received(buffers) == []
    two.end.resume()
    house.settle()
    assert [data[12:] for data in received(buffers)] == [ethernet(two.mac, one.mac)]


@pytest.mark.dual
def test_the_receivers_session_ends_and_begins_again(house: House) -> None:
    one, two = house.client(), house.client()
    two.buffers(8)
    house.settle()
    frame = PLAIN + ethernet(two.mac, one.mac)
    two.end.stop()
    house.settle()
    one.transmit(frame)
    house.settle()
    two.end.start()
    house.settle()
    buffers = two.buffers(8)
    house.settle()
    one.transmit(PLAIN + ethernet(two.mac, one.mac, payload=77))
    house.settle()
    assert [data[12:] for data in received(buffers)] == [ethernet(two.mac, one.mac, payload=77)]
    two.device.close()
    one.transmit(frame)
    house.settle()
    assert one.device.from_driver.dropped == {"port": 1}
