"""LACP: two of our ends over links that lose frames, go and come back, in simulated time."""

from __future__ import annotations

import math
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.errors import LocalError
from powervio.network.lacp import Aggregation, LacpOptions, Mux, Receive, Selected
from powervio.network.lacp_pdu import Lacpdu, Marker, PortInfo, State, parse

A, B, C = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))


def options(system: bytes, **others: object) -> LacpOptions:
    return LacpOptions(system=system, **others)  # type: ignore[arg-type]


class Wires:
    """Links between ends; `joined` has the two members of each. A link has a fate: up, and a share that it loses."""

    def __init__(self, joined: list[tuple[tuple[Aggregation, int], tuple[Aggregation, int]]], seed: int = 0) -> None:
        self.now = 100.0
        self.joined = joined
        self.ends = list(dict.fromkeys(end for pair in joined for end, _ in pair))
        self.lost = [0.0] * len(joined)
        self.carried = 0
        self._random = random.Random(seed)
        self._other = {}
        for number, (one, two) in enumerate(joined):
            self._other[one] = (two, number)
            self._other[two] = (one, number)
            for end, port in (one, two):
                end.add(port, end.options.system[:4] + port.to_bytes(2, "big"))

    def set_up(self, link: int, up: bool) -> None:
        for end, port in self.joined[link]:
            end.set_enabled(port, up, self.now)

    def all_up(self) -> None:
        for link in range(len(self.joined)):
            self.set_up(link, True)

    def deliver(self) -> None:
        for _ in range(100):
            sent = [(end, port, data) for end in self.ends for port, data in end.take()]
            if not sent:
                return
            for end, port, data in sent:
                if (end, port) not in self._other:
                    continue  # nobody is there
                (other, at), link = self._other[end, port]
                if self._random.random() >= self.lost[link]:
                    self.carried += 1
                    other.receive(at, data, self.now)
        raise AssertionError("they never stop talking")

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        self.deliver()
        while True:
            due = min((due for each in self.ends if (due := each.due()) is not None), default=math.inf)
            if due > end:
                break
            assert due >= self.now or due == pytest.approx(self.now)
            self.now = max(self.now, due)
            for each in self.ends:
                each.advance(self.now)
            self.deliver()
        self.now = end


def used(wires: Wires) -> list[tuple[int, ...]]:
    return [end.distributing for end in wires.ends]


def pair(links: int = 3, first: dict[str, object] | None = None, second: dict[str, object] | None = None) -> Wires:
    one, two = Aggregation(options(A, **(first or {}))), Aggregation(options(B, **(second or {})))
    return Wires([((one, n), (two, n + 10)) for n in range(1, links + 1)])


def test_two_ends_agree_on_all_links_and_talk_little_then() -> None:
    wires = pair()
    one = wires.ends[0]
    wires.all_up()
    wires.run(1.9)
    assert used(wires) == [(), ()]
    wires.run(2)
    assert used(wires) == [(1, 2, 3), (11, 12, 13)]
    assert one.collecting == {1, 2, 3}
    before = wires.carried
    wires.run(10)
    assert wires.carried - before == 10 * 3 * 2


def test_slow_partners_are_told_every_30_seconds() -> None:
    wires = pair(1, {"fast": False}, {"fast": False})
    wires.all_up()
    wires.run(60)
    before = wires.carried
    wires.run(90)
    assert wires.carried - before == 3 * 2


def test_a_link_that_goes_is_left_at_once_and_comes_back() -> None:
    wires = pair()
    one = wires.ends[0]
    wires.all_up()
    wires.run(5)
    wires.set_up(1, False)
    assert used(wires) == [(1, 3), (11, 13)]
    wires.set_up(1, True)
    wires.run(0)
    assert one.distributing == (1, 3)
    wires.run(4)
    assert used(wires) == [(1, 2, 3), (11, 12, 13)]


def test_a_silent_link_is_left_after_three_seconds() -> None:
    wires = pair()
    one = wires.ends[0]
    wires.all_up()
    wires.run(5)
    wires.lost[0] = 1.0
    wires.run(2)
    assert used(wires) == [(1, 2, 3), (11, 12, 13)]
    wires.run(1.1)
    assert used(wires) == [(2, 3), (12, 13)]
    assert one.members[1].receive.name == "EXPIRED"
    wires.run(3)
    assert one.members[1].receive.name == "DEFAULTED"
    assert one.members[1].selected is Selected.UNSELECTED
    wires.lost[0] = 0.0
    wires.run(6)
    assert used(wires) == [(1, 2, 3), (11, 12, 13)]


