"""The back end message by message, with a front end that sends exactly what a test says."""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.vhost_user.harness import LIMIT, RawFrontEnd, Serving, memory, serving

from powervio.devices.block import BlockDevice
from powervio.devices.entropy import EntropyDevice
from powervio.devices.net import NetDevice
from powervio.errors import RemoteError
from powervio.memory.area import MappedArea
from powervio.network.loopback import LoopbackPort
from powervio.storage.image import open_image
from powervio.testing.echo import ECHO_FEATURE, EchoDevice
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.back_end import PROTOCOL_FEATURES, BackEndOptions
from powervio.transport.vhost_user.connection import Connection
from powervio.transport.vhost_user.protocol import FrontEnd, VringState
from powervio.transport.vhost_user.ring_state import Phase
from powervio.virtio import features as feature
from powervio.virtio import status as device_status

USUAL = wire.P_MQ | wire.P_REPLY_ACK | wire.P_CONFIG
GUEST, USER = 0x10000, 0x7F00_0000_0000
SIZE = 8
AVAILABLE, USED, DATA = 0x1000, 0x2000, 0x8000


@pytest.fixture
def device() -> EchoDevice:
    return EchoDevice(queue_count=2)


@pytest.fixture
def back(tmp_path: Path, device: EchoDevice) -> Iterator[Serving]:
    with serving(tmp_path, device) as made:
        yield made


@pytest.fixture
def area() -> Iterator[MappedArea]:
    with memory() as made:
        yield made


