"""What two Shared Ethernet Adapters tell each other, as bytes."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import LocalError, RemoteError
from powervio.network.sea_failover import Failover, FailoverOptions
from powervio.network.sea_wire import Kind, Message, Mode, State, parse

A, B = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
MESSAGE = Message(
    Kind.RECOVERY, 7, A, 0x01020304, 0x05060708, 2, Mode.SHARING, True, B, 9, ((10, State.PRIMARY), (20, State.LIMBO))
)
CLIENTS = Message(Kind.CLIENTS, 7, A, 1, 2, 1, Mode.AUTO, False, clients=((10, B), (4094, A)))


def test_messages_have_these_bytes() -> None:
    assert MESSAGE.pack() == bytes.fromhex(
        "ffffffffffff 020000000001 88b5 56534541 01 02 0030 0007 0000 020000000001 01020304 05060708"
        "02 01 01 02 020000000002 00000009 000a0500 00140100"
    )
    assert CLIENTS.pack() == bytes.fromhex(
        "ffffffffffff 020000000001 88b5 56534541 01 05 0038 0007 0000 020000000001 00000001 00000002"
        "01 00 00 02 000000000000 00000000 000a020000000002 0ffe020000000001"
    )


VLAN = st.integers(1, 4094)
NUMBER = st.integers(0, 0xFFFF_FFFF)
ADDRESS = st.binary(min_size=5, max_size=5).map(lambda rest: b"\2" + rest)


@given(
    st.sampled_from([kind for kind in Kind if kind is not Kind.CLIENTS]),
    st.lists(st.tuples(VLAN, st.sampled_from(State)), max_size=16, unique_by=lambda entry: entry[0]),
    ADDRESS,
    NUMBER,
    st.booleans(),
)
def test_what_is_packed_is_parsed(
    kind: Kind, trunks: list[tuple[int, State]], address: bytes, number: int, healthy: bool
) -> None:
    message = Message(kind, 1, address, number, number, 3, Mode.FORCED, healthy, B, number, tuple(trunks))
    assert parse(memoryview(message.pack())) == message


@given(st.lists(st.tuples(VLAN, ADDRESS), max_size=160))
def test_clients_that_are_packed_are_parsed(clients: list[tuple[int, bytes]]) -> None:
    message = Message(Kind.CLIENTS, 1, A, 1, 1, 1, Mode.AUTO, True, clients=tuple(clients))
    assert parse(message.pack() + b"\xff") == message


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (12, 0x08), (14, 0x57), (18, 2), (19, 0), (19, 6), (21, 0x33), (21, 0x38), (25, 1), (31, 5), (41, 4),
        (42, 2), (43, 17), (43, 1), (54, 0xFF), (56, 6), (57, 1), (59, 0x0A), (58, 0x10),
    ],
)  # fmt: skip
def test_each_wrong_value_is_refused(offset: int, value: int) -> None:
    data = bytearray(MESSAGE.pack())
    assert data[offset] != value
    data[offset] = value
    if offset == 59:
        data[55] = 0x0A
    with pytest.raises(RemoteError):
        parse(bytes(data))


def test_what_is_too_short_is_refused() -> None:
    data = MESSAGE.pack()
    for length in range(len(data)):
        with pytest.raises(RemoteError):
            parse(data[:length])


@given(st.binary(max_size=120))
def test_anything_parses_or_is_refused(data: bytes) -> None:
    for frame in (data, MESSAGE.pack()[:18] + data, MESSAGE.pack()[:40] + data):
        with suppress(RemoteError):
            parse(frame)


def made(address: bytes = A, **options: object) -> Failover:
    return Failover(FailoverOptions(address=address, **options), (1, 20), 0.0)  # type: ignore[arg-type]


def test_messages_of_strangers_are_counted_and_change_nothing() -> None:
    it = made()
    partner = made(B, priority=2)
    partner.advance(0.0)
    (first,) = partner.take()
    partner.advance(0.1)
    (second,) = partner.take()
    it.receive(second, 0.1)
    for data in (
        first,
        Message(Kind.KEEP_ALIVE, 2, B, 1, 9, 1, Mode.AUTO, True).pack(),
        Message(Kind.KEEP_ALIVE, 1, A, 1, 9, 1, Mode.AUTO, True).pack(),
        Message(Kind.KEEP_ALIVE, 1, b"\2third", 1, 9, 1, Mode.AUTO, True).pack(),
        b"",
    ):
        it.receive(data, 0.1)
    expected = {"KEEP_ALIVE": 1, "old": 1, "other pair": 1, "own address": 1, "third adapter": 1, "malformed": 1}
    assert it.received == expected
    assert it.peer is not None
    assert it.peer.message == parse(second)


def test_another_incarnation_is_heard_whatever_its_numbers_are() -> None:
    it = made()
    it.receive(Message(Kind.KEEP_ALIVE, 1, B, 1, 1000, 1, Mode.AUTO, True).pack(), 0.0)
    it.receive(Message(Kind.KEEP_ALIVE, 1, B, 2, 1, 1, Mode.AUTO, True).pack(), 0.0)
    assert it.received == {"KEEP_ALIVE": 2}


def test_one_that_asks_all_the_time_is_not_answered_all_the_time() -> None:
    """Two that ask each other and both say no do not talk as fast as they can."""
    it = made(B, priority=2)
    it.set_link(True, 0.0)
    it.advance(0.5)
    it.take()
    ask = Message(Kind.RECOVERY, 1, A, 1, 1, 1, Mode.AUTO, True, B, 1, ((1, State.RECOVERY), (20, State.RECOVERY)))
    it.receive(ask.pack(), 0.5)
    (answer,) = it.take()
    assert parse(answer).kind is Kind.NOTIFY
    it.receive(ask.pack(), 0.5)
    assert it.take() == []


@pytest.mark.parametrize(
    "wrong",
    [{"address": bytes(6)}, {"priority": 0}, {"priority": 16}, {"pair": 65536}, {"dead": 0.1}, {"settle": -1}],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LocalError):
        made(**wrong)  # type: ignore[arg-type]
    for pvids in ((), (1, 1), tuple(range(1, 18))):
        with pytest.raises(LocalError):
            Failover(FailoverOptions(address=A), pvids, 0.0)
