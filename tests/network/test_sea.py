"""The Shared Ethernet Adapter: bridging, and pairs that fail over, in simulated time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.network.cables import Cable
from tests.network.sea_world import CLIENTS, EVERYBODY, OUTSIDE, World
from tests.network.switching import tag
from tests.network.test_segment import large

from powervio.errors import LocalError
from powervio.network.port import Frame
from powervio.network.sea import ALL, Sea, SeaOptions, TrunkAdapter, announcement
from powervio.network.sea_failover import FailoverOptions
from powervio.network.sea_report import entstat, report
from powervio.network.sea_wire import Mode
from powervio.network.switch import PortOptions
from powervio.network.switch_trunk import SwitchTrunk

pytestmark = pytest.mark.dual

FOUR = ((1, ()), (20, ()), (30, ()), (40, ()))


def alone() -> World:
    world = World(alone=True)
    world.start(0)
    world.run(0.1)
    return world


def pair(**options: object) -> World:
    world = World(**options)  # type: ignore[arg-type]
    world.start(0)
    world.start(1)
    world.run(0.6)
    return world


def reached(world: World) -> list[bool]:
    return [world.reaches_outside(client) for client in range(len(world.clients))]


# -- bridging


def test_one_adapter_bridges_at_once() -> None:
    world = alone()
    assert world.states == ["PRIMARY", "dead"]
    assert reached(world) == [True] * 4


def test_its_own_vlan_has_no_tag_outside_and_others_have_theirs() -> None:
    world = alone()
    out = world.hosts[0]
    world.clients[0].send(world.frame(EVERYBODY, CLIENTS[0]))
    world.clients[1].send(world.frame(EVERYBODY, CLIENTS[1]))
    world.poll()
    untagged, tagged = (bytes(frame.data) for frame in world.got[4])
    assert untagged[12:14] != b"\x81\x00"
    assert tagged[12:16] == b"\x81\x00\x00\x14"
    for got in world.got:
        got.clear()
    out.send(world.frame(EVERYBODY, OUTSIDE[0]))
    out.send(world.frame(EVERYBODY, OUTSIDE[0], 20))
    out.send(world.frame(EVERYBODY, OUTSIDE[0], 30))
    world.poll()
    assert [len(got) for got in world.got[:4]] == [1, 1, 1, 1]
    sea = world.adapters[0]
    assert sea is not None
    assert sea.sea.real.dropped == {"foreign VLAN": 1}


def test_large_frames_cross_as_they_are_with_and_without_tags() -> None:
    world = alone()
    adapter = world.adapters[0]
    assert adapter is not None
    made = large(b"x" * 5000, 1400)

    def crossed_from(client: int) -> tuple[Frame, Frame]:
        data = OUTSIDE[0] + CLIENTS[client] + bytes(made.data[12:])
        frame = Frame(data, made.partial, False, made.gso, made.gso_size, made.header_bytes)
        world.outer.ports[0].frames.clear()
        world.clients[client].send(frame)
        adapter.sea.poll()
        (crossed,) = (frame for frame in world.outer.ports[0].frames if frame.gso)
        return frame, crossed

    frame, crossed = crossed_from(0)
    assert crossed is frame
    frame, crossed = crossed_from(1)
    assert crossed.data == tag(bytes(frame.data), 20)
    assert frame.partial is not None
    assert crossed.partial == (frame.partial[0] + 4, frame.partial[1])
    assert adapter.trunks[0].taken == adapter.cable.ends[0].taken == ALL


def test_frames_for_bridges_and_for_hosts_outside_stay_there() -> None:
    world = alone()
    adapter = world.adapters[0]
    assert adapter is not None
    outside = world.outer.ports[0]
    outside.send(world.frame(bytes.fromhex("0180c200000e"), OUTSIDE[0]))
    outside.send(world.frame(EVERYBODY, OUTSIDE[0]))
    outside.send(world.frame(EVERYBODY, OUTSIDE[1]))
    outside.send(world.frame(OUTSIDE[1], OUTSIDE[0]))
    outside.send(Frame(b"short"))
    world.poll()
    assert adapter.sea.real.dropped == {"for the next bridge": 1, "not for here": 1, "too short": 1}
    assert adapter.sea.real.bridged == 2


def test_the_echo_of_a_frame_is_dropped_but_a_client_may_move_away() -> None:
    world = alone()
    adapter = world.adapters[0]
    assert adapter is not None
    outside = world.outer.ports[0]
    frame = world.frame(EVERYBODY, CLIENTS[0])
    world.clients[0].send(frame)
    world.poll()
    outside.send(frame)
    world.poll()
    assert adapter.sea.real.dropped == {"not for here": 1}
    assert world.got[2] == [frame]  # of the switch itself, once
    world.run(1.5)
    world.switch.remove(world.clients[0])
    world.got[2].clear()
    outside.send(world.frame(EVERYBODY, CLIENTS[0]))
    world.poll()
    assert len(world.got[2]) == 1


def test_the_next_frames_wait_for_the_next_turn() -> None:
    world = alone()
    adapter = world.adapters[0]
    assert adapter is not None
    for _ in range(5):
        world.outer.ports[0].send(world.frame(EVERYBODY, OUTSIDE[0]))
    assert adapter.sea.poll(3)
    assert len(adapter.cable.ends[0].frames) == 2
    assert not adapter.sea.poll(3)


def test_addresses_from_outside_do_not_fill_memory_or_stop_frames() -> None:
    world = alone()
    adapter = world.adapters[0]
    assert adapter is not None
    for number in range(9000):
        world.outer.ports[0].send(world.frame(EVERYBODY, b"\x02\x99" + number.to_bytes(4, "big")))
        if number % 1000 == 0:
            world.poll()
    world.poll()
    assert len(adapter.sea._learnt) == 8192
    assert world.reaches_outside(0)
    world.run(400)
    assert len(adapter.sea._learnt) < 10


def test_announcement_is_a_rarp_request() -> None:
    mac = CLIENTS[0]
    body = "8035 0001 0800 06 04 0003" + mac.hex() + "00000000" + mac.hex() + "00000000"
    assert announcement(mac, 0).data == bytes.fromhex("ffffffffffff" + mac.hex() + body).ljust(60, b"\0")
    assert announcement(mac, 20).data[12:16] == bytes.fromhex("81000014")


@pytest.mark.parametrize("vlans", [(20, 20), (0,), (4095,)])
def test_vlans_that_cannot_be_are_refused(vlans: tuple[int, ...]) -> None:
    world = World()
    port = world.switch.add(PortOptions(name="trunk", trunk=1, standby=True))
    trunks = [TrunkAdapter(port, 1 + n, (vlan,), SwitchTrunk(port)) for n, vlan in enumerate(vlans)]
    options = FailoverOptions(address=CLIENTS[0], alone=True)
    with pytest.raises(LocalError):
        Sea(SeaOptions(name="sea"), trunks, Cable().ends[0], options)
    with pytest.raises(LocalError, match="control channel"):
        Sea(SeaOptions(name="sea"), [], Cable().ends[0], FailoverOptions(address=CLIENTS[0]))


# -- pairs


def test_one_whose_trunk_cannot_be_activated_does_not_bridge() -> None:
    world = World(alone=True)
    world.uplinks[0].plugged = False
    adapter = world.start(0)

    def refuse() -> None:
        raise LocalError("no")

    for trunk in adapter.sea.trunks:
        trunk.control.activate = refuse  # type: ignore[method-assign]
    world.switch.deactivate(adapter.trunks[0])
    world.set_link(0, True)
    world.run(0.1)
    assert adapter.sea.refused >= 1
    assert world.states == ["BACKUP", "dead"]
    assert not world.reaches_outside(0)


def test_the_one_with_the_higher_priority_bridges() -> None:
    world = pair()
    assert world.states == ["PRIMARY", "BACKUP"]
    assert reached(world) == [True] * 4


def outage(world: World, client: int = 0, limit: float = 3.0) -> float:
    """Seconds until a client reaches a host again and goes on to."""
    start = world.clock.now
    last = start
    while world.clock.now < start + limit:
        world.run(0.02)
        if not world.reaches_outside(client):
            last = world.clock.now
    return last - start


@pytest.mark.parametrize(
    ("what", "longest"),
    [
        (lambda world: world.kill(0), 0.0),
        (lambda world: world.hung.add(0), 0.5),
        (lambda world: world.set_link(0, False), 0.0),
        (lambda world: world.adapters[0].sea.request(Mode.STANDBY), 0.0),
        (lambda world: world.adapters[1].sea.request(Mode.FORCED), 0.0),
        (lambda world: world.cut_channel(True), 0.1),
        (lambda world: world.kill(1), 0.0),
    ],
    ids=["death", "hang", "link", "standby", "forced", "cut", "backup"],
)
def test_whatever_happens_to_one_clients_go_on(what: Callable[[World], object], longest: float) -> None:
    world = pair()
    assert world.reaches_outside(0)
    what(world)
    assert outage(world) <= longest
    world.check_no_duplicates()


def test_clients_that_say_nothing_are_reached_after_a_takeover() -> None:
    world = pair()
    assert reached(world) == [True] * 4
    world.run(0.2)  # the partner hears of them
    world.kill(0)
    world.run(0.6)
    for client, vlan in ((0, 0), (1, 20)):
        frame = world.frame(CLIENTS[client], OUTSIDE[0], vlan)
        world.hosts[0].send(frame)
        world.poll()
        assert world.got[client][-1].data[6:12] == OUTSIDE[0]
        assert len(world.got[client]) == 2
    adapter = world.adapters[1]
    assert adapter is not None
    assert adapter.sea.announced >= 4


def test_one_that_comes_back_takes_over_without_an_outage() -> None:
    world = pair()
    world.kill(0)
    world.run(1)
    assert world.states == ["dead", "PRIMARY"]
    world.start(0)
    assert outage(world) == 0.0
    assert world.states == ["PRIMARY", "BACKUP"]
    adapter = world.adapters[1]
    assert adapter is not None
    assert adapter.sea.failover.received["RECOVERY"] >= 1
    world.check_no_duplicates()


def test_a_link_that_comes_back_is_trusted_after_a_while() -> None:
    world = pair()
    world.set_link(0, False)
    world.run(0.2)
    assert world.states == ["LIMBO", "PRIMARY"]
    for _ in range(3):
        world.set_link(0, True)
        world.run(0.6)
        assert world.states == ["LIMBO", "PRIMARY"]
        world.set_link(0, False)
        world.run(0.1)
    world.set_link(0, True)
    assert outage(world) == 0.0
    assert world.states == ["PRIMARY", "BACKUP"]


def test_a_link_that_comes_back_is_trusted_at_once_when_there_is_no_other() -> None:
    world = pair()
    world.set_link(0, False)
    world.set_link(1, False)
    world.run(0.5)
    assert world.states == ["LIMBO", "LIMBO"]
    world.set_link(1, True)
    world.run(0.1)
    assert world.states == ["LIMBO", "PRIMARY"]


def test_a_link_that_was_needed_is_trusted_when_the_other_comes() -> None:
    world = pair()
    world.set_link(1, False)
    world.kill(0)
    world.run(0.5)
    world.set_link(1, True)
    world.run(0.2)
    assert world.states == ["dead", "PRIMARY"]
    world.start(0)
    assert outage(world) == 0.0
    assert world.states == ["PRIMARY", "BACKUP"]


def test_when_the_channel_is_cut_the_one_that_took_over_stays() -> None:
    world = pair()
    world.cut_channel(True)
    world.run(5)
    assert world.states == ["BACKUP", "PRIMARY"]
    assert [adapter.sea.failover.trunks[1].became_primary for adapter in world.adapters if adapter] == [1, 1]
    world.kill(1)  # the switch makes the other's trunk the active one
    assert outage(world) <= 0.1
    assert world.states == ["PRIMARY", "dead"]


def test_when_the_channel_is_mended_the_higher_priority_counts_again() -> None:
    world = pair()
    world.cut_channel(True)
    world.run(2)
    world.cut_channel(False)
    assert outage(world) == 0.0
    assert world.states == ["PRIMARY", "BACKUP"]


def test_standby_bridges_only_when_nobody_else_can() -> None:
    world = pair()
    first = world.adapters[0]
    assert first is not None
    first.sea.request(Mode.STANDBY)
    world.run(0.5)
    assert world.states == ["BACKUP", "PRIMARY"]
    world.kill(1)
    world.run(0.5)
    assert world.states == ["PRIMARY", "dead"]
    world.start(1)
    world.run(1)
    assert world.states == ["BACKUP", "PRIMARY"]
    first.sea.request(Mode.AUTO)
    world.run(0.5)
    assert world.states == ["PRIMARY", "BACKUP"]


def test_sharing_gives_each_every_second_trunk_and_all_to_one_alone() -> None:
    world = pair(trunks=FOUR, mode=Mode.SHARING)
    world.run(0.5)
    assert world.states == ["PRIMARY_SH", "BACKUP_SH"]
    one, two = (adapter.sea for adapter in world.adapters if adapter)
    assert [sorted(sea.failover.bridging) for sea in (one, two)] == [[1, 30], [20, 40]]
    assert one.failover.bridge_mode == "Partial"
    assert reached(world) == [True] * 4
    assert one.virtual.bridged
    assert two.virtual.bridged
    world.kill(1)
    assert outage(world, 1) == 0.0
    assert sorted(one.failover.bridging) == [1, 20, 30, 40]
    world.start(1)
    assert outage(world, 1) == 0.0
    two = world.adapters[1].sea  # type: ignore[union-attr]
    assert [sorted(sea.failover.bridging) for sea in (one, two)] == [[1, 30], [20, 40]]
    world.check_no_duplicates()


def test_a_flood_on_the_channel_is_dropped_and_counted() -> None:
    world = pair()
    stranger = world.switch.add(PortOptions(name="stranger", pvid=4094))
    for number in range(200):
        stranger.send(Frame(bytes(6).replace(b"\0", b"\xff") + CLIENTS[3] + b"\x88\xb5" + bytes([number % 256]) * 60))
        stranger.send(world.frame(EVERYBODY, CLIENTS[3]))
    world.run(1)
    assert world.states == ["PRIMARY", "BACKUP"]
    adapter = world.adapters[0]
    assert adapter is not None
    assert adapter.sea.failover.received["malformed"] == 200
    assert adapter.sea.control_dropped == 200


def test_what_the_other_may_have_bridged_is_dropped_at_a_takeover() -> None:
    world = pair()
    first, second = world.adapters
    assert first is not None
    assert second is not None
    world.hosts[0].send(world.frame(EVERYBODY, OUTSIDE[0]))
    world.outer.poll()
    first.sea.poll()
    world.kill(0)
    assert not second.sea.failover.bridging
    second.sea.advance()
    assert second.sea.failover.bridging
    world.poll()
    assert len(world.got[0]) == 1
    assert second.sea.real.dropped == {"not primary": 1}


def test_who_did_not_run_does_not_take_it_for_the_others_silence() -> None:
    world = pair()
    second = world.adapters[1]
    assert second is not None
    world.hung.add(1)
    world.cut_channel(True)
    world.run(0.9)
    world.cut_channel(False)
    world.hung.clear()
    second.sea.advance()
    world.run(1)
    assert second.sea.failover.trunks[1].became_primary == 0
    world.hung.add(1)
    world.run(2)  # now there are messages
    world.hung.clear()
    second.sea.advance()
    assert second.sea.failover.trunks[1].became_primary == 0


# -- anything


class Pair(RuleBasedStateMachine):
    """Deaths, returns, cuts, hangs, links and requests in any order, with frames between them."""

    mode = Mode.AUTO

    def __init__(self) -> None:
        super().__init__()
        self.world = World(trunks=((1, ()), (20, ())), mode=self.mode)
        for number in (0, 1):
            self.world.start(number)

    @rule(number=st.integers(0, 1))
    def kill(self, number: int) -> None:
        self.world.kill(number)
        self.world.hung.discard(number)

    @rule(number=st.integers(0, 1))
    def start(self, number: int) -> None:
        if self.world.adapters[number] is None:
            self.world.start(number)

    @rule(number=st.integers(0, 1), hung=st.booleans())
    def hang(self, number: int, hung: bool) -> None:
        (self.world.hung.add if hung else self.world.hung.discard)(number)

    @rule(number=st.integers(0, 1), up=st.booleans())
    def link(self, number: int, up: bool) -> None:
        self.world.set_link(number, up)

    @rule(cut=st.booleans())
    def channel(self, cut: bool) -> None:
        self.world.cut_channel(cut)

    @rule(number=st.integers(0, 1), mode=st.sampled_from(list(Mode)))
    def request(self, number: int, mode: Mode) -> None:
        adapter = self.world.adapters[number]
        if adapter is not None and number not in self.world.hung:
            adapter.sea.request(mode)

    @rule(seconds=st.sampled_from([0.01, 0.05, 0.1, 0.3, 0.5, 2.0]))
    def wait(self, seconds: float) -> None:
        self.world.run(seconds)

    @rule(client=st.integers(0, 3), to=st.sampled_from([*OUTSIDE, EVERYBODY, *CLIENTS]))
    def inside(self, client: int, to: bytes) -> None:
        self.world.clients[client].send(self.world.frame(to, CLIENTS[client]))
        self.world.poll()

    @rule(host=st.integers(0, 1), to=st.sampled_from([*CLIENTS, EVERYBODY, *OUTSIDE]), vlan=st.sampled_from([0, 20]))
    def outside(self, host: int, to: bytes, vlan: int) -> None:
        self.world.hosts[host].send(self.world.frame(to, OUTSIDE[host], vlan))
        self.world.poll()

    @precondition(lambda self: any(self.can_bridge))
    @rule()
    def clients_reach_hosts_within_a_second(self) -> None:
        """If there is one that can bridge, and what cannot be told apart from life is not in the way."""
        if self.world.hung:
            return
        self.world.run(1.0)
        assert reached(self.world) == [True] * 4

    @property
    def can_bridge(self) -> list[bool]:
        world = self.world
        return [world.adapters[n] is not None and world.uplinks[n].plugged for n in (0, 1)]

    @invariant()
    def frames_pass_once(self) -> None:
        self.world.check_no_duplicates()

    @invariant()
    def a_vlan_has_one_active_trunk(self) -> None:
        for vlan in (1, 20):
            active = [port for port in self.world.switch.ports if vlan in port.active]
            assert len(active) <= 1

    def teardown(self) -> None:
        world = self.world
        world.hung.clear()
        world.cut_channel(False)
        world.run(2.5)
        bridging = [adapter.sea.failover.bridging if adapter is not None else frozenset() for adapter in world.adapters]
        assert not bridging[0] & bridging[1]
        if any(self.can_bridge):
            assert bridging[0] | bridging[1] == {1, 20}
            assert reached(world) == [True] * 4
        world.check_no_duplicates()


class SharingPair(Pair):
    mode = Mode.SHARING


TestPair = Pair.TestCase
TestSharingPair = SharingPair.TestCase
TestPair.settings = TestSharingPair.settings = settings(
    max_examples=30, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_report_says_what_entstat_says() -> None:
    world = pair()
    assert reached(world) == [True] * 4
    texts = [entstat(report(adapter.sea)) for adapter in world.adapters if adapter is not None]
    assert "    State: PRIMARY\n    Bridge Mode: All\n" in texts[0]
    assert "    State: BACKUP\n    Bridge Mode: None\n" in texts[1]
    assert "    Number of Times Server became Primary: 1\n" in texts[0]
    assert "    High Availability Mode: Auto\n    Priority: 2\n" in texts[1]
    assert "VLAN IDs :\n    1: 1 20\n" in texts[0]
    assert "Virtual Side Statistics:\n    Packets received: 4\n    Packets bridged: 4\n" in texts[0]