class Ring:
    """A split ring written by hand, in a region whose first byte is guest address `GUEST`."""

    def __init__(self, peer: RawFrontEnd, area: MappedArea, index: int = 0, at: int = 0) -> None:
        self.peer, self.area, self.index, self.at = peer, area, index, at
        self.kick = os.eventfd(0, os.EFD_NONBLOCK)
        self.call = os.eventfd(0)
        self.error = os.eventfd(0)
        self.next = 0

    def set_up(self, *, base: int = 0) -> Ring:
        peer, at = self.peer, USER + self.at
        assert peer.done(FrontEnd.SET_VRING_NUM, VringState(self.index, SIZE))
        assert peer.done(FrontEnd.SET_VRING_BASE, VringState(self.index, base))
        address = wire.VringAddress(self.index, 0, at, at + USED, at + AVAILABLE, 0)
        assert peer.done(FrontEnd.SET_VRING_ADDR, address)
        assert peer.done(FrontEnd.SET_VRING_CALL, wire.U64(self.index), [self.call])
        assert peer.done(FrontEnd.SET_VRING_ERR, wire.U64(self.index), [self.error])
        assert peer.done(FrontEnd.SET_VRING_KICK, wire.U64(self.index), [self.kick])
        return self

    def enable(self) -> Ring:
        assert self.peer.done(FrontEnd.SET_VRING_ENABLE, VringState(self.index, 1))
        return self

    def add(self, data: bytes, address: int | None = None, *, kick: bool = True) -> None:
        """A message and room for its echo, in two descriptors."""
        view, slot = self.area.view, self.next % (SIZE // 2)
        place = DATA + self.at + slot * 512
        view[place : place + len(data)] = data
        out = GUEST + place if address is None else address
        chain = ((out, len(data), 1, 2 * slot + 1), (GUEST + place + 256, len(data), 2, 0))
        for number, (where, length, flags, following) in enumerate(chain):
            at = self.at + 16 * (2 * slot + number)
            parts = (where.to_bytes(8, "little"), length.to_bytes(4, "little"))
            view[at : at + 16] = b"".join(parts) + flags.to_bytes(2, "little") + following.to_bytes(2, "little")
        ring = self.at + AVAILABLE
        view[ring + 4 + 2 * (self.next % SIZE) : ring + 6 + 2 * (self.next % SIZE)] = (2 * slot).to_bytes(2, "little")
        self.next += 1
        view[ring + 2 : ring + 4] = (self.next & 0xFFFF).to_bytes(2, "little")
        if kick:
            os.eventfd_write(self.kick, 1)

    @property
    def used(self) -> int:
        return int.from_bytes(self.area.view[self.at + USED + 2 : self.at + USED + 4], "little")

    def echo(self, number: int, length: int) -> bytes:
        place = DATA + self.at + number % (SIZE // 2) * 512 + 256
        return bytes(self.area.view[place : place + length])

    def wait(self, count: int) -> None:
        deadline = time.monotonic() + LIMIT
        while self.used != count:
            assert time.monotonic() < deadline, f"used.idx is {self.used}, expected {count}"
            time.sleep(0.001)

    def close(self) -> None:
        for fd in (self.kick, self.call, self.error):
            os.close(fd)


def connect(back: Serving, area: MappedArea | None, protocol: int = USUAL, features: int = 0) -> RawFrontEnd:
    peer = RawFrontEnd(back.path, protocol)
    peer.send(FrontEnd.SET_OWNER)
    assert peer.done(FrontEnd.SET_FEATURES, wire.U64(features | feature.VERSION_1 | wire.F_PROTOCOL_FEATURES))
    if area is not None:
        table = wire.MemoryTable((wire.Region(GUEST, area.size, USER, 0),))
        assert peer.done(FrontEnd.SET_MEM_TABLE, table, [area.fd])
    return peer


def event(fd: int) -> int:
    """The next event; the back end made the eventfd one that does not block."""
    poll = select.poll()  # select(2) knows descriptors up to 1023
    poll.register(fd, select.POLLIN)
    assert poll.poll(LIMIT * 1000)
    return os.eventfd_read(fd)


def settle(back: Serving, limit: float = 0.05) -> None:
    """Give the back end time for what it must not do."""
    time.sleep(limit)
    back.call(lambda: None)


def test_features_are_the_devices_the_rings_and_the_sockets(back: Serving) -> None:
    peer = RawFrontEnd(back.path)
    offered = peer.get(FrontEnd.GET_FEATURES)
    assert offered == (
        ECHO_FEATURE | feature.INDIRECT_DESC | feature.EVENT_IDX | feature.VERSION_1
        | wire.F_LOG_ALL | wire.F_PROTOCOL_FEATURES
    )  # fmt: skip
    assert peer.get(FrontEnd.GET_PROTOCOL_FEATURES) == PROTOCOL_FEATURES
    peer.close()


def test_ring_starts_with_its_first_kick_and_is_served_once_enabled(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up()
    ring.add(b"hello")
    settle(back)
    assert ring.used == 0
    ring.enable()
    ring.wait(1)
    assert ring.echo(0, 5) == b"hello"
    assert event(ring.call) == 1
    peer.close()
    ring.close()


def test_stopped_ring_goes_on_where_it_was(back: Serving, area: MappedArea, device: EchoDevice) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    for number in range(3):
        ring.add(b"%d" % number)
    ring.wait(3)
    assert peer.ask(FrontEnd.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 3)
    ring.add(b"x")
    settle(back)
    assert ring.used == 3
    assert peer.done(FrontEnd.SET_VRING_KICK, wire.U64(0), [ring.kick])  # no SET_VRING_BASE: rule 1
    os.eventfd_write(ring.kick, 1)
    ring.wait(4)
    assert device.requests == 4
    peer.close()
    ring.close()


def test_set_features_with_log_all_does_not_disturb_a_running_ring(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    bits = feature.VERSION_1 | wire.F_PROTOCOL_FEATURES
    assert peer.done(FrontEnd.SET_FEATURES, wire.U64(bits | wire.F_LOG_ALL))
    assert not peer.done(FrontEnd.SET_FEATURES, wire.U64(bits | feature.EVENT_IDX))  # a ring feature: not now
    ring.add(b"b")
    ring.wait(2)
    peer.close()
    ring.close()


def test_ring_that_was_left_for_later_and_is_disabled_lets_the_loop_sleep(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    assert peer.done(FrontEnd.SET_VRING_ENABLE, VringState(0, 0))
    assert back.server.link is not None
    service = back.server.link.back_end.service

    def left() -> list[bool]:
        service._again.add(0)
        return [service.before_sleep(), service.before_sleep()]

    assert back.call(left) == [False, False]
    ring.add(b"b", kick=False)
    ring.enable()
    ring.wait(2)
    peer.close()
    ring.close()


def test_disabled_ring_of_a_network_is_drained_and_its_frames_are_dropped(tmp_path: Path, area: MappedArea) -> None:
    network = NetDevice(LoopbackPort())
    with serving(tmp_path, network) as back:
        peer = connect(back, area)
        receive, transmit = Ring(peer, area, 0).set_up(), Ring(peer, area, 1, at=0x4000).set_up()
        receive.add(b"x")
        for number in range(3):
            transmit.add(b"%d" % number)
        transmit.wait(3)
        transmit.enable()
        transmit.add(b"3")
        transmit.wait(4)
        assert peer.done(FrontEnd.SET_VRING_ENABLE, VringState(1, 0))
        transmit.add(b"4")
        transmit.wait(5)
        assert network.from_driver.dropped == {"disabled": 4, "malformed": 1}
        assert receive.used == 0
        assert peer.ask(FrontEnd.GET_VRING_BASE, VringState(1, 0)) == VringState(1, 5)
        peer.close()
        receive.close()
        transmit.close()


def test_buffers_that_the_device_leaves_in_the_ring_let_a_spinning_loop_sleep(tmp_path: Path, area: MappedArea) -> None:
    network = NetDevice(LoopbackPort())
    with serving(tmp_path, network, BackEndOptions(spin=0.002)) as back:
        peer = connect(back, area)
        ring = Ring(peer, area).set_up().enable()
        ring.add(b"x")
        deadline = time.monotonic() + LIMIT
        while network.session is None or not network.session.queues[0].available:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        settle(back)
        assert back.server.link is not None
        assert back.call(back.server.link.back_end.service.before_sleep) is False
        peer.close()
        ring.close()


@pytest.mark.parametrize("answer", ["wrong translations", "other messages"])
def test_front_end_that_does_not_answer_a_miss_loses_that_request_or_itself(
    tmp_path: Path, area: MappedArea, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.setattr("powervio.transport.vhost_user.back_end.TRANSLATION_LIMIT", 0.2)
    device = EchoDevice()
    with serving(tmp_path, device, BackEndOptions(platform=True)) as back:
        peer = connect(back, area, USUAL | wire.P_BACKEND_REQ, feature.ACCESS_PLATFORM)
        ours, theirs = socket.socketpair()
        assert peer.done(FrontEnd.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
        theirs.close()
        update = wire.IotlbMessage(USER, 0x3000, USER, 3, wire.Iotlb.UPDATE)  # the ring, where it is, and nothing else
        assert peer.done(FrontEnd.IOTLB_MSG, update)
        ring = Ring(peer, area).set_up().enable()
        ring.add(b"lost", address=0x1234_0000)
        channel = Connection(ours, wire.BACK_END_MESSAGES)
        assert channel.wait(LIMIT)
        asked = channel.receive()
        assert asked is not None
        assert asked.payload == wire.IotlbMessage(0x1234_0000, 0, 0, 1, wire.Iotlb.MISS)
        if answer == "wrong translations":
            while ring.used == 0:
                peer.send(FrontEnd.IOTLB_MSG, wire.IotlbMessage(0x9999_0000, 0x1000, USER, 3, wire.Iotlb.UPDATE))
            assert len(device.failures) == 1
            assert peer.get(FrontEnd.GET_QUEUE_NUM) == 1
        else:
            with suppress(RemoteError):
                for _ in range(100):
                    peer.send(FrontEnd.SET_OWNER)
            assert peer.is_disconnected()
        peer.close()
        channel.close()
        ring.close()


def test_ring_may_be_enabled_before_features_are_set(back: Serving, area: MappedArea) -> None:
    # as QEMU does it for a network
    peer = RawFrontEnd(back.path, USUAL)
    peer.send(FrontEnd.SET_VRING_ENABLE, VringState(0, 1))
    assert peer.done(FrontEnd.SET_FEATURES, wire.U64(feature.VERSION_1 | wire.F_PROTOCOL_FEATURES))
    table = wire.MemoryTable((wire.Region(GUEST, area.size, USER, 0),))
    assert peer.done(FrontEnd.SET_MEM_TABLE, table, [area.fd])
    ring = Ring(peer, area).set_up()
    ring.add(b"early")
    ring.wait(1)
    peer.close()
    ring.close()


def test_without_protocol_features_rings_are_enabled_at_once(back: Serving, area: MappedArea) -> None:
    peer = RawFrontEnd(back.path)
    peer.send(FrontEnd.SET_OWNER)
    peer.send(FrontEnd.SET_FEATURES, wire.U64(feature.VERSION_1))
    peer.send(FrontEnd.SET_MEM_TABLE, wire.MemoryTable((wire.Region(GUEST, area.size, USER, 0),)), [area.fd])
    ring = Ring(peer, area)
    peer.send(FrontEnd.SET_VRING_NUM, VringState(0, SIZE))
    peer.send(FrontEnd.SET_VRING_ADDR, wire.VringAddress(0, 0, USER, USER + USED, USER + AVAILABLE, 0))
    peer.send(FrontEnd.SET_VRING_KICK, wire.U64(0), [ring.kick])
    ring.add(b"plain")
    ring.wait(1)
    peer.send(FrontEnd.SET_VRING_ENABLE, VringState(0, 1))
    assert peer.is_disconnected()
    peer.close()
    ring.close()


def test_ring_without_kicks_is_polled(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    assert peer.done(FrontEnd.SET_VRING_KICK, wire.U64(0 | wire.NO_FD))
    for number in range(3):
        ring.add(b"polled", kick=False)
        ring.wait(number + 1)
    peer.close()
    ring.close()


def test_with_status_nothing_is_taken_before_driver_ok(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area, USUAL | wire.P_STATUS)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"early")
    settle(back)
    assert ring.used == 0
    assert peer.done(FrontEnd.SET_STATUS, wire.U64(device_status.DRIVER_OK | device_status.FEATURES_OK))
    ring.wait(1)
    assert peer.done(FrontEnd.SET_STATUS, wire.U64(0))
    assert peer.get(FrontEnd.GET_STATUS) == 0
    assert back.device.session is None
    peer.close()
    ring.close()


def test_other_descriptor_for_notifications_of_a_started_ring_is_used_and_signalled_at_once(
    back: Serving, area: MappedArea
) -> None:
    # QEMU changes it whenever the guest masks an interrupt, or unmasks it
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    assert event(ring.call) == 1
    other = os.eventfd(0)
    assert peer.done(FrontEnd.SET_VRING_CALL, wire.U64(0), [other])
    assert event(other) == 1
    ring.add(b"b")
    ring.wait(2)
    assert event(other) == 1
    peer.close()
    ring.close()
    os.close(other)


def test_status_of_which_qemu_tells_only_half_does_not_hold_up_a_ring(back: Serving, area: MappedArea) -> None:
    # vhost-user-rng of QEMU: FEATURES_OK alone, and never DRIVER_OK
    peer = connect(back, area, USUAL | wire.P_STATUS)
    assert peer.done(FrontEnd.SET_STATUS, wire.U64(device_status.FEATURES_OK))
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"served")
    ring.wait(1)
    peer.close()
    ring.close()


def test_config_space_is_offered_by_devices_that_have_one(tmp_path: Path) -> None:
    with serving(tmp_path, EntropyDevice()) as made:
        peer = RawFrontEnd(made.path)
        assert peer.get(FrontEnd.GET_PROTOCOL_FEATURES) == PROTOCOL_FEATURES & ~wire.P_CONFIG
        peer.close()


def test_broken_ring_stops_alone_and_is_told_in_three_ways(back: Serving, area: MappedArea, device: EchoDevice) -> None:
    peer = connect(back, area, USUAL | wire.P_STATUS | wire.P_BACKEND_REQ)
    ours, theirs = socket.socketpair()
    assert peer.done(FrontEnd.SET_BACKEND_REQ_FD, None, [theirs.fileno()])
    theirs.close()
    channel = Connection(ours, wire.BACK_END_MESSAGES)
    first, second = Ring(peer, area, 0).set_up().enable(), Ring(peer, area, 1, 0x4000).set_up().enable()
    assert peer.done(FrontEnd.SET_STATUS, wire.U64(15))
    first.add(b"fine")
    first.wait(1)
    area.view[AVAILABLE + 2 : AVAILABLE + 4] = (500).to_bytes(2, "little")
    os.eventfd_write(first.kick, 1)
    assert event(first.error) == 1
    assert peer.get(FrontEnd.GET_STATUS) == 15 | device_status.NEEDS_RESET
    assert channel.wait(LIMIT)
    told = channel.receive()
    assert told is not None
    assert told.request == wire.BackEndRequest.CONFIG_CHANGE_MSG
    second.add(b"still")
    second.wait(1)
    # a stop mends it
    assert peer.ask(FrontEnd.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 1)
    area.view[AVAILABLE + 2 : AVAILABLE + 4] = (1).to_bytes(2, "little")
    assert peer.done(FrontEnd.SET_VRING_KICK, wire.U64(0), [first.kick])
    first.add(b"again")
    first.wait(2)
    assert device.requests == 3
    for end in (peer, first, second, channel):
        end.close()


def test_address_that_is_nobodys_fails_that_request_alone(back: Serving, area: MappedArea, device: EchoDevice) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"lost", address=0xDEAD_0000_0000)
    ring.add(b"found")
    ring.wait(2)
    assert ring.echo(1, 5) == b"found"
    assert len(device.failures) == 1
    peer.close()
    ring.close()


def test_reset_device_ends_the_session_and_disables(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area, USUAL | wire.P_RESET_DEVICE)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    assert peer.done(FrontEnd.RESET_DEVICE)
    assert back.device.session is None
    assert back.server.link is not None
    assert back.server.link.back_end.vrings[0].phase is Phase.STOPPED_DISABLED
    ring.add(b"b")
    settle(back)
    assert ring.used == 1
    peer.close()
    ring.close()


def test_reply_is_given_to_the_message_that_negotiates_replies_and_an_unused_log_address_says_nothing(
    back: Serving, area: MappedArea
) -> None:
    """What Linux's virtio_uml sends."""
    peer = RawFrontEnd(back.path)
    assert peer.done(FrontEnd.SET_PROTOCOL_FEATURES, wire.U64(wire.P_REPLY_ACK))
    nowhere = (1 << 64) - 1
    assert peer.done(FrontEnd.SET_VRING_ADDR, wire.VringAddress(0, 0, USER, USER + USED, USER + AVAILABLE, nowhere))
    peer.close()


def test_regions_by_slot_and_a_table_that_moves_nothing(back: Serving, area: MappedArea) -> None:
    peer = connect(back, None, USUAL | wire.P_CONFIGURE_MEM_SLOTS)
    assert peer.get(FrontEnd.GET_MAX_MEM_SLOTS) == 509
    single = wire.SingleRegion(0, GUEST, area.size, USER, 0)
    assert peer.done(FrontEnd.ADD_MEM_REG, single, [area.fd])
    assert not peer.done(FrontEnd.ADD_MEM_REG, single, [area.fd])
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    with memory() as other:
        more = wire.SingleRegion(0, GUEST + area.size, other.size, USER + area.size, 0)
        assert peer.done(FrontEnd.ADD_MEM_REG, more, [other.fd])
        other.view[:4] = b"far!"
        ring.add(b"near", address=GUEST + area.size)
        ring.wait(2)
        assert ring.echo(1, 4) == b"far!"
        assert peer.done(FrontEnd.REM_MEM_REG, more)
        ring.add(b"near", address=GUEST + area.size)
        ring.wait(3)
        assert ring.echo(2, 4) == bytes(4)
    peer.close()
    ring.close()


def test_ring_whose_memory_is_another_after_set_mem_table_goes_on_there(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    with memory() as other:
        other.view[:] = area.view
        table = wire.MemoryTable((wire.Region(GUEST, other.size, USER, 0),))
        assert peer.done(FrontEnd.SET_MEM_TABLE, table, [other.fd])
        ring.area = other
        ring.add(b"b")
        ring.wait(2)
        assert int.from_bytes(area.view[USED + 2 : USED + 4], "little") == 1
    peer.close()
    ring.close()


def test_config_is_read_and_written_within_bounds(back: Serving, device: EchoDevice) -> None:
    peer = connect(back, None)
    read = peer.ask(FrontEnd.GET_CONFIG, wire.ConfigSpace(0, 12, 0, bytes(12)))
    assert read == wire.ConfigSpace(0, 12, 0, (7).to_bytes(4, "little") + bytes(8))
    beyond = peer.ask(FrontEnd.GET_CONFIG, wire.ConfigSpace(250, 12, 0, bytes(12)))
    assert beyond == wire.ConfigSpace(250, 0, 0, b"")
    assert peer.done(FrontEnd.SET_CONFIG, wire.ConfigSpace(4, 4, 0, b"\1\2\3\4"))
    assert device.written == 0x04030201
    assert not peer.done(FrontEnd.SET_CONFIG, wire.ConfigSpace(0, 4, 0, bytes(4)))
    assert not peer.done(FrontEnd.SET_CONFIG, wire.ConfigSpace(4, 4, 0, bytes(2)))
    peer.close()


def state_pipe(peer: RawFrontEnd, direction: wire.TransferDirection, data: bytes | None) -> tuple[bytes, int]:
    """Transfer a state; what was read, and what CHECK_DEVICE_STATE says."""
    ours, theirs = os.pipe() if data is None else os.pipe()[::-1]
    reply = peer.ask(FrontEnd.SET_DEVICE_STATE_FD, wire.DeviceState(direction, 0), [theirs])
    os.close(theirs)
    assert reply == wire.U64(wire.NO_FD)
    read = b""
    with open(ours, "rb" if data is None else "wb") as pipe:
        if data is None:
            read = pipe.read()
        else:
            with suppress(BrokenPipeError):
                pipe.write(data)
    return read, peer.get(FrontEnd.CHECK_DEVICE_STATE)


def test_device_state_moves_to_another_back_end(tmp_path: Path) -> None:
    protocol = USUAL | wire.P_DEVICE_STATE
    with open_image(tmp_path / "image", create_size=1 << 20) as image:
        source, target = BlockDevice(image), BlockDevice(image)
        source.resize(1 << 19)
        with serving(tmp_path, source) as back:
            peer = RawFrontEnd(back.path, protocol)
            state, checked = state_pipe(peer, wire.TransferDirection.SAVE, None)
            assert checked == 0
            assert json.loads(state) == {"device": 2, "state": {"writeback": True, "capacity": 1 << 19}}
            peer.close()
        with serving(tmp_path, target) as back:
            peer = RawFrontEnd(back.path, protocol)
            assert state_pipe(peer, wire.TransferDirection.LOAD, state)[1] == 0
            assert target.capacity == 1 << 19
            for bad in (b"", b"{}", b"[" * 100_000, b"\xff", state.replace(b'"device": 2', b'"device": 3')):
                assert state_pipe(peer, wire.TransferDirection.LOAD, bad)[1] == 1
            assert peer.ask(FrontEnd.CHECK_DEVICE_STATE) == wire.U64(1)
            assert target.capacity == 1 << 19
            peer.close()


@pytest.mark.parametrize(
    ("request_", "payload"),
    [
        (FrontEnd.SET_VRING_NUM, VringState(0, 0)),
        (FrontEnd.SET_VRING_NUM, VringState(0, 7)),
        (FrontEnd.SET_VRING_NUM, VringState(0, 1 << 31)),
        (FrontEnd.SET_VRING_NUM, VringState(2, 8)),
        (FrontEnd.SET_VRING_BASE, VringState(0xFFFF_FFFF, 0)),
        (FrontEnd.SET_VRING_ENABLE, VringState(0, 2)),
        (FrontEnd.SET_VRING_ADDR, wire.VringAddress(0, 1, 0, 0, 0, (1 << 64) - 1)),
        (FrontEnd.SET_VRING_KICK, wire.U64(0)),
        (FrontEnd.SET_VRING_CALL, wire.U64(9 | wire.NO_FD)),
        (FrontEnd.SET_FEATURES, wire.U64(1 << 63)),
        (FrontEnd.SET_PROTOCOL_FEATURES, wire.U64(1 << 7)),
        (FrontEnd.SET_STATUS, wire.U64(256)),
        (FrontEnd.IOTLB_MSG, wire.IotlbMessage(0, 1, 0, 3, wire.Iotlb.UPDATE)),
        (FrontEnd.RESET_DEVICE, None),
        (FrontEnd.SET_MEM_TABLE, wire.MemoryTable((wire.Region(0, 1, 0, 0),))),
    ],
)
def test_bad_message_is_refused_with_a_reply_and_closes_without(
    back: Serving, request_: FrontEnd, payload: wire.Payload | None
) -> None:
    peer = connect(back, None)
    assert not peer.done(request_, payload)
    assert peer.get(FrontEnd.GET_QUEUE_NUM) == 2
    peer.send(request_, payload)
    assert peer.is_disconnected()
    back.call(lambda: None)
    assert back.server.failures[-1].startswith(request_.name)
    peer.close()


def test_notification_descriptor_must_be_one(back: Serving) -> None:
    peer = connect(back, None)
    with open("/dev/zero") as zero, open("/etc/passwd") as file:
        for wrong in (zero, file):
            assert not peer.done(FrontEnd.SET_VRING_KICK, wire.U64(0), [wrong.fileno()])
    reader, writer = os.pipe()
    assert peer.done(FrontEnd.SET_VRING_CALL, wire.U64(0), [writer])
    peer.close()
    os.close(reader)
    os.close(writer)


def test_set_vring_addr_of_started_ring_may_change_its_log_alone(back: Serving, area: MappedArea) -> None:
    peer = connect(back, area)
    ring = Ring(peer, area).set_up().enable()
    ring.add(b"a")
    ring.wait(1)
    same = wire.VringAddress(0, wire.VRING_F_LOG, USER, USER + USED, USER + AVAILABLE, GUEST + USED)
    assert peer.done(FrontEnd.SET_VRING_ADDR, same)
    moved = wire.VringAddress(0, 0, USER + 0x100, USER + USED, USER + AVAILABLE, 0)
    assert not peer.done(FrontEnd.SET_VRING_ADDR, moved)
    assert not peer.done(FrontEnd.SET_VRING_BASE, VringState(0, 0))
    ring.add(b"b")
    ring.wait(2)
    peer.close()
    ring.close()
