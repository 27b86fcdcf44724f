"""The network device and its port, joined to a raw driver directly and over CRQ."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from struct import Struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.devices.net_frames import ALL, MAC
from tests.devices.net_joined import Joined, QueuePort

from powervio.devices.net import NetDevice, random_mac
from powervio.errors import LocalError
from powervio.network.loopback import LoopbackPort
from powervio.network.port import Frame, Offload, Port
from powervio.testing.direct import DirectLink, bytewise, whole
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import net
from powervio.virtio.device import DeviceSession
from powervio.virtio.queue import Segment

PLAIN = bytes(12)
GIVEN = bytes(10) + b"\1\0"
"""The header before a frame that was received in one buffer."""


def ethernet(payload: int, first: int = 0, tag: bytes = b"") -> bytes:
    """A frame of so many bytes behind its Ethernet header, filled with a pattern."""
    return MAC + b"\2" * 6 + tag + b"\x88\xb5" + bytes((first + at) % 251 for at in range(payload))


RINGS = pytest.mark.parametrize(("packed", "in_order"), [(False, False), (False, True), (True, False), (True, True)])

# -- transmit


@pytest.mark.dual
@RINGS
@pytest.mark.parametrize("framing", [whole, bytewise])
def test_frames_of_the_driver_go_to_the_port_in_order(
    packed: bool, in_order: bool, framing: Callable[[Segment], list[Segment]]
) -> None:
    joined = Joined(packed=packed, in_order=in_order, framing=framing)
    frames = [ethernet(payload, payload) for payload in (0, 46, 1000, 1500)]
    exchanges = [joined.transmit(PLAIN, frame) for frame in frames]
    assert [frame.data for frame in joined.port.out] == frames
    assert [exchange.used for exchange in exchanges] == [0] * 4
    counters = joined.device.from_driver
    assert (counters.frames, counters.bytes, counters.dropped) == (4, sum(map(len, frames)), {})


def test_port_that_takes_nothing_is_counted() -> None:
    joined = Joined()
    joined.port.full = True
    assert joined.transmit(PLAIN, ethernet(46)).used == 0
    assert joined.device.from_driver.dropped == {"port": 1}
    assert joined.port.dropped == {"full": 1}


def header(flags: int = 0, gso: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return Struct("<BBHHHHH").pack(flags, gso, 0, 0, start, offset, 0)


@pytest.mark.parametrize(
    ("parts", "features", "reason"),
    [
        ([b"x"], ALL, "malformed"),
        ([b"\0" * 11], ALL, "malformed"),
        ([PLAIN], ALL, "too short"),
        ([PLAIN, ethernet(0)[:13]], ALL, "too short"),
        ([PLAIN, ethernet(1501)], ALL, "too long"),
        ([PLAIN, ethernet(60_000)], ALL, "too long"),
        ([PLAIN, ethernet(100_000)], ALL, "too long"),
        ([header(gso=1), ethernet(46)], ~net.F_HOST_TSO4, "not negotiated"),
        ([header(net.H_NEEDS_CSUM, gso=0x81), ethernet(46)], ~net.F_HOST_ECN, "not negotiated"),
        ([header(net.H_NEEDS_CSUM, gso=3), ethernet(46)], ALL, "not negotiated"),
        ([header(net.H_NEEDS_CSUM, start=14), ethernet(46)], ~net.F_CSUM, "not negotiated"),
        ([header(net.H_NEEDS_CSUM, start=50, offset=9), ethernet(46)], ALL, "checksum outside"),
        ([header(net.H_NEEDS_CSUM, start=0xFFFF, offset=0xFFFF), ethernet(46)], ALL, "checksum outside"),
    ],
)
def test_frame_that_cannot_go_on_is_dropped_and_counted(parts: list[bytes], features: int, reason: str) -> None:
    joined = Joined(features)
    assert joined.transmit(*parts).used == 0
    assert joined.device.from_driver.dropped == {reason: 1}
    assert joined.port.out == []
    assert joined.transmit(PLAIN, ethernet(46)).used == 0
    assert len(joined.port.out) == 1


def test_buffer_with_a_writable_part_is_no_frame() -> None:
    joined = Joined()
    exchange = joined.driver.send([PLAIN, ethernet(46)], [100], net.TRANSMIT)
    joined.link.run()
    assert exchange.used == 0
    assert exchange.answer == b"\xee" * 100
    assert joined.device.from_driver.dropped == {"malformed": 1}


def test_flags_that_are_nobodys_are_ignored() -> None:
    # virtio 1.4, 5.1.6.2.2
    joined = Joined(~net.F_CSUM)
    assert joined.transmit(header(0xFE, start=0xFFFF), ethernet(46)).used == 0
    assert joined.port.out == [Frame(ethernet(46))]


def test_checksum_that_is_left_to_the_device_goes_on_as_it_is() -> None:
    joined = Joined()
    joined.transmit(header(net.H_NEEDS_CSUM, start=14, offset=44), ethernet(46))
    assert joined.port.out == [Frame(ethernet(46), (14, 44))]


@pytest.mark.parametrize(
    ("tags", "payload", "fits"), [(1, 1500, True), (2, 1500, True), (1, 1501, False), (0, 1504, False)]
)
def test_vlan_tags_do_not_count_for_the_mtu(tags: int, payload: int, fits: bool) -> None:
    joined = Joined()
    frame = ethernet(payload, tag=b"\x88\xa8\0\1" * (tags > 1) + b"\x81\0\0\2" * (tags > 0))
    joined.transmit(PLAIN, frame)
    assert [sent.data for sent in joined.port.out] == [frame] * fits
    joined.offer(2000)
    joined.arrive(frame)
    assert joined.device.to_driver.frames == fits
    assert joined.device.to_driver.lost == (not fits)


# -- receive


@pytest.mark.dual
@RINGS
@pytest.mark.parametrize("framing", [whole, bytewise])
def test_frames_that_arrive_are_put_into_the_drivers_buffers_in_order(
    packed: bool, in_order: bool, framing: Callable[[Segment], list[Segment]]
) -> None:
    joined = Joined(packed=packed, in_order=in_order, framing=framing)
    frames = [ethernet(payload, payload) for payload in (0, 46, 1500)]
    exchanges = [joined.offer(12, 1518) for _ in range(4)]
    joined.arrive(*frames)
    for frame, exchange in zip(frames, exchanges, strict=False):
        assert exchange.used == 12 + len(frame)
        assert exchange.answer[: exchange.used] == GIVEN + frame
        assert set(exchange.answer[exchange.used :]) <= {0xEE}
    assert exchanges[3].used is None
    counters = joined.device.to_driver
    assert (counters.frames, counters.bytes, counters.dropped) == (3, sum(map(len, frames)), {})


def test_frame_waits_in_the_port_until_there_is_a_buffer() -> None:
    joined = Joined()
    joined.arrive(ethernet(46), ethernet(47))
    assert len(joined.port.arriving) == 2
    assert joined.offer(1600).used == 12 + 60
    assert len(joined.port.arriving) == 1
    assert joined.device.to_driver.lost == 0


@pytest.mark.dual
@RINGS
def test_frame_goes_over_as_few_buffers_as_it_needs(packed: bool, in_order: bool) -> None:
    joined = Joined(packed=packed, in_order=in_order)
    exchanges = [joined.offer(500) for _ in range(5)]
    frame = ethernet(1200)
    joined.arrive(frame, ethernet(46))
    assert [exchange.used for exchange in exchanges] == [500, 500, 12 + 1214 - 1000, 12 + 60, None]
    whole_frame = b"".join(exchange.answer for exchange in exchanges[:3])
    assert whole_frame[:12] == bytes(10) + b"\3\0"
    assert whole_frame[12 : 12 + len(frame)] == frame
    assert exchanges[3].answer[:12] == GIVEN


def test_frame_that_needs_more_buffers_than_there_are_waits_and_shows_all_at_once() -> None:
    joined = Joined()
    exchanges = [joined.offer(500), joined.offer(500)]
    frame = ethernet(1200)
    joined.arrive(frame)
    assert [exchange.used for exchange in exchanges] == [None, None]
    exchanges.append(joined.offer(400))
    assert [exchange.used for exchange in exchanges] == [500, 500, 226]
    assert joined.device.to_driver.frames == 1


def test_frame_for_which_a_whole_ring_has_no_room_is_dropped() -> None:
    joined = Joined(queue_size=4)
    exchanges = [joined.offer(20) for _ in range(4)]
    joined.arrive(ethernet(1000))
    assert [exchange.used for exchange in exchanges] == [0] * 4
    assert joined.device.to_driver.dropped == {"no room": 1}
    assert joined.offer(1600).used is None
    joined.arrive(ethernet(46))
    assert joined.device.to_driver.frames == 1


def test_without_mrg_rxbuf_a_frame_has_one_buffer_or_is_dropped() -> None:
    joined = Joined(~net.F_MRG_RXBUF)
    small, large = joined.offer(500), joined.offer(12, 600)
    joined.arrive(ethernet(550), ethernet(550))
    assert small.used == 0
    assert large.used == 12 + 564
    assert large.answer[:12] == GIVEN  # 1 all the same (virtio 1.4, 5.1.6.4.1)
    assert joined.device.to_driver.dropped == {"no room": 1}
    assert joined.device.bad_buffers == 1


def test_buffer_that_cannot_hold_a_header_goes_back_empty() -> None:
    joined = Joined()
    bad = [
        joined.offer(11),
        joined.driver.send([b"x"], [1600], net.RECEIVE),
        joined.driver.send([b"x"], [], net.RECEIVE),
    ]
    good = joined.offer(1600)
    joined.arrive(ethernet(46))
    assert [exchange.used for exchange in bad] == [0, 0, 0]
    assert good.used == 72
    assert joined.device.bad_buffers == 3
    assert joined.device.to_driver.dropped == {}


@pytest.mark.parametrize(
    ("features", "expected"),
    [(~net.F_MRG_RXBUF, [bytes(10)]), (ALL, [bytes(10) + b"\0\2"])],
)
def test_header_of_a_legacy_device_has_num_buffers_with_mrg_rxbuf_only(features: int, expected: list[bytes]) -> None:
    # virtio 1.4, 5.1.6.1; integers in the guest's order
    joined = Joined(features, big_endian=True)
    length = len(expected[0])
    exchanges = [joined.offer(700), joined.offer(700)] if length == 12 else [joined.offer(1600)]
    frame = ethernet(1000)
    joined.arrive(frame)
    data = b"".join(exchange.answer[: exchange.used] for exchange in exchanges)
    assert data == expected[0] + frame
    joined.transmit(Struct(">BBHHHH").pack(net.H_NEEDS_CSUM, 0, 0, 0, 14, 6) + bytes(length - 10), frame)
    assert joined.port.out == [Frame(frame, (14, 6))]


def test_frames_that_are_too_long_do_not_reach_the_driver() -> None:
    # virtio 1.4, 5.1.4.1
    joined = Joined(mtu=1000)
    exchange = joined.offer(4000)
    joined.arrive(ethernet(1001), ethernet(1000))
    assert exchange.used == 12 + 1014
    assert joined.device.to_driver.dropped == {"too long": 1}


def test_more_frames_than_a_turn_are_all_given() -> None:
    joined = Joined()
    exchanges = [joined.offer(100) for _ in range(100)]
    joined.arrive(*[ethernet(46) for _ in range(100)])
    assert all(exchange.used == 72 for exchange in exchanges)


# -- checksums


UDP = bytes.fromhex(
    "525400123456020202020202" + "0800"
    "4500002400004000401126c00a0000010a000002" + "1234567800100000" + "0102030405060708"
)  # fmt: skip
PSEUDO = (0x0A00 + 0x0001 + 0x0A00 + 0x0002 + 17 + 16) & 0xFFFF
PARTIAL = UDP[:40] + PSEUDO.to_bytes(2, "big") + UDP[42:]
"""As a driver sends it: the field has the sum of the pseudo header."""


def udp_checksum() -> int:
    total: int = sum([0x0A00, 0x0001, 0x0A00, 0x0002, 17, 16, *Struct(">8H").unpack(UDP[34:50])])
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def test_driver_without_guest_csum_gets_finished_checksums_and_no_flags() -> None:
    joined = Joined(~net.F_GUEST_CSUM)
    assert not joined.port.taken
    exchanges = [joined.offer(1600), joined.offer(1600)]
    joined.arrive(Frame(PARTIAL, (34, 6)), Frame(UDP, None, valid=True))
    finished = UDP[:40] + udp_checksum().to_bytes(2, "big") + UDP[42:]
    assert exchanges[0].answer[: exchanges[0].used] == GIVEN + finished
    assert exchanges[1].answer[: exchanges[1].used] == GIVEN + UDP


def test_driver_with_guest_csum_is_told_what_is_partial_and_what_is_good() -> None:
    joined = Joined()
    assert joined.port.taken & Offload.CSUM
    exchanges = [joined.offer(1600), joined.offer(30), joined.offer(1600)]
    joined.arrive(Frame(UDP, None, valid=True), Frame(PARTIAL, (34, 6)))
    assert exchanges[0].answer[:12] == Struct("<BBHHHHH").pack(net.H_DATA_VALID, 0, 0, 0, 0, 0, 1)
    assert exchanges[1].answer[:12] == Struct("<BBHHHHH").pack(net.H_NEEDS_CSUM, 0, 0, 0, 34, 6, 2)
    assert (exchanges[1].answer + exchanges[2].answer)[12 : 12 + len(PARTIAL)] == PARTIAL


# -- link, config, sessions


def test_config_has_mac_status_and_mtu() -> None:
    device = NetDevice(QueuePort(), mac=MAC, mtu=9000, speed=25000)
    assert device.config("little").hex() == "525400123456" + "0100" + "0000" + "2823" + "a8610000" + "01"
    assert device.config("big").hex() == "525400123456" + "0001" + "0000" + "2328" + "000061a8" + "01"
    assert NetDevice(QueuePort(), pairs=4).config("little").hex()[16:] == (
        "0400" + "dc05" + "ffffffff" + "01" + "28" + "8000" + "3f000000"
    )


@pytest.mark.parametrize("mtu", [67, 65536, 0])
def test_mtu_out_of_the_standards_range_is_refused(mtu: int) -> None:
    with pytest.raises(LocalError, match="68 to 65535"):
        NetDevice(QueuePort(), mtu=mtu)


def test_mac_that_is_made_up_is_local_and_of_one_device() -> None:
    macs = {random_mac() for _ in range(50)}
    assert len(macs) == 50
    assert all(mac[0] & 3 == 2 for mac in macs)


def test_unplugged_cable_is_told_and_drops_frames_in_both_directions() -> None:
    joined = Joined()
    exchanges = [joined.offer(500), joined.offer(500)]
    joined.arrive(ethernet(1200))
    joined.device.set_link(False)
    joined.link.run()
    assert joined.driver.config_changes == 1
    assert joined.device.config("little")[6:8] == b"\0\0"
    assert [exchange.used for exchange in exchanges] == [0, 0]  # they were taken for a frame that does not come
    joined.transmit(PLAIN, ethernet(46))
    exchange = joined.offer(1600)
    joined.arrive(ethernet(46))
    assert joined.device.from_driver.dropped == {"link down": 1}
    assert joined.device.to_driver.dropped == {"no buffers": 1, "link down": 1}
    joined.device.set_link(True)
    joined.link.run()
    assert joined.driver.config_changes == 2
    joined.arrive(ethernet(47))
    assert exchange.used == 12 + 61


def test_frames_that_came_before_the_driver_are_dropped() -> None:
    joined = Joined()
    joined.link.disconnect()
    joined.port.put(ethernet(46), ethernet(47))
    joined.link.connect()
    exchange = joined.offer(1600)
    assert exchange.used is None
    assert joined.device.to_driver.dropped == {"no driver": 2}
    joined.arrive(ethernet(48))
    assert exchange.used == 12 + 62


@pytest.mark.parametrize("reset", ["device", "queue"])
def test_reset_forgets_buffers_that_wait_for_more(reset: str) -> None:
    joined = Joined()
    held = joined.offer(500)
    joined.arrive(ethernet(1200))
    if reset == "device":
        joined.link.disconnect()
        joined.link.connect()
    else:
        joined.device.queue_reset(net.RECEIVE)
    exchange = joined.offer(1600)
    joined.arrive(ethernet(46))
    assert held.used is None
    assert exchange.used == 72
    assert joined.device.to_driver.dropped == {"no driver": 1}


def test_suspend_gives_back_what_waits() -> None:
    joined = Joined()
    held = joined.offer(500)
    joined.arrive(ethernet(1200))
    assert joined.link.device_queues[0].ring.in_hand == 1
    joined.device.suspend()
    joined.link.run()
    assert held.used == 0
    assert joined.link.device_queues[0].ring.in_hand == 0
    assert joined.device.to_driver.dropped == {"no buffers": 1}


def test_disabled_queues_take_and_drop_what_is_sent_and_bring_nothing() -> None:
    joined = Joined()
    sent = joined.driver.send([PLAIN, ethernet(46)], [], net.TRANSMIT)
    waiting = joined.driver.send([], [1600], net.RECEIVE)
    joined.port.arriving.append(Frame(ethernet(46)))
    for queue in joined.link.device_queues:
        queue.ring.refresh()
        joined.device.discard(queue)
        queue.flush()
    joined.link.run_driver()
    assert sent.used == 0
    assert waiting.used is None
    assert joined.port.out == []
    assert joined.device.from_driver.dropped == {"disabled": 1}


def test_state_goes_to_a_successor() -> None:
    device, successor = NetDevice(QueuePort(), mac=MAC), NetDevice(QueuePort())
    device.set_link(False)
    successor.restore(device.state())
    assert (successor.mac, successor.link_up) == (MAC, False)
    with pytest.raises(LocalError, match="not the state"):
        successor.restore({"mac": "xyz"})
    with pytest.raises(LocalError, match="5 bytes"):
        successor.restore({"mac": "0102030405", "link": True})


# -- ports with a descriptor


class SocketPort(Port):
    """Frames as datagrams of a socket pair."""

    name = "socket"
    mtu = 1500

    def __init__(self) -> None:
        super().__init__()
        self.mine, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.mine.setblocking(False)
        self.reads = 0

    def fileno(self) -> int:
        return self.mine.fileno()

    def send(self, frame: Frame) -> bool:
        self.mine.send(frame.data)
        return True

    def receive(self) -> Frame | None:
        self.reads += 1
        try:
            data = self.mine.recv(65536)
        except BlockingIOError:
            return None
        if not data:
            raise OSError(5, "the other end is gone")
        return Frame(data)

    def close(self) -> None:
        self.mine.close()
        self.other.close()


def at_socket() -> tuple[SocketPort, NetDevice, RawDriver, DirectLink]:
    port = SocketPort()
    device = NetDevice(port, mac=MAC)
    driver = RawDriver(queues=2)
    driver.device_id = net.DEVICE_ID  # type: ignore[misc]
    link = DirectLink(device, driver)
    link.connect()
    return port, device, driver, link


def test_descriptor_of_a_port_is_waited_for_only_while_there_are_buffers() -> None:
    port, device, driver, link = at_socket()
    exchange = driver.send([], [1600], net.RECEIVE)
    link.run()
    port.other.send(ethernet(46))
    port.other.send(ethernet(47))
    link.run()
    assert exchange.used == 72
    reads = port.reads
    link.run()
    assert not link.scheduler.busy  # one more frame is there, and nobody spins for it
    assert port.reads == reads
    assert driver.send([], [1600], net.RECEIVE).used is None
    link.run()
    assert device.to_driver.frames == 2
    device.close()
    assert not link.scheduler.busy
    link.close()


def test_queue_that_gets_no_turn_does_not_make_the_loop_spin() -> None:
    port, device, driver, link = at_socket()
    link.disconnect()
    link.woken = lambda queue: None  # type: ignore[method-assign]  # as while the device is suspended
    link.connect()
    driver.send([], [1600], net.RECEIVE)
    link.run()
    port.other.send(ethernet(46))
    link.scheduler.run()
    assert not link.scheduler.busy
    device.close()
    link.close()


def test_port_that_fails_is_a_cable_that_is_unplugged() -> None:
    port, device, driver, link = at_socket()
    driver.send([], [1600], net.RECEIVE)
    link.run()
    port.other.close()
    link.run()
    assert not device.link_up
    assert driver.config_changes == 1
    driver.send([], [1600], net.RECEIVE)
    link.run()
    assert not link.scheduler.busy
    device.close()
    link.close()


# -- all together


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("offer"), st.integers(1, 900)),
            st.tuples(st.just("arrive"), st.integers(0, 1600)),
            st.tuples(st.just("transmit"), st.integers(0, 1600)),
            st.tuples(st.just("raw"), st.binary(min_size=1, max_size=60)),
            st.tuples(st.sampled_from(["session", "suspend", "link"]), st.none()),
        ),
        max_size=40,
    ),
    st.booleans(),
    st.booleans(),
    st.sampled_from([ALL, ~net.F_MRG_RXBUF, ~net.F_GUEST_CSUM, ~net.F_CSUM]),
)
def test_every_buffer_comes_back_once_and_every_frame_is_shown_or_counted(
    steps: list[tuple[str, int | bytes | None]], packed: bool, in_order: bool, features: int
) -> None:
    joined = Joined(features, packed=packed, in_order=in_order, queue_size=16)
    device = joined.device
    offered: list[tuple[Exchange, int]] = []
    sent: list[Exchange] = []
    put = tried = 0
    for what, value in steps:
        if what == "offer" and isinstance(value, int):
            if sum(exchange.used is None for exchange, _ in offered) < 14:
                offered.append((joined.offer(value), value))
        elif what == "arrive" and isinstance(value, int):
            put += 1
            joined.arrive(ethernet(value))
        elif what == "transmit" and isinstance(value, int):
            tried += 1
            sent.append(joined.transmit(PLAIN, ethernet(value)))
        elif what == "raw" and isinstance(value, bytes):
            tried += 1
            sent.append(joined.transmit(value))
        elif what == "session":
            joined.link.disconnect()
            offered.clear()  # the driver uses its memory anew
            joined.link.connect()
        elif what == "suspend":
            device.suspend()
            joined.link.run()
        else:
            device.set_link(not device.link_up)
            joined.link.run()
        waiting = len(joined.port.arriving) + sum(
            len(receiver.pending) + (receiver.frame is not None) for receiver in device._receivers
        )
        assert device.to_driver.frames + device.to_driver.lost + waiting == put
        assert device.from_driver.frames + device.from_driver.lost == tried
        assert len(joined.port.out) == device.from_driver.frames
    assert all((exchange.used, exchange.times) == (0, 1) for exchange in sent)
    for exchange, length in offered:
        assert exchange.times <= 1
        assert (exchange.used or 0) <= length
        assert set(exchange.answer[exchange.used or 0 :]) <= {0xEE}
    given_bytes = sum(exchange.used or 0 for exchange, _ in offered)
    assert given_bytes <= device.to_driver.bytes + 12 * device.to_driver.frames


# -- over CRQ


@pytest.mark.dual
@pytest.mark.parametrize(
    ("revision", "big_endian", "packed"), [(0, False, False), (0, True, False), (1, False, False), (1, False, True)]
)
def test_over_crq_frames_come_back_from_a_loopback(revision: int, big_endian: bool, packed: bool) -> None:
    device = NetDevice(LoopbackPort(), mac=MAC)
    driver = RawDriver(queues=2)
    driver.device_id = net.DEVICE_ID  # type: ignore[misc]
    pair = PartitionPair(device, driver, revision=revision, big_endian=big_endian, packed=packed).start()
    length = 12
    exchanges = [driver.send([], [700], net.RECEIVE) for _ in range(6)]
    pair.settle()
    frames = [ethernet(46), ethernet(1200), ethernet(600)]
    sent = [driver.send([bytes(length), frame], [], net.TRANSMIT) for frame in frames]
    pair.settle()
    assert [exchange.used for exchange in sent] == [0, 0, 0]
    assert [exchange.used for exchange in exchanges] == [72, 700, 526, 626, None, None]
    assert exchanges[0].answer[12:72] == frames[0]
    assert (exchanges[1].answer + exchanges[2].answer)[12:1226] == frames[1]
    assert int.from_bytes(exchanges[1].answer[10:12], "big" if big_endian else "little") == 2
    device.set_link(False)
    pair.settle()
    assert driver.config_changes == 1
    pair.server.reset()
    pair.settle()
    device.set_link(True)
    pair.settle()
    again = driver.send([], [1600], net.RECEIVE)
    driver.send([bytes(length), frames[0]], [], net.TRANSMIT)
    pair.settle()
    assert again.used == 72
    assert device.from_driver.frames == device.to_driver.frames == 4
    pair.close()


def test_over_crq_a_descriptor_is_read_in_the_partitions_thread() -> None:
    port = SocketPort()
    device = NetDevice(port, mac=MAC)
    driver = RawDriver(queues=2)
    driver.device_id = net.DEVICE_ID  # type: ignore[misc]
    pair = PartitionPair(device, driver).start()
    exchange = driver.send([], [1600], net.RECEIVE)
    pair.settle()
    port.other.send(ethernet(46))
    pair.server_kernel.wait(20)
    pair.settle()
    assert exchange.used == 72
    device.close()
    pair.close()


def test_session_without_a_receive_queue_is_survived() -> None:
    device = NetDevice(QueuePort(), mac=os.urandom(5).join((b"\2", b"")))
    device.start(DeviceSession(0, "little", {}))
    assert isinstance(device.port, QueuePort)
    device.port.put(ethernet(46))
    device.suspend()
    device.reset()
    assert device.to_driver.lost == 0
