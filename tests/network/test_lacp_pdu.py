"""Frames of link aggregation: LACPDUs and Markers."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.errors import RemoteError
from powervio.network.lacp_pdu import Lacpdu, Marker, PortInfo, State, is_slow, parse

ACTOR = PortInfo(0x8000, bytes.fromhex("020000000001"), 0x11, 0xFF, 1, State(0x3D))
PARTNER = PortInfo(0x7000, bytes.fromhex("020000000002"), 0x22, 0x80, 2, State(0x3F))
SOURCE = bytes.fromhex("02aabbccddee")
NUMBER = st.integers(0, 0xFFFF)
INFO = st.builds(
    PortInfo,
    NUMBER,
    st.binary(min_size=5, max_size=5).map(lambda rest: b"\2" + rest),
    NUMBER,
    NUMBER,
    NUMBER,
    st.integers(0, 255).map(State),
)


def test_lacpdu_has_the_bytes_of_the_standard() -> None:
    data = Lacpdu(ACTOR, PARTNER, 0x1234).pack(SOURCE)
    assert data == bytes.fromhex(
        "0180c2000002 02aabbccddee 8809 01 01"
        "01 14 8000 020000000001 0011 00ff 0001 3d 000000"
        "02 14 7000 020000000002 0022 0080 0002 3f 000000"
        "03 10 1234 000000000000000000000000"
        "00 00" + 50 * "00"
    )
    assert is_slow(data)


def test_marker_and_its_response_have_the_bytes_of_the_standard() -> None:
    marker = Marker(7, bytes.fromhex("020000000001"), 0xDEADBEEF)
    head = "0180c2000002 02aabbccddee 8809 02 01"
    assert marker.pack(SOURCE) == bytes.fromhex(f"{head} 01 10 0007 020000000001 deadbeef 0000" + 92 * "00")
    assert marker.response().pack(SOURCE) == bytes.fromhex(f"{head} 02 10 0007 020000000001 deadbeef 0000" + 92 * "00")
    assert parse(marker.response().pack(SOURCE)) == Marker(7, marker.system, marker.transaction, True)


@given(INFO, INFO, NUMBER)
def test_what_is_packed_is_parsed(actor: PortInfo, partner: PortInfo, max_delay: int) -> None:
    pdu = Lacpdu(actor, partner, max_delay)
    assert parse(memoryview(pdu.pack(SOURCE) + b"\xff\xff")) == pdu


@pytest.mark.parametrize(
    ("offset", "value"),
    [(14, 3), (14, 0), (15, 0), (16, 2), (17, 21), (36, 1), (37, 19), (56, 2), (57, 15), (72, 1), (73, 1), (20, 1)],
)
def test_each_wrong_value_is_refused(offset: int, value: int) -> None:
    data = bytearray(Lacpdu(ACTOR, PARTNER).pack(SOURCE))
    data[offset] = value
    with pytest.raises(RemoteError):
        parse(bytes(data))


def test_a_system_without_an_address_is_refused() -> None:
    with pytest.raises(RemoteError, match="address of one device"):
        parse(Lacpdu(PortInfo(), PARTNER).pack(SOURCE))


def test_a_later_version_may_have_more_tlvs() -> None:
    data = bytearray(Lacpdu(ACTOR, PARTNER).pack(SOURCE))
    data[15], data[72], data[73] = 2, 4, 8
    assert parse(bytes(data)) == Lacpdu(ACTOR, PARTNER)


@pytest.mark.parametrize("length", [0, 1, 13, 14, 15, 60, 123])
def test_what_is_too_short_is_refused(length: int) -> None:
    for data in (Lacpdu(ACTOR, PARTNER).pack(SOURCE), Marker(1, ACTOR.system, 2).pack(SOURCE)):
        with pytest.raises(RemoteError):
            parse(data[:length])


@given(st.binary(max_size=140))
def test_anything_parses_or_is_refused(data: bytes) -> None:
    for frame in (data, bytes.fromhex("0180c2000002 02aabbccddee 8809") + data):
        with suppress(RemoteError):
            parse(frame)
