"""Both ends of a virtual terminal: bytes arrive once and in order, through a full terminal and a lost connection."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.native.vterm import VtermEnd, VtermServer
from powervio.papr.codes import HcallError
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.vterm import create_vterm
from powervio.testing.clock import Clock
from powervio.vio.kernel import PartitionKernel
from powervio.virtio.stream import ByteQueue


class Rig:
    def __init__(self, limit: int = 4096) -> None:
        self.clock = Clock()
        self.hypervisor = Hypervisor()
        partitions = [self.hypervisor.create_partition(name, 1 << 20) for name in ("vios1", "client1")]
        self.adapters = create_vterm(self.hypervisor, *partitions)
        self.kernels = [PartitionKernel(partition.port, clock=self.clock) for partition in partitions]
        self.queues = [(ByteQueue(limit), ByteQueue(limit)) for _ in partitions]
        self.server = VtermServer(self.kernels[0], self.adapters[0].node, *self.queues[0])
        self.client = VtermEnd(self.kernels[1], self.adapters[1].node, *self.queues[1])

    def settle(self) -> None:
        for _ in range(5):
            while sum(kernel.poll() for kernel in self.kernels):
                pass
            self.clock.now += 0.3

    def close(self) -> None:
        for kernel in self.kernels:
            kernel.close()
        self.hypervisor.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    made.server.start()
    made.client.start()
    yield made
    made.close()


def test_partners_are_listed(rig: Rig) -> None:
    ((partition, unit_address, location),) = rig.server.partners()
    assert (partition, unit_address) == (2, rig.adapters[1].unit_address)
    assert location == rig.adapters[1].node.location_code


def test_back_pressure_through_the_hypervisor(rig: Rig) -> None:
    data = bytes(at % 251 for at in range(50_000))
    at, got = 0, b""
    while len(got) < len(data):
        at += rig.queues[1][1].put(data[at:])
        rig.settle()
        assert len(rig.queues[0][0]) <= 4096
        got += rig.queues[0][0].take(1500)
    assert got == data


def test_second_server_end_is_refused(rig: Rig) -> None:
    with pytest.raises(HcallError, match="H_REGISTER_VTERM returned H_RESOURCE"):
        rig.server.start()


def test_no_vty_to_connect_to() -> None:
    rig = Rig()
    rig.adapters[0].configured.clear()
    with pytest.raises(LocalError, match="no vty"):
        rig.server.start()
    rig.close()


@given(
    st.lists(
        st.tuples(st.sampled_from(["write", "read", "run", "server"]), st.integers(0, 1), st.integers(1, 3000)),
        max_size=40,
    )
)
def test_bytes_arrive_once_and_in_order(steps: list[tuple[str, int, int]]) -> None:
    """Over new connections too, begun when nothing was on the way: that would be lost, as on a real terminal."""
    rig = Rig()
    rig.client.start()
    rig.server.start()
    sent, got = [bytearray(), bytearray()], [bytearray(), bytearray()]
    count = 0
    for what, side, length in steps:
        if what == "write":
            data = bytes((count + at) % 251 for at in range(length))
            taken = rig.queues[side][1].put(data)
            sent[side] += data[:taken]
            count += taken
        elif what == "read":
            got[1 - side] += rig.queues[side][0].take(length)
        elif what == "run":
            rig.kernels[side].poll()
        elif length < 300:
            rig.settle()
            if not any(adapter.waiting for adapter in rig.adapters):
                rig.server.stop()
                rig.settle()
                rig.server.start()
    for _ in range(12):
        rig.settle()
        for side in (0, 1):
            got[1 - side] += rig.queues[side][0].take(9000)
    assert got == sent
    rig.close()
