"""The network driver: with our device, over mapped memory and over CRQ, and with devices that lie."""

from __future__ import annotations

import itertools
from struct import Struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.devices.net import NetDevice
from powervio.drivers.net import LARGEST, NetDriver
from powervio.errors import LocalError
from powervio.network.loopback import LoopbackPort
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.virtio import net
from powervio.virtio.device import Device
from powervio.virtio.queue import ByteOrder, DeviceQueue

MAC = bytes.fromhex("525400123456")
HEADER = Struct("<BBHHHHH")
LARGE = net.F_GUEST_CSUM | net.F_GUEST_TSO4 | net.F_GUEST_TSO6 | net.F_GUEST_ECN | net.F_GUEST_USO4 | net.F_GUEST_USO6


def ethernet(payload: int, first: int = 0) -> bytes:
    return MAC + b"\2" * 6 + b"\x88\xb5" + bytes((first + at) % 251 for at in range(payload))


class Kept:
    """What a driver's `on_frame` got: headers without the count of buffers, and frames."""

    def __init__(self, driver: NetDriver) -> None:
        self.frames: list[bytes] = []
        self.headers: list[tuple[Any, ...]] = []
        self.pieces: list[int] = []
        self._driver = driver
        driver.on_frame = self._frame

    def _frame(self, pieces: list[memoryview]) -> None:
        assert self._driver.link is not None
        data = b"".join(pieces)
        self.headers.append(Struct("<BBHHHH").unpack_from(data))
        self.frames.append(data[self._driver.link.header_bytes :])
        self.pieces.append(len(pieces))


class Scripted(Device):
    """A device that puts what a test says into receive buffers, and tells the lengths that it says."""

    device_id = net.DEVICE_ID
    queue_count = 5

    def __init__(self, offered: int = net.F_MAC | net.F_MTU | net.F_MRG_RXBUF | LARGE, pairs: int = 1) -> None:
        super().__init__()
        self.offered = offered
        self.pairs = pairs
        self.status = net.S_LINK_UP
        self.mtu = 1500
        self.taken: list[bytes] = []
        self.hold = False
        self.script: list[list[tuple[bytes, int]]] = []
        """Of each frame, buffers: what is written and what is told."""
        self.commands: list[bytes] = []
        self.ack = 0
        self.held: list[Any] = []

    @property
    def features(self) -> int:
        return self.offered

    def config(self, byteorder: ByteOrder) -> bytes:
        config = net.NetConfig(mac=MAC, status=self.status, mtu=self.mtu, max_virtqueue_pairs=self.pairs)
        return net.pack_config(config, self.features, byteorder)

    def process(self, queue: DeviceQueue) -> None:
        if queue.index == 2 * self.pairs:
            while (request := queue.pop()) is not None:
                self.commands.append(bytes(request.readable.read(0, request.readable.length)))
                request.writable.write(0, bytes([self.ack]))
                request.complete(1)
        elif queue.index % 2:
            while not self.hold and (request := queue.pop()) is not None:
                self.taken.append(bytes(request.readable.read(0, request.readable.length)))
                request.complete(0)
        else:
            while self.script:
                parts = self.script.pop(0)
                done = []
                for data, told in parts:
                    request = queue.pop()
                    assert request is not None
                    if data:
                        request.writable.write(0, data)
                    done.append((request, told))
                queue.complete_together(done)


def scripted(offered: int | None = None, **options: Any) -> tuple[Scripted, NetDriver, Kept, DirectLink]:
    device = Scripted() if offered is None else Scripted(offered)
    driver = NetDriver()
    kept = Kept(driver)
    link = DirectLink(device, driver, **options)
    link.connect()
    link.run()
    return device, driver, kept, link


def bring(device: Scripted, link: DirectLink, *parts: tuple[bytes, int]) -> None:
    device.script.append(list(parts))
    link.device_queues[net.RECEIVE].wake()
    link.run()


