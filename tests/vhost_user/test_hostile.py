"""Front ends that do what they like: whatever it is, the back end says what was wrong, and serves the next one."""

from __future__ import annotations

import logging
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vhost_user.harness import LIMIT, RawFrontEnd, Serving, memory, open_fds, serving

from powervio.devices.console import ConsoleDevice
from powervio.errors import PowervioError, RemoteError
from powervio.memory.area import MappedArea
from powervio.testing.echo import EchoDevice
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.back_end import PROTOCOL_FEATURES, BackEndOptions
from powervio.transport.vhost_user.protocol import FrontEnd, Message, VringState
from powervio.virtio import features as feature

GUEST, USER = 0x10000, 0x7F00_0000_0000
NUMBERS = st.one_of(
    st.integers(0, 4),
    st.sampled_from([8, 64, 256, 1 << 15, 1 << 20, (1 << 30) | (1 << 32), (1 << 32) - 1, 1 << 63, (1 << 64) - 1]),
    st.integers(USER, USER + (1 << 16)),
    st.integers(GUEST, GUEST + (1 << 16)),
)


def fitted(value: int, size: int) -> int:
    return value & ((1 << 8 * size) - 1)


@st.composite
def messages(draw: st.DrawFn) -> tuple[Message, int]:
    """A message that parses, and which descriptors it gets."""
    request = draw(st.sampled_from(list(FrontEnd)))
    row = wire.FRONT_END_MESSAGES[request]

    def number(size: int = 8) -> int:
        return fitted(draw(NUMBERS), size)

    payload: wire.Payload | None = None
    fds = row.fds[0]
    if row.payload is wire.MemoryTable:
        fds = draw(st.integers(0, 3))
        payload = wire.MemoryTable(
            tuple(wire.Region(number(), number(4), number(), number(2) & ~0xFFF) for _ in range(fds))
        )
    elif row.payload is wire.ConfigSpace:
        data = draw(st.binary(max_size=16))
        payload = wire.ConfigSpace(number(4), draw(st.sampled_from([len(data), 4, number(4)])), number(4), data)
    elif row.payload is wire.VringState:
        payload = VringState(draw(st.integers(0, 2)), number(4))
    elif row.payload is wire.VringAddress:
        payload = wire.VringAddress(draw(st.integers(0, 2)), number(4), *(number() & ~15 for _ in range(4)))
    elif row.payload is wire.U64:
        payload = wire.U64(number())
        fds = draw(st.integers(*row.fds)) if row.fds[1] else 0
    elif row.payload is wire.IotlbMessage:
        payload = wire.IotlbMessage(number(), number(), number(), number(1), draw(st.integers(0, 5)))
    elif row.payload is wire.Inflight:
        payload = wire.Inflight(number(4), number(1) & ~0xFFF, number(2), number(2))
    elif row.payload is not None:
        payload = row.payload(
            *(number(4) for _ in range(len(row.payload.LAYOUT.unpack(bytes(row.payload.LAYOUT.size)))))
        )
    return Message(request, payload, need_reply=draw(st.booleans())), fds


SETUP = (
    Message(FrontEnd.SET_PROTOCOL_FEATURES, wire.U64(PROTOCOL_FEATURES)),
    Message(FrontEnd.SET_FEATURES, wire.U64(feature.VERSION_1 | wire.F_PROTOCOL_FEATURES | feature.ACCESS_PLATFORM)),
    Message(FrontEnd.SET_FEATURES, wire.U64(feature.VERSION_1 | wire.F_PROTOCOL_FEATURES)),
    Message(FrontEnd.SET_STATUS, wire.U64(15)),
    *(
        Message(FrontEnd.SET_VRING_NUM, VringState(0, 8)),
        Message(FrontEnd.SET_VRING_ADDR, wire.VringAddress(0, 0, USER, USER + 0x2000, USER + 0x1000, 0)),
        Message(FrontEnd.SET_VRING_ENABLE, VringState(0, 1)),
        Message(FrontEnd.SET_VRING_KICK, wire.U64(wire.NO_FD)),
        Message(FrontEnd.GET_VRING_BASE, VringState(0, 0)),
    ),
)


