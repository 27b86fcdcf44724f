"""A pair of Shared Ethernet Adapters between a switch of clients and a bridge outside, in simulated time."""

from __future__ import annotations

from collections import Counter, deque

from tests.network.cables import Cable, CablePort

from powervio.network.port import Frame
from powervio.network.sea import Sea, SeaOptions, TrunkAdapter
from powervio.network.sea_failover import FailoverOptions
from powervio.network.sea_wire import Mode
from powervio.network.switch import PortOptions, Switch, SwitchPort
from powervio.network.switch_trunk import SwitchTrunk
from powervio.testing.clock import Clock

CONTROL_VLAN = 4094
CLIENTS = [bytes([2, 0, 0, 0, 1, n]) for n in range(4)]
OUTSIDE = [bytes([2, 0, 0, 0, 2, n]) for n in range(2)]
EVERYBODY = b"\xff" * 6
NUMBERED = b"\x88\xb6"
"""Frames of the test: a number follows."""


class OuterBridge:
    """A learning bridge, VLAN by VLAN; what it floods it sends at once to all."""

    def __init__(self) -> None:
        self.ports: list[CablePort] = []
        self._learnt: dict[tuple[bytes, bytes], CablePort] = {}

    def plug(self) -> Cable:
        cable = Cable()
        self.ports.append(cable.ends[1])
        return cable

    def poll(self) -> bool:
        busy = False
        for port in self.ports:
            while (frame := port.receive()) is not None:
                busy = True
                data = bytes(frame.data)
                vlan = data[12:16] if data[12:14] == b"\x81\x00" else b""
                self._learnt[vlan, data[6:12]] = port
                to = self._learnt.get((vlan, data[:6]))
                for other in self.ports if to is None else [to]:
                    if other is not port:
                        other.send(frame)
        return busy


class Adapter:
    """One of the pair, while its VIO server lives."""

    def __init__(self, world: World, number: int) -> None:
        self.world = world
        self.number = number
        self.cable = world.uplinks[number]
        self.cable.ends[0].frames.clear()
        switch = world.switch
        self.control = switch.add(PortOptions(name=f"control{number}", pvid=CONTROL_VLAN))
        self.trunks: list[SwitchPort] = []
        trunks = []
        for pvid, vlans in world.trunks:
            port = switch.add(PortOptions(name=f"trunk{number}.{pvid}", pvid=pvid, vlans=vlans, trunk=number + 1))
            self.trunks.append(port)
            trunks.append(TrunkAdapter(port, pvid, vlans, SwitchTrunk(port)))
        self.sea = Sea(
            SeaOptions(name=f"sea{number}", pvid=1),
            trunks,
            self.cable.ends[0],
            FailoverOptions(
                address=bytes([2, 0, 0, 0, 9, number]), priority=number + 1, mode=world.mode, alone=world.alone
            ),
            self.control,
            clients=lambda: [],
            clock=world.clock,
        )
        for trunk in trunks:
            trunk.control.on_change = lambda pvid=trunk.pvid: self.sea.note(pvid)  # type: ignore[attr-defined]
        self.sea.set_link(self.cable.plugged)

    def die(self) -> None:
        """The hypervisor takes its adapters away."""
        for port in (*self.trunks, self.control):
            self.world.switch.remove(port)