def header(
    flags: int = 0, gso: int = 0, length: int = 0, size: int = 0, start: int = 0, offset: int = 0, n: int = 1
) -> bytes:
    return HEADER.pack(flags, gso, length, size, start, offset, n)


# -- with the device

OVER = pytest.mark.parametrize("over", ["direct", "packed", "big", "crq", "crq0", "crq big"])


class Joined:
    """Driver, device and a loopback port."""

    def __init__(self, over: str, **options: Any) -> None:
        self.port = LoopbackPort()
        self.device = NetDevice(self.port, mac=MAC)
        self.driver = NetDriver(**options)
        self.kept = Kept(self.driver)
        self.pair: PartitionPair | None = None
        if over.startswith("crq"):
            revision = 1 if over == "crq" else 0
            self.pair = PartitionPair(self.device, self.driver, revision=revision, big_endian=over == "crq big").start()
            self.settle = self.pair.settle
        else:
            byteorder: ByteOrder = "big" if over == "big" else "little"
            link = DirectLink(self.device, self.driver, byteorder=byteorder, packed=over == "packed")
            link.connect()
            self.settle = link.run  # type: ignore[assignment]
        self.settle()


@pytest.mark.dual
@OVER
def test_frames_go_and_come_in_order(over: str) -> None:
    joined = Joined(over)
    frames = [ethernet(payload, payload) for payload in (0, 46, 1000, 1500)]
    for frame in frames:
        assert joined.driver.send(frame)
    joined.driver.kick()
    joined.settle()
    assert joined.kept.frames == frames
    report = joined.driver.report()
    assert (report["sent"], report["received"], report["lost"]) == (4, 4, {})
    assert report["sent_bytes"] == report["received_bytes"] == sum(map(len, frames))
    link = joined.driver.link
    assert link is not None
    assert (link.mac, link.mtu, link.up) == (MAC, 1500, True)


@pytest.mark.dual
@OVER
def test_partial_checksum_crosses_as_it_is(over: str) -> None:
    joined = Joined(over)
    assert joined.driver.send(ethernet(100), header(flags=net.H_NEEDS_CSUM, start=34, offset=16))
    joined.driver.kick()
    joined.settle()
    assert joined.kept.headers == [(net.H_NEEDS_CSUM, 0, 0, 0, 34, 16)]


@pytest.mark.dual
@OVER
def test_large_frame_crosses_as_one_both_ways(over: str) -> None:
    joined = Joined(over)
    ip = Struct(">BBHHHBBH4s4s").pack(0x45, 0, 40 + 40000, 1, 0, 64, 6, 0, bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2]))
    tcp = Struct(">HHIIBBHHH").pack(1000, 2000, 1, 1, 5 << 4, 0x10, 65535, 0, 0)
    frame = MAC + b"\2" * 6 + b"\x08\x00" + ip + tcp + bytes(number % 251 for number in range(40000))
    assert joined.driver.send(frame, header(1, net.GSO_TCPV4, 54, 1448, 34, 16))
    joined.driver.kick()
    joined.settle()
    assert joined.kept.frames == [frame]
    assert joined.kept.headers == [(1, net.GSO_TCPV4, 54, 1448, 34, 16)]
    assert joined.device.report()[0].startswith(f"from the driver: 1 frames, {len(frame)} bytes")


@pytest.mark.dual
@OVER
def test_thousands_of_frames_reuse_the_same_memory(over: str) -> None:
    joined = Joined(over)
    for sent, length in enumerate(itertools.islice(itertools.cycle((46, 1500, 300, 700)), 2000)):
        if not joined.driver.send(ethernet(length, sent)):
            joined.driver.kick()
            joined.settle()
            assert joined.driver.send(ethernet(length, sent))
        if sent % 97 == 96:
            joined.driver.kick()
            joined.settle()
    joined.driver.kick()
    joined.settle()
    assert len(joined.kept.frames) == 2000
    for number, (frame, length) in enumerate(zip(joined.kept.frames, itertools.cycle((46, 1500, 300, 700)))):
        assert frame == ethernet(length, number)


