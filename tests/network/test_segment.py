"""Segmentation in software: what comes out is what went in, and each piece is a frame by itself."""

from __future__ import annotations

from struct import pack, unpack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.network.test_checksum import plain

from powervio.network.port import GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, Frame, Offload
from powervio.network.segment import fitted, segments

pytestmark = pytest.mark.dual

ALL = int(Offload.CSUM | Offload.TSO4 | Offload.TSO6 | Offload.ECN | Offload.USO4 | Offload.USO6)
MACS = bytes.fromhex("020000000002 020000000001")
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80


def folded(data: bytes) -> int:
    return ~plain(data) & 0xFFFF


def large(
    payload: bytes,
    size: int,
    *,
    ipv6: bool = False,
    udp: bool = False,
    tags: bytes = b"",
    options: bytes = b"",
    identifier: int = 1,
    sequence: int = 1,
    flags: int = ACK,
    ecn: bool = False,
) -> Frame:
    """A frame as a driver makes it: lengths of the whole, and the sum of the pseudo header."""
    transport = pack(">HHHH", 1000, 2000, 8 + len(payload), 0) if udp else b""
    if not udp:
        words = 5 + len(options) // 4
        transport = pack(">HHIIBBHHH", 1000, 2000, sequence, 77, words << 4, flags, 512, 0, 0) + options
    length = len(transport) + len(payload)
    protocol = 17 if udp else 6
    if ipv6:
        addresses = bytes(range(32))
        network = pack(">IHBB", 0x6000_0000, length, protocol, 64) + addresses
    else:
        addresses = bytes([10, 0, 0, 1, 10, 0, 0, 2])
        network = pack(">BBHHHBBH", 0x45, 0, 20 + length, identifier, 0x4000, 64, protocol, 0) + addresses
        network = network[:10] + pack(">H", plain(network)) + network[12:]
    header = MACS + tags + (b"\x86\xdd" if ipv6 else b"\x08\x00") + network
    offset = 6 if udp else 16
    pseudo = folded(addresses + pack(">II", length, protocol))
    transport = transport[:offset] + pack(">H", pseudo) + transport[offset + 2 :]
    kind = GSO_UDP_L4 if udp else GSO_TCPV6 if ipv6 else GSO_TCPV4
    data = header + transport + payload
    return Frame(
        memoryview(data),
        (len(header), offset),
        gso=kind | (GSO_ECN if ecn else 0),
        gso_size=size,
        header_bytes=len(header) + len(transport),
    )


def transport_is_sound(data: bytes, network: int, start: int, protocol: int) -> bool:
    """Whether the checksum of TCP or UDP is right."""
    addresses = data[network + 12 : start] if data[network] >> 4 == 4 else data[network + 8 : network + 40]
    return (
        plain(
            addresses[: 8 if data[network] >> 4 == 4 else 32] + pack(">II", len(data) - start, protocol) + data[start:]
        )
        == 0
    )