@pytest.fixture(scope="module", params=["echo", "console"])
def back(request: pytest.FixtureRequest) -> Iterator[Serving]:
    device = EchoDevice(queue_count=2) if request.param == "echo" else ConsoleDevice()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(Path(folder), device, BackEndOptions(packed=True, in_order=True, platform=True)) as made,
    ):
        yield made


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def send_all(path: Path, sequence: list[tuple[Message, int]], cut: int, area: MappedArea, kicks: list[int]) -> None:
    """Send messages, the last of them only so far, with kicks between, and go away; replies are read and dropped."""
    peer = RawFrontEnd(path)
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    table = wire.MemoryTable((wire.Region(GUEST, area.size, USER, 0),))
    try:
        peer.send(FrontEnd.SET_MEM_TABLE, table, [area.fd])
        for position, (message, fds) in enumerate(sequence):
            if message.request in (FrontEnd.SET_VRING_KICK, FrontEnd.SET_VRING_CALL, FrontEnd.SET_VRING_ERR):
                message.fds = events[:fds]
            else:
                message.fds = [area.fd] * fds
            if position == len(sequence) - 1 and cut:
                data = message.encode()
                with suppress(OSError):
                    peer.connection._socket.send(data[: cut % len(data)], socket.MSG_NOSIGNAL)
            else:
                peer.connection.send(message)
            message.fds = []
            for event in (events[kick] for kick in kicks if kick < 2):
                os.eventfd_write(event, 1)
            while (reply := peer.connection.receive()) is not None:
                reply.close()
        with suppress(PowervioError):
            peer.connection.wait(0.002)
            while (reply := peer.connection.receive()) is not None:
                reply.close()
    except RemoteError:
        pass  # it was disconnected, which is its right
    finally:
        peer.close()
        for event in events:
            os.close(event)


@given(
    st.lists(st.one_of(messages(), st.sampled_from(SETUP).map(lambda message: (message, 0))), max_size=25),
    st.integers(0, 40),
    st.lists(st.integers(0, 3), max_size=3),
    st.binary(min_size=64, max_size=64),
)
def test_any_messages_in_any_order_leave_a_back_end_that_serves(
    back: Serving, sequence: list[tuple[Message, int]], cut: int, kicks: list[int], content: bytes
) -> None:
    problems: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = problems.append  # type: ignore[method-assign,assignment]
    log = logging.getLogger("powervio.transport.vhost_user")
    log.addHandler(handler)
    try:
        with memory(1 << 16) as area:
            area.view[:64] = content
            area.view[0x1000:0x1040] = content
            send_all(
                back.path,
                [(Message(m.request, m.payload, [], m.reply, m.need_reply), n) for m, n in sequence],
                cut,
                area,
                kicks,
            )
        peer = RawFrontEnd(back.path)
        assert peer.get(FrontEnd.GET_FEATURES) & feature.VERSION_1
        peer.close()
    finally:
        log.removeHandler(handler)
    # what a front end does is an error in a sentence, never a fault of ours with a traceback
    assert [record.getMessage() for record in problems if record.exc_info] == []