def test_calls_of_the_hypervisor_for_a_burst_are_few() -> None:
    joined = Joined("crq")
    assert joined.pair is not None
    ledger = joined.pair.client_adapter.ledger
    before = ledger.snapshot()["hcalls"]
    for _ in range(32):
        assert joined.driver.send(ethernet(1486))
    joined.driver.kick()
    joined.settle()
    after = ledger.snapshot()["hcalls"]
    made = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert len(joined.kept.frames) == 32
    # nothing is mapped for a frame; one kick for all frames, at most one for the buffers that went back
    assert sum(made.get(name, 0) for name in ("H_SEND_CRQ", "H_SEND_SUB_CRQ")) <= 2, made
    assert not {"H_PUT_TCE", "H_PUT_TCE_INDIRECT", "H_STUFF_TCE"} & set(made), made


def test_frame_without_session_or_room_is_lost_and_counted() -> None:
    device, driver, _, link = scripted()
    device.hold = True
    for _ in range(200):
        driver.send(ethernet(1400))
    driver.kick()
    link.run()
    assert driver.lost == {"no room": 200 - 128}
    link.disconnect()
    assert driver.lost == {"no room": 72, "session lost": 128}
    assert not driver.send(ethernet(0))
    assert driver.lost["no session"] == 1
    device.hold = False
    link.connect()
    assert driver.send(ethernet(1400))
    driver.kick()
    link.run()
    assert device.taken == [bytes(12) + ethernet(1400)]


def test_room_is_told_of_when_somebody_waits_for_it() -> None:
    device, driver, _, link = scripted()
    told: list[int] = []
    driver.on_room = told.append
    driver.send(ethernet(0))
    driver.kick()
    link.run()
    assert told == []
    device.hold = True
    while driver.send(ethernet(0)):
        pass
    device.hold = False
    driver.kick()
    link.run()
    assert told == [0]


def test_sessions_come_and_go_and_the_memory_stays() -> None:
    joined = Joined("crq")
    pair = joined.pair
    assert pair is not None
    free = pair.client_kernel.pages.free_bytes
    for number in range(3):
        assert joined.driver.send(ethernet(10, number))
        joined.driver.kick()
        joined.settle()
        pair.client.reset()
        pair.settle()
        assert pair.client_kernel.pages.free_bytes == free
    assert joined.kept.frames == [ethernet(10, number) for number in range(3)]
    pair.client.retire()
    assert pair.client_kernel.pages.free_bytes > free


def test_frame_that_is_too_long_for_the_device() -> None:
    _, driver, _, _ = scripted()
    with pytest.raises(LocalError, match="expected at most"):
        driver.send(bytes(LARGEST))


# -- devices that lie

PLAIN = net.F_MAC | net.F_MTU | net.F_MRG_RXBUF


@pytest.mark.dual
@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([(b"", 0)], "too short"),
        ([(header()[:11], 11)], "too short"),
        ([(header(), 12)], "too short"),
        ([(header() + ethernet(0)[:13], 25)], "too short"),
        ([(header(n=0) + ethernet(50), 76)], "malformed"),
        ([(header(n=2) + ethernet(50), 76)], "missing buffers"),
        ([(header(n=65535) + ethernet(50), 76)], "malformed"),
        ([(header() + ethernet(1600), 1626)], "malformed"),
        ([(header(flags=1, start=60, offset=3) + ethernet(50), 76)], "malformed"),
        ([(header(flags=1, start=0xFFFF, offset=0xFFFF) + ethernet(50), 76)], "malformed"),
        ([(header(gso=1, size=1000) + ethernet(50), 76)], "malformed"),  # without a checksum
        ([(header(flags=1, gso=1, size=0, start=34, offset=16) + ethernet(50), 76)], "malformed"),
        ([(header(flags=1, gso=3, size=100, start=34, offset=16) + ethernet(50), 76)], "malformed"),
        ([(header(flags=1, gso=0x7F, size=100, start=34, offset=16) + ethernet(50), 76)], "malformed"),
        ([(header(flags=1, gso=1, length=65, size=100, start=34, offset=16) + ethernet(50), 76)], "malformed"),
    ],
)
def test_what_cannot_be_a_frame_is_dropped_and_counted(parts: list[tuple[bytes, int]], reason: str) -> None:
    device, driver, kept, link = scripted()
    bring(device, link, *parts)
    assert kept.frames == []
    assert driver.report()["lost"] == {reason: 1}
    bring(device, link, (header() + ethernet(50), 76))
    assert kept.frames == [ethernet(50)]