@given(
    payload=st.binary(max_size=3000),
    size=st.integers(1, 1500),
    ipv6=st.booleans(),
    udp=st.booleans(),
    tags=st.sampled_from([b"", bytes.fromhex("81000014"), bytes.fromhex("88a80001 81000014")]),
    options=st.sampled_from([b"", b"\1" * 12]),
    identifier=st.sampled_from([0, 1, 0xFFFE]),
    sequence=st.sampled_from([0, 0xFFFF_FF00]),
    flags=st.sampled_from([ACK, ACK | PSH, ACK | FIN | PSH | CWR]),
)
def test_segments_put_together_are_the_frame(
    payload: bytes,
    size: int,
    ipv6: bool,
    udp: bool,
    tags: bytes,
    options: bytes,
    identifier: int,
    sequence: int,
    flags: int,
) -> None:
    size = max(size, -(-len(payload) // 1366))
    frame = large(
        payload,
        size,
        ipv6=ipv6,
        udp=udp,
        tags=tags,
        options=b"" if udp else options,
        identifier=identifier,
        sequence=sequence,
        flags=flags,
    )
    parts = segments(frame)
    assert len(parts) == max(1, -(-len(payload) // size))
    network = 14 + len(tags)
    assert frame.partial is not None
    start = frame.partial[0]
    together = b""
    for number, part in enumerate(parts):
        data = bytes(part.data)
        assert part.partial is None
        assert data[: network + 2] == bytes(frame.data[: network + 2])
        mine = data[frame.header_bytes :]
        assert len(mine) == size or number == len(parts) - 1
        if ipv6:
            assert unpack(">H", data[network + 4 : network + 6])[0] == len(data) - start
            assert data[network + 6 : start] == frame.data[network + 6 : start]
        else:
            assert unpack(">HH", data[network + 2 : network + 6]) == (
                len(data) - network,
                (identifier + number) & 0xFFFF,
            )
            assert plain(data[network:start]) == 0
        assert transport_is_sound(data, network, start, 17 if udp else 6)
        if udp:
            assert unpack(">H", data[start + 4 : start + 6])[0] == len(data) - start
        else:
            assert unpack(">I", data[start + 4 : start + 8])[0] == (sequence + len(together)) & 0xFFFF_FFFF
            allowed = (0 if number else CWR) | (FIN | PSH if number == len(parts) - 1 else 0) | 0x76
            assert data[start + 13] == flags & allowed
            assert data[start + 20 : frame.header_bytes] == options
        together += mine
    assert together == payload


@pytest.mark.parametrize(("ipv6", "udp"), [(False, False), (True, False), (False, True), (True, True)])
def test_checksums_of_segments_stay_partial_for_who_takes_them(ipv6: bool, udp: bool) -> None:
    frame = large(b"x" * 3000, 1400, ipv6=ipv6, udp=udp)
    finished = segments(frame)
    for whole, part in zip(finished, fitted(frame, int(Offload.CSUM)), strict=True):
        assert part.partial == frame.partial
        assert part.gso == 0
        assert fitted(part, 0) == (whole,)


def test_receiver_gets_what_it_takes() -> None:
    tcp4, tcp6 = large(b"x" * 99, 50), large(b"x" * 99, 50, ipv6=True)
    udp4, udp6 = large(b"x" * 99, 50, udp=True), large(b"x" * 99, 50, udp=True, ipv6=True)
    ecn = large(b"x" * 99, 50, ecn=True)
    for frame, needed in (
        (tcp4, Offload.CSUM | Offload.TSO4),
        (tcp6, Offload.CSUM | Offload.TSO6),
        (ecn, Offload.CSUM | Offload.TSO4 | Offload.ECN),
        (udp4, Offload.CSUM | Offload.USO4),
        (udp6, Offload.CSUM | Offload.USO6),
    ):
        assert frame.needs == needed
        assert fitted(frame, int(needed)) == (frame,)
        for bit in Offload:
            assert len(fitted(frame, ALL & ~bit)) == (2 if bit & needed else 1)
    whole = Frame(b"x" * 60)
    assert whole.needs == 0
    assert fitted(whole, 0) == (whole,)


@pytest.mark.parametrize(
    "change",
    [
        {12: 0x86},  # another protocol of the network
        {14: 0x65},
        {14: 0x44},
        {14: 0x46},  # not where the checksum begins
        {20: 0x20},  # a fragment
        {23: 17},
        {46: 0x40},  # a header of TCP that is too short
        {46: 0xF0},  # or longer than the frame
    ],
)
def test_frame_that_is_not_what_it_says_has_no_segments(change: dict[int, int]) -> None:
    frame = large(b"x" * 30, 10)
    data = bytearray(frame.data)
    for at, value in change.items():
        data[at] = value
    assert segments(Frame(bytes(data), frame.partial, gso=frame.gso, gso_size=frame.gso_size)) == []


@given(st.binary(max_size=120), st.integers(0, 200), st.integers(0, 200), st.integers(0, 255), st.integers(0, 70_000))
def test_any_frame_gives_segments_or_none(data: bytes, start: int, offset: int, gso: int, size: int) -> None:
    for part in segments(Frame(data, (start, offset), gso=gso, gso_size=size)):
        assert part.partial is None


def test_frame_of_no_size_or_too_many_segments_has_none() -> None:
    assert segments(large(b"x" * 2000, 0)) == []
    assert segments(large(b"x" * 2000, 1)) == []
    assert len(segments(large(b"x" * 1366, 1))) == 1366