def test_one_direction_that_is_lost_takes_both() -> None:
    """What we hear says that the partner does not hear us."""
    one, two = Aggregation(options(A)), Aggregation(options(B))
    one.add(1, A)
    two.add(1, B)
    now = 100.0
    for end in (one, two):
        end.set_enabled(1, True, now)
    for step in range(200):
        now += 0.1
        for end in (one, two):
            end.advance(now)
        for _, data in two.take():
            one.receive(1, data, now)
        for _, data in one.take():
            if step < 50:
                two.receive(1, data, now)
        if step == 49:
            assert [end.distributing for end in (one, two)] == [(1,), (1,)]
    assert two.members[1].receive is Receive.DEFAULTED
    assert one.members[1].receive is Receive.CURRENT
    assert one.distributing == ()


def test_without_a_partner_one_link_is_used_alone() -> None:
    end = Aggregation(options(A))
    for number in (1, 2):
        end.add(number, A)
        end.set_enabled(number, True, 0.0)
    for tenth in range(100):
        end.advance(tenth / 10)
    assert end.distributing == (1,)
    end.set_enabled(1, False, 10.0)
    end.advance(10.0)
    end.advance(12.1)
    assert end.distributing == (2,)


def test_without_a_partner_no_link_is_used_if_that_is_wanted() -> None:
    end = Aggregation(options(A, individual=False))
    end.add(1, A)
    end.set_enabled(1, True, 0.0)
    for tenth in range(200):
        end.advance(tenth / 10)
    assert end.members[1].receive is Receive.DEFAULTED
    assert end.distributing == ()


def test_a_partner_is_better_than_none() -> None:
    one, two = Aggregation(options(A)), Aggregation(options(B))
    wires = Wires([((one, 2), (two, 2))])
    one.add(1, A)
    one.set_enabled(1, True, wires.now)
    wires.run(8)
    assert one.distributing == (1,)
    wires.all_up()
    wires.run(4)
    assert used(wires) == [(2,), (2,)]


def test_links_to_another_partner_wait() -> None:
    one, two, three = (Aggregation(options(system)) for system in (A, B, C))
    wires = Wires([((one, 1), (two, 1)), ((one, 2), (two, 2)), ((one, 3), (three, 1))])
    wires.all_up()
    wires.run(8)
    assert one.distributing == (1, 2)
    assert three.distributing == ()
    for link in (0, 1):
        wires.set_up(link, False)
    wires.run(8)
    assert [end.distributing for end in (one, three)] == [(3,), (1,)]


def test_spare_links_are_chosen_by_the_end_with_the_lower_identifier() -> None:
    wires = pair(4, {"max_active": 2, "system_priority": 1}, {"max_active": 2})
    one = wires.ends[0]
    one.members[3].priority = one.members[4].priority = 1
    wires.all_up()
    wires.run(8)
    assert used(wires) == [(3, 4), (13, 14)]
    assert one.members[1].selected is Selected.STANDBY
    wires.set_up(3, False)
    wires.run(4)
    assert used(wires) == [(1, 3), (11, 13)]


def test_a_cable_between_two_of_our_own_is_not_used() -> None:
    end = Aggregation(options(A, individual=False))
    wires = Wires([((end, 1), (end, 2))])
    wires.all_up()
    wires.run(20)
    assert end.distributing == ()


def test_passive_ends_answer_active_ones() -> None:
    wires = pair(1, {"active": False}, {})
    wires.all_up()
    wires.run(5)
    assert [end.distributing for end in wires.ends] == [(1,), (11,)]


def test_a_cable_that_was_moved_is_forgotten_where_it_was() -> None:
    one, two = Aggregation(options(A)), Aggregation(options(B))
    wires = Wires([((one, 1), (two, 1))])
    wires.all_up()
    wires.run(5)
    one.set_enabled(1, False, wires.now)
    assert one.members[1].partner.system == B
    one.add(2, A)
    one.set_enabled(2, True, wires.now)
    ((_, data),) = [entry for entry in two_sends(two, wires.now) if isinstance(parse(entry[1]), Lacpdu)][:1]
    one.receive(2, data, wires.now)
    assert one.members[1].partner.system == bytes(6)


def two_sends(end: Aggregation, now: float) -> list[tuple[int, bytes]]:
    end.advance(now + 1.0)
    return end.take()


