"""The console device and its driver, joined directly: streams, ports, control messages, and partners that lie."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from powervio.devices.console import LARGEST_BUFFER, ConsoleDevice, Port
from powervio.drivers.console_core import ConsoleCore, DriverPort
from powervio.errors import LocalError, RemoteError
from powervio.testing.direct import DirectLink, bytewise
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import console as con


class Joined:
    def __init__(self, device: ConsoleDevice | None = None, **options: bool) -> None:
        self.device = device or ConsoleDevice(ports=("agent",))
        self.driver = ConsoleCore()
        self.link = DirectLink(self.device, self.driver, **options)  # type: ignore[arg-type]
        self.link.connect()
        self.link.run()

    def host(self, number: int = 0) -> Port:
        return self.device.ports[number]

    def guest(self, number: int = 0) -> DriverPort:
        return self.driver.ports[number]


def test_ports_are_announced_with_name_and_kind() -> None:
    joined = Joined()
    assert {port.number: (port.name, port.console) for port in joined.driver.ports.values()} == {
        0: ("console", True),
        1: ("agent", False),
    }
    assert joined.host(0).open  # CONSOLE_PORT is answered with PORT_OPEN
    assert not joined.host(1).open
    assert not joined.device.errors
    assert not joined.driver.errors


def test_bytes_go_both_ways() -> None:
    joined = Joined()
    joined.host().attach()
    assert joined.host().to_driver.put(b"date\n") == 5
    assert joined.guest().outgoing.put(b"Sunday\n") == 7
    joined.link.run()
    assert joined.guest().read(100) == b"date\n"
    assert joined.host().from_driver.take(100) == b"Sunday\n"


@pytest.mark.parametrize("byteorder", ["little", "big"])
def test_without_multiport_there_is_the_console_and_its_size(byteorder: str) -> None:
    device = ConsoleDevice(multiport=False)
    driver = ConsoleCore()
    link = DirectLink(device, driver, byteorder=byteorder)  # type: ignore[arg-type]
    device.ports[0].resize(80, 25)
    link.connect()
    link.run()
    port = driver.ports[0]
    assert (port.columns, port.rows, port.console) == (80, 25, True)
    device.ports[0].resize(132, 43)
    device.ports[0].to_driver.put(b"in")
    port.outgoing.put(b"out")
    link.run()
    assert (port.columns, port.rows) == (132, 43)
    assert (port.read(9), device.ports[0].from_driver.take(9)) == (b"in", b"out")


def test_resize_reaches_the_driver_once_and_newest() -> None:
    joined = Joined()
    seen: list[tuple[int, int]] = []
    joined.guest().on_change = lambda: seen.append((joined.guest().columns, joined.guest().rows))
    for columns in range(80, 140):
        joined.host().resize(columns, 24)
    joined.link.run()
    assert seen[-1] == (139, 24)
    assert len(seen) == 1


def test_open_and_close_are_told_in_both_directions() -> None:
    joined = Joined()
    changes: list[bool] = []
    host, guest = joined.host(1), joined.guest(1)
    host.attach()
    host.on_change = lambda: changes.append(host.open)
    joined.link.run()
    assert guest.host_open
    guest.set_open(True)
    joined.link.run()
    guest.set_open(False)
    joined.link.run()
    assert changes == [True, False]
    assert host.closings == 1
    host.detach()
    joined.link.run()
    assert not guest.host_open


def test_second_operator_is_refused() -> None:
    joined = Joined()
    joined.host().attach()
    with pytest.raises(LocalError, match="attached already"):
        joined.host().attach()


def test_closed_port_keeps_what_is_for_it() -> None:
    joined = Joined()
    joined.host(1).to_driver.put(b"early")
    joined.link.run()
    assert joined.guest(1).read(9) == b""
    joined.guest(1).set_open(True)
    joined.link.run()
    assert joined.guest(1).read(9) == b"early"


def test_ports_come_and_go() -> None:
    joined = Joined()
    port = joined.device.add_port("late")
    joined.link.run()
    guest = joined.guest(2)
    assert (guest.name, guest.present) == ("late", True)
    guest.outgoing.put(b"x" * 70000)
    joined.link.run()
    joined.device.remove_port(port)
    joined.link.run()
    assert (guest.present, guest.removed) == (False, True)
    assert guest.lost + 65536 >= 0
    assert len(guest.outgoing) == 0
    again = joined.device.add_port("again")
    assert again.number == 2
    joined.link.run()
    assert (guest.name, guest.present, guest.removed) == ("again", True, False)
    assert not joined.driver.errors
    with pytest.raises(LocalError):
        joined.device.remove_port(joined.host(0))
    with pytest.raises(LocalError):
        joined.device.remove_port(port)


def test_more_ports_than_announced_are_refused() -> None:
    device = ConsoleDevice(max_ports=2, ports=("one",))
    with pytest.raises(LocalError, match="2 ports already"):
        device.add_port("two")


def test_back_pressure_towards_the_driver() -> None:
    joined = Joined()
    host, guest = joined.host(), joined.guest()
    host.attach()
    written = 0
    while True:
        taken = host.to_driver.put(b"a" * 10000)
        joined.link.run()
        if not taken:
            break
        written += taken
    assert len(guest.incoming) <= guest.incoming.limit
    assert written <= guest.incoming.limit + host.to_driver.limit
    read = 0
    while data := guest.read(777):
        read += len(data)
        joined.link.run()
    assert read == written


def test_back_pressure_towards_the_operator() -> None:
    joined = Joined()
    host, guest = joined.host(1), joined.guest(1)
    guest.set_open(True)
    written = 0
    while taken := guest.outgoing.put(b"b" * 9999):
        written += taken
        joined.link.run()
    assert len(host.from_driver) <= host.from_driver.limit + 4096
    read = 0
    while data := host.from_driver.take(1000):
        read += len(data)
        joined.link.run()
    assert read == written


def test_console_without_operator_keeps_the_newest_output() -> None:
    joined = Joined()
    host, guest = joined.host(), joined.guest()
    total = b"".join(b"%07d\n" % number for number in range(40000))
    at = 0
    while at < len(total):
        taken = guest.outgoing.put(total[at : at + 8192])
        assert taken
        at += taken
        joined.link.run()
    host.attach()
    kept = host.from_driver.take(1 << 20)
    assert total.endswith(kept)
    assert len(kept) == host.from_driver.limit
    assert host.dropped == len(total) - len(kept)


def test_emergency_write_needs_no_session() -> None:
    device = ConsoleDevice()
    device.write_config(8, (0x21).to_bytes(4, "little"), "little")
    assert device.ports[0].from_driver.take(9) == b"!"
    assert device.early_config(8, 4)
    assert not device.early_config(0, 2)
    for offset, data in ((0, b"\0\0"), (4, b"\0\0\0\0"), (8, b"\0"), (9, b"\0\0\0\0"), (12, b"\0\0\0\0")):
        with pytest.raises(RemoteError):
            device.write_config(offset, data, "little")


def test_emergency_write_over_crq_right_after_acknowledge() -> None:
    from powervio.transport.crq.protocol import Message, encode

    device = ConsoleDevice()
    pair = PartitionPair(device, ConsoleCore())

    def instead() -> None:  # of going on with ACKNOWLEDGE
        pair.client.crq.post(
            *encode(Message.CONFIG_WRITE, pair.client._number, offset=8, length=4, data=ord("!") << 56)
        )

    pair.client._handshake.acknowledge = instead  # type: ignore[method-assign]
    pair.start()
    assert device.ports[0].from_driver.take(9) == b"!"
    pair.close()


# -- hostile drivers


class Hostile:
    def __init__(self, multiport: bool = True) -> None:
        self.device = ConsoleDevice(ports=("agent",), max_ports=3)
        self.driver = RawDriver((1 << 128) - 1 if multiport else con.F_SIZE, queues=8 if multiport else 2)
        self.link = DirectLink(self.device, self.driver)
        self.link.connect()

    def control(self, port: int, event: int, value: int) -> None:
        self.driver.send([con.Control(port, event, value).pack("little")], [], con.CONTROL_TRANSMIT)
        self.link.run()

    def inbox(self, count: int = 20) -> list[Exchange]:
        return [self.driver.send([], [256], con.CONTROL_RECEIVE) for _ in range(count)]

    def messages(self, inbox: list[Exchange]) -> list[con.Control]:
        self.link.run()
        return [con.unpack_control(e.answer[: e.used], "little") for e in inbox if e.used]


def test_first_words_of_the_device() -> None:
    hostile = Hostile()
    inbox = hostile.inbox()
    hostile.control(0, con.DEVICE_READY, 1)
    hostile.control(0, con.PORT_READY, 1)
    hostile.control(1, con.PORT_READY, 1)
    assert hostile.messages(inbox) == [
        con.Control(0, con.DEVICE_ADD, 0),
        con.Control(1, con.DEVICE_ADD, 0),
        con.Control(0, con.CONSOLE_PORT, 1),
        con.Control(0, con.PORT_NAME, 1, b"console"),
        con.Control(1, con.PORT_NAME, 1, b"agent"),
    ]


def test_words_that_are_repeated_are_answered_once() -> None:
    hostile = Hostile()
    for _ in range(500):
        hostile.control(0, con.DEVICE_READY, 1)
        hostile.control(0, con.PORT_READY, 1)
        hostile.device.ports[0].resize(80 + _ % 7, 24)
    assert len(hostile.device._control) <= 6


def test_nonsense_is_counted_and_comes_back() -> None:
    hostile = Hostile()
    hostile.control(0, con.PORT_OPEN, 1)  # not ready
    hostile.control(0, con.DEVICE_READY, 1)
    hostile.control(7, con.PORT_READY, 1)
    hostile.control(0, con.PORT_OPEN, 1)
    hostile.control(0, con.PORT_NAME, 1)
    hostile.control(0, 999, 1)
    hostile.control(0, con.PORT_READY, 0)
    short = hostile.driver.send([b"1234567"], [], con.CONTROL_TRANSMIT)
    empty = hostile.driver.send([], [10], con.CONTROL_TRANSMIT)
    hostile.link.run()
    assert (short.used, empty.used) == (0, 0)
    assert hostile.device.errors == {"control": 7, "port refused": 1}
    assert not hostile.device.ports[0].open


def test_data_for_no_port_and_too_much_of_it_are_refused() -> None:
    hostile = Hostile()
    nowhere = hostile.driver.send([b"data"], [], con.transmit_queue(2))
    huge = hostile.driver.send([bytes(LARGEST_BUFFER + 1)], [], con.transmit_queue(0))
    written = hostile.driver.send([b"data"], [9], con.transmit_queue(0))
    hostile.link.run()
    assert (nowhere.used, huge.used, written.used) == (0, 0, 0)
    assert written.answer == b"\xee" * 9  # a device writes into no transmit queue
    assert hostile.device.ports[0].from_driver.take(99) == b"data"
    assert hostile.device.errors == {"no port": 1, "too long": 1}


def test_receive_buffers_without_room_lose_nothing() -> None:
    hostile = Hostile(multiport=False)
    hostile.device.ports[0].to_driver.put(b"hello")
    none = hostile.driver.send([b"readable"], [])
    two = hostile.driver.send([], [2])
    rest = hostile.driver.send([], [100])
    hostile.link.run()
    assert (none.used, two.used, rest.used) == (0, 2, 3)
    assert two.answer[:2] + rest.answer[:3] == b"hello"


def test_small_control_buffers_lose_nothing() -> None:
    hostile = Hostile()
    hostile.control(0, con.DEVICE_READY, 1)
    small = [hostile.driver.send([], [7], con.CONTROL_RECEIVE) for _ in range(3)]
    inbox = hostile.inbox(3)
    assert [message.event for message in hostile.messages(inbox)] == [con.DEVICE_ADD] * 2
    assert [exchange.used for exchange in small] == [0, 0, 0]


@given(st.lists(st.tuples(st.integers(0, 7), st.binary(max_size=20), st.integers(0, 20)), max_size=30))
def test_whatever_a_driver_sends_comes_back_or_waits(buffers: list[tuple[int, bytes, int]]) -> None:
    hostile = Hostile()
    for queue, readable, writable in buffers:
        if readable or writable:
            hostile.driver.send([readable] if readable else [], [writable] if writable else [], queue)
            hostile.link.run()
    hostile.link.disconnect()
    hostile.link.connect()
    hostile.link.close()


# -- hostile devices


class LyingDevice(ConsoleDevice):
    """Says in control messages what a test wants."""

    def lie(self, data: bytes) -> None:
        class Raw(con.Control):
            def pack(self, byteorder: str) -> bytes:
                return data

        self._send(Raw(0, 0, 0))


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.builds(
                lambda port, event, value, extra: con.Control(port, event, value, extra).pack("little"),
                st.sampled_from([0, 1, 2, 3, 4, 500, 0xFFFFFFFF]),
                st.integers(0, 9),
                st.integers(0, 2),
                st.binary(max_size=8),
            ),
        ),
        max_size=20,
    )
)
def test_whatever_a_device_says_the_driver_lives(words: list[bytes]) -> None:
    device = LyingDevice(ports=("agent",))
    driver = ConsoleCore()
    link = DirectLink(device, driver)
    link.connect()
    link.run()
    for word in words:
        device.lie(word)
        link.run()
    assert set(driver.ports) <= set(range(4))
    for port in driver.ports.values():
        assert port.lent <= 16
    link.disconnect()
    link.connect()
    link.run()
    link.close()


# -- streams arrive once and in order, whatever happens on the way


class Streams(RuleBasedStateMachine):
    """Two ports, written and read in any pieces; sessions end before, between and after the device's turn."""

    @initialize(
        framing=st.booleans(), multiport=st.booleans(), event_idx=st.booleans(), packed=st.booleans(),
        in_order=st.booleans(),
    )  # fmt: skip
    def begin(self, framing: bool, multiport: bool, event_idx: bool, packed: bool, in_order: bool) -> None:
        names = ("agent",) if multiport else ()
        self.device = ConsoleDevice(ports=names, multiport=multiport, limit=6000)
        self.driver = ConsoleCore()
        extra = {"framing": bytewise} if framing else {}
        self.link = DirectLink(
            self.device, self.driver, event_idx=event_idx, packed=packed, in_order=in_order, **extra  # type: ignore[arg-type]
        )  # fmt: skip
        self.link.connect()
        self.numbers = (0, 1) if multiport else (0,)
        for number in self.numbers:
            self.device.ports[number].attach()
            self.driver.port(number).set_open(True)
        self.link.run()
        self.count = 0
        self.sent = {(number, way): bytearray() for number in self.numbers for way in "io"}
        self.got = {(number, way): bytearray() for number in self.numbers for way in "io"}

    def some(self, length: int) -> bytes:
        data = bytes((self.count + at) % 251 for at in range(length))
        self.count += length
        return data

    @rule(number=st.integers(0, 1), way=st.sampled_from("io"), length=st.integers(1, 9000))
    def write(self, number: int, way: str, length: int) -> None:
        number %= len(self.numbers)
        data = self.some(length)
        target = self.device.ports[number].to_driver if way == "i" else self.driver.ports[number].outgoing
        self.sent[number, way] += data[: target.put(data)]

    @rule(number=st.integers(0, 1), way=st.sampled_from("io"), length=st.integers(1, 9000))
    def read(self, number: int, way: str, length: int) -> None:
        number %= len(self.numbers)
        if way == "i":
            self.got[number, way] += self.driver.ports[number].read(length)
        else:
            self.got[number, way] += self.device.ports[number].from_driver.take(length)

    @rule()
    def device_turn(self) -> None:
        self.link.run_device()

    @rule()
    def driver_turn(self) -> None:
        self.link.run_driver()

    @rule(opened=st.booleans())
    def open_or_close(self, opened: bool) -> None:
        self.driver.ports[self.numbers[-1]].set_open(opened)

    @rule()
    def lose_the_session(self) -> None:
        """Unpublished work is gone; what was published the driver reaps, as transports let it."""
        for queue in self.link.driver_queues:
            self.driver.completed(queue)
        self.link.disconnect()
        self.link.connect()

    @invariant()
    def nothing_doubled_or_out_of_order(self) -> None:
        if hasattr(self, "sent"):
            for key, sent in self.sent.items():
                assert sent.startswith(self.got[key])
            for port in self.driver.ports.values():
                assert len(port.incoming) <= port.incoming.limit

    def teardown(self) -> None:
        if not hasattr(self, "sent"):
            return
        for number in self.numbers:
            self.driver.ports[number].set_open(True)
        for _ in range(200):
            self.link.run()
            for number in self.numbers:
                self.read(number, "i", 9000)
                self.read(number, "o", 9000)
        assert self.got == self.sent
        assert not self.driver.errors
        assert not self.device.errors
        self.link.close()