@pytest.mark.parametrize("kind", [net.GSO_TCPV4, net.GSO_TCPV6, net.GSO_UDP_L4, net.GSO_TCPV4 | net.GSO_ECN])
def test_large_frame_comes_only_if_it_was_negotiated(kind: int) -> None:
    frame = header(flags=1, gso=kind, length=54, size=1448, start=34, offset=16) + ethernet(40000)
    device, _, kept, link = scripted()
    bring(device, link, (frame, len(frame)))
    assert [len(frame) for frame in kept.frames] == [40014]
    assert kept.headers == [(1, kind, 54, 1448, 34, 16)]
    device, driver, kept, link = scripted(PLAIN | net.F_GUEST_CSUM)
    bring(device, link, (header(flags=1, gso=kind, length=54, size=500, start=34, offset=16) + ethernet(900), 926))
    assert kept.frames == []
    assert driver.report()["lost"] == {"malformed": 1}


def test_one_frame_in_several_buffers() -> None:
    device, driver, kept, link = scripted(PLAIN)
    data = header(n=3) + ethernet(1400)
    bring(device, link, (data[:100], 100), (data[100:700], 600), (data[700:], len(data) - 700))
    assert kept.frames == [ethernet(1400)]
    assert kept.pieces == [3]
    assert driver.report()["lost"] == {}


@pytest.mark.dual
def test_a_length_that_is_too_large_shows_no_other_frame() -> None:
    device, _, kept, link = scripted(PLAIN)
    size = link.driver_queues[0].size
    for _ in range(size):  # every buffer has had one
        bring(device, link, (header() + b"\xaa" * 1000, 1012))
    kept.frames.clear()
    bring(device, link, (header() + b"\xbb" * 100, 1012))
    assert kept.frames == [b"\xbb" * 100 + bytes(900)]


@pytest.mark.dual
@given(
    st.lists(
        st.lists(st.tuples(st.binary(max_size=80), st.integers(0, 4096)), min_size=1, max_size=4),
        min_size=1,
        max_size=9,
    ),
    st.sampled_from([PLAIN, PLAIN & ~net.F_MRG_RXBUF, PLAIN | LARGE]),
    st.booleans(),
)
def test_whatever_a_device_brings_the_driver_goes_on(
    script: list[list[tuple[bytes, int]]], offered: int, big: bool
) -> None:
    device, driver, kept, link = scripted(offered, byteorder="big" if big else "little")
    for parts in script:
        bring(device, link, *parts)
    report = driver.report()
    lost = report["lost"]
    assert isinstance(lost, dict)
    assert len(kept.frames) + sum(lost.values()) <= sum(map(len, script))
    before = len(kept.frames)
    for _ in range(200):  # no buffer was lost
        good = HEADER.pack(0, 0, 0, 0, 0, 0, 1)
        if big:
            good = Struct(">BBHHHHH").pack(0, 0, 0, 0, 0, 0, 1)
        assert driver.link is not None
        bring(device, link, (good[: driver.link.header_bytes] + ethernet(50), driver.link.header_bytes + 64))
    assert kept.frames[before:] == [ethernet(50)] * 200
    link.close()


