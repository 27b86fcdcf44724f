"""A Shared Ethernet Adapter on a veth, in an asyncio loop of a thread."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

from tests.network.namespace import ip, isolated, until_passing
from tests.network.sea_world import CLIENTS, EVERYBODY, OUTSIDE
from tests.network.switching import tag
from tests.network.test_segment import large
from tests.network.test_tap import received

from powervio.network.bond import BondOptions, BondPort, make_members
from powervio.network.link import InterfaceLink
from powervio.network.packet import PacketPort
from powervio.network.port import Frame, Offload
from powervio.network.sea import Sea, SeaOptions, TrunkAdapter
from powervio.network.sea_failover import FailoverOptions
from powervio.network.sea_runner import SeaRunner
from powervio.network.switch import PortOptions, Switch
from powervio.network.switch_trunk import SwitchTrunk, clients_of

LIMIT = 30.0


class LoopScheduler:
    """A `Scheduler` of an asyncio loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.clock = loop.time

    def call_later(self, delay: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        return self._loop.call_later(delay, call)

    def call_soon_threadsafe(self, call: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(call)

    def add_reader(self, fd: int, call: Callable[[], None]) -> None:
        self._loop.add_reader(fd, call)

    def remove_reader(self, fd: int) -> None:
        self._loop.remove_reader(fd)


class Server:
    """A VIO server with one adapter, in a thread."""

    def __init__(self, switch: Switch, number: int, uplink: str) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        scheduler = LoopScheduler(self.loop)
        self.control = switch.add(PortOptions(name=f"control{number}", pvid=4094))
        self.trunk = switch.add(PortOptions(name=f"trunk{number}", vlans=(20,), trunk=number, standby=True))
        self.uplink = BondPort(
            uplink, make_members([uplink], PacketPort, InterfaceLink), BondOptions(mode="active-backup"), self.loop.time
        )
        trunk = SwitchTrunk(self.trunk)
        self.sea = Sea(
            SeaOptions(name=f"ent{number}"),
            [TrunkAdapter(self.trunk, 1, (20,), trunk)],
            self.uplink,
            FailoverOptions(address=bytes([2, 0, 0, 0, 9, number]), priority=number),
            self.control,
            clients=lambda: clients_of(switch),
            clock=self.loop.time,
        )
        ports = [self.control, self.trunk, self.uplink]
        self.runner = SeaRunner(self.sea, ports, lambda: self.uplink.up, scheduler)

        def changed() -> None:
            self.sea.note(1)
            self.runner.wake()

        trunk.on_change = changed
        self.thread.start()
        self.loop.call_soon_threadsafe(lambda: self.uplink.run(scheduler))
        self.loop.call_soon_threadsafe(self.runner.start)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.runner.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT)
        self.loop.close()
        for port in (self.control, self.trunk, self.uplink):
            port.close()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def outside_and_uplinks() -> PacketPort:
    """A bridge that joins the uplinks of two servers and a host."""
    ip("link", "add", "bridge0", "type", "bridge")
    ip("link", "set", "bridge0", "up")
    names = ("up1", "up2", "host")
    for name in names:
        ip("link", "add", name, "type", "veth", "peer", "name", f"{name}p")
        ip("link", "set", f"{name}p", "master", "bridge0", "up")
        ip("link", "set", name, "up")
    until_passing(*names, *(f"{name}p" for name in names))
    port = PacketPort("host")
    port.take(Offload.CSUM | Offload.TSO4)
    return port


def until_bridged(servers: list[Server], *expected: str) -> None:
    """Until the adapters have these states and the primary one has acted on it: its trunk is the switch's."""

    def settled() -> bool:
        adapters = [server.sea for server in servers]
        return tuple(sea.failover.state for sea in adapters) == expected and all(
            trunk.bridges and trunk.control.is_active()
            for sea in adapters
            if sea.failover.state == "PRIMARY"
            for trunk in sea.trunks
        )

    until(settled)


@isolated
def test_frames_cross_real_ports_and_a_backup_takes_over_by_itself() -> None:
    host = outside_and_uplinks()
    switch = Switch()
    client = switch.add(PortOptions(name="client", pvid=20, mac=CLIENTS[0]))
    servers = [Server(switch, number, f"up{number}") for number in (1, 2)]
    try:
        until_bridged(servers, "PRIMARY", "BACKUP")
        made = large(b"x" * 5000, 1400)
        data = OUTSIDE[0] + CLIENTS[0] + bytes(made.data[12:])
        client.send(Frame(data, made.partial, False, made.gso, made.gso_size, made.header_bytes))
        while (came := received(host, b"\x81\x00", CLIENTS[0])).data[16:18] == b"\x80\x35":
            pass  # it was announced
        assert (came.data, came.gso, came.gso_size) == (tag(data, 20), made.gso, 1400)
        back = Frame(CLIENTS[0] + OUTSIDE[0] + b"\x88\xb6" + bytes(46))
        host.send(Frame(tag(bytes(back.data), 20)))
        until(lambda: client.waiting > 0)
        assert client.receive() == back
        while host.receive() is not None:
            pass
        ip("link", "set", "up1", "down")
        until_bridged(servers, "LIMBO", "PRIMARY")
        rarp = received(host, b"\x81\x00", CLIENTS[0])
        assert rarp.data[:6] == EVERYBODY
        assert rarp.data[16:18] == b"\x80\x35"
        host.send(Frame(tag(bytes(back.data), 20)))
        until(lambda: client.waiting > 0)
        ip("link", "set", "up1", "up")
        until_bridged(servers, "PRIMARY", "BACKUP")
        servers[0].close()
        until_bridged(servers[1:], "PRIMARY")
    finally:
        servers[1].close()
        switch.close()
        host.close()