TestStreams = Streams.TestCase


# -- over CRQ


@pytest.mark.dual
@pytest.mark.parametrize(("revision", "big"), [(1, False), (0, False), (0, True)])
def test_over_crq_with_resets_in_the_middle_of_streams(revision: int, big: bool) -> None:
    device, driver = ConsoleDevice(ports=("agent",)), ConsoleCore()
    pair = PartitionPair(device, driver, revision=revision, big_endian=big).start()
    host, guest = device.ports[1], driver.ports[1]
    guest.set_open(True)
    host.attach()
    total = bytes(at * 7 % 251 for at in range(300_000))
    sent = {"in": 0, "out": 0}
    got = {"in": b"", "out": b""}
    turn = 0
    while min(len(got["in"]), len(got["out"])) < len(total):
        sent["in"] += host.to_driver.put(total[sent["in"] : sent["in"] + 5000])
        sent["out"] += guest.outgoing.put(total[sent["out"] : sent["out"] + 7000])
        pair.server_kernel.poll()
        if turn % 3:
            pair.client_kernel.poll()
        if turn % 23 == 11:
            pair.server.reset()
        if turn % 29 == 17:
            pair.client.reset()
        if turn % 31 == 19:
            pair.client.device_reset()
        got["in"] += guest.read(6000)
        got["out"] += host.from_driver.take(6000)
        turn += 1
        assert turn < 5000
    assert got == {"in": total, "out": total}
    assert pair.client.sessions > 3
    pair.close()


