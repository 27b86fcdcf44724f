"""A pair of Shared Ethernet Adapters whose VIO servers are at the switch by logical LAN adapters, in simulated time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.native.lan_rig import Rig, ethernet, mac
from tests.network.cables import Cable

from powervio.native.lan_client import LanPort
from powervio.native.lan_trunk import LanTrunk
from powervio.network.port import Frame
from powervio.network.sea import Sea, SeaOptions, TrunkAdapter
from powervio.network.sea_failover import FailoverOptions
from powervio.network.sea_runner import SeaRunner
from powervio.testing.clock import Clock
from powervio.vio.kernel import PartitionKernel

OUTSIDE = mac(200)
STEP = 0.02


class Half:
    """A VIO server of the pair: trunk adapter and control channel by logical LAN, a cable to the outside."""

    def __init__(self, rig: Rig, clock: Clock, number: int) -> None:
        self.cable = Cable()
        adapter = rig.adapter(
            vlans=(20,), trunk=number + 1, standby=True, memory=16 << 20, window=16 << 20, spoof_check=False
        )
        self.partition = adapter.partition
        channel = rig.beside(adapter, pvid=4094)
        self.kernel = PartitionKernel(self.partition.port, clock=clock)
        rig.kernels.append(self.kernel)
        self.trunk, control = LanPort(self.kernel, adapter.node), LanPort(self.kernel, channel.node)
        for port in (self.trunk, control):
            port.start()
        lan_trunk = LanTrunk(self.trunk)
        self.sea = Sea(
            SeaOptions(name=f"sea{number}"),
            [TrunkAdapter(self.trunk, 1, (20,), lan_trunk)],
            self.cable.ends[0],
            FailoverOptions(address=control.mac, priority=number + 1),
            control,
            clients=lan_trunk.clients,
            clock=clock,
        )
        lan_trunk.on_change = lambda: self.sea.note(1)
        ports = [self.trunk, control, self.cable.ends[0]]
        self.runner = SeaRunner(self.sea, ports, lambda: self.cable.plugged, self.kernel)
        self.runner.start()

    def heard(self) -> list[bytes]:
        """Frames that came out at the other end of the cable, but for announcements."""
        found = []
        while (frame := self.cable.ends[1].receive()) is not None:
            if b"\x80\x35" not in bytes(frame.data[12:18]):
                found.append(bytes(frame.data))
        return found


class World:
    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.clock = Clock()
        self.halves = [Half(rig, self.clock, number) for number in range(2)]
        self.client = rig.client(pvid=20)

    def run(self, seconds: float) -> None:
        for _ in range(round(seconds / STEP)):
            self.clock.now += STEP
            self.rig.settle()

    def active(self) -> list[bool]:
        return [half.trunk.running and half.trunk.active for half in self.halves]


@pytest.fixture
def world() -> Iterator[World]:
    with Rig() as rig:
        yield World(rig)


def bridged(world: World) -> list[int]:
    """Which of the two bridge a client's frame to the outside, and one back."""
    out = ethernet(OUTSIDE, world.client.mac, b"out")
    assert world.client.send(Frame(out))
    world.rig.settle()
    tagged = ethernet(OUTSIDE, world.client.mac, b"out", vlan=20)
    which = [number for number, half in enumerate(world.halves) if half.heard() == [tagged]]
    for number in which:
        world.halves[number].cable.ends[1].send(Frame(ethernet(world.client.mac, OUTSIDE, b"in", vlan=20)))
        world.rig.settle()
        frame = world.client.receive()
        assert frame is not None
        assert bytes(frame.data) == ethernet(world.client.mac, OUTSIDE, b"in")
    return which


def test_first_of_the_pair_bridges_and_the_second_when_it_has_died(world: World) -> None:
    world.run(3)
    assert world.active() == [True, False]
    assert bridged(world) == [0]
    first = world.halves[0]
    first.runner.stop()
    world.rig.kernels.remove(first.kernel)
    first.kernel.close()
    world.rig.hypervisor.fail(first.partition)
    world.run(1)
    assert world.active()[1]
    assert bridged(world) == [1]


def test_lost_link_of_the_first_has_the_second_take_over(world: World) -> None:
    world.run(3)
    world.halves[0].cable.plugged = False
    world.run(1)
    assert world.active() == [False, True]
    assert bridged(world) == [1]
    world.halves[0].cable.plugged = True
    world.run(5)
    assert world.active() == [True, False]
    assert bridged(world) == [0]
