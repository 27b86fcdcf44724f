"""What the tables of the switch decide, rule by rule, with a clock of the test's."""

from __future__ import annotations

import pytest
from tests.network.switching import MAC, ethernet, tag

from powervio.network.port import Frame
from powervio.network.switch_core import SwitchCore
from powervio.network.switch_decision import (
    DROP,
    FLOOD,
    KEEP,
    ONE,
    PUSH,
    REASONS,
    REPLACE,
    STRIP,
    Decision,
)

pytestmark = pytest.mark.dual

SECOND = 10**9
EVERYBODY = b"\xff" * 6


class Core:
    """A core with named arguments that are usual."""

    def __init__(self, limit: int = 200, addresses: int = 64, age: int = 10 * SECOND) -> None:
        self.core = SwitchCore(limit, addresses=addresses, age=age, seed=0x1234_5678_9ABC_DEF0)
        self.out = Decision(self.core)
        self.now = SECOND

    def port(
        self,
        number: int,
        pvid: int = 1,
        vlans: tuple[int, ...] = (),
        *,
        trunk: bool = False,
        may_learn: int = 64,
        rate: int = 0,
        burst: int = 0,
        storm: int = 0,
        checked: bytes = b"",
    ) -> None:
        self.core.set_port(
            number,
            pvid=pvid,
            vlans=frozenset(vlans),
            address=int.from_bytes(checked, "big"),
            checked=bool(checked),
            trunk=trunk,
            may_learn=may_learn,
            rate=rate,
            burst=burst,
            storm=storm,
        )

    def send(self, port: int, data: bytes, partial: tuple[int, int] | None = None) -> str | dict[int, int]:
        """Why it goes nowhere, or who gets it and what becomes of its tag."""
        kind = self.core.decide_frame(self.out, self.core.handle(port), Frame(data, partial), self.now)
        assert kind == self.out.kind
        if kind == DROP:
            return REASONS[self.out.reason]
        if kind == ONE:
            return {self.out.egress: self.out.todo}
        assert kind == FLOOD
        receivers = {}
        while (number := self.out.next()) >= 0:
            assert number not in receivers
            receivers[number] = self.out.change(self.out.takes_tagged(number))
        return receivers


def test_broadcast_reaches_all_ports_of_its_vlan_with_the_tag_that_each_gets() -> None:
    core = Core()
    core.port(0, 10)
    core.port(63, 10)
    core.port(64, 20)
    core.port(130, 20, (10,))
    core.port(199, 30, (10, 20))
    everybody = ethernet(EVERYBODY, MAC[1])
    assert core.send(0, everybody) == {63: KEEP, 130: PUSH, 199: PUSH}
    assert (core.out.vlan, core.out.tci) == (10, 10)
    assert core.send(130, everybody) == {64: KEEP, 199: PUSH}
    assert core.send(130, tag(everybody, 10, 5)) == {0: STRIP, 63: STRIP, 199: KEEP}
    assert core.out.tci == 5 << 13 | 10
    assert core.send(0, tag(everybody, 0, 3)) == {63: STRIP, 130: REPLACE, 199: REPLACE}
    assert core.out.tci == 3 << 13 | 10


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (ethernet(MAC[2], MAC[1])[:13], "too short"),
        (tag(ethernet(MAC[2], MAC[1]), 10)[:17], "too short"),
        (ethernet(MAC[2], bytes(6)), "bad source"),
        (ethernet(MAC[2], EVERYBODY), "bad source"),
        (tag(tag(ethernet(MAC[2], MAC[1]), 20), 10), "two tags"),
        (tag(ethernet(MAC[2], MAC[1], 0x88A8), 10), "two tags"),
        (ethernet(MAC[2], MAC[1], 0x88A8), "two tags"),
        (tag(ethernet(MAC[2], MAC[1]), 20), "foreign VLAN"),
        (tag(ethernet(MAC[2], MAC[1]), 4095), "foreign VLAN"),
        (ethernet(bytes.fromhex("0180c2000002"), MAC[1]), "for the next bridge"),
        (ethernet(MAC[1], MAC[1]), "same port"),
    ],
)
def test_frame_that_may_not_go_on_is_counted(data: bytes, reason: str) -> None:
    core = Core()
    core.port(0, 1, (10,))
    core.port(1, 1, (10, 20))
    assert core.send(0, data) == reason
    counters = dict(zip(REASONS, core.core.counters(0)[4:], strict=True))
    assert counters.pop(reason) == 1
    assert not any(counters.values())
    assert not any(core.core.counters(0)[:4])
    assert not any(core.core.counters(1))


