"""A virtio-net device that stands on a logical LAN adapter: what a VIO server in a process of its own serves."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.native.lan_rig import EVERYTHING, Rig, ethernet, large, mac, same, tcp

from powervio.devices.net import NetDevice
from powervio.drivers.net import NetDriver
from powervio.native.lan_client import LanPort
from powervio.network.port import Frame
from powervio.network.switch import PortOptions, SwitchPort
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import net

pytestmark = pytest.mark.dual

HEADER = net.HEADER["little"]


class Served:
    """A client partition whose network device stands on a `LanPort` of its VIO server; somebody else at the switch."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.lan: LanPort = rig.client()
        server = rig.kernels[-1]
        partitions = rig.hypervisor.partitions
        client = rig.hypervisor.create_partition("client", 16 << 20)
        kernel = PartitionKernel(client.port)
        rig.kernels.append(kernel)
        ends = rig.hypervisor.create_pair(partitions[server.port.partition_id], client)
        self.device = NetDevice(self.lan, mac=self.lan.mac)
        VirtioCrq(server, ends[0].node, self.device).start()
        self.driver = NetDriver()
        self.got: list[bytes] = []
        self.headers: list[tuple[int, ...]] = []
        self.driver.on_frame = self._frame
        VirtioVio(kernel, ends[1].node, self.driver).start()
        self.other: SwitchPort = rig.switch.add(PortOptions(name="other", mac=mac(90)))
        self.other.take(EVERYTHING)
        rig.settle()

    def _frame(self, pieces: list[memoryview]) -> None:
        data = b"".join(pieces)
        self.headers.append(HEADER.unpack_from(data))
        self.got.append(data[net.HEADER_BYTES :])

    def send(self, frame: Frame) -> None:
        header = bytes(net.HEADER_BYTES)
        if frame.partial is not None:
            values = net.H_NEEDS_CSUM, frame.gso, frame.header_bytes, frame.gso_size, *frame.partial
            header = HEADER.pack(*values) + bytes(2)
        assert self.driver.send(frame.data, header)
        self.driver.kick()
        self.rig.settle()


@pytest.fixture
def served() -> Iterator[Served]:
    with Rig() as rig:
        yield Served(rig)


def test_frames_go_from_the_client_to_the_switch_and_back(served: Served) -> None:
    for frame in (
        Frame(ethernet(mac(90), served.lan.mac, b"hello")),
        Frame(tcp(mac(90), served.lan.mac, 700), (34, 16), header_bytes=54),
        large(mac(90), served.lan.mac, 60_000, 1448),
        large(mac(90), served.lan.mac, 60_000, 1428, version=6),
    ):
        served.send(frame)
        found = served.other.receive()
        assert found is not None
        assert (bytes(found.data), found.partial, found.gso, found.gso_size) == (
            bytes(frame.data),
            frame.partial,
            frame.gso,
            frame.gso_size,
        )
        data = bytes(frame.data)
        back = Frame(
            data[6:12] + data[:6] + data[12:], frame.partial, frame.valid, frame.gso, frame.gso_size, frame.header_bytes
        )
        assert served.other.send(back)
        served.rig.settle()
        assert served.got.pop() == back.data
        flags, gso, _, size, begin, offset = served.headers.pop()
        assert (gso, size) == (frame.gso, frame.gso_size)
        assert flags & net.H_NEEDS_CSUM == (frame.partial is not None)
        assert frame.partial in (None, (begin, offset))
    assert served.lan.dropped == {}
    assert served.lan.no_buffer == 0


def test_burst_arrives_in_its_order(served: Served) -> None:
    frames = [Frame(ethernet(served.lan.mac, mac(90), bytes([at]) * 1400)) for at in range(100)]
    for frame in frames:
        assert served.other.send(frame)
    served.rig.settle()
    assert served.got == [frame.data for frame in frames]


def test_device_that_is_closed_leaves_the_lan(served: Served) -> None:
    served.device.port.close()
    assert not served.other.send(Frame(ethernet(served.lan.mac, mac(90))))
    assert not served.lan.send(Frame(ethernet(mac(90), served.lan.mac)))
    assert same(served.lan.receive(), None)
