"""The switch as its ports see it: queues, tags, trunks, addresses, lines with a delay; and threads."""

from __future__ import annotations

import threading

import pytest
from tests.network.switching import MAC, ethernet, tag
from tests.network.test_segment import large

from powervio.errors import LocalError
from powervio.network.alarm import Alarm
from powervio.network.line import LineOptions
from powervio.network.port import Frame, Offload
from powervio.network.segment import segments
from powervio.network.switch import MAX_GROUPS, PortOptions, Switch, SwitchPort

pytestmark = pytest.mark.dual

EVERYBODY = b"\xff" * 6
SECOND = 10**9


class Clock:
    """A clock and an alarm that go when the test says so."""

    def __init__(self) -> None:
        self.now = SECOND
        self.alarm = self.Calls(self)

    def __call__(self) -> int:
        return self.now

    class Calls(Alarm):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            self.calls: list[tuple[int, object]] = []

        def at(self, when: int, call: object) -> None:
            self.calls.append((when, call))

    def go(self, nanoseconds: int) -> None:
        end = self.now + nanoseconds
        while due := [entry for entry in self.alarm.calls if entry[0] <= end]:
            entry = min(due, key=lambda entry: entry[0])
            self.alarm.calls.remove(entry)
            self.now = max(self.now, entry[0])
            entry[1]()  # type: ignore[operator]
        self.now = end


def made(clock: Clock | None = None, limit: int = 256) -> Switch:
    clock = clock or Clock()
    return Switch(limit=limit, clock=clock, alarm=clock.alarm, seed=1)


def all_of(port: SwitchPort) -> list[bytes]:
    frames = []
    while (frame := port.receive()) is not None:
        frames.append(bytes(frame.data))
    return frames


def test_frame_is_the_same_object_for_all_and_a_tag_is_put_in_once() -> None:
    switch = made()
    a, b, c = (switch.add(PortOptions(name=name)) for name in "abc")
    d, e = (switch.add(PortOptions(name=name, pvid=9, vlans=(1,))) for name in "de")
    frame = Frame(ethernet(EVERYBODY, MAC[1]))
    assert a.send(frame)
    assert b.receive() is frame
    assert c.receive() is frame
    tagged = d.receive()
    assert tagged is not None
    assert tagged.data == tag(bytes(frame.data), 1)
    assert e.receive() is tagged
    assert a.receive() is None
    assert (a.sent, a.missed, b.received) == (1, 0, 1)
    assert a.counters().sent_bytes == 60
    assert b.counters().received_bytes == 60


@pytest.mark.parametrize("ipv6", [False, True])
def test_what_is_left_to_do_moves_with_the_tag(ipv6: bool) -> None:
    switch = made()
    a = switch.add(PortOptions(name="a", pvid=10))
    b = switch.add(PortOptions(name="b", pvid=9, vlans=(10,)))
    c = switch.add(PortOptions(name="c", pvid=10))
    frame = large(b"x" * 3000, 1400, ipv6=ipv6)
    for port in (a, b, c):
        port.take(Offload(frame.needs))
    assert a.send(frame)
    tagged = b.receive()
    assert tagged is not None
    assert frame.partial is not None
    assert tagged == Frame(
        tag(bytes(frame.data), 10),
        (frame.partial[0] + 4, 16),
        gso=frame.gso,
        gso_size=1400,
        header_bytes=frame.header_bytes + 4,
    )
    all_of(c)
    assert b.send(tagged)
    assert a.receive() == frame == c.receive()
    b.take(Offload(0))
    assert a.send(frame)
    assert all_of(b) == [tag(bytes(part.data), 10) for part in segments(frame)]


def test_slow_receiver_loses_frames_and_holds_up_nobody() -> None:
    switch = made()
    a, b, c = (switch.add(PortOptions(name=name, queue=3)) for name in "abc")
    sent = [ethernet(EVERYBODY, MAC[1], first=number) for number in range(5)]
    got = []
    for data in sent:
        assert a.send(Frame(data))
        got += all_of(c)
    assert got == sent
    assert a.missed == 1
    assert b.waiting == 3
    assert all_of(b) == sent[:3]
    assert b.counters().dropped == {"queue full": 2}
    assert a.counters().dropped == c.counters().dropped == {}
    b.send(Frame(ethernet(EVERYBODY, MAC[2])))
    for _ in range(4):
        a.send(Frame(ethernet(MAC[2], MAC[1])))
    assert not a.send(Frame(ethernet(MAC[2], MAC[1]))), "nobody got it"
    assert a.missed == 1


