"""The port over a logical LAN adapter: frames both ways, offloads, buffers that run out, groups, trunks, its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.native.lan_rig import (
    ALL,
    EVERYTHING,
    RECEIVE,
    SUCCESS,
    End,
    Rig,
    ethernet,
    large,
    mac,
    same,
    tcp,
)

from powervio.errors import LocalError
from powervio.native.lan import remove_lan
from powervio.native.lan_client import LARGEST, BufferPool, LanPort
from powervio.native.lan_trunk import LanTrunk
from powervio.network.port import Frame, Offload
from powervio.network.segment import segments
from powervio.papr.codes import HcallError
from powervio.papr.lan import Attribute

pytestmark = pytest.mark.dual


@pytest.fixture
def rig() -> Iterator[Rig]:
    with Rig() as made:
        yield made


def received(port: LanPort) -> list[Frame]:
    found = []
    while (frame := port.receive()) is not None:
        found.append(frame)
    return found


def test_frames_go_both_ways_in_their_order(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    for source, target in ((one, two), (two, one)):
        frames = [Frame(ethernet(target.mac, source.mac, bytes([at]) * (40 * at))) for at in range(30)]
        for frame in frames:
            assert source.send(frame)
        assert all(same(*both) for both in zip(received(target), frames, strict=True))
    assert (one.sent, one.received, one.dropped) == (two.sent, two.received, two.dropped) == (30, 30, {})


def test_arrival_is_told_in_the_partition_s_thread_and_once_for_many(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    arrivals: list[int] = []
    two.on_arrival = lambda: arrivals.append(len(received(two)))
    for _ in range(5):
        one.send(Frame(ethernet(two.mac, one.mac)))
    assert arrivals == []
    rig.settle()
    assert arrivals == [5]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("flags", [0x18, 0x98])
def test_large_frame_crosses_as_one(rig: Rig, version: int, flags: int) -> None:
    one, two = rig.client(), rig.client()
    frame = large(two.mac, one.mac, 65_535 - 60, 1428, version=version, flags=flags)
    assert one.send(frame)
    (found,) = received(two)
    assert same(found, frame)
    assert one._hcalls.illan_attributes(one.node.unit_address)[1] & Attribute.LARGE


def test_partial_and_valid_checksums_stay_what_they_are(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    frames = [
        Frame(tcp(two.mac, one.mac, 300), (34, 16)),
        Frame(tcp(two.mac, one.mac, 300, version=6), (54, 16)),
        Frame(tcp(two.mac, one.mac, 300, field="full"), None, True),
        Frame(tcp(two.mac, one.mac, 300, field="full")),
    ]
    for frame in frames:
        assert one.send(frame)
    assert all(same(*both) for both in zip(received(two), frames, strict=True))


def test_receiver_that_takes_nothing_gets_finished_frames(rig: Rig) -> None:
    one, two = rig.client(), rig.client(take=Offload(0))
    assert one.send(Frame(tcp(two.mac, one.mac, 300), (34, 16)))
    frame = large(two.mac, one.mac, 5000, 1400)
    assert one.send(frame)
    first, *rest = received(two)
    assert bytes(first.data) == tcp(two.mac, one.mac, 300, field="full")
    assert [bytes(part.data) for part in rest] == [bytes(part.data) for part in segments(frame)]
    assert two.received == 5


def test_frames_that_the_hypervisor_does_not_take_are_finished_before(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    udp = ethernet(two.mac, one.mac, b"\x45\0\0\x3c\0\0\0\0\x40\x11\0\0\x0a\0\0\1\x0a\0\0\2" + bytes(40), 0x0800)
    assert one.send(Frame(udp, (34, 6)))
    assert one.send(Frame(udp[:28] + b"\0\x3c" + udp[30:], (34, 6), gso=5, gso_size=16, header_bytes=42))
    assert one.send(Frame(tcp(two.mac, one.mac, 300), (14, 20)))
    found = received(two)
    assert [frame.needs for frame in found] == [0] * 4
    assert [len(frame.data) for frame in found] == [74, 58, 58, 354]
    assert not one.send(Frame(bytes(70_000)))
    assert one.dropped == {"too long": 1}


def test_buffers_come_back_in_batches_and_never_run_out_for_who_receives(rig: Rig) -> None:
    one, two = rig.client(), rig.client(pools=(BufferPool(2048, 16), BufferPool(LARGEST, 4)))
    ledger = rig.hypervisor.partitions[2].adapters[two.node.unit_address].ledger
    before = ledger.snapshot()
    for number in range(200):
        frame = Frame(ethernet(two.mac, one.mac, bytes([number])))
        assert one.send(frame)
        assert same(two.receive(), frame)
        big = Frame(ethernet(two.mac, one.mac, bytes(9000)))
        assert one.send(big)
        assert same(two.receive(), big)
    assert (ledger.snapshot() - before)["hcalls"] == {"H_ADD_LOGICAL_LAN_BUFFERS": 400}
    assert two.no_buffer == 0


def test_frames_without_a_buffer_are_counted_and_later_ones_arrive(rig: Rig) -> None:
    one, two = rig.client(), rig.client(pools=(BufferPool(2048, 8),))
    frames = [Frame(ethernet(two.mac, one.mac, bytes([at]))) for at in range(12)]
    assert [one.send(frame) for frame in frames] == [True] * 8 + [False] * 4
    assert (one.dropped, two.no_buffer) == ({"receiver": 4}, 4)
    assert len(received(two)) == 8
    assert one.send(frames[0])
    assert len(received(two)) == 1


def test_platform_without_the_call_for_many_buffers(rig: Rig) -> None:
    adapter = rig.adapter(memory=16 << 20, window=16 << 20)
    one = rig.client()
    port = rig_port(rig, adapter)
    port._hcalls.add_logical_lan_buffers = lambda *_: -2  # type: ignore[method-assign]
    port.start()
    ledger = adapter.ledger.snapshot()
    assert ledger["hcalls"]["H_ADD_LOGICAL_LAN_BUFFER"] == 416
    for _ in range(20):
        assert one.send(Frame(ethernet(port.mac, one.mac)))
        assert len(received(port)) == 1


def rig_port(rig: Rig, adapter: object) -> LanPort:
    from powervio.native.lan import LanAdapter
    from powervio.vio.kernel import PartitionKernel

    assert isinstance(adapter, LanAdapter)
    kernel = PartitionKernel(adapter.partition.port)
    rig.kernels.append(kernel)
    return LanPort(kernel, adapter.node)


def test_start_again_after_close_and_all_memory_is_back(rig: Rig) -> None:
    adapter = rig.adapter(memory=16 << 20, window=16 << 20)
    port = rig_port(rig, adapter)
    free = port._kernel.pages.free_bytes, port._space.free_pages
    other = rig.client()
    for _ in range(3):
        port.start()
        port.take(EVERYTHING)
        assert other.send(Frame(ethernet(port.mac, other.mac)))
        assert len(received(port)) == 1
        port.close()
        port.close()
        assert not port.running
        assert not other.send(Frame(ethernet(port.mac, other.mac)))
        assert port.receive() is None
        assert not port.send(Frame(ethernet(other.mac, port.mac)))
        assert (port._kernel.pages.free_bytes, port._space.free_pages) == free
    assert port.dropped == {"not started": 3}


def test_start_in_the_place_of_one_that_did_not_close(rig: Rig) -> None:
    adapter = rig.adapter(memory=16 << 20, window=16 << 20)
    rig_port(rig, adapter).start()
    again = rig_port(rig, adapter)
    again._kernel.take_over()
    again.start()
    other = rig.client()
    assert other.send(Frame(ethernet(again.mac, other.mac)))
    assert len(received(again)) == 1


def test_start_that_fails_leaves_nothing(rig: Rig) -> None:
    adapter = rig.adapter(memory=1 << 20, window=16 << 20)
    port = rig_port(rig, adapter)
    free = port._kernel.pages.free_bytes
    with pytest.raises(LocalError, match="partition memory"):
        port.start()
    assert port._kernel.pages.free_bytes == free
    assert not adapter.registered
    full = rig_port(rig, rig.adapter(memory=16 << 20, window=16 << 20))
    rig.switch._free.clear()
    with pytest.raises(HcallError, match="H_RESOURCE"):
        full.start()


def test_node_of_another_kind_is_none(rig: Rig) -> None:
    adapter = rig.adapter()
    port = rig_port(rig, adapter)
    with pytest.raises(LocalError, match="is no logical LAN adapter"):
        LanPort(port._kernel, replace(adapter.node, name="vty"))


def test_unplugged_under_the_port(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    (adapter,) = rig.hypervisor.partitions[2].adapters.values()
    one.send(Frame(ethernet(two.mac, one.mac)))
    remove_lan(adapter)  # type: ignore[arg-type]
    assert len(received(two)) == 1
    assert not two.send(Frame(ethernet(one.mac, two.mac)))
    assert two.dropped == {"refused": 1}
    two.close()


def test_groups(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    groups = [bytes.fromhex(f"01005e0000{at:02x}") for at in range(6)]

    def heard() -> list[int]:
        for at, group in enumerate(groups):
            one.send(Frame(ethernet(group, one.mac, bytes([at]))))
        return [frame.data[14] for frame in received(two)]

    assert heard() == [0, 1, 2, 3, 4, 5]
    two.set_groups(groups[2:4])
    assert heard() == [2, 3]
    two.set_groups(groups[1:2])
    assert heard() == [1]
    two.set_groups(groups)  # more than the table has: all
    assert heard() == [0, 1, 2, 3, 4, 5]
    two.set_all_groups(False)
    assert heard() == []
    one.send(Frame(ethernet(ALL, one.mac)))
    assert len(received(two)) == 1


def test_address_is_changed(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    two.set_mac(mac(40))
    assert two.mac == mac(40)
    assert one.send(Frame(ethernet(mac(40), one.mac)))
    with pytest.raises(HcallError, match="H_PARAMETER"):
        two.set_mac(one.mac)
    assert two.mac == mac(40)


def test_trunk_bridges_tagged_and_foreign_frames(rig: Rig) -> None:
    client10, client20 = rig.client(pvid=10), rig.client(pvid=20)
    trunk = rig.client(pvid=10, vlans=(20,), trunk=1)
    assert trunk.trunk
    assert trunk.active
    outside = mac(99)
    assert client20.send(Frame(ethernet(outside, client20.mac, b"out")))
    assert [bytes(frame.data) for frame in received(trunk)] == [ethernet(outside, client20.mac, b"out", vlan=20)]
    assert trunk.send(Frame(ethernet(client20.mac, outside, b"in", vlan=20)))
    assert [bytes(frame.data) for frame in received(client20)] == [ethernet(client20.mac, outside, b"in")]
    assert trunk.send(Frame(ethernet(client10.mac, outside, b"in")))
    assert not client10.send(Frame(ethernet(client20.mac, client10.mac))) or not received(client20)
    frame = large(client20.mac, outside, 30_000, 1400)
    tagged = Frame(frame.data[:12] + b"\x81\0\0\x14" + frame.data[12:], (38, 16), gso=1, gso_size=1400, header_bytes=58)
    assert trunk.send(tagged)
    (found,) = received(client20)
    assert same(found, frame)
    assert trunk.scan() == [(10, client10.mac), (20, client20.mac)]


def test_trunk_takes_over_and_the_loser_is_told(rig: Rig) -> None:
    first, second = rig.client(trunk=1), rig.client(trunk=2)
    told: list[tuple[str, bool]] = []
    first.on_active = lambda active: told.append(("first", active))
    second.on_active = lambda active: told.append(("second", active))
    assert (first.active, second.active) == (True, False)
    second.activate()
    rig.settle()
    assert told == [("second", True), ("first", False)]
    second.close()
    rig.settle()
    assert told[2:] == [("first", True)]
    with pytest.raises(HcallError, match="H_CONSTRAINED"):
        rig.client().activate()


def test_takeover_is_heard_of_though_frames_come_at_the_same_time(rig: Rig) -> None:
    first, second, client = rig.client(trunk=1), rig.client(trunk=2), rig.client()
    trunks = LanTrunk(first), LanTrunk(second)
    changes: list[int] = []
    for at, trunk in enumerate(trunks):
        trunk.on_change = lambda at=at: changes.append(at)
    assert client.send(Frame(ethernet(mac(99), client.mac)))
    trunks[1].activate()
    rig.settle()
    assert changes == [1, 0]
    assert [trunk.is_active() for trunk in trunks] == [False, True]
    assert [trunk.clients() for trunk in trunks] == [[], [(1, client.mac)]]
    assert len(received(first)) == 1
    trunks[1].release()
    assert trunks[1].is_active()


def test_looking_costs_no_call_where_the_hypervisor_shows_the_attributes(rig: Rig) -> None:
    trunk, client = rig.client(trunk=1), rig.client()
    ledger = rig.hypervisor.partitions[1].adapters[trunk.node.unit_address].ledger
    rig.settle()
    before = ledger.snapshot()
    assert client.send(Frame(ethernet(mac(99), client.mac)))
    rig.settle()
    trunk.look()
    assert (ledger.snapshot() - before)["hcalls"] == {"H_XIRR": 1, "H_EOI": 1}


def test_platform_that_does_not_show_the_attributes_is_asked(rig: Rig) -> None:
    first = rig.adapter(trunk=1, memory=16 << 20, window=16 << 20)
    properties = tuple(pair for pair in first.node.properties if pair[0] != "powervio,attributes")
    port = rig_port(rig, first)
    port.node = replace(first.node, properties=properties)
    told: list[bool] = []
    port.on_active = told.append
    port.start()
    rig.client(trunk=2).activate()
    rig.settle()
    assert told == [True, False]


def test_hypervisor_that_is_gone(rig: Rig) -> None:
    one, two = rig.client(), rig.client()
    one._hcalls.send_logical_lan = lambda *_: (-1, 0)  # type: ignore[method-assign]
    assert not one.send(Frame(ethernet(two.mac, one.mac)))
    assert one.dropped == {"hypervisor": 1}


def test_hypervisor_that_does_not_answer_is_not_waited_for_twice(rig: Rig) -> None:
    """`RemotePort` says H_BUSY without a token after its limit."""
    one, two = rig.client(), rig.client()
    answers = iter([(1, 0)])
    one._hcalls.send_logical_lan = lambda *_: next(answers)  # type: ignore[method-assign]
    assert not one.send(Frame(ethernet(two.mac, one.mac)))
    assert one.dropped == {"hypervisor": 1}


def test_close_when_the_hypervisor_does_nothing_any_more(rig: Rig) -> None:
    port = rig.client()
    free = port._kernel.pages.free_bytes
    port._hcalls.put_tce = lambda *_: -1  # type: ignore[method-assign]
    port._hcalls.stuff_tce = lambda *_: -1  # type: ignore[method-assign]
    port.close()
    assert port._kernel.pages.free_bytes == free  # what may still be written to is nobody else's


def test_entry_that_no_hypervisor_makes_is_passed_over(rig: Rig) -> None:
    one, two = rig.client(), rig.client(pools=(BufferPool(2048, 64),))
    frame = Frame(ethernet(two.mac, one.mac))
    ring = two._ring
    assert ring is not None
    queue = two._memory[1].view
    for number, (at, value) in enumerate(((8, b"\xff" * 8), (2, b"\0\7"), (2, b"\xff\xff"), (4, b"\0\0\xff\xff"))):
        assert one.send(frame)
        queue[16 * number + at : 16 * number + at + len(value)] = value
    assert one.send(frame)
    assert one.send(frame)
    queue[16 * 5 + 8 : 16 * 5 + 16] = queue[16 * 4 + 8 : 16 * 4 + 16]  # a buffer that was given back already
    assert len(received(two)) == 1
    assert two.dropped == {"bad entry": 5}
    assert one.send(frame)
    assert len(received(two)) == 1


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["small", "tcp4", "tcp6", "large4", "large6", "receive"]),
            st.integers(0, 20_000),
            st.integers(536, 3000),
        ),
        max_size=60,
    )
)
def test_what_was_sent_and_not_missed_arrives_unchanged(steps: list[tuple[str, int, int]]) -> None:
    with Rig() as rig:
        one = rig.client()
        two = rig.client(pools=(BufferPool(512, 8), BufferPool(4096, 8), BufferPool(LARGEST, 4)))
        expected: list[Frame] = []
        for kind, size, mss in steps:
            version = 6 if kind.endswith("6") else 4
            start = 34 if version == 4 else 54
            if kind == "receive":
                found = received(two)
                assert all(same(*both) for both in zip(found, expected, strict=True))
                expected = []
                continue
            if kind == "small":
                frame = Frame(ethernet(two.mac, one.mac, bytes(size % 1500)))
            elif kind.startswith("tcp") or size <= mss:
                frame = Frame(tcp(two.mac, one.mac, size % 1400, version=version), (start, 16))
            else:
                frame = large(two.mac, one.mac, size, mss, version=version)
            if one.send(frame):
                expected.append(frame)
        found = received(two)
        assert all(same(*both) for both in zip(found, expected, strict=True))
        assert one.dropped.get("receiver", 0) == two.no_buffer


def test_partition_that_makes_hcalls_by_hand_and_the_port_agree(rig: Rig) -> None:
    port, end = rig.client(), rig.end()
    end.register()
    end.add_many(2)
    assert port.send(Frame(ethernet(end.mac, port.mac, b"to the end")))
    assert end.message() == ethernet(end.mac, port.mac, b"to the end")
    assert end.send(ethernet(port.mac, end.mac, b"to the port")) == SUCCESS
    assert [bytes(frame.data) for frame in received(port)] == [ethernet(port.mac, end.mac, b"to the port")]
    assert isinstance(end, End)
    assert end.add(RECEIVE) == SUCCESS
