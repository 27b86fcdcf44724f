"""hcall-lLAN and hcall-illan-options: return codes one by one, receive queue, pools, attributes, groups, H_VIOCTL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.native.lan_rig import (
    ALL,
    BUSY,
    CONSTRAINED,
    DROPPED,
    ENTRIES,
    FILTERS,
    IN_PROGRESS,
    LIST,
    NOT_FOUND,
    PAGE,
    PAGES,
    PARAMETER,
    PERMISSION,
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

from powervio.errors import LocalError
from powervio.native.lan import create_lan, remove_lan
from powervio.network.switch import Switch
from powervio.papr import lan
from powervio.papr.codes import Hcall
from powervio.papr.devicetree import partition_tree, virtual_adapters
from powervio.papr.fdt import decode, encode
from powervio.papr.lan import Attribute, descriptor
from powervio.papr.vioctl import Vioctl, output_descriptor
from powervio.phyp.hypervisor import Hypervisor
from powervio.phyp.registry import function_sets
from powervio.phyp.saved import save_partition

pytestmark = pytest.mark.dual

BOTH = Attribute.CHECKSUM_IPV4 | Attribute.CHECKSUM_IPV6
HOLE = PAGES * PAGE - PAGE
"""A page that is not mapped."""
BEYOND = PAGES * PAGE


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


@pytest.fixture
def one(rig: Rig) -> End:
    """Not registered; one page is not mapped."""
    end = rig.end()
    end.port.put_tce(end.liobn, HOLE, 0)
    return end


@pytest.fixture
def two(rig: Rig) -> tuple[End, End]:
    """Registered; the second has four buffers."""
    first, second = rig.end(), rig.end()
    first.register()
    second.register()
    second.add_many(4)
    return first, second


# -- H_REGISTER_LOGICAL_LAN


@pytest.mark.parametrize(
    ("what", "values"),
    [
        ("list not mapped", (HOLE, descriptor(256, QUEUE), FILTERS)),
        ("list beyond the window", (BEYOND, descriptor(256, QUEUE), FILTERS)),
        ("list not aligned", (8, descriptor(256, QUEUE), FILTERS)),
        ("list of 64 bits", (1 << 63, descriptor(256, QUEUE), FILTERS)),
        ("filters not mapped", (LIST, descriptor(256, QUEUE), HOLE)),
        ("filters not aligned", (LIST, descriptor(256, QUEUE), FILTERS + 16)),
        ("queue not mapped", (LIST, descriptor(256, HOLE), FILTERS)),
        ("queue's end not mapped", (LIST, descriptor(2 * PAGE, HOLE - PAGE), FILTERS)),
        ("queue not aligned", (LIST, descriptor(256, QUEUE + 8), FILTERS)),
        ("queue of half an entry", (LIST, descriptor(264, QUEUE), FILTERS)),
        ("queue of nothing", (LIST, descriptor(0, QUEUE), FILTERS)),
        ("queue not valid", (LIST, descriptor(256, QUEUE, 0), FILTERS)),
        ("queue beyond the window", (LIST, descriptor(256, 0xFFFF_FFF0), FILTERS)),
    ],
)
def test_register_with_bad_memory_is_parameter(one: End, what: str, values: tuple[int, int, int]) -> None:
    assert one.port.register_logical_lan(one.ua, *values, int.from_bytes(one.mac, "big")) == PARAMETER
    assert not one.adapter.registered
    assert one.adapter.switch.ports == []


def test_register_shows_the_list_with_toggle_0(one: End) -> None:
    one.memory[LIST : LIST + PAGE] = b"\xff" * PAGE
    one.register()
    words = [int.from_bytes(one.memory[LIST + 8 * at : LIST + 8 * at + 8], "big") for at in range(512)]
    shown = [FIXED, 0]  # the attributes, and no drops
    assert words == [descriptor(16 * ENTRIES, QUEUE), descriptor(PAGE, FILTERS)] + [0] * 508 + shown
    assert one.adapter.registered
    assert not one.adapter.interrupt_enabled


def test_register_twice_is_resource(one: End) -> None:
    one.register()
    assert one.try_register() == RESOURCE


@pytest.mark.parametrize("address", [b"\0" * 6, b"\1\0\0\0\0\0", ALL])
def test_register_with_an_address_of_no_device_is_parameter(one: End, address: bytes) -> None:
    assert one.try_register(mac=address) == PARAMETER


def test_register_with_the_top_bytes_of_the_address_set_ignores_them(one: End) -> None:
    number = 0xABCD << 48 | int.from_bytes(mac(9), "big")
    code = one.port.register_logical_lan(one.ua, LIST, descriptor(256, QUEUE), FILTERS, number)
    assert code == SUCCESS
    assert one.adapter.mac == mac(9)


def test_register_with_somebody_s_address_is_parameter_though_he_is_not_there(rig: Rig) -> None:
    first, second = rig.end(), rig.end()
    assert first.try_register(mac=second.mac) == PARAMETER
    assert second.try_register() == SUCCESS
    other_vlan = rig.end(pvid=2)
    assert other_vlan.try_register(mac=second.mac) == SUCCESS


def test_register_on_a_switch_that_is_full_is_resource(rig: Rig) -> None:
    rig.switch._free.clear()
    end = rig.end()
    assert end.try_register() == RESOURCE
    assert not end.adapter.registered


def test_partition_that_may_not_choose_has_its_node_s_address(rig: Rig) -> None:
    end = rig.end(own_macs=False)
    assert end.try_register(mac=mac(77)) == PARAMETER
    assert end.try_register() == SUCCESS
    assert end.port.change_logical_lan_mac(end.ua, int.from_bytes(mac(77), "big")) == PARAMETER
    assert end.port.change_logical_lan_mac(end.ua, int.from_bytes(end.mac, "big")) == SUCCESS


# -- every call with a unit address that is none


@pytest.mark.parametrize(
    "call",
    [
        lambda port, ua: port.register_logical_lan(ua, LIST, descriptor(256, QUEUE), FILTERS, 2),
        lambda port, ua: port.free_logical_lan(ua),
        lambda port, ua: port.add_logical_lan_buffer(ua, descriptor(2048, RECEIVE)),
        lambda port, ua: port.add_logical_lan_buffers(ua, descriptor(2048, RECEIVE)),
        lambda port, ua: port.free_logical_lan_buffer(ua, 2048),
        lambda port, ua: port.send_logical_lan(ua, (descriptor(64, SEND),))[0],
        lambda port, ua: port.multicast_ctrl(ua, 0)[0],
        lambda port, ua: port.change_logical_lan_mac(ua, 2),
        lambda port, ua: port.illan_attributes(ua)[0],
        lambda port, ua: port.vioctl(ua, Vioctl.GET_ILLAN_NUMBER_VLAN_IDS)[0],
    ],
)
def test_unit_address_of_nothing_and_of_another_kind_is_parameter(rig: Rig, one: End, call: Callable[..., int]) -> None:
    server = rig.hypervisor.create_partition("vios", 16 * PAGE)
    pair = rig.hypervisor.create_pair(server, one.partition)
    for address in (one.ua + 100, 0, (1 << 64) - 1, pair[1].unit_address):
        assert call(one.port, address) == PARAMETER
    assert call(server.port, one.ua) == PARAMETER


# -- H_FREE_LOGICAL_LAN


def test_free_takes_buffers_port_and_interrupt_away(two: tuple[End, End]) -> None:
    first, second = two
    second.port.vio_signal(second.ua, 1)
    assert second.port.free_logical_lan(second.ua) == SUCCESS
    assert [port.name for port in second.adapter.switch.ports] == ["lpar1"]
    assert first.send(ethernet(second.mac, first.mac)) == DROPPED
    assert not second.interrupted()
    assert second.port.free_logical_lan(second.ua) == SUCCESS
    second.register()
    assert first.send(ethernet(second.mac, first.mac)) == DROPPED
    assert second.drops == 1


# -- buffers


@pytest.mark.parametrize(
    ("what", "buffer"),
    [
        ("too small", descriptor(15, RECEIVE)),
        ("nothing", descriptor(0, RECEIVE)),
        ("not aligned", descriptor(2048, RECEIVE + 2)),
        ("not valid", descriptor(2048, RECEIVE, 0)),
        ("beyond the window", descriptor(2048, BEYOND)),
        ("its end beyond the window", descriptor(PAGE + 16, BEYOND - PAGE)),
        ("at the end of what an address can be", descriptor(0xFF_FFFF, 0xFFFF_FFFC)),
    ],
)
def test_add_of_a_bad_buffer_is_parameter(two: tuple[End, End], what: str, buffer: int) -> None:
    assert two[1].port.add_logical_lan_buffer(two[1].ua, buffer) == PARAMETER
    assert two[1].port.add_logical_lan_buffers(two[1].ua, buffer) == PARAMETER
    assert two[1].adapter.core.buffers == 4


def test_add_before_the_registration_is_resource(one: End) -> None:
    assert one.add(RECEIVE) == RESOURCE
    assert one.port.add_logical_lan_buffers(one.ua, descriptor(2048, RECEIVE)) == RESOURCE


def test_add_of_as_many_buffers_as_the_queue_has_entries_is_resource(one: End) -> None:
    """papr-vio 7.3: there must be an entry more than buffers."""
    one.register()
    one.add_many(ENTRIES - 1)
    assert one.add(RECEIVE) == RESOURCE


def test_add_of_a_255th_size_is_resource(one: End) -> None:
    one.register(entries=256)
    for number in range(lan.MAX_POOLS):
        assert one.add(RECEIVE, 16 + 4 * number) == SUCCESS
    assert one.add(RECEIVE, 4096) == RESOURCE
    assert one.add(RECEIVE, 16) == SUCCESS


def test_add_many_stops_at_the_first_zero_and_at_the_first_refusal(one: End) -> None:
    one.register()
    good = descriptor(2048, RECEIVE)
    assert one.port.add_logical_lan_buffers(one.ua, *[good] * 8) == SUCCESS
    assert one.adapter.core.buffers == 8
    assert one.port.add_logical_lan_buffers(one.ua, good, good, 0, good) == SUCCESS
    assert one.adapter.core.buffers == 10
    assert one.port.add_logical_lan_buffers(one.ua, good, descriptor(8, RECEIVE), good) == PARAMETER
    assert one.adapter.core.buffers == 11
    assert one.port.add_logical_lan_buffers(one.ua, 0) == PARAMETER
    assert one.port.add_logical_lan_buffers(one.ua, *[good] * 8) == RESOURCE
    assert one.adapter.core.buffers == ENTRIES - 1


def test_free_buffer_returns_one_of_that_size_unused(two: tuple[End, End]) -> None:
    end = two[1]
    end.port.vio_signal(end.ua, 1)
    assert end.port.free_logical_lan_buffer(end.ua, 2000) == NOT_FOUND
    assert end.port.free_logical_lan_buffer(end.ua, 2048) == SUCCESS
    entry = end.entry()
    assert entry is not None
    assert (entry.has_message, entry.length, entry.handle) == (False, 0, 7 << 32 | RECEIVE + 3 * 2048)
    assert end.interrupted()
    for _ in range(3):
        assert end.port.free_logical_lan_buffer(end.ua, 2048) == SUCCESS
    assert end.port.free_logical_lan_buffer(end.ua, 2048) == NOT_FOUND


def test_smallest_buffer_that_fits_is_taken_and_then_the_next_size(two: tuple[End, End]) -> None:
    first, second = two
    assert second.add(RECEIVE + 0x8000, 128) == SUCCESS
    assert second.add(RECEIVE + 0x9000, 4096) == SUCCESS
    small, exact = ethernet(second.mac, first.mac, bytes(50)), ethernet(second.mac, first.mac, bytes(128 - 8 - 14))
    handles = []
    for frame in (exact, small, small, ethernet(second.mac, first.mac, bytes(2048 - 8 - 13))):
        assert first.send(frame) == SUCCESS
        entry = second.entry()
        assert entry is not None
        assert entry.message == frame
        handles.append(entry.handle & 0xFFFF_FFFF)
    assert handles == [RECEIVE + 0x8000, RECEIVE + 3 * 2048, RECEIVE + 2 * 2048, RECEIVE + 0x9000]


def test_buffer_size_control_drops_when_the_right_size_has_none(rig: Rig) -> None:
    first, second = rig.end(), rig.end()
    first.register()
    second.register(Attribute.BUFFER_SIZE_CONTROL)
    assert second.add(RECEIVE, 128) == SUCCESS
    assert second.add(RECEIVE + 4096, 2048) == SUCCESS
    frame = ethernet(second.mac, first.mac, bytes(50))
    assert [first.send(frame) for _ in range(2)] == [SUCCESS, DROPPED]
    assert second.drops == 1
    assert first.send(ethernet(second.mac, first.mac, bytes(500))) == SUCCESS


# -- the receive queue


def test_valid_bit_alternates_and_the_toggle_shows_its_sense(rig: Rig) -> None:
    first, second = rig.end(), rig.end()
    first.register()
    second.register(entries=3)
    toggles = []
    for number in range(13):
        assert second.add(RECEIVE) == SUCCESS
        frame = ethernet(second.mac, first.mac, bytes([number]))
        assert first.send(frame) == SUCCESS
        entry = second.entry()
        assert entry is not None
        assert entry.message == frame
        assert entry.control >> 7 == (number // 3 + 1) % 2
        toggles.append(second.toggle)
    assert toggles == [number // 3 % 2 == 1 for number in range(1, 14)]


def test_handle_is_what_stands_in_the_buffer_and_stays_there(two: tuple[End, End]) -> None:
    first, second = two
    at = RECEIVE + 3 * 2048
    second.memory[at : at + 8] = bytes.fromhex("0123456789abcdef")
    assert first.send(ethernet(second.mac, first.mac, b"hello")) == SUCCESS
    raw = bytes(second.memory[QUEUE : QUEUE + 16])
    assert raw == bytes([0xC0, 0, 0, 8, 0, 0, 0, 19]) + bytes.fromhex("0123456789abcdef")
    assert bytes(second.memory[at : at + 8]) == raw[8:]
    assert bytes(second.memory[at + 8 : at + 28]) == ethernet(second.mac, first.mac, b"hello") + b"\0"


def test_interrupt_comes_with_a_frame_when_it_is_enabled(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(second.mac, first.mac)
    assert first.send(frame) == SUCCESS
    assert not second.interrupted()
    second.port.vio_signal(second.ua, 1)
    assert first.send(frame) == SUCCESS
    assert second.interrupted()


def test_frame_without_a_buffer_is_dropped_and_counted_at_4088(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(second.mac, first.mac)
    assert [first.send(frame) for _ in range(6)] == [SUCCESS] * 4 + [DROPPED] * 2
    assert second.drops == 2
    assert first.send(ethernet(second.mac, first.mac, bytes(3000))) == DROPPED
    assert second.drops == 3
    assert second.adapter.port is not None
    assert second.adapter.port.counters().dropped == {"no buffer": 3}


def test_list_that_its_owner_unmapped_is_left_alone(two: tuple[End, End]) -> None:
    first, second = two
    second.port.put_tce(second.liobn, LIST, 0)
    assert [first.send(ethernet(second.mac, first.mac)) for _ in range(5)] == [SUCCESS] * 4 + [DROPPED]
    assert second.drops == 0
    assert second.adapter.core.drops == 1


def test_buffer_and_queue_that_their_owner_unmapped_lose_his_frames_only(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(second.mac, first.mac)
    second.port.put_tce(second.liobn, RECEIVE + PAGE, 0)
    assert [first.send(frame) for _ in range(2)] == [DROPPED] * 2
    assert first.send(frame) == SUCCESS
    second.port.put_tce(second.liobn, QUEUE, 1)
    assert first.send(frame) == DROPPED
    assert second.port.free_logical_lan_buffer(second.ua, 2048) == PARAMETER
    second.port.put_tce(second.liobn, QUEUE, QUEUE | 3)
    assert first.send(frame) == SUCCESS
    assert second.drops == 3


# -- H_SEND_LOGICAL_LAN


@pytest.mark.parametrize(
    ("what", "descriptors"),
    [
        ("none", ()),
        ("not valid", (descriptor(64, SEND, 0),)),
        ("of nothing", (descriptor(0, SEND),)),
        ("not mapped", (descriptor(64, HOLE),)),
        ("its end not mapped", (descriptor(PAGE, HOLE - 64),)),
        ("the second not mapped", (descriptor(64, SEND), descriptor(64, HOLE))),
        ("beyond the window", (descriptor(64, BEYOND),)),
        ("at the end of addresses", (descriptor(0xFF_FFFF, 0xFFFF_FFFF),)),
        ("longer than any frame", (descriptor(lan.MAX_FRAME + 1, SEND),)),
        ("longer than any frame, together", (descriptor(40_000, SEND), descriptor(40_000, SEND))),
    ],
)
def test_send_of_bad_descriptors_is_parameter(one: End, what: str, descriptors: tuple[int, ...]) -> None:
    one.register()
    assert one.port.send_logical_lan(one.ua, descriptors)[0] == PARAMETER


def test_send_needs_pages_that_may_be_read(one: End) -> None:
    one.register()
    one.port.put_tce(one.liobn, SEND, SEND | 2)
    assert one.port.send_logical_lan(one.ua, (descriptor(64, SEND),))[0] == PARAMETER


def test_send_longer_than_the_tree_allows_is_parameter() -> None:
    with Rig(max_virtual_dma_size=0x2_0000) as rig:
        end = rig.end()
        end.register()
        assert end.send(ethernet(ALL, end.mac)) == DROPPED
        code, _ = end.port.send_logical_lan(end.ua, (descriptor(0x2_0001, SEND),))
        assert code == PARAMETER


def test_send_gathers_up_to_six_pieces_until_the_first_that_is_not_valid(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(second.mac, first.mac, bytes(range(100)))
    first.memory[SEND + 4000 : SEND + 4000 + len(frame)] = frame
    pieces = [(0, 6), (6, 1), (7, 93), (100, 2), (102, 5), (107, 7)]
    descriptors = [descriptor(length, SEND + 4000 + at) for at, length in pieces]
    assert first.port.send_logical_lan(first.ua, descriptors)[0] == SUCCESS
    assert second.message() == frame
    assert first.port.send_logical_lan(first.ua, [*descriptors[:3], 0, descriptors[3]])[0] == SUCCESS
    assert second.message() == frame[:100]


def test_send_before_the_registration_is_dropped(rig: Rig) -> None:
    first, second = rig.end(), rig.end()
    second.register()
    second.add_many(1)
    assert first.send(ethernet(second.mac, first.mac)) == DROPPED


def test_send_with_a_token_that_was_not_given_is_parameter(two: tuple[End, End]) -> None:
    first, second = two
    assert first.send(ethernet(second.mac, first.mac), token=1) == PARAMETER
    assert second.message() is None


def test_send_to_nobody_is_dropped(two: tuple[End, End]) -> None:
    assert two[0].send(ethernet(mac(99), two[0].mac)) == DROPPED
    assert two[0].send(b"too short") == DROPPED


def test_send_of_a_tag_that_is_not_the_port_s_is_parameter(rig: Rig) -> None:
    untagged, tagged, other = rig.end(), rig.end(vlans=(20,)), rig.end(pvid=20)
    for end in (untagged, tagged, other):
        end.register()
        end.add_many(2)
    assert untagged.send(ethernet(ALL, untagged.mac, vlan=20)) == PARAMETER
    assert tagged.send(ethernet(ALL, tagged.mac, vlan=30)) == PARAMETER
    assert tagged.send(ethernet(ALL, tagged.mac, b"x", vlan=20)) == SUCCESS
    assert other.message() == ethernet(ALL, tagged.mac, b"x")
    assert untagged.message() is None
    assert untagged.send(ethernet(ALL, untagged.mac, b"y", vlan=0)) == SUCCESS
    assert tagged.message() == ethernet(ALL, untagged.mac, b"y")


@pytest.mark.parametrize(
    ("attributes", "flags", "kind", "code"),
    [
        (0, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 4, PARAMETER),
        (0, lan.CHECKSUM_GOOD, 4, PARAMETER),
        (BOTH, lan.NO_CHECKSUM, 4, PARAMETER),
        (Attribute.CHECKSUM_IPV6, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 4, PARAMETER),
        (Attribute.CHECKSUM_IPV4, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 6, PARAMETER),
        (Attribute.CHECKSUM_IPV4, lan.CHECKSUM_GOOD, 6, PARAMETER),
        (BOTH, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 0, PARAMETER),
        (BOTH, lan.CHECKSUM_GOOD, 0, PARAMETER),
        (BOTH, 0, 0, SUCCESS),
        (Attribute.CHECKSUM_IPV4, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 4, SUCCESS),
        (Attribute.CHECKSUM_IPV6, lan.NO_CHECKSUM | lan.CHECKSUM_GOOD, 6, SUCCESS),
        (BOTH, lan.CHECKSUM_GOOD, 4, SUCCESS),
    ],
)
def test_send_with_checksum_flags(rig: Rig, attributes: int, flags: int, kind: int, code: int) -> None:
    first, second = rig.end(), rig.end()
    first.register(attributes)
    second.register()
    second.add_many(1)
    frame = tcp(second.mac, first.mac, 100, version=kind) if kind else ethernet(second.mac, first.mac, bytes(60))
    assert first.send(frame, flags) == code


@pytest.mark.parametrize(
    ("mss", "frame", "code"),
    [
        (15, "tcp", PARAMETER),
        (1, "tcp", PARAMETER),
        (0x1_0000, "tcp", PARAMETER),
        (1 << 63, "tcp", PARAMETER),
        (16, "other", PARAMETER),
        (1000, "fragment", PARAMETER),
        (1000, "short", PARAMETER),
        (1000, "tcp", SUCCESS),
        (0, "other", SUCCESS),
        (16, "tcp", SUCCESS),
    ],
)
def test_send_with_an_mss(rig: Rig, mss: int, frame: str, code: int) -> None:
    first, second = rig.end(), rig.end()
    first.register(BOTH | Attribute.LARGE)
    second.register(BOTH | Attribute.LARGE)
    second.add_many(1, 4096)
    data = tcp(second.mac, first.mac, 1800)
    if frame == "other":
        data = ethernet(second.mac, first.mac, bytes(1000))
    elif frame == "fragment":
        data = data[:20] + b"\x20\0" + data[22:]
    elif frame == "short":
        data = data[:50]
    assert first.send(data, lan.LARGE_SEND, mss) == code


def test_mss_of_a_sender_that_did_not_enable_large_send_is_not_looked_at(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(second.mac, first.mac, bytes(50))
    assert first.send(frame, lan.LARGE_SEND, 3) == SUCCESS
    assert second.message() == frame


def test_foreign_source_is_dropped_unless_the_port_may(rig: Rig) -> None:
    checked, free, receiver = rig.end(), rig.end(spoof_check=False), rig.end()
    for end in (checked, free, receiver):
        end.register(BOTH)
        end.add_many(3)
    foreign = mac(50)
    assert checked.send(ethernet(receiver.mac, foreign)) == DROPPED
    assert free.send(ethernet(receiver.mac, foreign)) == SUCCESS
    both = lan.NO_CHECKSUM | lan.CHECKSUM_GOOD
    assert free.send(tcp(receiver.mac, foreign, 10), both) == DROPPED
    assert free.send(tcp(receiver.mac, free.mac, 10), both) == SUCCESS


# -- the continue token


def test_much_work_is_done_in_several_calls_with_a_token(rig: Rig) -> None:
    sender = rig.end()
    sender.register()
    receivers = [rig.end() for _ in range(40)]
    for end in receivers:
        end.register()
        end.add_many(2, 60_032, RECEIVE)
    frame = ethernet(ALL, sender.mac, bytes(60_000))
    code, token = sender.send_with_token(frame)
    calls = 1
    assert (code, token) == (BUSY, 1)
    assert sender.send(frame, token=token + 1) == PARAMETER
    while code == BUSY:
        code, token = sender.send_with_token(b"", token=token)
        calls += 1
    assert (code, calls) == (SUCCESS, 3)
    assert [end.message() for end in receivers] == [frame] * 40
    assert sender.send(frame, token=2) == PARAMETER  # it has ended


def test_send_that_is_given_up_is_gone_on_with_by_whoever_sends_next(rig: Rig) -> None:
    sender, other = rig.end(), rig.end(pvid=2)
    sender.register()
    other.register()
    receivers = [rig.end() for _ in range(20)]
    for end in receivers:
        end.register()
        end.add_many(2, 60_032, RECEIVE)
    frame = ethernet(ALL, sender.mac, bytes(60_000))
    assert sender.send(frame) == BUSY
    assert sum(end.message() == frame for end in receivers) == 18
    assert other.send(ethernet(ALL, other.mac)) == DROPPED
    assert sum(end.message() == frame for end in receivers) == 2
    assert sender.send(ethernet(ALL, sender.mac)) == SUCCESS


def test_what_was_lost_before_the_token_is_said_in_the_end(rig: Rig) -> None:
    sender = rig.end()
    sender.register()
    for number in range(40):
        end = rig.end()
        end.register()
        if number != 1:
            end.add_many(1, 60_032)
    code, token = sender.send_with_token(ethernet(ALL, sender.mac, bytes(60_000)))
    while code == BUSY:
        code, token = sender.send_with_token(b"", token=token)
    assert code == DROPPED


# -- H_MULTICAST_CTRL

RECEPTION = lan.MULTICAST_SET_RECEPTION | lan.MULTICAST_RECEPTION
FILTER = lan.MULTICAST_SET_FILTER | lan.MULTICAST_FILTER
GROUP, GROUP2 = 0x0100_5E00_0001, 0x3333_0000_0001


@pytest.mark.parametrize("flags", [0x4, 0x8000, 0x10_0000, 1 << 63, 1 << 32])
def test_multicast_with_other_flags_is_parameter(one: End, flags: int) -> None:
    assert one.port.multicast_ctrl(one.ua, flags)[0] == PARAMETER


def test_multicast_address_of_more_than_48_bits_is_parameter(one: End) -> None:
    assert one.port.multicast_ctrl(one.ua, lan.MULTICAST_ADD, 1 << 48 | GROUP)[0] == PARAMETER


def test_multicast_table_and_enables(one: End) -> None:
    def call(flags: int, group: int = 0) -> tuple[int, int]:
        return one.port.multicast_ctrl(one.ua, flags, group)

    assert call(0) == (SUCCESS, 0)
    assert call(lan.MULTICAST_RECEPTION | lan.MULTICAST_FILTER) == (SUCCESS, 0)  # without their modify bits
    assert call(RECEPTION) == (SUCCESS, lan.MULTICAST_RECEPTION)
    assert call(FILTER) == (SUCCESS, lan.MULTICAST_RECEPTION | lan.MULTICAST_FILTER)
    assert call(lan.MULTICAST_SET_RECEPTION) == (SUCCESS, lan.MULTICAST_FILTER)
    assert call(lan.MULTICAST_SET_FILTER) == (SUCCESS, 0)
    assert call(lan.MULTICAST_REMOVE, GROUP) == (NOT_FOUND, 0)
    assert call(lan.MULTICAST_ADD, GROUP) == (SUCCESS, 1)
    assert call(lan.MULTICAST_ADD, GROUP) == (SUCCESS, 1)
    for number in range(3):
        assert call(lan.MULTICAST_ADD, GROUP2 + number) == (SUCCESS, 2 + number)
    assert call(lan.MULTICAST_ADD, GROUP2 + 3) == (CONSTRAINED, 4)
    assert call(lan.MULTICAST_ADD, GROUP2) == (SUCCESS, 4)
    assert call(lan.MULTICAST_REMOVE, GROUP) == (SUCCESS, 3)
    assert call(lan.MULTICAST_CLEAR, GROUP) == (SUCCESS, 0)


def test_multicast_frames_reach_who_wants_them(two: tuple[End, End]) -> None:
    first, second = two
    frame = ethernet(GROUP.to_bytes(6, "big"), first.mac)
    other = ethernet(GROUP2.to_bytes(6, "big"), first.mac)

    def heard() -> list[bool]:
        found = []
        for sent in (frame, other, ethernet(ALL, first.mac)):
            first.send(sent)
            found.append(second.message() == sent)
            if found[-1]:
                assert second.add(RECEIVE) == SUCCESS
        return found

    assert heard() == [False, False, True]
    second.port.multicast_ctrl(second.ua, RECEPTION)
    assert heard() == [True, True, True]
    second.port.multicast_ctrl(second.ua, FILTER)
    assert heard() == [False, False, True]
    second.port.multicast_ctrl(second.ua, lan.MULTICAST_ADD, GROUP)
    assert heard() == [True, False, True]
    second.port.multicast_ctrl(second.ua, lan.MULTICAST_SET_RECEPTION)
    assert heard() == [False, False, True]


# -- H_CHANGE_LOGICAL_LAN_MAC


def test_change_mac_takes_effect_for_both_directions(two: tuple[End, End]) -> None:
    first, second = two
    assert second.port.change_logical_lan_mac(second.ua, 0xFFFF << 48 | int.from_bytes(mac(60), "big")) == SUCCESS
    assert first.send(ethernet(mac(60), first.mac, b"new")) == SUCCESS
    assert second.message() == ethernet(mac(60), first.mac, b"new")
    assert first.send(ethernet(second.mac, first.mac)) == DROPPED
    first.add_many(1)
    assert second.send(ethernet(first.mac, second.mac)) == DROPPED
    assert second.send(ethernet(first.mac, mac(60))) == SUCCESS


@pytest.mark.parametrize("address", [b"\0" * 6, b"\1\0\0\0\0\1", mac(1)])
def test_change_mac_to_one_that_cannot_be_is_parameter(two: tuple[End, End], address: bytes) -> None:
    assert two[1].port.change_logical_lan_mac(two[1].ua, int.from_bytes(address, "big")) == PARAMETER
    assert two[1].adapter.mac == two[1].mac


# -- H_ILLAN_ATTRIBUTES

FIXED = Attribute.RX_MULTI | Attribute.NONZERO_CHECKSUM | Attribute.LARGE_SUPPORTED | Attribute.PADDED
CHOSEN = Attribute.LARGE | Attribute.BUFFER_SIZE_CONTROL | BOTH


@pytest.mark.parametrize(
    ("reset", "wanted", "code", "found"),
    [
        (0, 0, SUCCESS, FIXED),
        (0, CHOSEN, SUCCESS, FIXED | CHOSEN),
        (CHOSEN, 0, SUCCESS, FIXED),
        (CHOSEN, Attribute.LARGE, SUCCESS, FIXED | Attribute.LARGE),
        (FIXED, 0, CONSTRAINED, FIXED),
        (0, FIXED, SUCCESS, FIXED),
        (0, 1 << 63 | 0x80000 | 0xF8, SUCCESS, FIXED),
        (1 << 63, Attribute.CHECKSUM_IPV4, SUCCESS, FIXED | Attribute.CHECKSUM_IPV4),
        (Attribute.PORT_DISABLED, 0, PARAMETER, 0),
        (0, Attribute.PORT_DISABLED, PARAMETER, 0),
        (0, 0x100, PARAMETER, 0),
        (0xF00, 0, SUCCESS, FIXED),
        (0, Attribute.ACTIVE_TRUNK, CONSTRAINED, FIXED),
        (Attribute.ACTIVE_TRUNK, 0, SUCCESS, FIXED),
    ],
)
def test_attributes_of_an_adapter_that_is_no_trunk(one: End, reset: int, wanted: int, code: int, found: int) -> None:
    assert one.port.illan_attributes(one.ua, reset, wanted) == (code, found)


def test_attributes_cannot_change_while_it_is_registered(one: End) -> None:
    one.register(Attribute.CHECKSUM_IPV4)
    before = FIXED | Attribute.CHECKSUM_IPV4
    for bit in (Attribute.LARGE, Attribute.BUFFER_SIZE_CONTROL, Attribute.CHECKSUM_IPV6):
        assert one.port.illan_attributes(one.ua, 0, bit) == (CONSTRAINED, before)
    assert one.port.illan_attributes(one.ua, Attribute.CHECKSUM_IPV4, 0) == (CONSTRAINED, before)
    assert one.port.illan_attributes(one.ua, 0, Attribute.CHECKSUM_IPV4) == (SUCCESS, before)
    one.port.free_logical_lan(one.ua)
    assert one.port.illan_attributes(one.ua, Attribute.CHECKSUM_IPV4, 0) == (SUCCESS, FIXED)


def test_attributes_of_a_trunk(rig: Rig) -> None:
    trunk = rig.end(trunk=3)
    assert trunk.port.illan_attributes(trunk.ua) == (SUCCESS, FIXED | 0x300)
    assert trunk.port.illan_attributes(trunk.ua, 0, Attribute.ACTIVE_TRUNK) == (CONSTRAINED, FIXED | 0x300)
    trunk.register()
    active = FIXED | 0x300 | Attribute.ACTIVE_TRUNK
    assert trunk.port.illan_attributes(trunk.ua) == (SUCCESS, active)
    assert trunk.port.illan_attributes(trunk.ua, 0, Attribute.ACTIVE_TRUNK) == (SUCCESS, active)
    assert trunk.port.illan_attributes(trunk.ua, Attribute.ACTIVE_TRUNK, 0)[0] == PARAMETER
    assert trunk.port.illan_attributes(trunk.ua, 0x300, 0x200) == (CONSTRAINED, active)
    assert trunk.port.illan_attributes(trunk.ua, 0x300, 0) == (CONSTRAINED, active)


def test_trunk_that_was_activated_stays_active_when_one_of_a_higher_priority_comes(rig: Rig) -> None:
    elected, chosen, first, other = (
        rig.end(trunk=n, vlans=(v,), pvid=v + 1) for n, v in ((2, 5), (2, 7), (1, 5), (1, 7))
    )
    for end in (elected, chosen):
        end.register()
    assert chosen.port.illan_attributes(chosen.ua, 0, Attribute.ACTIVE_TRUNK)[0] == SUCCESS
    for end in (first, other):
        end.register()
    active = [end.port.illan_attributes(end.ua)[1] & Attribute.ACTIVE_TRUNK for end in (elected, chosen, first, other)]
    assert active == [0, 1, 1, 0]


def test_one_trunk_is_active_and_the_other_hears_of_it_by_an_interrupt(rig: Rig) -> None:
    first, second = rig.end(trunk=1, vlans=(5,)), rig.end(trunk=2, vlans=(5,))
    for end in (first, second):
        end.register()
        end.port.vio_signal(end.ua, 1)
        end.add_many(4)
    client = rig.end()
    client.register()

    def active() -> list[bool]:
        return [end.port.illan_attributes(end.ua)[1] & 1 == 1 for end in (first, second)]

    assert active() == [True, False]
    unknown = ethernet(mac(90), client.mac, b"out")
    assert client.send(unknown) == SUCCESS
    assert (first.message(), second.message()) == (unknown, None)
    assert first.interrupted()
    assert second.port.illan_attributes(second.ua, 0, Attribute.ACTIVE_TRUNK)[0] == SUCCESS
    assert active() == [False, True]
    shown = [end.memory[LIST + lan.ATTRIBUTES_SHOWN : LIST + lan.DROP_COUNTER] for end in (first, second)]
    assert [word[7] & 1 for word in shown] == [0, 1]
    assert first.interrupted()
    assert client.send(unknown) == SUCCESS
    assert (first.message(), second.message()) == (None, unknown)
    assert first.send(ethernet(client.mac, mac(90))) == DROPPED
    client.add_many(1)
    assert second.send(ethernet(client.mac, mac(91), b"in")) == SUCCESS
    assert client.message() == ethernet(client.mac, mac(91), b"in")
    second.port.free_logical_lan(second.ua)
    assert active() == [True, False]


# -- H_VIOCTL


def vioctl(end: End, function: int, *parameters: int) -> tuple[int, ...]:
    return end.port.vioctl(end.ua, function, *parameters)


def test_vlans_and_switch_are_told(rig: Rig) -> None:
    end = rig.end(pvid=7, vlans=(20, 3))
    assert vioctl(end, Vioctl.GET_ILLAN_NUMBER_VLAN_IDS) == (SUCCESS, 3)
    assert vioctl(end, Vioctl.GET_ILLAN_NUMBER_VLAN_IDS, 1)[0] == PARAMETER
    assert vioctl(end, Vioctl.GET_ILLAN_VLAN_ID_LIST, output_descriptor(8, SEND)) == (SUCCESS,)
    assert bytes(end.memory[SEND : SEND + 8]) == b"\0\7\0\3\0\x14\0\0"
    assert vioctl(end, Vioctl.GET_ILLAN_VLAN_ID_LIST, output_descriptor(5, SEND)) == (CONSTRAINED,)
    assert vioctl(end, Vioctl.GET_ILLAN_SWITCH_ID, output_descriptor(16, SEND)) == (SUCCESS,)
    assert bytes(end.memory[SEND : SEND + 16]) == b"ETHERNET0".ljust(16, b"\0")
    for bad in (output_descriptor(16, BEYOND), 1 << 56 | output_descriptor(16, SEND)):
        assert vioctl(end, Vioctl.GET_ILLAN_SWITCH_ID, bad) == (PARAMETER,)


def test_sub_functions_for_trunks_on_others_are_parameter(one: End) -> None:
    for function in (
        Vioctl.GET_ILLAN_SWITCHING_MODE,
        Vioctl.DISABLE_INACTIVE_TRUNK_RECEPTION,
        Vioctl.ILLAN_MAC_SCAN,
        Vioctl.DISABLE_MIGRATION,
        Vioctl.GET_PARTNER_UUID,
        Vioctl.DISABLE_ALL_VIO_INTERRUPTS,
    ):
        assert vioctl(one, function) == (PARAMETER,)
    assert vioctl(one, 0x15) == (NOT_FOUND,)


def test_trunk_is_told_of_the_mode_and_hears_nothing_while_inactive(rig: Rig) -> None:
    first, second = rig.end(trunk=1), rig.end(trunk=2)
    for end in (first, second):
        end.register()
        end.add_many(2)
        assert vioctl(end, Vioctl.GET_ILLAN_SWITCHING_MODE) == (SUCCESS, 0)
        assert vioctl(end, Vioctl.DISABLE_INACTIVE_TRUNK_RECEPTION) == (SUCCESS,)
    client = rig.end()
    client.register()
    assert client.send(ethernet(ALL, client.mac)) == SUCCESS
    assert (first.message() is not None, second.message()) == (True, None)


def test_mac_scan_lists_vlans_and_addresses_in_pieces(rig: Rig) -> None:
    trunk = rig.end(trunk=1, vlans=(20, 30))
    others = [rig.end(), rig.end(pvid=20), rig.end(vlans=(20,)), rig.end(pvid=40)]
    where = output_descriptor(56, SEND)
    assert vioctl(trunk, Vioctl.ILLAN_MAC_SCAN, where) == (PARAMETER,)  # not active
    for end in (trunk, *others):
        end.register()
    found, tokens, code = [], (0, 0), IN_PROGRESS
    while code == IN_PROGRESS:
        (code,) = vioctl(trunk, Vioctl.ILLAN_MAC_SCAN, where, *tokens)
        answer = bytes(trunk.memory[SEND : SEND + 56])
        tokens = int.from_bytes(answer[:8], "big"), int.from_bytes(answer[8:16], "big")
        assert answer[16:32] == bytes(16)
        count = int.from_bytes(answer[32:40], "big")
        found += [answer[40 + 8 * at : 48 + 8 * at] for at in range(count)]
    assert code == SUCCESS
    assert tokens == (0, 0)
    assert found == [b"\0\1" + mac(2), b"\0\1" + mac(4), b"\0\x14" + mac(3), b"\0\x14" + mac(4)]
    (code,) = vioctl(trunk, Vioctl.ILLAN_MAC_SCAN, where)
    others[0].port.free_logical_lan(others[0].ua)
    assert code == IN_PROGRESS
    assert vioctl(trunk, Vioctl.ILLAN_MAC_SCAN, where, 2, 5) == (SUCCESS,)
    assert trunk.memory[SEND + 31] == 1  # reconfiguration occurred


@pytest.mark.parametrize(
    ("parameters", "code"),
    [
        ((output_descriptor(39, SEND),), PARAMETER),
        ((output_descriptor(40, SEND),), PARAMETER),
        ((output_descriptor(64, SEND + 4),), PARAMETER),
        ((1 << 56 | output_descriptor(64, SEND),), PARAMETER),
        ((output_descriptor(64, SEND), 1, 0), PARAMETER),
        ((output_descriptor(64, SEND), 0, 1), PARAMETER),
        ((output_descriptor(64, SEND), 9, 2), PARAMETER),
        ((output_descriptor(64, BEYOND),), PERMISSION),
    ],
)
def test_mac_scan_with_bad_parameters(rig: Rig, parameters: tuple[int, ...], code: int) -> None:
    trunk, other = rig.end(trunk=1), rig.end()
    trunk.register()
    other.register()
    assert vioctl(trunk, Vioctl.ILLAN_MAC_SCAN, *parameters) == (code,)


# -- node, ledger, life


def test_node_is_papr_s_and_is_read_back_from_the_tree(rig: Rig) -> None:
    client, trunk = rig.adapter().node, rig.adapter(trunk=1).node
    assert (client.name, client.device_type, client.compatible) == ("l-lan", "network", ("IBM,l-lan",))
    assert len(client.windows) == 1
    assert client.property("local-mac-address") == client.property("mac-address") == mac(1)
    assert client.property("ibm,mac-address-filters") == b"\0\0\0\4"
    assert client.property("ibm,illan-options") == b""
    assert client.property("ibm,trunk-adapter") is None
    assert client.property("powervio,attributes") == (4080).to_bytes(4, "big")
    assert trunk.property("ibm,trunk-adapter") == b""
    tree = partition_tree(1, "lpar1", [client], function_sets())
    assert virtual_adapters(decode(encode(tree))) == {client.unit_address: client}
    vdevice = tree.child("vdevice")
    assert vdevice is not None
    (node,) = vdevice.children
    assert node.name == f"l-lan@{client.unit_address:x}"
    assert node.properties["address-bits"] == b"\0\0\0\x30"
    assert "used-by-rtas" not in node.properties


def test_function_sets_are_named() -> None:
    assert {"hcall-lLAN", "hcall-illan-options"} <= set(function_sets())


def test_ledger_counts_calls_and_bytes_on_both_sides(two: tuple[End, End]) -> None:
    first, second = two
    before = [end.adapter.ledger.snapshot() for end in two]
    assert first.send(ethernet(second.mac, first.mac, bytes(86))) == SUCCESS
    sent, received = (end.adapter.ledger.snapshot() - costs for end, costs in zip(two, before, strict=True))
    assert sent["hcalls"] == {"H_SEND_LOGICAL_LAN": 1}
    assert (sent["rdma_operations"], sent["rdma_bytes"]) == (1, 100)
    assert received["hcalls"] == {}
    assert (received["rdma_operations"], received["rdma_bytes"]) == (1, 100)


def test_missing_registers_are_zero(one: End) -> None:
    assert one.port.hcall(Hcall.H_SEND_LOGICAL_LAN, one.ua) == (DROPPED,)
    one.register()
    assert one.port.hcall(Hcall.H_SEND_LOGICAL_LAN, one.ua) == (PARAMETER,)
    assert one.port.hcall(Hcall.H_ADD_LOGICAL_LAN_BUFFERS, one.ua) == (PARAMETER,)


@pytest.mark.parametrize("end_it", ["fail", "reboot", "terminate"])
def test_partition_that_ends_leaves_the_switch(rig: Rig, two: tuple[End, End], end_it: str) -> None:
    first, second = two
    first.port.multicast_ctrl(first.ua, RECEPTION)
    getattr(rig.hypervisor, end_it)(first.partition)
    assert [port.name for port in rig.switch.ports] == ["lpar2"]
    assert second.send(ethernet(first.mac, second.mac)) == DROPPED
    if end_it == "terminate":
        assert second.port.change_logical_lan_mac(second.ua, int.from_bytes(first.mac, "big")) == SUCCESS
        return
    assert first.port.illan_attributes(first.ua) == (SUCCESS, FIXED)
    assert first.port.multicast_ctrl(first.ua, 0) == (SUCCESS, 0)
    assert first.try_register() == PARAMETER  # its TCEs are gone, too
    for page in range(PAGES):
        first.port.put_tce(first.liobn, page * PAGE, page * PAGE | 3)
    first.register()
    first.add_many(1)
    assert second.send(ethernet(first.mac, second.mac)) == SUCCESS


def test_unplugged_adapter_is_unknown_and_its_address_is_free(rig: Rig, two: tuple[End, End]) -> None:
    first, second = two
    remove_lan(first.adapter)
    remove_lan(first.adapter)
    assert first.ua not in first.port.nodes
    assert first.send(ethernet(second.mac, first.mac)) == PARAMETER
    assert second.send(ethernet(first.mac, second.mac)) == DROPPED
    assert second.port.change_logical_lan_mac(second.ua, int.from_bytes(first.mac, "big")) == SUCCESS


def test_two_adapters_with_one_address_in_one_vlan_cannot_be(rig: Rig) -> None:
    first = rig.adapter()
    other = rig.hypervisor.create_partition("other", PAGES * PAGE)
    options = replace(first.options, name="other")
    with pytest.raises(LocalError, match=f"is the address of {first.node.location_code} in the same VLAN"):
        create_lan(rig.hypervisor, other, rig.switch, options)
    assert not other.slots
    create_lan(rig.hypervisor, other, rig.switch, replace(options, pvid=2))
    create_lan(rig.hypervisor, other, Switch("ETHERNET1"), options)
    rig.hypervisor.terminate(first.partition)
    create_lan(rig.hypervisor, other, rig.switch, options)
    with Hypervisor() as another, pytest.raises(LocalError, match="switch ETHERNET0 is another hypervisor's"):
        create_lan(another, another.create_partition("x", PAGE), rig.switch, options)


@pytest.mark.parametrize("window", [0, 100, -4096, (4 << 30) + 4096])
def test_window_that_cannot_be(rig: Rig, window: int) -> None:
    with pytest.raises(LocalError, match="the window of a LAN adapter"):
        rig.adapter(window=window)


def test_partition_with_a_lan_adapter_is_not_saved(rig: Rig, one: End) -> None:
    rig.hypervisor.suspend(one.partition)
    with pytest.raises(LocalError, match="cannot be moved: it has a logical LAN adapter"):
        save_partition(one.partition)