class World:
    """All of it. `trunks` are PVIDs and tagged VLANs of each adapter's trunks."""

    def __init__(
        self,
        trunks: tuple[tuple[int, tuple[int, ...]], ...] = ((1, (20,)),),
        mode: Mode = Mode.AUTO,
        alone: bool = False,
    ) -> None:
        self.clock = Clock()
        self.trunks = trunks
        self.mode = mode
        self.alone = alone
        self.switch = Switch(clock=lambda: round(self.clock.now * 1e9), seed=1)
        self.outer = OuterBridge()
        self.uplinks = [self.outer.plug(), self.outer.plug()]
        self.hosts = [self.outer.plug().ends[0] for _ in OUTSIDE]
        vlans = [1, 20, 1, 20]
        self.clients = [
            self.switch.add(PortOptions(name=f"client{n}", pvid=vlan, mac=mac, trunk=0))
            for n, (vlan, mac) in enumerate(zip(vlans, CLIENTS, strict=True))
        ]
        self.adapters: list[Adapter | None] = [None, None]
        self.cut = False
        self.hung: set[int] = set()
        self.got: list[list[Frame]] = [[] for _ in (*self.clients, *self.hosts)]
        self.sent_control: deque[bytes] = deque()
        self._number = 0

    # -- what can happen

    def start(self, number: int) -> Adapter:
        made = self.adapters[number] = Adapter(self, number)
        if self.cut:
            self._cut(made)
        return made

    def kill(self, number: int) -> None:
        adapter = self.adapters[number]
        if adapter is not None:
            self.adapters[number] = None
            adapter.die()

    def cut_channel(self, cut: bool) -> None:
        self.cut = cut
        for adapter in self.adapters:
            if adapter is not None:
                self._cut(adapter)

    def _cut(self, adapter: Adapter) -> None:
        """Nobody's messages come to it."""
        adapter.control.closed = self.cut

    def set_link(self, number: int, up: bool) -> None:
        self.uplinks[number].plugged = up
        adapter = self.adapters[number]
        if adapter is not None:
            adapter.sea.set_link(up)

    # -- time

    def poll(self) -> None:
        for _ in range(200):
            busy = self.outer.poll()
            for number, adapter in enumerate(self.adapters):
                if adapter is not None and number not in self.hung:
                    waiting = (adapter.control, *adapter.trunks)
                    busy |= any(port.waiting for port in waiting) or bool(adapter.cable.ends[0].frames)
                    adapter.sea.poll()
            if not busy:
                break
        else:
            raise AssertionError("a loop: frames never stop")
        for port, got in zip((*self.clients, *self.hosts), self.got, strict=True):
            while (frame := port.receive()) is not None:
                if frame.data[12:14] == NUMBERED or frame.data[16:18] == NUMBERED:
                    got.append(frame)

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.poll()
        while True:
            seas = [a.sea for n, a in enumerate(self.adapters) if a is not None and n not in self.hung]
            due = min((sea.due() for sea in seas), default=end + 1)
            if due > end:
                break
            self.clock.now = max(self.clock.now, due)
            for sea in seas:
                sea.advance()
            self.poll()
        self.clock.now = end

    # -- traffic

    def frame(self, to: bytes, source: bytes, vlan: int = 0) -> Frame:
        self._number += 1
        tag = b"\x81\x00" + vlan.to_bytes(2, "big") if vlan else b""
        return Frame((to + source + tag + NUMBERED + self._number.to_bytes(8, "big")).ljust(60, b"\0"))

    def reaches_outside(self, client: int, host: int = 0) -> bool:
        """Whether a frame of a client comes to a host outside, and its answer back, each once."""
        vlan = (0, 20, 0, 20)[client]
        there = self.frame(OUTSIDE[host], CLIENTS[client])
        self.clients[client].send(there)
        self.poll()
        there_outside = self.numbers(len(self.clients) + host).count(self._number)
        back = self.frame(CLIENTS[client], OUTSIDE[host], vlan)
        self.hosts[host].send(back)
        self.poll()
        return there_outside == 1 and self.numbers(client).count(self._number) == 1

    def numbers(self, receiver: int) -> list[int]:
        """Of the frames that a client, or a host, got."""
        found = []
        for frame in self.got[receiver]:
            data = bytes(frame.data)
            at = 14 if data[12:14] == NUMBERED else 18
            found.append(int.from_bytes(data[at : at + 8], "big"))
        return found

    def check_no_duplicates(self) -> None:
        for receiver in range(len(self.got)):
            assert max(Counter(self.numbers(receiver)).values(), default=0) <= 1

    @property
    def states(self) -> list[str]:
        return ["dead" if adapter is None else adapter.sea.failover.state for adapter in self.adapters]