def test_untagged_port_takes_no_tag_but_a_priority() -> None:
    core = Core()
    core.port(0, 10)
    core.port(1, 10)
    assert core.send(0, tag(ethernet(EVERYBODY, MAC[1]), 10)) == "tagged"
    assert core.send(0, tag(ethernet(EVERYBODY, MAC[1]), 0, 7)) == {1: STRIP}


def test_port_that_is_not_there_sends_nothing() -> None:
    core = Core(4)
    assert core.send(3, ethernet(EVERYBODY, MAC[1])) == "no port"
    frame = Frame(ethernet(EVERYBODY, MAC[1]))
    for handle in (4, 0xFFFF, 3 << 16, 2**32 - 1):
        assert core.core.decide_frame(core.out, handle, frame, core.now) == DROP
        assert REASONS[core.out.reason] == "no port"
    core.port(3)
    before = core.core.handle(3)
    assert core.send(3, ethernet(EVERYBODY, MAC[1])) == "no receiver"
    core.core.clear_port(3)
    core.port(3)
    core.port(2)
    assert core.core.decide_frame(core.out, before, frame, core.now) == DROP
    assert REASONS[core.out.reason] == "no port"
    assert not any(core.core.counters(3))
    assert core.send(3, ethernet(EVERYBODY, MAC[1])) == {2: KEEP}


def test_checksum_that_would_change_what_was_decided_is_malformed() -> None:
    core = Core()
    core.port(0, 1, (10,))
    core.port(1, 1, (10,))
    plain = ethernet(EVERYBODY, MAC[1])
    assert core.send(0, plain, (13, 0)) == "malformed"
    assert core.send(0, plain, (14, 0)) == {1: KEEP}
    assert core.send(0, tag(plain, 10), (17, 0)) == "malformed"
    assert core.send(0, tag(plain, 0), (17, 0)) == "malformed"
    assert core.send(0, tag(plain, 10), (18, 0)) == {1: KEEP}


def test_addresses_are_learnt_for_each_vlan_move_and_age() -> None:
    core = Core()
    for number in range(3):
        core.port(number, 1, (10,))
    assert core.send(0, ethernet(MAC[2], MAC[1])) == {1: KEEP, 2: KEEP}
    assert core.send(1, ethernet(MAC[1], MAC[2])) == {0: KEEP}
    assert core.send(0, ethernet(MAC[2], MAC[1])) == {1: KEEP}
    assert core.send(0, tag(ethernet(MAC[2], MAC[1]), 10)) == {1: KEEP, 2: KEEP}
    assert core.send(2, ethernet(MAC[1], MAC[2])) == {0: KEEP}
    assert core.send(0, ethernet(MAC[2], MAC[1])) == {2: KEEP}
    one, two = (int.from_bytes(MAC[number], "big") for number in (1, 2))
    assert sorted(core.core.learnt(core.now)) == [(1, one, 0), (1, two, 2), (10, one, 0)]
    core.now += 10 * SECOND
    assert core.send(0, ethernet(MAC[2], MAC[1])) == {2: KEEP}
    core.now += 1
    assert core.send(0, ethernet(MAC[2], MAC[1])) == {1: KEEP, 2: KEEP}
    assert core.core.learnt(core.now) == [(1, one, 0)]


def test_clock_of_another_thread_may_be_a_little_behind() -> None:
    core = Core(age=1)
    core.port(0)
    core.port(1)
    core.port(2)
    core.send(0, ethernet(EVERYBODY, MAC[1]))
    core.now -= 1000
    assert core.send(1, ethernet(MAC[1], MAC[2])) == {0: KEEP}


def test_port_that_makes_up_addresses_loses_its_own_only() -> None:
    core = Core(addresses=4096)
    core.port(0, may_learn=8)
    core.port(1)
    core.port(2)
    core.send(1, ethernet(EVERYBODY, MAC[1]))
    for number in range(500):
        core.send(0, ethernet(EVERYBODY, b"\2\xff" + number.to_bytes(4, "big")))
    assert len(core.core.learnt(core.now)) == 9
    assert core.send(2, ethernet(MAC[1], MAC[2])) == {1: KEEP}
    core.now += 11 * SECOND
    core.send(0, ethernet(EVERYBODY, MAC[3]))  # what was too old made room
    assert len(core.core.learnt(core.now)) == 1


