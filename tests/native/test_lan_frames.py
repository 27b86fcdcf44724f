"""Frames over the logical LAN: checksums and large sends for each kind of receiver; whatever a partition may say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.native.lan_rig import (
    ALL,
    BUSY,
    CONSTRAINED,
    DROPPED,
    PAGE,
    PAGES,
    PARAMETER,
    QUEUE,
    RECEIVE,
    RESOURCE,
    SEND,
    SUCCESS,
    End,
    Rig,
    ethernet,
    mac,
    tcp,
)

from powervio.native.lan_frame import TcpView
from powervio.network.checksum import checksum
from powervio.network.port import Frame, Offload
from powervio.network.segment import segments
from powervio.network.switch import PortOptions
from powervio.papr import lan
from powervio.papr.lan import Attribute

pytestmark = pytest.mark.dual

BOTH = Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6
NO_SUM = lan.NO_CHECKSUM | lan.CHECKSUM_GOOD
RECEIVERS = (0, BOTH, BOTH | Attribute.LARGE)


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


def pair(rig: Rig, receiver: int, *, buffers: int = 2, size: int = 4096) -> tuple[End, End]:
    first, second = rig.end(), rig.end()
    first.register(BOTH | Attribute.LARGE)
    second.register(receiver)
    second.add_many(buffers, size)
    return first, second


def is_finished(frame: bytes) -> bool:
    """Whether the TCP checksum of an untagged frame is good."""
    view = TcpView()
    assert view.look_at(frame)
    start, end = view.transport, view.end
    network = frame[view.network :]
    addresses = network[12:20] if view.version == 4 else network[8:40]
    return checksum(addresses + b"\0\6" + (end - start).to_bytes(4, "big") + frame[start:end]) == 0


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("receiver", RECEIVERS)
@pytest.mark.parametrize("field", ["zero", "partial", "full"])
def test_missing_checksum_is_finished_for_who_does_not_take_it(
    rig: Rig, version: int, receiver: int, field: str
) -> None:
    first, second = pair(rig, receiver)
    sent = tcp(second.mac, first.mac, 101, version=version, field=field)
    assert first.send(sent, NO_SUM) == SUCCESS
    entry = second.entry()
    assert entry is not None
    assert entry.offset == 8
    if receiver & BOTH:
        assert entry.flags == NO_SUM
        assert entry.message == tcp(second.mac, first.mac, 101, version=version, field="zero")
    else:
        assert entry.flags == 0
        assert entry.message == tcp(second.mac, first.mac, 101, version=version, field="full")
        assert is_finished(entry.message)


def test_checksum_of_one_version_is_taken_and_of_the_other_finished(rig: Rig) -> None:
    first, second = pair(rig, Attribute.CHECKSUM_IPV6)
    for version, flags in ((4, 0), (6, NO_SUM)):
        assert first.send(tcp(second.mac, first.mac, 10, version=version), NO_SUM) == SUCCESS
        entry = second.entry()
        assert entry is not None
        assert entry.flags == flags


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_good_checksum_is_passed_on_to_who_enabled_it(rig: Rig, receiver: int) -> None:
    first, second = pair(rig, receiver)
    frame = tcp(second.mac, first.mac, 10, field="full")
    assert first.send(frame, lan.CHECKSUM_GOOD) == SUCCESS
    entry = second.entry()
    assert entry is not None
    assert (entry.message, entry.flags) == (frame, lan.CHECKSUM_GOOD if receiver else 0)


def test_padding_is_not_part_of_the_checksum(rig: Rig) -> None:
    first, second = pair(rig, 0)
    assert first.send(tcp(second.mac, first.mac, 1) + b"\xaa\xbb\xcc\xdd\xee", NO_SUM) == SUCCESS
    assert second.message() == tcp(second.mac, first.mac, 1, field="full")


@pytest.mark.parametrize("version", [4, 6])
def test_large_frame_arrives_whole_with_its_mss(rig: Rig, version: int) -> None:
    first, second = pair(rig, RECEIVERS[-1], buffers=1, size=65_536)
    frame = tcp(second.mac, first.mac, 40_000, version=version)
    assert first.send(frame, lan.LARGE_SEND | NO_SUM, 1448) == SUCCESS
    entry = second.entry()
    assert entry is not None
    assert (entry.flags, entry.offset, entry.mss) == (lan.LARGE_SEND | NO_SUM, 16, 1448)
    assert entry.message == tcp(second.mac, first.mac, 40_000, version=version, field="zero")
    assert second.entry() is None


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("receiver", [0, BOTH, Attribute.LARGE, BOTH ^ 6 | Attribute.CHECKSUM_IPV4])
def test_large_frame_is_segmented_for_who_does_not_take_it(rig: Rig, version: int, receiver: int) -> None:
    first, second = pair(rig, receiver, buffers=10)
    frame = tcp(second.mac, first.mac, 10_000, version=version)
    assert first.send(frame, lan.LARGE_SEND | NO_SUM, 1400) == SUCCESS
    headers = 54 if version == 4 else 74
    gso = Frame(frame, (headers - 20, 16), gso=1 if version == 4 else 4, gso_size=1400, header_bytes=headers)
    found = []
    while (entry := second.entry()) is not None:
        assert entry.flags == (NO_SUM if receiver == BOTH else 0)
        found.append(entry.message)
    expected = [bytes(part.data) for part in segments(gso)]
    assert len(found) == 8
    if receiver == BOTH:
        expected = [part[: headers - 4] + b"\0\0" + part[headers - 2 :] for part in expected]
    else:
        assert all(is_finished(message) for message in found)
    assert found == expected


def test_segment_that_finds_no_buffer_makes_the_frame_dropped(rig: Rig) -> None:
    first, second = pair(rig, 0, buffers=3)
    assert first.send(tcp(second.mac, first.mac, 5000), lan.LARGE_SEND | NO_SUM, 1400) == DROPPED
    assert second.drops == 1
    assert sum(second.message() is not None for _ in range(4)) == 3


def test_frame_of_very_many_segments_is_not_segmented(rig: Rig) -> None:
    first, second = pair(rig, 0, buffers=3)
    assert first.send(tcp(second.mac, first.mac, 5000), lan.LARGE_SEND | NO_SUM, 16) == DROPPED
    assert second.drops == 1
    assert second.message() is None


def test_small_frame_with_an_mss_is_an_ordinary_one(rig: Rig) -> None:
    first, second = pair(rig, RECEIVERS[-1])
    assert first.send(tcp(second.mac, first.mac, 1000), lan.LARGE_SEND | NO_SUM, 1000) == SUCCESS
    entry = second.entry()
    assert entry is not None
    assert (entry.flags, entry.offset) == (NO_SUM, 8)


def test_large_frame_with_a_finished_checksum_is_as_one_without(rig: Rig) -> None:
    first, second = pair(rig, 0, buffers=4)
    assert first.send(tcp(second.mac, first.mac, 2000, field="full"), lan.LARGE_SEND, 1400) == SUCCESS
    for _ in range(2):
        message = second.message()
        assert message is not None
        assert is_finished(message)


def test_large_frame_over_a_trunk_keeps_its_tag(rig: Rig) -> None:
    sender, trunk = rig.end(pvid=20), rig.end(vlans=(20,), trunk=1)
    sender.register(BOTH | Attribute.LARGE)
    trunk.register(BOTH | Attribute.LARGE)
    trunk.add_many(1, 16_384)
    assert sender.send(tcp(mac(99), sender.mac, 9000), lan.LARGE_SEND | NO_SUM, 1400) == SUCCESS
    entry = trunk.entry()
    assert entry is not None
    assert entry.message == tcp(mac(99), sender.mac, 9000, vlan=20, field="zero")
    assert (entry.flags, entry.mss) == (lan.LARGE_SEND | NO_SUM, 1400)
    sender.add_many(1, 16_384)
    assert trunk.send(tcp(sender.mac, mac(99), 9000, vlan=20), lan.LARGE_SEND | NO_SUM, 1400) == SUCCESS
    entry = sender.entry()
    assert entry is not None
    assert entry.message == tcp(sender.mac, mac(99), 9000, field="zero")


def test_frames_of_a_port_that_is_no_adapter_s(rig: Rig) -> None:
    """A UDP frame whose checksum or segmentation is left to others is finished: a LAN offloads TCP alone."""
    end = rig.end()
    end.register(BOTH | Attribute.LARGE)
    end.add_many(8)
    port = rig.switch.add(PortOptions(name="device", mac=mac(70)))
    port.take(Offload(0x6F))
    udp = bytearray(ethernet(end.mac, mac(70), b"", 0x0800))
    payload = bytes(range(200))
    udp += b"\x45\0" + (28 + len(payload)).to_bytes(2, "big") + b"\0\0\x40\0\x40\x11\0\0\x0a\0\0\1\x0a\0\0\2"
    udp += b"\1\1\2\2" + (8 + len(payload)).to_bytes(2, "big") + b"\x12\x34" + payload
    assert port.send(Frame(bytes(udp), (34, 6)))
    assert port.send(Frame(bytes(udp), (34, 6), gso=5, gso_size=100, header_bytes=42))
    assert port.send(Frame(tcp(end.mac, mac(70), 50), (34, 16)))
    assert port.send(Frame(tcp(end.mac, mac(70), 50), (14, 16)))  # not where TCP is
    entries = [entry for _ in range(6) if (entry := end.entry()) is not None]
    assert [entry.flags for entry in entries] == [0, 0, 0, NO_SUM, 0]
    assert [entry.length for entry in entries] == [242, 142, 142, 104, 104]
    assert end.send(ethernet(mac(70), end.mac, b"back")) == SUCCESS
    frame = port.receive()
    assert frame is not None
    assert bytes(frame.data) == ethernet(mac(70), end.mac, b"back")
    assert end.send(tcp(mac(70), end.mac, 50), NO_SUM) == SUCCESS
    frame = port.receive()
    assert frame is not None
    assert (frame.partial, bytes(frame.data)) == ((34, 16), tcp(mac(70), end.mac, 50))


def test_frame_is_copied_from_the_window_once(rig: Rig) -> None:
    """What its sender writes afterwards reaches nobody."""
    first, _ = pair(rig, 0)
    port = rig.switch.add(PortOptions(name="device", mac=mac(70)))
    frame = ethernet(mac(70), first.mac, b"before")
    assert first.send(frame) == SUCCESS
    first.memory[SEND : SEND + 100] = bytes(100)
    found = port.receive()
    assert found is not None
    assert bytes(found.data) == frame
    with pytest.raises(TypeError):
        found.data[0] = 1


# -- hostile values

u64 = st.integers(0, (1 << 64) - 1)
near = st.builds(
    lambda control, length, at: control << 56 | length << 32 | at,
    st.sampled_from([0x80, 0x80, 0x80, 0x82, 0x83, 0x84, 0x87, 0, 0x7F, 0xFF]),
    st.sampled_from([0, 1, 14, 60, 1500, PAGE, 65_553, 65_554, 0xFF_FFFF]),
    st.one_of(st.integers(0, PAGES * PAGE + 64), st.sampled_from([0xFFFF_FFFF, SEND, RECEIVE])),
)
words = st.one_of(u64, near)


@given(st.lists(words, min_size=6, max_size=6), st.one_of(u64, st.integers(0, 70_000)), st.binary(max_size=200))
def test_send_of_anything_has_one_of_its_codes_and_touches_only_what_it_may(
    descriptors: list[int], mss: int, head: bytes
) -> None:
    with Rig() as rig:
        first, second = pair(rig, BOTH | Attribute.LARGE, buffers=2)
        first.memory[SEND : SEND + len(head)] = head
        before = bytes(first.memory)
        mine = bytes(second.memory)
        code, token = first.port.send_logical_lan(first.ua, descriptors, 0, mss)
        assert code in (SUCCESS, PARAMETER, DROPPED)
        assert token == 0
        assert bytes(first.memory) == before
        changed = [at for at in range(0, len(mine), PAGE) if second.memory[at : at + PAGE] != mine[at : at + PAGE]]
        assert set(changed) <= {0, QUEUE, RECEIVE}


@given(st.lists(words, max_size=40), u64, u64, u64)
def test_buffers_and_attributes_of_anything(buffers: list[int], reset: int, wanted: int, size: int) -> None:
    with Rig() as rig:
        end, other = rig.end(trunk=2), rig.end()
        code, attributes = end.port.illan_attributes(end.ua, reset, wanted)
        assert code in (SUCCESS, CONSTRAINED, PARAMETER)
        assert attributes & ~0x7FFFF == 0
        assert code == PARAMETER or attributes >> 8 & 15 == 2
        other.register()
        end.register()
        for number in range(0, len(buffers), 3):
            few = buffers[number : number + 3]
            assert end.port.add_logical_lan_buffers(end.ua, *few) in (SUCCESS, PARAMETER, RESOURCE)
        assert end.port.free_logical_lan_buffer(end.ua, size) in (SUCCESS, -7)
        frame = ethernet(end.mac, other.mac, bytes(100))
        assert other.send(frame) in (SUCCESS, DROPPED)
        code, _ = end.port.multicast_ctrl(end.ua, reset, wanted & 0xFFFF_FFFF_FFFF)
        assert code in (SUCCESS, CONSTRAINED, PARAMETER, -7)
        assert end.port.illan_attributes(end.ua, wanted, reset)[0] in (SUCCESS, CONSTRAINED, PARAMETER)
        assert end.port.free_logical_lan(end.ua) == SUCCESS


@given(st.integers(0, 1), st.integers(0, 300), st.binary(min_size=0, max_size=120), st.sampled_from([0, 3, 7]))
def test_tcp_frames_with_anything_in_their_headers(version: int, at: int, noise: bytes, flags: int) -> None:
    with Rig() as rig:
        first, second = pair(rig, 0, buffers=4)
        frame = bytearray(tcp(second.mac, first.mac, 100, version=4 if version else 6))
        place = 12 + at % (len(frame) - 12)
        frame[place : place + len(noise)] = noise
        code = first.send(bytes(frame), flags, 40 if flags == 7 else 0)
        assert code in (SUCCESS, PARAMETER, DROPPED)
        if code == SUCCESS and flags:
            message = second.message()
            assert message is not None
            assert flags == 7 or is_finished(message)


def test_broadcast_counts_who_misses_it(rig: Rig) -> None:
    first, second = pair(rig, 0)
    third = rig.end()
    third.register()
    assert first.send(ethernet(ALL, first.mac)) == DROPPED
    assert second.message() is not None
    assert third.drops == 1
    assert first.send(ethernet(ALL, first.mac)) != BUSY


def test_table_that_its_owner_writes_himself(rig: Rig) -> None:
    """G9: entries are met when they are used, and the table is in use for as long as that."""
    first, second = rig.end(), rig.end()
    stores = []
    for end in (first, second):
        store, use = memoryview(bytearray(8 * PAGES)), memoryview(bytearray(8))
        assert end.adapter.table is not None
        end.adapter.table.share(store, use, end.adapter.ledger)
        stores.append((store, use))
    first.register(BOTH)
    second.register()
    second.add_many(4)
    frame = tcp(second.mac, first.mac, 50)
    assert first.send(frame, NO_SUM) == SUCCESS
    message = second.message()
    assert message is not None
    assert is_finished(message)
    place = 8 * ((RECEIVE + 2 * 2048) // PAGE)
    entry = bytes(stores[1][0][place : place + 8])
    stores[1][0][place : place + 8] = bytes(8)
    assert first.send(frame, NO_SUM) == DROPPED
    stores[1][0][place : place + 8] = (PAGES << 12 | 3).to_bytes(8, "little")  # no page of his
    assert first.send(frame, NO_SUM) == SUCCESS  # the buffer before it is in another page
    stores[1][0][place : place + 8] = entry
    assert second.drops == 1
    assert [bytes(use) for _, use in stores] == [bytes(8)] * 2
    stores[0][0][8 * (SEND // PAGE) : 8 * (SEND // PAGE) + 8] = (SEND | 2).to_bytes(8, "little")
    assert first.send(frame, NO_SUM) == PARAMETER
    assert [bytes(use) for _, use in stores] == [bytes(8)] * 2