def test_arrival_is_told_once_until_the_port_was_found_empty() -> None:
    switch = made()
    a, b = (switch.add(PortOptions(name=name)) for name in "ab")
    calls: list[int] = []
    b.on_arrival = lambda: calls.append(b.waiting)
    frame = Frame(ethernet(EVERYBODY, MAC[1]))
    for _ in range(3):
        a.send(frame)
    assert calls == [1]
    b.receive()
    a.send(frame)
    assert calls == [1]
    all_of(b)
    a.send(frame)
    assert calls == [1, 1]


def test_trunks_follow_each_other_by_priority_and_by_request() -> None:
    switch = made()
    client = switch.add(PortOptions(name="client", pvid=10, mac=MAC[1]))
    told: list[tuple[str, list[int]]] = []

    def trunk(name: str, priority: int, standby: bool = False) -> SwitchPort:
        port = switch.add(PortOptions(name=name, pvid=99, vlans=(10, 20), trunk=priority, standby=standby))
        port.on_active = lambda vlans: told.append((name, sorted(vlans)))
        return port

    def outside() -> str:
        """Which trunk gets what is for the outside."""
        client.send(Frame(ethernet(MAC[9], MAC[1])))
        got = [port.name for port in switch.ports if port is not client and all_of(port)]
        return got[0] if got else ""

    low = trunk("low", 7)
    assert low.active == {10, 20, 99}
    assert outside() == "low"
    high = trunk("high", 1)
    assert outside() == "high"
    spare = trunk("spare", 3, standby=True)
    assert told == [("low", [])]
    assert [sorted(port.active) for port in (low, high, spare)] == [[], [10, 20, 99], []]
    switch.activate(low, [10])
    assert outside() == "low"
    assert [sorted(port.active) for port in (low, high)] == [[10], [20, 99]]
    assert told[1:] == [("low", [10]), ("high", [20, 99])]
    switch.deactivate(low)
    assert outside() == "high"
    switch.remove(high)
    assert outside() == ""
    assert switch.active(10) is None
    switch.activate(spare)
    assert outside() == "spare"
    del told[:]
    spare.close()
    assert told == []
    assert outside() == ""
    assert not client.send(Frame(ethernet(MAC[9], MAC[1])))


def test_new_trunk_takes_over_from_a_lower_one_but_not_from_a_chosen_one() -> None:
    switch = made()
    low = switch.add(PortOptions(name="low", trunk=5))
    switch.activate(low)
    high = switch.add(PortOptions(name="high", trunk=1))
    assert switch.active(1) is low
    switch.deactivate(low)
    assert switch.active(1) is high


def test_addresses_of_ports_are_kept_apart() -> None:
    switch = made()
    a = switch.add(PortOptions(name="a", mac=MAC[1]))
    b = switch.add(PortOptions(name="b", mac=MAC[2], spoof_check=False))
    switch.add(PortOptions(name="elsewhere", pvid=2, mac=MAC[1]))
    with pytest.raises(LocalError, match="is the address of port a"):
        switch.add(PortOptions(name="c", mac=MAC[1]))
    with pytest.raises(LocalError, match="is the address of port a"):
        b.set_mac(MAC[1])
    assert not a.send(Frame(ethernet(MAC[2], MAC[3])))
    a.set_mac(MAC[3])
    assert a.send(Frame(ethernet(MAC[2], MAC[3])))
    assert b.send(Frame(ethernet(MAC[3], MAC[7]))), "it is not checked"
    assert switch.learnt() == [(1, MAC[7], b)]
    assert a.send(Frame(ethernet(MAC[7], MAC[3])))
    assert len(all_of(b)) == 2
    b.set_mac(None)
    assert len(all_of(a)) == 1
    with pytest.raises(LocalError, match="so has an address"):
        a.set_mac(None)
    assert a.counters().dropped == {"spoofed": 1}


