"""The wire of vhost-user: golden bytes; whatever arrives parses or is refused, and leaves no descriptor open."""

from __future__ import annotations

import array
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vhost_user.harness import open_fds

from powervio.errors import RemoteError, Verdict
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.connection import Closed, Connection
from powervio.transport.vhost_user.protocol import BackEndRequest, FrontEnd, Message

GOLDEN = Path(__file__).parent / "golden"

REGIONS = (
    wire.Region(0x4000_0000, 0x10_0000, 0x7F00_0000_0000, 0),
    wire.Region(0x1_0000_0000, 0x20_0000, 0x7F00_0010_0000, 0x10_0000),
)
MESSAGES: dict[str, Message] = {
    "get-features": Message(FrontEnd.GET_FEATURES),
    "get-features-reply": Message(FrontEnd.GET_FEATURES, wire.U64(0x1_5000_0000), reply=True),
    "set-features-need-reply": Message(FrontEnd.SET_FEATURES, wire.U64(0x1_5000_0000), need_reply=True),
    "set-mem-table": Message(FrontEnd.SET_MEM_TABLE, wire.MemoryTable(REGIONS)),
    "set-log-base": Message(FrontEnd.SET_LOG_BASE, wire.LogArea(0x8000, 0x1000)),
    "set-vring-num": Message(FrontEnd.SET_VRING_NUM, wire.VringState(1, 256)),
    "set-vring-addr": Message(FrontEnd.SET_VRING_ADDR, wire.VringAddress(1, 1, 0x1000, 0x3000, 0x2000, 0x4000_3000)),
    "set-vring-kick-poll": Message(FrontEnd.SET_VRING_KICK, wire.U64(2 | wire.NO_FD)),
    "add-mem-reg": Message(FrontEnd.ADD_MEM_REG, wire.SingleRegion(0, 0x4000_0000, 0x10_0000, 0x7F00_0000_0000, 0)),
    "iotlb-update": Message(
        FrontEnd.IOTLB_MSG, wire.IotlbMessage(0x1000, 0x2000, 0x7F00_0000_0000, 3, wire.Iotlb.UPDATE)
    ),
    "get-config": Message(FrontEnd.GET_CONFIG, wire.ConfigSpace(8, 4, 0, bytes(4))),
    "set-config": Message(FrontEnd.SET_CONFIG, wire.ConfigSpace(32, 1, 0, b"\1")),
    "set-inflight-fd": Message(FrontEnd.SET_INFLIGHT_FD, wire.Inflight(0x1080, 0, 2, 128)),
    "set-device-state-fd": Message(FrontEnd.SET_DEVICE_STATE_FD, wire.DeviceState(1, 0)),
    "back-end-iotlb-miss": Message(BackEndRequest.IOTLB_MSG, wire.IotlbMessage(0x5000, 0, 0, 2, wire.Iotlb.MISS)),
    "back-end-config-change": Message(BackEndRequest.CONFIG_CHANGE_MSG),
}


def messages_of(name: str) -> dict[int, wire.Row]:
    return dict(wire.BACK_END_MESSAGES if name.startswith("back-end") else wire.FRONT_END_MESSAGES)


@pytest.mark.parametrize("name", sorted(MESSAGES))
def test_golden_bytes(name: str) -> None:
    assert sys.byteorder == "little", "the golden files are those of a little-endian host"
    message = MESSAGES[name]
    data = (GOLDEN / f"{name}.bin").read_bytes()
    assert message.encode() == data
    rows = messages_of(name)
    least = 0 if message.reply else rows[message.request].fds[0]
    decoded = wire.decode(rows, data[:12], data[12:], [-1] * least)
    assert decoded == Message(message.request, message.payload, [-1] * least, message.reply, message.need_reply)


def test_every_golden_file_is_of_a_message() -> None:
    assert {path.stem for path in GOLDEN.glob("*.bin")} == set(MESSAGES)


