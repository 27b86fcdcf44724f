"""Frames that are to be segmented: what a driver says of them, and what it is told (virtio 1.4, 5.1.6)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.net_frames import ALL, HEADER, TCP4, TCP6, UDP4, UDP6, header, ipv4, ipv6, tcp, udp
from tests.devices.net_joined import Joined

from powervio.network.port import Frame, Offload
from powervio.virtio import net

CSUM = net.H_NEEDS_CSUM
LARGE4 = ipv4(tcp(40_000), 6)
LARGE6 = ipv6(tcp(40_000), 6)
DATAGRAMS4 = ipv4(udp(20_000))
DATAGRAMS6 = ipv6(udp(20_000))
TAG = b"\x81\0\0\5"

FRAMES = [
    (TCP4, LARGE4, (34, 16), net.GSO_TCPV4, 1448, 54),
    (TCP6, LARGE6, (54, 16), net.GSO_TCPV6, 1428, 74),
    (UDP4, DATAGRAMS4, (34, 6), net.GSO_UDP_L4, 1400, 42),
    (UDP6, DATAGRAMS6, (54, 6), net.GSO_UDP_L4, 1400, 62),
    (header(CSUM, 0x81, 0, 1000, 38, 16), ipv4(tcp(9000, words=8), 6, tag=TAG), (38, 16), 0x81, 1000, 70),
]


@pytest.mark.dual
@pytest.mark.parametrize(("head", "data", "partial", "gso", "size", "headers"), FRAMES)
def test_large_frame_goes_on_as_one(
    head: bytes, data: bytes, partial: tuple[int, int], gso: int, size: int, headers: int
) -> None:
    joined = Joined()
    joined.transmit(head, data)
    assert joined.port.out == [Frame(data, partial, False, gso, size, headers)]
    assert joined.device.from_driver.dropped == {}


@pytest.mark.parametrize("hint", [0, 1, 53, 55, 0xFFFF])
def test_hdr_len_is_a_hint_that_nobody_believes(hint: int) -> None:
    joined = Joined()
    joined.transmit(header(CSUM, net.GSO_TCPV4, hint, 1448, 34, 16), LARGE4)
    assert joined.port.out == [Frame(LARGE4, (34, 16), False, net.GSO_TCPV4, 1448, 54)]


@pytest.mark.dual
@pytest.mark.parametrize(
    ("head", "data", "reason"),
    [
        (header(0, 1, 54, 1448, 34, 16), LARGE4, "segmentation"),  # no checksum
        (header(CSUM, 1, 54, 0, 34, 16), LARGE4, "segmentation"),  # segments of nothing
        (header(CSUM, 1, 54, 1448, 35, 16), LARGE4, "segmentation"),  # not where TCP is
        (header(CSUM, 1, 54, 1448, 34, 6), LARGE4, "segmentation"),  # not where its checksum is
        (header(CSUM, 4, 54, 1448, 34, 16), LARGE4, "segmentation"),  # another IP
        (header(CSUM, 1, 74, 1428, 54, 16), LARGE6, "segmentation"),
        (header(CSUM, 5, 54, 1448, 34, 16), LARGE4, "segmentation"),  # another protocol
        (header(CSUM, 1, 42, 1400, 34, 16), DATAGRAMS4, "segmentation"),
        (header(CSUM, 0x85, 42, 1400, 34, 6), DATAGRAMS4, "segmentation"),  # ECN is of TCP
        (TCP4, ipv4(tcp(3000, words=4), 6), "segmentation"),  # a TCP header of 16 bytes
        (TCP4, ipv4(tcp(3000)[:12] + b"\xf0" + bytes(40), 6), "segmentation"),  # behind the end
        (TCP4, ipv4(tcp(0), 6), "segmentation"),  # no payload
        (TCP4, LARGE4[:14] + b"\x4f" + LARGE4[15:], "segmentation"),  # IPv4 options that are not there
        (TCP4, LARGE4[:20] + b"\x20\0" + LARGE4[22:], "segmentation"),  # a fragment
        (TCP4, b"\1" * 100, "segmentation"),
        (header(CSUM, 1, 54, 1448, 34, 16), LARGE4[:52], "segmentation"),
        (header(CSUM, 1, 54, 1448, 0xFFFF, 0xFFFF), LARGE4, "checksum outside"),
        (header(CSUM, 1, 54, 1448, 34, 50_000), LARGE4, "checksum outside"),
        (header(CSUM, 1, 54, 1461, 34, 16), LARGE4, "too long"),  # segments that no wire takes
        (TCP4, ipv4(tcp(66_000), 6), "too long"),
        (header(CSUM, 2, 54, 1448, 34, 16), LARGE4, "not negotiated"),
        (header(CSUM, 3, 54, 1448, 34, 6), DATAGRAMS4, "not negotiated"),  # UFO
        (header(CSUM, 0x80, 54, 1448, 34, 16), LARGE4, "not negotiated"),  # ECN of nothing
    ],
)
def test_metadata_that_is_not_true_of_the_frame_is_dropped_and_counted(head: bytes, data: bytes, reason: str) -> None:
    joined = Joined()
    assert joined.transmit(head, data).used == 0
    assert joined.device.from_driver.dropped == {reason: 1}
    assert joined.port.out == []
    joined.transmit(TCP4, LARGE4)
    assert len(joined.port.out) == 1


@pytest.mark.parametrize(
    ("without", "head", "data"),
    [
        (net.F_HOST_TSO4, TCP4, LARGE4),
        (net.F_HOST_TSO6, TCP6, LARGE6),
        (net.F_HOST_USO, UDP4, DATAGRAMS4),
        (net.F_HOST_ECN, header(CSUM, 0x81, 54, 1448, 34, 16), LARGE4),
    ],
)
def test_segmentation_that_was_not_negotiated_is_not_done(without: int, head: bytes, data: bytes) -> None:
    joined = Joined(ALL & ~without)
    joined.transmit(head, data)
    assert joined.device.from_driver.dropped == {"not negotiated": 1}


@pytest.mark.dual
@pytest.mark.parametrize(("head", "data", "partial", "gso", "size", "headers"), FRAMES)
def test_large_frame_reaches_a_driver_that_takes_it_as_one(
    head: bytes, data: bytes, partial: tuple[int, int], gso: int, size: int, headers: int
) -> None:
    joined = Joined()
    exchanges = [joined.offer(4096) for _ in range(12)]
    joined.arrive(Frame(data, partial, False, gso, size, headers))
    used = [exchange for exchange in exchanges if exchange.used is not None]
    assert len(used) == -(-(12 + len(data)) // 4096)
    got = b"".join(exchange.answer[: exchange.used] for exchange in used)
    assert got[12:] == data
    assert HEADER.unpack(got[:12]) == (CSUM, gso, headers, size, *partial, len(used))


def test_driver_that_does_not_take_large_frames_gets_segments() -> None:
    joined = Joined(ALL & ~net.F_GUEST_TSO4)
    assert joined.port.taken & Offload.TSO6
    assert not joined.port.taken & Offload.TSO4
    exchanges = [joined.offer(1600) for _ in range(40)]
    joined.arrive(Frame(LARGE4, (34, 16), False, net.GSO_TCPV4, 1448, 54))
    used = [exchange for exchange in exchanges if exchange.used is not None]
    assert len(used) == -(-40_000 // 1448)
    assert b"".join(one.answer[12 + 54 : one.used] for one in used) == LARGE4[54:]
    assert {HEADER.unpack(one.answer[:12])[:2] for one in used} == {(CSUM, 0)}


def test_frame_that_cannot_be_segmented_for_its_driver_is_dropped() -> None:
    joined = Joined(ALL & ~net.F_GUEST_TSO4)
    joined.offer(1600)
    joined.arrive(Frame(b"\1" * 5000, (34, 16), False, net.GSO_TCPV4, 1448, 54))
    assert joined.device.to_driver.dropped == {"segmentation": 1}


def test_driver_without_mergeable_buffers_needs_one_that_is_large_enough() -> None:
    joined = Joined(ALL & ~net.F_MRG_RXBUF)
    small, large = joined.offer(1600), joined.offer(65_562)
    frame = Frame(LARGE4, (34, 16), False, net.GSO_TCPV4, 1448, 54)
    joined.arrive(frame, frame)
    assert small.used == 0
    assert large.used == 12 + len(LARGE4)
    assert joined.device.to_driver.dropped == {"no room": 1}


@given(
    st.binary(min_size=12, max_size=12),
    st.sampled_from([LARGE4, LARGE6, DATAGRAMS4, ipv4(tcp(100), 6, tag=TAG), ipv6(bytes(60), 0), bytes(14)]),
    st.integers(0, 3000),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=4),
)
def test_no_header_makes_a_frame_go_on_that_is_not_what_it_says(
    head: bytes, data: bytes, cut: int, changes: list[tuple[int, int]]
) -> None:
    changed = bytearray(data[: max(14, len(data) - cut)])
    for at, value in changes:
        if at < len(changed):
            changed[at] = value
    joined = Joined()
    assert joined.transmit(head, bytes(changed)).times == 1
    counters = joined.device.from_driver
    assert counters.frames + counters.lost == 1
    for frame in joined.port.out:
        assert frame.data == changed
        if frame.partial is not None:
            assert sum(frame.partial) + 2 <= len(changed)
        if frame.gso:
            assert frame.partial is not None
            assert frame.gso_size > 0
            assert frame.partial[0] < frame.header_bytes < len(changed)