def test_groups_that_a_port_joined() -> None:
    switch = made()
    a = switch.add(PortOptions(name="a"))
    b = switch.add(PortOptions(name="b", all_groups=False))
    group = bytes.fromhex("01005e000001")
    frame = Frame(ethernet(group, MAC[1]))
    assert not a.send(frame)
    b.set_groups([group])
    assert a.send(frame)
    b.set_groups([])
    assert not a.send(frame)
    b.set_all_groups(True)
    assert a.send(frame)
    with pytest.raises(LocalError, match="at most"):
        b.set_groups(b"\1\0\0\0" + number.to_bytes(2, "big") for number in range(MAX_GROUPS + 1))
    with pytest.raises(LocalError, match="no multicast"):
        b.set_groups([MAC[1]])
    b.close()
    b.set_groups([group])
    assert a.counters().dropped == {"no receiver": 3 - 1}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (PortOptions(name="x", pvid=0), "VLAN 0"),
        (PortOptions(name="x", vlans=(4095,)), "VLAN 4095"),
        (PortOptions(name="x", trunk=16), "priority 16"),
        (PortOptions(name="x", mac=EVERYBODY), "no address"),
        (PortOptions(name="x", queue=0), "queue of 0"),
        (PortOptions(name="x", rate=-1), "below 0"),
        (PortOptions(name="x", line=LineOptions(loss=2.0)), "a share"),
        (PortOptions(name="x", line=LineOptions(jitter=1.0)), "jitter <= delay"),
        (PortOptions(name="x", line=LineOptions(reorder=0.5)), "need a delay"),
        (PortOptions(name="x", trunk=1), "the trunk of priority 1 already"),
    ],
)
def test_port_that_cannot_be_is_told_in_a_sentence(options: PortOptions, why: str) -> None:
    switch = made()
    switch.add(PortOptions(name="trunk", trunk=1))
    with pytest.raises(LocalError, match=why):
        switch.add(options)
    assert len(switch.ports) == 1


def test_switch_has_so_many_ports_and_numbers_come_back() -> None:
    switch = made(limit=2)
    a, b = (switch.add(PortOptions(name=name)) for name in "ab")
    with pytest.raises(LocalError, match="2 ports, and no more"):
        switch.add(PortOptions(name="c"))
    a.send(Frame(ethernet(EVERYBODY, MAC[1])))
    b.close()
    b.close()
    assert b.counters().dropped == {"closed": 1}
    assert not b.send(Frame(ethernet(EVERYBODY, MAC[2])))
    assert not b.deliver(Frame(ethernet(EVERYBODY, MAC[1])))
    c = switch.add(PortOptions(name="c", pvid=7))
    assert not b.send(Frame(ethernet(EVERYBODY, MAC[2]))), "it is not the port that is at its number now"
    assert b.counters().dropped == {"closed": 3}
    assert c.counters().dropped == {}
    with pytest.raises(LocalError, match="no trunk"):
        switch.activate(c)
    with pytest.raises(LocalError, match="not in VLANs \\[3\\]"):
        switch.activate(switch_with_trunk := made().add(PortOptions(name="t", trunk=1)), [3])
    assert switch_with_trunk.active == {1}
    switch.close()
    assert switch.ports == []


def test_line_delays_loses_and_reorders_as_the_seed_says() -> None:
    clock = Clock()
    switch = made(clock)
    line = LineOptions(delay=0.010, jitter=0.002, loss=0.2, reorder=0.1, seed=7)
    a = switch.add(PortOptions(name="a"))
    b = switch.add(PortOptions(name="b", line=line))
    arrivals: list[int] = []
    b.on_arrival = lambda: arrivals.append(clock.now)
    sent = [ethernet(EVERYBODY, MAC[1], first=number) for number in range(200)]
    got: list[bytes] = []
    for data in sent:
        a.send(Frame(data))
        clock.go(100_000)
        got += all_of(b)
    early = len(got)
    clock.go(SECOND)
    got += all_of(b)
    lost = b.counters().dropped["lost on the line"]
    assert 20 < lost < 60
    assert len(got) == 200 - lost
    assert set(got) <= set(sent)
    assert got != sorted(got, key=sent.index)
    assert 60 < early < len(got)
    again = made(clock)
    a, b = again.add(PortOptions(name="a")), again.add(PortOptions(name="b", line=line))
    second: list[bytes] = []
    for data in sent:
        a.send(Frame(data))
        clock.go(100_000)
        second += all_of(b)
    clock.go(SECOND)
    assert second + all_of(b) == got