def test_every_request_has_a_row() -> None:
    assert set(wire.FRONT_END_MESSAGES) == set(FrontEnd)
    assert set(wire.BACK_END_MESSAGES) == set(BackEndRequest)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (wire.HEADER.pack(99, 1, 0), "request 99 is not known"),
        (wire.HEADER.pack(1, 0, 0), "version 0; expected 1"),
        (wire.HEADER.pack(1, 1 | 1 << 7, 0), "flags 0x81 are not known"),
        (wire.HEADER.pack(2, 1, 1 << 30), "at most 4096"),
        (wire.HEADER.pack(2, 1, 4) + bytes(4), "SET_FEATURES: a payload of 4 bytes; U64 has 8"),
        (wire.HEADER.pack(5, 1, 8) + (9).to_bytes(4, sys.byteorder) + bytes(4), "with 9 regions"),
        (wire.HEADER.pack(25, 1, 300) + bytes(300), "a config payload of 300 bytes"),
        (wire.HEADER.pack(6, 1, 16) + bytes(16), "SET_LOG_BASE: 0 descriptors; expected 1 to 1"),
        (wire.HEADER.pack(32, 1, 19) + bytes(19), "a payload of 19 bytes; Inflight has 24"),
    ],
)
def test_what_is_no_message_ends_the_connection(data: bytes, what: str) -> None:
    with pytest.raises(RemoteError, match=what) as caught:
        feed(data, [len(data)], [])
    assert caught.value.verdict is Verdict.CLOSE


def feed(data: bytes, cuts: list[int], fds: list[tuple[int, int]]) -> list[Message]:
    """Send pieces that end at `cuts`, then close; `fds` are `(piece, number of descriptors)`. What was received."""
    ours, theirs = socket.socketpair()
    received: list[Message] = []
    connection = Connection(ours, wire.FRONT_END_MESSAGES)
    try:
        with theirs:
            at = 0
            for piece, cut in enumerate([*cuts, len(data)]):
                count = sum(number for index, number in fds if index == piece)
                if cut > at:
                    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
                    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
                    theirs.sendmsg([data[at:cut]], ancillary)
                    for file in files:
                        os.close(file)
                    at = cut
                while (message := connection.receive()) is not None:
                    received.append(message)
        while (message := connection.receive()) is not None:
            received.append(message)
    except Closed as closed:
        if closed.in_message:
            raise
    finally:
        for message in received:
            message.close()
        connection.close()
    return received


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Messages, good and bad, and rubbish."""
    parts = []
    for _ in range(draw(st.integers(0, 5))):
        kind = draw(st.integers(0, 3))
        if kind == 0:
            parts.append(draw(st.sampled_from(sorted(MESSAGES.items())))[1].encode())
        elif kind == 1:
            size = draw(st.integers(0, 64))
            header = wire.HEADER.pack(draw(st.integers(0, 50)), draw(st.sampled_from([1, 5, 9, 0, 2])), size)
            parts.append(header + draw(st.binary(min_size=size, max_size=size)))
        elif kind == 2:
            parts.append(draw(st.binary(max_size=40)))
        else:
            whole = bytearray(draw(st.sampled_from(sorted(MESSAGES.items())))[1].encode())
            whole[draw(st.integers(0, len(whole) - 1))] = draw(st.integers(0, 255))
            parts.append(bytes(whole))
    return b"".join(parts)


@given(
    streams(),
    st.lists(st.integers(0, 300), max_size=6).map(sorted),
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 12)), max_size=3),
)
def test_any_bytes_however_cut_parse_or_raise_and_leave_no_descriptor(
    data: bytes, cuts: list[int], fds: list[tuple[int, int]]
) -> None:
    before = open_fds()
    with suppress(RemoteError):
        assert len(feed(data, [cut for cut in cuts if cut < len(data)], fds)) <= len(data) // wire.HEADER.size
    assert open_fds() == before


@given(streams(), st.data())
def test_how_the_stream_is_cut_does_not_matter(data: bytes, cuts: st.DataObject) -> None:
    def outcome(where: list[int]) -> object:
        try:
            return feed(data, where, [])
        except RemoteError as error:
            return str(error)

    places = cuts.draw(st.lists(st.integers(0, max(0, len(data))), max_size=8).map(sorted))
    assert outcome(places) == outcome([])


def test_descriptors_come_with_their_message_and_not_with_the_next() -> None:
    ours, theirs = socket.socketpair()
    connection = Connection(ours, wire.FRONT_END_MESSAGES)
    sender = Connection(theirs, wire.FRONT_END_MESSAGES)
    with open("/dev/null") as file:
        sender.send(Message(FrontEnd.SET_VRING_CALL, wire.U64(0), [file.fileno()]))
        sender.send(Message(FrontEnd.SET_VRING_NUM, wire.VringState(0, 8)))
    first, second = connection.receive(), connection.receive()
    assert first is not None
    assert second is not None
    assert len(first.fds) == 1
    assert os.fstat(first.fds[0]).st_rdev == os.stat("/dev/null").st_rdev
    assert second.fds == []
    first.close()
    connection.close()
    sender.close()