def test_descriptors_do_not_leak_over_many_hostile_connections(tmp_path: Path) -> None:
    rng = random.Random(7)
    with serving(tmp_path, EchoDevice()) as back, memory(1 << 16) as area:
        peer = RawFrontEnd(back.path)
        assert peer.get(FrontEnd.GET_FEATURES)
        peer.close()
        wait_for(lambda: back.server.link is None)
        before = open_fds()
        for _ in range(50):
            sequence = [(Message(m.request, m.payload), 0) for m in rng.choices(SETUP, k=8)]
            sequence.insert(2, (Message(FrontEnd.SET_VRING_CALL, wire.U64(0)), 1))
            sequence.insert(4, (Message(FrontEnd.SET_VRING_KICK, wire.U64(0)), 1))
            sequence.insert(5, (Message(FrontEnd.SET_LOG_BASE, wire.LogArea(4096, 0)), 1))
            send_all(back.path, sequence, 0, area, [0, 1])
        peer = RawFrontEnd(back.path)
        peer.get(FrontEnd.GET_FEATURES)  # the ones before are gone by now
        peer.close()
        wait_for(lambda: back.server.link is None)
        assert open_fds() == before


def test_hundred_thousand_messages(tmp_path: Path) -> None:
    with serving(tmp_path, EchoDevice()) as back:
        peer = RawFrontEnd(back.path)
        one = Message(FrontEnd.SET_VRING_NUM, VringState(0, 64)).encode()
        peer.connection._socket.setblocking(True)
        for _ in range(100):
            peer.connection._socket.sendall(one * 1000)
        peer.connection._socket.setblocking(False)
        assert peer.get(FrontEnd.GET_FEATURES) & feature.VERSION_1
        assert back.server.failures == []
        peer.close()


def test_front_end_that_reads_no_replies_is_disconnected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("powervio.transport.vhost_user.connection.SEND_LIMIT", 0.2)
    with serving(tmp_path, EchoDevice()) as back:
        peer = RawFrontEnd(back.path)
        one = Message(FrontEnd.GET_FEATURES).encode()
        peer.connection._socket.settimeout(5)
        with pytest.raises(OSError, match=r"Broken pipe|reset"):
            peer.connection._socket.sendall(one * 1_000_000)
        back.call(lambda: None)
        assert "read nothing for" in back.server.failures[-1]
        peer.close()


def test_second_front_end_waits_for_the_first_to_go(tmp_path: Path) -> None:
    with serving(tmp_path, EchoDevice()) as back:
        first = RawFrontEnd(back.path)
        assert first.get(FrontEnd.GET_FEATURES)
        second = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        second.connect(str(back.path))
        second.sendall(Message(FrontEnd.GET_FEATURES).encode())
        second.settimeout(0.1)
        with pytest.raises(TimeoutError):
            second.recv(12)
        first.close()
        second.settimeout(10)
        assert len(second.recv(20)) == 20
        second.close()


def test_kick_descriptor_that_is_closed_at_the_other_end_is_forgotten(tmp_path: Path) -> None:
    with serving(tmp_path, EchoDevice()) as back, memory(1 << 16) as area:
        peer = RawFrontEnd(back.path, wire.P_REPLY_ACK)
        bits = feature.VERSION_1 | wire.F_PROTOCOL_FEATURES
        assert peer.done(FrontEnd.SET_FEATURES, wire.U64(bits))
        table = wire.MemoryTable((wire.Region(GUEST, area.size, USER, 0),))
        assert peer.done(FrontEnd.SET_MEM_TABLE, table, [area.fd])
        assert peer.done(FrontEnd.SET_VRING_NUM, VringState(0, 8))
        address = wire.VringAddress(0, 0, USER, USER + 0x2000, USER + 0x1000, 0)
        assert peer.done(FrontEnd.SET_VRING_ADDR, address)
        assert peer.done(FrontEnd.SET_VRING_ENABLE, VringState(0, 1))
        reader, writer = os.pipe()
        assert peer.done(FrontEnd.SET_VRING_KICK, wire.U64(0), [reader])
        os.close(reader)
        os.close(writer)
        assert back.server.link is not None
        vring = back.server.link.back_end.vrings[0]
        wait_for(lambda: vring.queue is not None)  # that it was closed looked like a kick
        wait_for(lambda: vring.kick not in back.loop._readers)  # and now it is not waited for any more
        peer.close()