def test_no_more_than_three_pdus_are_sent_in_a_second() -> None:
    end = Aggregation(options(A))
    end.add(1, A)
    end.set_enabled(1, True, 0.0)
    sent: list[float] = []
    for step in range(500):
        now = step / 100
        wrong = PortInfo(1, B, 1, 1, 1, State.ACTIVITY | State.AGGREGATION | State.TIMEOUT)
        end.receive(1, Lacpdu(wrong, PortInfo()).pack(B), now)
        end.advance(now)
        sent += [now for _, data in end.take() if isinstance(parse(data), Lacpdu)]
    for start in sent:
        assert sum(start <= at < start + 1 for at in sent) <= 3
    assert len(sent) >= 12


def test_markers_are_answered_but_not_any_number() -> None:
    end = Aggregation(options(A))
    end.add(1, A)
    end.receive(1, Marker(1, B, 1).pack(B), 0.0)
    assert end.members[1].counters == {"disabled": 1}
    end.set_enabled(1, True, 0.0)
    end.take()
    for number in range(20):
        end.receive(1, Marker(1, B, number).pack(B), 0.5)
    end.receive(1, Marker(1, B, 9, True).pack(B), 0.5)
    assert [parse(data) for _, data in end.take()] == [Marker(1, B, number, True) for number in range(10)]
    assert end.members[1].counters["markers unanswered"] == 10
    assert end.members[1].counters["marker responses received"] == 1


def test_what_is_malformed_changes_nothing_and_is_counted() -> None:
    wires = pair(1)
    one = wires.ends[0]
    wires.all_up()
    wires.run(5)
    one.receive(1, bytes(60), wires.now)
    assert one.members[1].counters["malformed"] == 1
    assert one.distributing == (1,)


@pytest.mark.parametrize("wrong", [{"system": bytes(6)}, {"system": b"\1" + bytes(5)}, {"key": 0}, {"max_active": 0}])
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        Aggregation(options(**({"system": A} | wrong)))  # type: ignore[arg-type]


def test_members_that_cannot_be_are_refused() -> None:
    end = Aggregation(options(A))
    end.add(1, A)
    for number in (0, 1, 65536):
        with pytest.raises(LocalError):
            end.add(number, A)
    end.set_enabled(1, True, 0.0)
    end.remove(1, 0.0)
    assert end.take() == []
    assert end.due() is None


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["up", "down", "lossy", "wait"]), st.integers(0, 3), st.floats(0, 1), st.floats(0.0, 7.0)
    ),
    max_size=25,
)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(0, 1 << 16), st.sampled_from([(True, True), (True, False), (False, False)]))
def test_whatever_happens_to_links_both_ends_agree_in_the_end(
    steps: list[tuple[str, int, float, float]], seed: int, fast: tuple[bool, bool]
) -> None:
    one, two = (Aggregation(options(system, fast=speed)) for system, speed in zip((A, B), fast, strict=True))
    wires = Wires([((one, n), (two, n)) for n in range(1, 5)], seed)
    up: set[int] = set()
    for kind, link, share, seconds in steps:
        if kind in ("up", "down"):
            wires.set_up(link, kind == "up")
            up = up | {link} if kind == "up" else up - {link}
        elif kind == "lossy":
            wires.lost[link] = share
        wires.run(seconds)
        check(wires)
    wires.lost = [0.0] * 4
    wires.run(130 if fast != (True, True) else 15)
    expected = tuple(sorted(link + 1 for link in up))
    assert used(wires) == [expected, expected]
    assert one.collecting == set(expected)


def check(wires: Wires) -> None:
    """What always holds, whatever was lost: each end is consistent in itself."""
    for end in wires.ends:
        assert set(end.distributing) <= end.collecting
        for member in end.members.values():
            if member.mux is Mux.DISTRIBUTING:
                assert member.enabled
                assert member.selected is Selected.SELECTED
        in_use = [end.members[number] for number in end.distributing]
        for member, other in combinations(in_use, 2):
            assert member.partner.system == other.partner.system
            assert not member.actor_state & State.DEFAULTED
    lossless = [link for link, share in enumerate(wires.lost) if share == 0]
    for link in lossless:  # nobody sends where nobody collects
        (one, first), (two, second) = wires.joined[link]
        heard = (one.members[first].receive, two.members[second].receive)
        if heard == (Receive.CURRENT, Receive.CURRENT):
            assert first not in one.distributing or second in two.collecting
            assert second not in two.distributing or first in one.collecting