def test_full_bucket_forgets_what_was_not_seen_for_longest() -> None:
    core = Core(addresses=8)
    core.port(0)
    core.port(1)
    macs = [b"\2\xff" + number.to_bytes(4, "big") for number in range(9)]
    for mac in macs:
        core.now += 1
        core.send(0, ethernet(EVERYBODY, mac))
    known = [address.to_bytes(6, "big") for _, address, _ in core.core.learnt(core.now)]
    assert sorted(known) == macs[1:]


def test_address_of_a_port_is_nobody_elses() -> None:
    core = Core()
    core.port(0, checked=MAC[1])
    core.port(1)
    core.port(2, checked=MAC[2])
    core.core.set_fixed({1 << 48 | int.from_bytes(MAC[n], "big"): port for n, port in ((1, 0), (2, 2))})
    assert core.send(0, ethernet(EVERYBODY, MAC[3])) == "spoofed"
    assert core.send(1, ethernet(EVERYBODY, MAC[1])) == "spoofed"
    assert core.send(2, ethernet(MAC[1], MAC[2])) == {0: KEEP}
    assert core.send(1, ethernet(MAC[2], MAC[3])) == {2: KEEP}
    assert core.send(0, ethernet(MAC[4], MAC[1])) == {1: KEEP}, "who is unknown is not at a checked port"
    core.core.clear_port(1)
    assert core.send(0, ethernet(MAC[4], MAC[1])) == "no receiver"
    core.core.set_fixed({})
    core.core.set_address(0, int.from_bytes(MAC[3], "big"))
    assert core.send(0, ethernet(EVERYBODY, MAC[3])) == {2: KEEP}


def test_many_fixed_addresses_are_all_found() -> None:
    core = Core(2048)
    macs = [b"\2\1" + number.to_bytes(4, "big") for number in range(2000)]
    for number, mac in enumerate(macs):
        core.port(number, checked=mac)
    core.core.set_fixed({1 << 48 | int.from_bytes(mac, "big"): number for number, mac in enumerate(macs)})
    for number, mac in enumerate(macs):
        assert core.send(number, ethernet(macs[number - 1], mac)) == {(number - 1) % 2000: KEEP}


def test_unknown_goes_to_the_active_trunk_and_the_other_is_mute() -> None:
    core = Core()
    core.port(0)
    core.port(1)
    core.port(2, 1, (10,), trunk=True)
    core.port(3, 1, (10,), trunk=True)
    unknown, everybody = ethernet(MAC[4], MAC[1]), ethernet(EVERYBODY, MAC[1])
    assert core.send(0, unknown) == {1: KEEP}
    core.core.set_trunk(1, 2)
    assert core.send(0, unknown) == {2: KEEP}
    assert core.send(0, everybody) == {1: KEEP, 2: KEEP}
    assert core.send(2, ethernet(MAC[4], MAC[5])) == {0: KEEP, 1: KEEP}
    assert core.send(3, ethernet(EVERYBODY, MAC[5])) == "inactive trunk"
    assert core.send(2, tag(ethernet(EVERYBODY, MAC[5]), 10)) == "inactive trunk"
    core.core.set_trunk(10, 3)
    assert core.send(3, tag(ethernet(EVERYBODY, MAC[6]), 10)) == "no receiver"
    core.core.set_trunk(1, 3)
    ports = sorted(port for _, _, port in core.core.learnt(core.now))
    assert ports == [0, 3], "what was behind the one before is forgotten"
    assert core.send(0, ethernet(MAC[5], MAC[1])) == {3: KEEP}
    assert core.send(2, ethernet(EVERYBODY, MAC[5])) == "inactive trunk"
    core.core.set_trunk(1, -1)
    assert core.send(0, unknown) == {1: KEEP}