# -- commands and config

CONTROL = PLAIN | net.F_STATUS | net.F_CTRL_VQ | net.F_CTRL_RX | net.F_CTRL_VLAN | net.F_CTRL_MAC_ADDR


def test_every_session_hears_what_the_partition_wants() -> None:
    device = Scripted(CONTROL)
    driver = NetDriver()
    driver.vlans = {30, 7}
    link = DirectLink(device, driver)
    wanted = [b"\0\0\0", b"\0\1\1", b"\2\0\x07\0", b"\2\0\x1e\0"]
    for _ in range(2):
        device.commands.clear()
        link.connect()
        link.run()
        assert device.commands == wanted
        link.disconnect()
    link.connect()
    link.run()
    device.commands.clear()
    driver.set_mode(promiscuous=True, all_multicast=False)
    driver.set_vlan(9, True)
    driver.set_vlan(7, False)
    assert driver.set_mac(b"\2\0\0\0\0\1")
    assert driver.set_filter([], [b"\1\0\x5e\0\0\1"])
    link.run()
    assert device.commands == [
        *(b"\0\0\1", b"\0\1\0", b"\2\0\x09\0", b"\2\1\x07\0", b"\1\1\2\0\0\0\0\1"),
        b"\1\0" + bytes(4) + b"\1\0\0\0\1\0\x5e\0\0\1",
    ]
    assert driver.vlans == {30, 9}
    assert driver.refused_commands == 0


def test_command_that_the_device_refuses_is_counted() -> None:
    device, driver, _, link = scripted(CONTROL)
    device.ack = 1
    told: list[bool] = []
    assert driver.command(9, 9, b"x", told.append)
    link.run()
    assert told == [False]
    assert driver.refused_commands == 1
    device.ack = 0
    assert driver.command(net.CTRL_RX, net.RX_PROMISC, b"\1", told.append)
    link.run()
    assert told == [False, True]


def test_cable_and_announcement() -> None:
    device, driver, _, link = scripted(CONTROL | net.F_GUEST_ANNOUNCE)
    seen: list[bool] = []
    driver.on_link = lambda: seen.append(driver.link is not None and driver.link.up)
    asked: list[int] = []
    driver.on_announce = lambda: asked.append(1)
    device.status = 0
    device.config_changed()
    device.status = net.S_LINK_UP | net.S_ANNOUNCE
    device.commands.clear()
    device.config_changed()
    device.status = net.S_LINK_UP
    link.run()
    assert seen == [False, True]
    assert asked == [1]
    assert device.commands == [b"\3\0"]
    link.disconnect()
    assert seen == [False, True, False]


def test_pairs_that_the_driver_does_not_want_stay_unused() -> None:
    device = Scripted(CONTROL | net.F_MQ, pairs=2)
    driver = NetDriver(pairs=2)
    kept = Kept(driver)
    link = DirectLink(device, driver)
    link.connect()
    link.run()
    assert len(driver.pairs) == 2
    assert device.commands[0] == b"\4\0\2\0"
    assert driver.send(ethernet(1), pair=1)
    driver.kick()
    device.script.append([(header() + ethernet(2), 28)])
    link.device_queues[2].wake()
    link.run()
    assert device.taken == [bytes(12) + ethernet(1)]
    assert kept.frames == [ethernet(2)]
    assert len(link.driver_queues) == 5


def test_offloads_are_left_out_on_request() -> None:
    driver = NetDriver(offloads=False)
    assert driver.select_features((1 << 128) - 1) & (LARGE | net.F_CSUM | net.F_HOST_TSO4 | net.F_MQ) == 0
    assert NetDriver().select_features(net.F_GUEST_TSO4 | net.F_GUEST_ECN) == 0  # they need GUEST_CSUM