def test_large_frame_loses_segments_and_a_line_has_a_limit() -> None:
    clock = Clock()
    switch = made(clock)
    a = switch.add(PortOptions(name="a"))
    b = switch.add(PortOptions(name="b", line=LineOptions(delay=1.0, limit=10, loss=0.0001)))
    frame = large(b"x" * 1200, 100)
    assert not a.send(frame)
    assert b.counters().dropped == {"line full": 2}
    clock.go(SECOND - 1)
    assert b.receive() is None
    clock.go(1)
    assert all_of(b) == [bytes(part.data) for part in segments(frame)[:10]]
    a.send(Frame(ethernet(EVERYBODY, MAC[1])))
    b.close()
    assert b.counters().dropped == {"line full": 2, "closed": 1}


def test_alarm_calls_in_the_order_of_time() -> None:
    alarm = Alarm()
    calls: list[int] = []
    done = threading.Event()
    alarm.at(30, lambda: calls.append(3))
    alarm.at(10, lambda: calls.append(1))
    alarm.at(alarm._clock() + 20_000_000, done.set)
    alarm.at(20, lambda: calls.append(2))
    assert done.wait(10)
    alarm.close()
    alarm.at(0, lambda: calls.append(4))
    assert sorted(calls) == [1, 2, 3]


def test_ports_are_used_from_many_threads_without_a_frame_unaccounted_for() -> None:
    switch = Switch()
    ports = [switch.add(PortOptions(name=str(number), pvid=1 + number % 2, queue=100)) for number in range(4)]
    frames = 2000
    received = [0] * 4
    stop = threading.Event()

    def send(number: int) -> None:
        mac = MAC[number + 1]
        for count in range(frames):
            to = EVERYBODY if count % 10 == 0 else MAC[(number + 2) % 4 + 1]
            ports[number].send(Frame(ethernet(to, mac)))

    def receive(number: int) -> None:
        woken = threading.Event()
        ports[number].on_arrival = woken.set
        while True:
            finished = stop.is_set()
            while (frame := ports[number].receive()) is not None:
                assert frame.data[11] % 2 == (number + 1) % 2, "another VLAN's"
                received[number] += 1
            if finished:
                return
            woken.wait(0.05)
            woken.clear()

    def churn() -> None:
        for count in range(100):
            port = switch.add(PortOptions(name="x", pvid=3 + count % 3, vlans=(1 + count % 2,)))
            port.close()

    senders = [threading.Thread(target=send, args=(number,), daemon=True) for number in range(4)]
    senders.append(threading.Thread(target=churn, daemon=True))
    receivers = [threading.Thread(target=receive, args=(number,), daemon=True) for number in range(4)]
    for thread in (*senders, *receivers):
        thread.start()
    for thread in senders:
        thread.join(60)
    stop.set()
    for thread in receivers:
        thread.join(60)
    for number, port in enumerate(ports):
        counters = port.counters()
        assert counters.received == received[number] > 0
        assert counters.sent + sum(counters.dropped.values()) - counters.dropped.get("queue full", 0) >= frames
        # the other port of the VLAN is among the receivers of each
        assert received[number] + counters.dropped.get("queue full", 0) == ports[(number + 2) % 4].counters().sent


def test_receiver_that_answers_at_once_does_not_change_who_else_gets_the_frame() -> None:
    switch = made()
    a, b, c, d = (switch.add(PortOptions(name=name)) for name in "abcd")
    answer = Frame(ethernet(MAC[1], MAC[2]))
    again = Frame(ethernet(MAC[2], MAC[1]))

    def b_answers() -> None:
        b.send(answer)

    def a_asks_again() -> None:
        a.send(again)

    b.on_arrival, a.on_arrival = b_answers, a_asks_again
    question = Frame(ethernet(EVERYBODY, MAC[1]))
    assert a.send(question)
    assert c.receive() is question is d.receive()
    assert a.receive() is answer
    assert len(all_of(b)) == 2
    assert a.counters().sent == 2