def test_groups_reach_who_wants_them() -> None:
    core = Core()
    for number in range(4):
        core.port(number, 1 if number < 3 else 2)
    group, other = bytes.fromhex("01005e000001"), bytes.fromhex("333300000001")
    core.core.set_all_groups(1, False)
    core.core.set_all_groups(2, False)
    assert core.send(0, ethernet(group, MAC[1])) == "no receiver"
    core.core.set_groups({int.from_bytes(group, "big"): frozenset({0, 1, 3})})
    assert core.send(0, ethernet(group, MAC[1])) == {1: KEEP}
    assert core.send(2, ethernet(group, MAC[2])) == {0: KEEP, 1: KEEP}
    assert core.send(2, ethernet(other, MAC[2])) == {0: KEEP}
    assert core.send(0, ethernet(EVERYBODY, MAC[1])) == {1: KEEP, 2: KEEP}
    core.core.set_groups({number << 8 | 0x0100_0000_0001: frozenset({2}) for number in range(1000)})
    assert core.send(0, ethernet((77 << 8 | 0x0100_0000_0001).to_bytes(6, "big"), MAC[1])) == {2: KEEP}
    assert core.send(0, ethernet(group, MAC[1])) == "no receiver"


def test_rate_lets_a_burst_through_and_then_so_many_bytes_a_second() -> None:
    core = Core()
    core.port(0, rate=1000, burst=500)
    core.port(1)
    data = ethernet(EVERYBODY, MAC[1], payload=86)
    assert [core.send(0, data) == {1: KEEP} for _ in range(8)] == [True] * 5 + [False] * 3
    assert core.send(0, data) == "rate"
    passed = 0
    for _ in range(200):
        core.now += SECOND // 20
        passed += core.send(0, data) != "rate"
    assert passed == 100
    core.now += 100 * SECOND
    assert [core.send(0, data) == {1: KEEP} for _ in range(6)] == [True] * 5 + [False]
    core.now += 100 * SECOND
    assert core.send(0, bytes(data) + bytes(65000)) == {1: KEEP}, "a frame larger than the burst goes, and is paid for"
    core.now += 60 * SECOND
    assert core.send(0, data) == "rate"
    core.now += 6 * SECOND
    assert core.send(0, data) == {1: KEEP}
    assert core.core.counters(1)[4:] == (0,) * len(REASONS)


def test_storm_bound_counts_what_is_for_all_or_for_somebody_unknown() -> None:
    core = Core()
    core.port(0, storm=10)
    core.port(1)
    core.port(2)
    core.send(1, ethernet(EVERYBODY, MAC[2]))
    everybody, unknown, known = (ethernet(to, MAC[1]) for to in (EVERYBODY, MAC[4], MAC[2]))
    assert [core.send(0, everybody) != "storm" for _ in range(5)] == [True] * 5
    assert [core.send(0, unknown) != "storm" for _ in range(9)] == [True] * 5 + [False] * 4
    assert core.send(0, everybody) == "storm"
    assert core.send(0, known) == {1: KEEP}
    core.now += SECOND // 10
    assert [core.send(0, everybody) != "storm" for _ in range(2)] == [True, False]


def test_number_that_comes_back_has_nothing_of_the_port_before() -> None:
    core = Core()
    core.port(0, 10, (20, 30), trunk=True)
    core.port(1, 10)
    core.core.set_trunk(10, 0)
    core.send(0, ethernet(EVERYBODY, MAC[1]))
    version = core.core.version
    core.core.set_trunk(10, -1)
    core.core.clear_port(0)
    assert core.core.version != version
    assert core.core.learnt(core.now) == []
    assert core.send(1, ethernet(EVERYBODY, MAC[2])) == "no receiver"
    core.port(0, 40)
    assert core.core.counters(0) == (0,) * (4 + len(REASONS))
    assert core.send(0, ethernet(EVERYBODY, MAC[1])) == "no receiver"
    assert core.send(1, ethernet(EVERYBODY, MAC[2])) == "no receiver"


def test_what_went_on_is_counted() -> None:
    core = Core()
    core.port(0)
    core.port(1)
    core.send(0, ethernet(EVERYBODY, MAC[1]))
    core.send(0, ethernet(MAC[2], MAC[1]))
    assert core.core.counters(0)[:4] == (2, 120, 0, 0)
    core.core.miss(1, REASONS.index("queue full"))
    assert core.core.counters(1)[4 + REASONS.index("queue full")] == 1
