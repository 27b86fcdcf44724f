"""Link aggregation: two bonds that are joined by cables, in simulated time."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.network.cables import Cable, CableLink

from powervio.errors import LocalError
from powervio.network.bond import BUCKETS, BondMember, BondOptions, BondPort
from powervio.network.flow import flow_hash
from powervio.network.port import Frame, Offload
from powervio.testing.clock import Clock, ManualScheduler

HOSTS = (bytes.fromhex("020000000100"), bytes.fromhex("020000000200"))


def udp(flow: int, number: int = 0) -> Frame:
    """One of a flow, with a number in it."""
    ip = bytes.fromhex("45000030 00000000 40110000 0a000001 0a000002")
    ports = (1024 + flow).to_bytes(2, "big") + b"\x13\x88"
    return Frame(HOSTS[1] + HOSTS[0] + b"\x08\x00" + ip + ports + bytes(4) + number.to_bytes(8, "big"))


def sides(cables: list[Cable], options: BondOptions, clock: Clock) -> list[BondPort]:
    def member(side: int, number: int, cable: Cable) -> BondMember:
        address = bytes([2, 0, 0, 0, side, number])
        return BondMember(f"link{number}", lambda: cable.ends[side], CableLink(cable, address))

    return [
        BondPort(f"bond{side}", [member(side, n, cable) for n, cable in enumerate(cables)], options, clock)
        for side in (0, 1)
    ]


class Pair:
    """Two bonds over some cables."""

    def __init__(self, links: int = 3, options: BondOptions | None = None) -> None:
        self.clock = Clock()
        self.cables = [Cable(f"cable{n}") for n in range(links)]
        self.bonds = sides(self.cables, options or BondOptions(), self.clock)
        self.got: list[list[Frame]] = [[], []]

    def poll(self) -> None:
        for _ in range(50):
            for bond, got in zip(self.bonds, self.got, strict=True):
                bond.advance()
                while (frame := bond.receive()) is not None:
                    got.append(frame)
            if not any(end.frames for cable in self.cables for end in cable.ends):
                return
        raise AssertionError("they never stop talking")

    def run(self, seconds: float) -> None:
        end = self.clock.now + seconds
        self.poll()
        while (due := min(bond.due() for bond in self.bonds)) <= end:
            self.clock.now = max(due, self.clock.now)
            self.poll()
        self.clock.now = end


def test_flows_are_spread_and_each_stays_in_its_order() -> None:
    pair = Pair()
    pair.run(5)
    one, two = pair.bonds
    assert one.used == two.used == ("link0", "link1", "link2")
    sent = [udp(flow, number) for number in range(20) for flow in range(60)]
    assert all(one.send(frame) for frame in sent)
    loads = [sum(frame.data[12:14] == b"\x08\x00" for frame in cable.ends[1].frames) for cable in pair.cables]
    assert min(loads) > 200
    pair.poll()
    assert Counter(pair.got[1]) == Counter(sent)
    for flow in range(60):
        numbers = [frame.data[-1] for frame in pair.got[1] if frame.data[34:36] == (1024 + flow).to_bytes(2, "big")]
        assert numbers == list(range(20))
    assert (one.sent, two.received) == (len(sent), len(sent))


def test_a_link_that_is_pulled_moves_only_its_flows() -> None:
    pair = Pair()
    one = pair.bonds[0]
    pair.run(5)

    def places() -> list[int]:
        found = []
        for flow in range(100):
            one.send(udp(flow))
            (place,) = [n for n, cable in enumerate(pair.cables) if cable.ends[1].frames]
            pair.cables[place].ends[1].frames.clear()
            found.append(place)
        return found

    before = places()
    pair.cables[1].plugged = False
    pair.run(0.2)
    assert [bond.used for bond in pair.bonds] == [("link0", "link2")] * 2
    after = places()
    assert all(old == new for old, new in zip(before, after, strict=True) if old != 1)
    assert 1 not in after
    pair.cables[1].plugged = True
    pair.run(4)
    assert [bond.used for bond in pair.bonds] == [("link0", "link1", "link2")] * 2
    back = places()
    assert all(old == new for old, new in zip(after, back, strict=True) if new != 1)
    assert [member.failures for member in one.report()] == [0, 1, 0]


def test_a_link_that_says_nothing_is_left() -> None:
    pair = Pair(2)
    pair.run(5)
    pair.cables[0].silent = True
    pair.run(3.5)
    assert [bond.used for bond in pair.bonds] == [("link1",)] * 2
    pair.cables[0].silent = False
    pair.run(8)
    assert [bond.used for bond in pair.bonds] == [("link0", "link1")] * 2


def test_without_links_frames_are_dropped_and_counted() -> None:
    pair = Pair(1)
    one = pair.bonds[0]
    assert not one.send(udp(1))
    assert one.dropped == {"no link": 1}
    assert not one.up


def test_active_backup_uses_one_link_and_takes_frames_of_no_other() -> None:
    pair = Pair(2, BondOptions(mode="active-backup"))
    one, two = pair.bonds
    moves: list[tuple[str, ...]] = []
    one.on_move = lambda: moves.append(one.used)
    pair.run(1)
    assert one.used == two.used == ("link0",)
    pair.cables[1].ends[0].send(udp(1))  # a network that floods
    pair.cables[0].ends[0].send(udp(2))
    pair.run(0.1)
    assert pair.got[1] == [udp(2)]
    assert two.report()[1].dropped == {"not collecting": 1}
    pair.cables[0].plugged = False
    pair.run(0.2)
    assert one.used == ("link1",)
    assert one.send(udp(3))
    pair.cables[0].plugged = True
    pair.run(1)
    assert one.used == ("link1",)
    assert moves == [("link1",)]
    pair.cables[1].plugged = False
    pair.run(0.2)
    assert one.used == ("link0",)
    assert [member.state for member in one.report()] == ["active", "backup"]


def test_primary_takes_its_place_again_after_its_delay() -> None:
    pair = Pair(2, BondOptions(mode="active-backup", primary="link1", delay=2.0))
    one = pair.bonds[0]
    pair.run(0.1)
    assert one.used == ("link1",)
    pair.cables[1].plugged = False
    pair.run(1)
    assert one.used == ("link0",)
    pair.cables[1].plugged = True
    pair.run(1.9)
    assert one.used == ("link0",)
    pair.run(0.4)
    assert one.used == ("link1",)


def test_a_port_that_is_lost_is_opened_again() -> None:
    pair = Pair(2, BondOptions(mode="active-backup"))
    one = pair.bonds[0]
    pair.run(0.5)
    lost = pair.cables[0].ends[0]
    lost.closed = True
    pair.cables[0].plugged = False
    assert one.receive() is None
    assert one.used == ("link1",)
    pair.cables[0].plugged = True
    lost.closed = False
    pair.run(0.2)
    pair.cables[1].plugged = False
    pair.run(0.2)
    assert one.used == ("link0",)
    assert one.report()[0].dropped == {"port lost": 1}


def test_offloads_and_mtu_are_those_of_all_links() -> None:
    pair = Pair(2)
    one = pair.bonds[0]
    one.take(Offload.CSUM | Offload.TSO4)
    assert [cable.ends[0].taken for cable in pair.cables] == [3, 3]
    pair.cables[1].ends[0].mtu = 1400
    bond = sides(pair.cables, BondOptions(), pair.clock)[0]
    assert bond.mtu == 1400


def test_it_runs_in_a_loop_until_it_is_closed() -> None:
    scheduler = ManualScheduler()
    cable = Cable()
    clock = scheduler.clock
    assert isinstance(clock, Clock)
    bond = sides([cable], BondOptions(mode="active-backup"), clock)[0]
    bond.run(scheduler)
    cable.plugged = False
    scheduler.advance(0.1)
    scheduler.run()
    assert not bond.up
    bond.close()
    scheduler.advance(0.1)
    scheduler.run()
    assert not scheduler.busy
    assert cable.ends[0].closed


@pytest.mark.parametrize(
    ("names", "options"),
    [
        ([], BondOptions()),
        (["a", "a"], BondOptions()),
        (["a"], BondOptions(mode="active-backup", primary="b")),
        (["a"], BondOptions(interval=0)),
        ([str(n) for n in range(9)], BondOptions()),
    ],
)
def test_what_cannot_be_is_refused_and_its_links_are_closed(names: list[str], options: BondOptions) -> None:
    links = [CableLink(Cable(), bytes([2, 0, 0, 0, 0, n])) for n in range(len(names))]
    members = [
        BondMember(name, partial(lambda link: link.cable.ends[0], link), link)
        for name, link in zip(names, links, strict=True)
    ]
    with pytest.raises(LocalError):
        BondPort("bond0", members, options)
    assert all(link.closed for link in links)


def test_flow_hash_sees_flows_whatever_their_frames_are() -> None:
    plain = udp(1)
    tagged = Frame(bytes(plain.data[:12]) + b"\x81\x00\x00\x0a" + bytes(plain.data[12:]))
    assert flow_hash(plain.data) == flow_hash(tagged.data) == flow_hash(memoryview(plain.data))
    assert flow_hash(plain.data) != flow_hash(udp(2).data)
    first, second = bytearray(udp(1).data), bytearray(udp(2).data)
    first[20] = second[20] = 0x20  # fragments: only the first has the ports
    assert flow_hash(bytes(first)) == flow_hash(bytes(second))
    v6 = HOSTS[1] + HOSTS[0] + b"\x86\xdd" + bytes(6) + b"\x06\x40" + bytes(32) + b"\1\2\3\4"
    assert flow_hash(v6) != flow_hash(v6[:-1] + b"\5")
    assert flow_hash(b"") == flow_hash(b"")
    for length in range(len(plain.data)):
        flow_hash(plain.data[:length])
    buckets = Counter(flow_hash(udp(flow).data) % BUCKETS for flow in range(10_000))
    assert len(buckets) == BUCKETS


EVENTS = st.lists(
    st.tuples(st.sampled_from(["pull", "plug", "silence", "speak", "wait"]), st.integers(0, 2), st.floats(0, 4)),
    max_size=15,
)


@settings(deadline=None, max_examples=40)
@given(EVENTS, st.sampled_from(["802.3ad", "active-backup"]))
def test_nothing_comes_twice_or_in_another_order_and_all_is_well_in_the_end(
    events: list[tuple[str, int, float]], mode: str
) -> None:
    pair = Pair(3, BondOptions(mode=mode))  # type: ignore[arg-type]
    number = 0
    for kind, link, seconds in events:
        cable = pair.cables[link]
        if kind in ("pull", "plug"):
            cable.plugged = kind == "plug"
        elif kind in ("silence", "speak") and mode == "802.3ad":
            cable.silent = kind == "silence"
        pair.run(seconds)
        for flow in range(8):
            number += 1
            for bond in pair.bonds:
                bond.send(udp(flow, number))
        pair.poll()
        for got in pair.got:
            assert max(Counter(got).values(), default=0) <= 1
            for flow in range(8):
                port = (1024 + flow).to_bytes(2, "big")
                numbers = [frame.data[-8:] for frame in got if frame.data[34:36] == port]
                assert numbers == sorted(numbers)
    for cable in pair.cables:
        cable.plugged, cable.silent = True, False
    pair.run(12)
    if mode == "802.3ad":
        assert [bond.used for bond in pair.bonds] == [("link0", "link1", "link2")] * 2
    for got in pair.got:
        got.clear()
    for flow in range(8):
        assert pair.bonds[0].send(udp(flow))
    pair.poll()
    if mode == "802.3ad":
        assert Counter(pair.got[1]) == Counter(udp(flow) for flow in range(8))
