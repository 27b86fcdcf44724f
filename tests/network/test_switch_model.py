"""The switch beside a plain one: whatever is added, removed, changed and sent, both give the same frames to the same
ports, and each frame that is not delivered is counted, once, by the same reason.

Beside that, of each frame that arrives, whatever the plain switch says: it came from another port of its VLAN, it has a
tag if and only if the port sees that VLAN tagged, and no port gets one twice.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.network.switching import MAC, ethernet, tag
from tests.network.test_switch import Clock

from powervio.errors import LocalError
from powervio.network.port import Frame
from powervio.network.switch import PortOptions, Switch, SwitchPort

pytestmark = pytest.mark.dual

AGE = 1000
QUEUE = 4
EVERYBODY = b"\xff" * 6
GROUPS = [bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")]
VLANS = st.sampled_from([1, 2, 3])
ADDRESSES = st.sampled_from(MAC[1:6])
TARGETS = st.sampled_from([*MAC[1:4], EVERYBODY, EVERYBODY, MAC[4], *GROUPS, bytes.fromhex("0180c2000003")])
FRAMES = st.tuples(
    st.integers(0, 5),
    TARGETS,
    st.sampled_from([None, None, None, *MAC[1:6]]),
    st.sampled_from([(), (), (), (), (), (1,), (2,), (3,), (0,), (2, 1)]),
)


@dataclass(eq=False)
class Plain:
    """A port of the plain switch."""

    options: PortOptions
    mac: bytes | None
    all_groups: bool
    groups: set[bytes] = field(default_factory=set)
    queue: list[bytes] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    standing_by: set[int] = field(default_factory=set)

    @property
    def vlans(self) -> set[int]:
        return {self.options.pvid, *self.options.vlans}

    @property
    def checked(self) -> bool:
        return self.options.mac is not None and self.options.spoof_check


class PlainSwitch:
    """The rules of the switch as one would say them."""

    def __init__(self) -> None:
        self.ports: list[Plain] = []
        self.learnt: dict[tuple[int, bytes], tuple[Plain, int]] = {}
        self.chosen: dict[int, Plain] = {}
        self.now = 0

    def active(self, vlan: int) -> Plain | None:
        if vlan in self.chosen:
            return self.chosen[vlan]
        trunks = [port for port in self.ports if port.options.trunk and vlan in port.vlans - port.standing_by]
        return min(trunks, key=lambda port: port.options.trunk, default=None)

    def forget_losers(self, before: dict[int, Plain | None]) -> None:
        for vlan, port in before.items():
            if port is not self.active(vlan):
                self.learnt = {k: v for k, v in self.learnt.items() if not (k[0] == vlan and v[0] is port)}

    def all_active(self) -> dict[int, Plain | None]:
        return {vlan: self.active(vlan) for vlan in (1, 2, 3)}

    def remove(self, port: Plain) -> None:
        before = self.all_active()
        self.ports.remove(port)
        self.chosen = {vlan: trunk for vlan, trunk in self.chosen.items() if trunk is not port}
        self.learnt = {key: value for key, value in self.learnt.items() if value[0] is not port}
        self.forget_losers(before)

    def holder(self, vlan: int, mac: bytes) -> Plain | None:
        for port in self.ports:
            if port.mac == mac and vlan in port.vlans:
                return port
        learnt = self.learnt.get((vlan, mac))
        return learnt[0] if learnt and self.now - learnt[1] <= AGE else None

    def reason_or_vlan(self, port: Plain, data: bytes) -> str | tuple[int, bytes]:
        """Why a frame goes nowhere, or its VLAN and the frame without a tag."""
        if data[12:14] == b"\x81\x00":
            vlan = int.from_bytes(data[14:16], "big") & 0xFFF
            plain = data[:12] + data[16:]
            if plain[12:14] == b"\x81\x00":
                return "two tags"
            if vlan == 0:
                vlan = port.options.pvid
            elif not port.options.vlans:
                return "tagged"
        else:
            vlan, plain = port.options.pvid, data
        if vlan not in port.vlans:
            return "foreign VLAN"
        if port.options.trunk and self.active(vlan) is not port:
            return "inactive trunk"
        source = data[6:12]
        if port.checked and source != port.mac:
            return "spoofed"
        if any(other.mac == source and vlan in other.vlans for other in self.ports if other is not port):
            return "spoofed"
        return vlan, plain

    def send(self, port: Plain, data: bytes) -> None:
        verdict = self.reason_or_vlan(port, data)
        if isinstance(verdict, str):
            port.counts[verdict] += 1
            return
        vlan, plain = verdict
        to, source = data[:6], data[6:12]
        if port.mac != source:
            self.learnt[vlan, source] = (port, self.now)
        in_vlan = [
            other
            for other in self.ports
            if vlan in other.vlans and (not other.options.trunk or other is self.active(vlan))
        ]
        if to[:5] == bytes.fromhex("0180c20000"):
            port.counts["for the next bridge"] += 1
            return
        if to == EVERYBODY:
            receivers = in_vlan
        elif to[0] & 1:
            receivers = [other for other in in_vlan if other.all_groups or to in other.groups]
        else:
            holder = self.holder(vlan, to)
            if holder is port:
                port.counts["same port"] += 1
                return
            trunk = self.active(vlan)
            if holder in in_vlan:
                receivers = [other for other in in_vlan if other is holder]
            elif trunk is not None and trunk is not port:
                receivers = [trunk]
            else:
                receivers = [other for other in in_vlan if not other.checked]
        receivers = [other for other in receivers if other is not port]
        if not receivers:
            port.counts["no receiver"] += 1
            return
        port.counts["sent"] += 1
        priority = int.from_bytes(data[14:16], "big") >> 13 if plain is not data else 0
        for other in receivers:
            if len(other.queue) >= QUEUE:
                other.counts["queue full"] += 1
            else:
                other.queue.append(plain if vlan == other.options.pvid else tag(plain, vlan, priority))


class Machine(RuleBasedStateMachine):
    @initialize(
        pvids=st.lists(VLANS, min_size=3, max_size=3), macs=st.booleans(), tagged=st.booleans(), trunk=st.booleans()
    )
    def begin(self, pvids: list[int], macs: bool, tagged: bool, trunk: bool) -> None:
        clock = Clock()
        self.clock = clock
        self.switch = Switch(limit=6, addresses=4096, age=AGE, clock=clock, alarm=clock.alarm, seed=5)
        self.plain = PlainSwitch()
        self.plain.now = clock.now
        self.pairs: list[tuple[SwitchPort, Plain]] = []
        self.number = 0
        self.sent_from: dict[bytes, tuple[SwitchPort, int]] = {}
        for number, pvid in enumerate(pvids):
            last = number == 2
            self.add(
                pvid, [1, 2, 3] if last and tagged else [], last and trunk, False, MAC[number + 1] if macs else None
            )

    @rule(
        pvid=VLANS,
        vlans=st.lists(VLANS, max_size=2, unique=True),
        trunk=st.sampled_from([0, 0, 0, 1, 2, 3]),
        standby=st.booleans(),
        mac=st.none() | ADDRESSES,
        spoof_check=st.booleans(),
        all_groups=st.booleans(),
    )
    def add(
        self,
        pvid: int,
        vlans: list[int],
        trunk: int,
        standby: bool,
        mac: bytes | None,
        spoof_check: bool = True,
        all_groups: bool = True,
    ) -> None:
        self.number += 1
        options = PortOptions(
            name=str(self.number),
            pvid=pvid,
            vlans=tuple(vlans),
            trunk=trunk,
            standby=standby,
            mac=mac,
            spoof_check=spoof_check,
            all_groups=all_groups,
            queue=QUEUE,
        )
        new = Plain(options, mac, all_groups)
        if standby:
            new.standing_by = new.vlans
        others = [other for other in self.plain.ports if other.vlans & new.vlans]
        refused = (
            len(self.pairs) == 6
            or any(mac is not None and other.mac == mac for other in others)
            or any(trunk and other.options.trunk == trunk for other in others)
        )
        if refused:
            with pytest.raises(LocalError):
                self.switch.add(options)
            return
        port = self.switch.add(options)
        before = self.plain.all_active()
        self.plain.ports.append(new)
        self.plain.forget_losers(before)
        self.pairs.append((port, new))

    def pair(self, which: int) -> tuple[SwitchPort, Plain]:
        return self.pairs[which % len(self.pairs)]

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 5))
    def remove(self, which: int) -> None:
        port, plain = self.pair(which)
        self.check_counts(port, plain)
        port.close()
        self.plain.remove(plain)
        self.pairs.remove((port, plain))

    @precondition(lambda self: self.pairs)
    @rule(frames=st.lists(FRAMES, min_size=1, max_size=12), priority=st.sampled_from([0, 5]))
    def send(self, frames: list[tuple[int, bytes, bytes | None, tuple[int, ...]]], priority: int) -> None:
        for which, to, source, tags in frames:
            port, plain = self.pair(which)
            self.number += 1
            payload = self.number.to_bytes(4, "big")
            data = ethernet(to, source or plain.mac or MAC[which % 6 + 1]) + payload
            for vlan in tags:
                data = tag(data, vlan, priority)
            self.sent_from[payload] = (port, tags[0] if tags and tags[0] else plain.options.pvid)
            port.send(Frame(data))
            self.plain.send(plain, data)

    @rule()
    def drain(self) -> None:
        for port, plain in self.pairs:
            self.drain_one(port, plain)

    def drain_one(self, port: SwitchPort, plain: Plain) -> None:
        arrived: list[bytes] = []
        while (frame := port.receive()) is not None:
            arrived.append(bytes(frame.data))
        assert arrived == plain.queue
        plain.queue.clear()
        for data in arrived:
            sender, vlan = self.sent_from[data[-4:]]
            assert sender is not port
            tagged = data[12:14] == b"\x81\x00"
            assert (int.from_bytes(data[14:16], "big") & 0xFFF if tagged else port.options.pvid) == vlan
            assert tagged == (vlan != port.options.pvid)
            assert not tagged or vlan in port.options.vlans
        assert len({data[-4:] for data in arrived}) == len(arrived)

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 5), mac=st.none() | ADDRESSES)
    def set_mac(self, which: int, mac: bytes | None) -> None:
        port, plain = self.pair(which)
        others = [other for other in self.plain.ports if other is not plain and other.vlans & plain.vlans]
        if (mac is None and plain.checked) or (mac is not None and any(other.mac == mac for other in others)):
            with pytest.raises(LocalError):
                port.set_mac(mac)
            return
        port.set_mac(mac)
        plain.mac = mac

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 5), groups=st.sets(st.sampled_from(GROUPS)), everything=st.booleans())
    def join(self, which: int, groups: set[bytes], everything: bool) -> None:
        port, plain = self.pair(which)
        port.set_groups(groups)
        port.set_all_groups(everything)
        plain.groups, plain.all_groups = groups, everything

    @precondition(lambda self: self.pairs)
    @rule(which=st.integers(0, 5), vlans=st.none() | st.sets(VLANS), up=st.booleans())
    def activate(self, which: int, vlans: set[int] | None, up: bool) -> None:
        port, plain = self.pair(which)
        change = self.switch.activate if up else self.switch.deactivate
        chosen = plain.vlans if vlans is None else vlans
        if not plain.options.trunk or not chosen <= plain.vlans:
            with pytest.raises(LocalError):
                change(port, vlans)
            return
        before = self.plain.all_active()
        for vlan in chosen:
            if up:
                self.plain.chosen[vlan] = plain
                plain.standing_by = plain.standing_by - {vlan}
            else:
                if self.plain.chosen.get(vlan) is plain:
                    del self.plain.chosen[vlan]
                plain.standing_by = plain.standing_by | {vlan}
        self.plain.forget_losers(before)
        change(port, vlans)

    @rule(step=st.sampled_from([1, AGE // 2, AGE + 1]))
    def wait(self, step: int) -> None:
        self.clock.go(step)
        self.plain.now += step

    def check_counts(self, port: SwitchPort, plain: Plain) -> None:
        counters = port.counters()
        assert {"sent": counters.sent, **counters.dropped} == {"sent": 0, **plain.counts}
        assert port.waiting == len(plain.queue)

    @invariant()
    def both_count_the_same(self) -> None:
        for port, plain in getattr(self, "pairs", []):
            self.check_counts(port, plain)
            assert port.active == {vlan for vlan in plain.vlans if self.plain.active(vlan) is plain}


TestModel = Machine.TestCase
TestModel.settings = settings(settings(), max_examples=150)