def test_idle_console_costs_nothing_and_has_nothing_in_hand() -> None:
    """Receive buffers stay in the ring, so it can be suspended and handed over at any time."""
    device, driver = ConsoleDevice(), ConsoleCore()
    pair = PartitionPair(device, driver).start()
    before = pair.server_adapter.ledger.snapshot()
    pair.advance(60)
    assert not (pair.server_adapter.ledger.snapshot() - before)["hcalls"]
    assert pair.server._service.in_hand == 0
    pair.server.parts()
    pair.close()


def test_suspended_device_says_nothing_until_resume() -> None:
    device, driver = ConsoleDevice(), ConsoleCore()
    pair = PartitionPair(device, driver).start()
    pair.server._configuration._suspend({})
    device.ports[0].to_driver.put(b"typed meanwhile")
    pair.settle()
    assert driver.ports[0].read(99) == b""
    pair.server._configuration._resume({})
    pair.server._service.serve()
    pair.settle()
    assert driver.ports[0].read(99) == b"typed meanwhile"
    pair.close()


def test_cost_of_a_keystroke() -> None:
    """Data of the device's own: no copy is made to find the buffer, which was known since it was kicked."""
    device, driver = ConsoleDevice(), ConsoleCore()
    pair = PartitionPair(device, driver).start()
    device.ports[0].to_driver.put(b"a")
    pair.settle()
    before = pair.server_adapter.ledger.snapshot()
    device.ports[0].to_driver.put(b"b")
    pair.settle()
    costs = pair.server_adapter.ledger.snapshot() - before
    assert driver.ports[0].read(9) == b"ab"
    assert (
        costs["hcalls"]["H_COPY_RDMA"] == 3
    )  # used element, used index; the ring once more when the buffer is lent again
    assert costs["hcalls"]["H_WRITE_RDMA"] == 1
    pair.close()


def test_state_moves_to_another_device() -> None:
    joined = Joined()
    joined.host().attach()
    joined.guest().outgoing.put(b"unread")
    joined.link.run()
    joined.host(1).to_driver.put(b"undelivered")
    moved = ConsoleDevice(ports=("agent",))
    moved.restore(joined.device.state())
    assert moved.ports[0].from_driver.take(99) == b"unread"
    assert moved.ports[1].to_driver.take(99) == b"undelivered"
    assert moved.ports[0].open
    with pytest.raises(LocalError):
        ConsoleDevice().restore(joined.device.state())
    with pytest.raises(LocalError):
        ConsoleDevice().restore({"ready": True})
