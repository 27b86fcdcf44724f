"""What a frame from one client partition to another costs, in hypervisor calls and copies, over virtio-net and over
the platform's own logical LAN, on the same switch.

Over CRQ a VIO server reads the frame from one client and writes it into the other's memory; the logical LAN has the
hypervisor do both in one call. The partitions take turns in one thread, so the counts are the same at every run, on
every machine: tests pin them.
"""

from __future__ import annotations

from dataclasses import dataclass

from powervio.bench.cost import PerRequest, cost_of
from powervio.devices.net import NetDevice
from powervio.devices.net_relay import Relay
from powervio.drivers.net import NetDriver
from powervio.native.lan import create_lan
from powervio.native.lan_client import LanPort
from powervio.network.port import Frame, Offload
from powervio.network.switch import PortOptions, Switch
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.ledger import Costs
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq
from powervio.vio.kernel import PartitionKernel
from powervio.virtio import net

LARGE_PAYLOAD = 64_000
"""Bytes of TCP in the large frame."""
MSS = 1448
MEMORY = 16 << 20
ROUNDS = 16
_MACS = (b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2")
_HEADERS = 54
_HEADER = net.HEADER["little"]


@dataclass(frozen=True, slots=True)
class FrameCost:
    """Of one frame on the average, over everybody who has to do with it."""

    hcalls: PerRequest
    """By name, and `total`."""
    copies: float
    """Copies to or from a partition's memory that the hypervisor made, of frames and of rings."""
    copied: float
    """Bytes of them."""


def frame_of(payload: int, *, large: bool = False) -> Frame:
    """TCP from the first client to the second with so many bytes; a large one is to be segmented, with its checksum
    left out."""
    total = 40 + payload
    addresses = b"\x0a\0\0\1\x0a\0\0\2"
    packet = bytearray(b"\x45\0" + total.to_bytes(2, "big") + b"\0\0\x40\0\x40\6\0\0" + addresses)
    packet += b"\x03\xe8\0\x50" + bytes(8) + b"\x50\x18" + bytes(6 + payload)
    if not large:
        return Frame(_MACS[1] + _MACS[0] + b"\x08\0" + bytes(packet))
    words = [int.from_bytes(addresses[at : at + 2], "big") for at in range(0, 8, 2)]
    field = (sum(words) + 6 + 20 + payload) % 0xFFFF
    packet[36:38] = field.to_bytes(2, "big")
    return Frame(_MACS[1] + _MACS[0] + b"\x08\0" + bytes(packet), (34, 16), gso=1, gso_size=MSS, header_bytes=_HEADERS)


class _House:
    """A hypervisor with a switch; each partition has a turn until none has anything to do."""

    def __init__(self) -> None:
        self.hypervisor = Hypervisor()
        self.switch = Switch(seed=1)
        self.kernels: list[PartitionKernel] = []
        self.arrived = 0

    def partition(self, name: str) -> PartitionKernel:
        kernel = PartitionKernel(self.hypervisor.create_partition(name, MEMORY).port)
        self.kernels.append(kernel)
        return kernel

    def settle(self) -> None:
        for _ in range(100_000):
            worked = [kernel.poll() for kernel in self.kernels]
            if not any(worked):
                return
        raise AssertionError("partitions go round in circles")

    def costs(self) -> Costs:
        """Of everybody."""
        found: list[Costs] = []
        for partition in self.hypervisor.partitions.values():
            found.append(partition.ledger.snapshot())
            found += [adapter.ledger.snapshot() for adapter in partition.adapters.values()]
        total = found[0]
        for one in found[1:]:
            total += one
        return total

    def copied(self) -> int:
        """Bytes that were copied, each once for each copy."""
        return int(self.costs()["rdma_bytes"])

    def send(self, frame: Frame) -> None:
        raise NotImplementedError

    def kick(self) -> None:
        """All that was sent is under way."""

    def close(self) -> None:
        for kernel in self.kernels:
            kernel.close()
        self.hypervisor.close()
        self.switch.close()


class _Native(_House):
    """Two partitions with logical LAN adapters."""

    def __init__(self) -> None:
        super().__init__()
        self._ports = [self._client(number) for number in range(2)]

    def _client(self, number: int) -> LanPort:
        kernel = self.partition(f"client{number + 1}")
        partition = self.hypervisor.partitions[kernel.port.partition_id]
        options = PortOptions(name=partition.name, mac=_MACS[number])
        adapter = create_lan(self.hypervisor, partition, self.switch, options)
        port = LanPort(kernel, adapter.node)
        port.on_arrival = self._arrival
        port.start()
        port.take(Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN)
        return port

    def _arrival(self) -> None:
        while self._ports[1].receive() is not None:
            self.arrived += 1

    def send(self, frame: Frame) -> None:
        self._ports[0].send(frame)


class _Virtio(_House):
    """Two partitions with virtio-net devices of one VIO server."""

    def __init__(self, *, packed: bool) -> None:
        super().__init__()
        self._server = server = self.partition("vios1")
        self._relay = Relay(self.switch)
        self._drivers = [self._client(server, number, packed) for number in range(2)]
        self._drivers[1].on_frame = self._frame
        self.settle()

    def _client(self, server: PartitionKernel, number: int, packed: bool) -> NetDriver:
        kernel = self.partition(f"client{number + 1}")
        partitions = self.hypervisor.partitions
        ends = self.hypervisor.create_pair(partitions[server.port.partition_id], partitions[kernel.port.partition_id])
        port = self.switch.add(PortOptions(name=f"client{number + 1}", mac=_MACS[number]))
        VirtioCrq(server, ends[0].node, NetDevice(port, mac=_MACS[number], relay=self._relay)).start()
        driver = NetDriver()
        VirtioVio(kernel, ends[1].node, driver, packed=packed).start()
        return driver

    def _frame(self, pieces: list[memoryview]) -> None:
        self.arrived += 1

    def copied(self) -> int:
        """See `_House`: the VIO server asks for all copies; its clients' adapters count their share of the same."""
        adapters = self.hypervisor.partitions[self._server.port.partition_id].adapters.values()
        return sum(int(adapter.ledger.snapshot()["rdma_bytes"]) for adapter in adapters)

    def send(self, frame: Frame) -> None:
        header = bytes(net.HEADER_BYTES)
        if frame.partial is not None:
            header = _HEADER.pack(net.H_NEEDS_CSUM, frame.gso, _HEADERS, frame.gso_size, *frame.partial) + bytes(2)
        self._drivers[0].send(frame.data, header)

    def kick(self) -> None:
        self._drivers[0].kick()


def count_frame_costs(frame: Frame, together: int, *, native: bool, packed: bool = False) -> FrameCost:
    """The cost of a frame (`frame_of`), `together` of which are sent before anybody else has a turn.

    `native`: over logical LAN, else over virtio-net with split or `packed` rings.
    """
    house: _House = _Native() if native else _Virtio(packed=packed)
    try:
        house.settle()
        for number in range(2 * ROUNDS):
            if number == ROUNDS:  # what is made at the first frames is no cost of a frame
                before, copied = house.costs(), house.copied()
                house.arrived = 0
            for _ in range(together):
                house.send(frame)
            house.kick()
            house.settle()
        if house.arrived != ROUNDS * together:
            raise AssertionError(f"{house.arrived} frames arrived of {ROUNDS * together}")
        costs, copied = house.costs() - before, house.copied() - copied
    finally:
        house.close()
    count = ROUNDS * together
    return FrameCost(cost_of(costs, count).hcalls, round(costs["rdma_operations"] / count, 4), round(copied / count, 1))
