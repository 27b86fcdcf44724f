"""The record of requests in flight: its bytes, recovery, and a back end that is killed with requests in flight."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.vhost_user.harness import LIMIT, RawFrontEnd, Serving, memory, serving, until
from tests.vhost_user.test_back_end import DATA, USUAL, Ring, connect, event, settle

from powervio.drivers.block import BlockDriver
from powervio.errors import LocalError, RemoteError
from powervio.memory import hw
from powervio.memory.area import MappedArea
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.transport.vhost_user import inflight_area
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.front_end import RING_FEATURES, FrontEnd
from powervio.transport.vhost_user.inflight import SplitInflight, split_bytes
from powervio.transport.vhost_user.inflight_area import InflightRecord
from powervio.transport.vhost_user.protocol import FrontEnd as FrontEndMessage
from powervio.transport.vhost_user.protocol import VringState
from powervio.virtio import features as feature

pytestmark = pytest.mark.dual

SIZE = 8


@pytest.fixture
def view() -> Iterator[memoryview]:
    fd, size = inflight_area.create(2, SIZE, packed=False)
    area = MappedArea(fd, size)
    yield area.view[split_bytes(SIZE) :]
    area.close()


def noted(view: memoryview) -> list[int]:
    return [head for head in range(SIZE) if view[16 + 16 * head]]


def test_record_of_a_queue_has_the_published_layout(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    assert split_bytes(SIZE) == 192
    assert bytes(view[:16]) == bytes.fromhex("0000000000000000 0100 0800 0000 0000")
    assert queue.recover(0, [0] * SIZE) == []
    queue.note_begin(3)
    queue.note_begin(5)
    assert bytes(view[64:80]) == bytes.fromhex("01 0000000000 0000 0000000000000000")
    assert bytes(view[96:112]) == bytes.fromhex("01 0000000000 0000 0100000000000000")
    queue.note_complete(5)
    assert hw.ld16(view, 12) == 5
    queue.note_published(1)
    assert hw.ld16(view, 14) == 1
    assert noted(view) == [3]


def test_successor_takes_what_was_in_flight_in_order(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    for head in (6, 1, 4, 2):
        queue.note_begin(head)
    queue.note_complete(1)
    queue.note_published(1)
    again = SplitInflight(view, SIZE)
    assert again.recover(1, [1] + [0] * 7) == [6, 4, 2]
    again.note_begin(1)
    assert SplitInflight(view, SIZE).recover(1, [1] + [0] * 7) == [6, 4, 2, 1]


def test_death_after_used_idx_and_before_the_notes_does_nothing_twice(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    for head in (0, 1, 2, 3):
        queue.note_begin(head)
    queue.note_complete(2)
    queue.note_complete(0)
    # here used.idx became 2, and the process died
    assert SplitInflight(view, SIZE).recover(2, [2, 0] + [9] * 6) == [1, 3]
    assert hw.ld16(view, 14) == 2


def test_death_before_used_idx_does_all_of_it_again(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    for head in (0, 1, 2):
        queue.note_begin(head)
    queue.note_complete(1)
    assert SplitInflight(view, SIZE).recover(0, [1] + [0] * 7) == [0, 1, 2]


def test_new_record_at_a_ring_that_came_by_migration_loses_nothing(view: memoryview) -> None:
    """used_idx 0 and last_batch_head 0 are what a new record says; the ring's used.idx is 5, and 0 is in flight."""
    used = [3, 0, 1, 2, 4, 7, 7, 7]
    queue = SplitInflight(view, SIZE)
    assert queue.recover(5, used) == []
    queue.note_begin(0)  # the first request after the migration: then the back end dies
    assert SplitInflight(view, SIZE).recover(5, used) == [0]


def test_record_of_another_back_end_that_did_not_set_used_idx_loses_nothing(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    queue.note_begin(0)
    queue.note_begin(4)
    assert hw.ld16(view, 14) == 0
    assert SplitInflight(view, SIZE).recover(5, [3, 0, 1, 2, 4, 7, 7, 7]) == [0, 4]
    assert SplitInflight(view, SIZE).recover(500, [0] * SIZE) == [0, 4]  # more than a queue holds is no batch


@given(st.data())
def test_death_at_any_point_loses_nothing_and_repeats_only_what_nobody_saw(data: st.DataObject) -> None:
    """A model of ring and record: the back end dies after any store, and the successor takes what is owed."""
    fd, size = inflight_area.create(1, SIZE, packed=False)
    area = MappedArea(fd, size)
    used_ring, used_index = [0] * SIZE, 0
    queue = SplitInflight(area.view, SIZE)
    queue.recover(0, used_ring)
    in_flight: list[int] = []
    for _ in range(data.draw(st.integers(1, 12))):
        free = [head for head in range(SIZE) if head not in in_flight]
        more: bool = data.draw(st.booleans())
        if free and more:
            head: int = data.draw(st.sampled_from(free))
            queue.note_begin(head)
            in_flight.append(head)
        batch: list[int] = data.draw(st.lists(st.sampled_from(in_flight), unique=True)) if in_flight else []
        stop: str = data.draw(st.sampled_from(["", "", "before", "after"])) if batch else ""
        for number, head in enumerate(batch):
            used_ring[(used_index + number) % SIZE] = head
            queue.note_complete(head)
        if stop != "before":
            used_index = (used_index + len(batch)) & 0xFFFF
            in_flight = [head for head in in_flight if head not in batch]
        if stop:
            queue = SplitInflight(area.view, SIZE)
            assert queue.recover(used_index, used_ring) == in_flight
        else:
            queue.note_published(used_index)
    area.close()


def test_record_that_does_not_fit_is_refused() -> None:
    fd, size = inflight_area.create(1, SIZE, packed=False)
    with pytest.raises(RemoteError, match="for 2 queues"):
        InflightRecord(fd, 0, size, 2, SIZE)
    with pytest.raises(RemoteError, match="of a file of"):
        InflightRecord(fd, 64, size, 1, SIZE)
    with pytest.raises(RemoteError, match="not aligned"):
        InflightRecord(fd, 8, size, 1, SIZE)
    record = InflightRecord(fd, 0, size, 1, SIZE)
    with pytest.raises(RemoteError, match="none for queue 1"):
        record.queue(1, SIZE, packed=False)
    record.close()
    area = MappedArea(fd, size)
    hw.st16(area.view, 8, 7)
    with pytest.raises(RemoteError, match="version 7"):
        SplitInflight(area.view, SIZE)
    with pytest.raises(RemoteError, match="of 191 bytes"):
        SplitInflight(area.view[:191], SIZE)
    area.close()


def test_number_that_no_buffer_has_is_refused(view: memoryview) -> None:
    queue = SplitInflight(view, SIZE)
    before = bytes(view)
    for note in (queue.note_begin, queue.note_complete):
        with pytest.raises(LocalError, match="head 8 "):
            note(SIZE)
    assert bytes(view) == before
    for head in range(SIZE):
        queue.note_complete(head)
    with pytest.raises(LocalError, match="head 1 "):
        queue.note_complete(1)  # more than the queue has, and nothing of it published


# -- whole back ends

RINGS = {
    "split": RING_FEATURES,
    "split-in-order": RING_FEATURES | feature.IN_ORDER,
    "packed": RING_FEATURES | feature.RING_PACKED,
    "packed-chains": (RING_FEATURES | feature.RING_PACKED) & ~feature.INDIRECT_DESC,
    "packed-in-order": RING_FEATURES | feature.RING_PACKED | feature.IN_ORDER,
}
ALL = BackEndOptions(packed=True, in_order=True)


@pytest.mark.parametrize("ring", RINGS)
def test_requests_that_the_device_held_are_taken_again_by_the_next(tmp_path: Path, ring: str) -> None:
    messages = [b"message %d" % number for number in range(64)]

    async def use() -> None:
        first = EchoDevice()
        first.hold = True
        back = Serving(tmp_path / "vhost.sock", first, ALL)
        driver = EchoDriver()
        end = FrontEnd(back.path, driver, config_size=8, ring_features=RINGS[ring])
        await end.start()
        assert end.features & RINGS[ring] == RINGS[ring]
        driver.send(*messages)
        await until(lambda: len(first.held) == 64)
        order = [bytes(request.readable.read(0, request.readable.length)) for request in first.held]
        back.close()
        await until(lambda: not end.connected)
        second = EchoDevice()
        with serving(tmp_path, second, ALL) as back:
            await until(lambda: len(driver.answers) == 64)
            assert back.server.link is not None
            assert back.server.link.back_end.service.resubmitted == 64
            assert [message for message, _ in driver.answers] == order == messages
            assert driver.starts == 1
            driver.send(b"and on")
            await until(lambda: driver.answers[-1] == (b"and on", b"and on"))
            await end.close()

    asyncio.run(use())


@pytest.fixture
def device() -> EchoDevice:
    device = EchoDevice()
    device.hold = True
    return device


@pytest.fixture
def recorded(tmp_path: Path, device: EchoDevice) -> Iterator[tuple[Serving, RawFrontEnd, Ring]]:
    """A back end with a record, and a ring of which two requests are in the device's hands."""
    protocol = USUAL | wire.P_INFLIGHT_SHMFD | wire.P_RESET_DEVICE
    with serving(tmp_path, device) as back, memory() as area:
        peer = connect(back, area, protocol)
        fd, size = inflight_area.create(1, SIZE, packed=False)
        assert peer.done(FrontEndMessage.SET_INFLIGHT_FD, wire.Inflight(size, 0, 1, SIZE), [fd])
        os.close(fd)
        ring = Ring(peer, area).set_up().enable()
        ring.add(b"one")
        assert event(ring.call) == 1, "what a predecessor showed is not known: the driver is to look"
        ring.add(b"two")
        until_now(lambda: len(device.held) == 2)
        yield back, peer, ring
        peer.close()
        ring.close()


def until_now(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def resubmitted(back: Serving) -> int:
    assert back.server.link is not None
    return back.server.link.back_end.service.resubmitted


def test_ring_that_was_stopped_with_requests_in_hand_takes_them_again(
    recorded: tuple[Serving, RawFrontEnd, Ring], device: EchoDevice
) -> None:
    back, peer, ring = recorded
    assert peer.ask(FrontEndMessage.GET_VRING_BASE, VringState(0, 0)) == VringState(0, 2)
    device.hold = False
    assert peer.done(FrontEndMessage.SET_VRING_KICK, wire.U64(0), [ring.kick])
    os.eventfd_write(ring.kick, 1)
    ring.wait(2)
    assert (ring.echo(0, 3), ring.echo(1, 3)) == (b"one", b"two")
    assert resubmitted(back) == 2


def test_reset_makes_the_record_void(recorded: tuple[Serving, RawFrontEnd, Ring], device: EchoDevice) -> None:
    back, peer, ring = recorded
    assert peer.done(FrontEndMessage.RESET_DEVICE)
    device.hold = False
    ring.area.view[:DATA] = bytes(DATA)
    ring.next = 0
    ring.set_up().enable()
    ring.add(b"new")
    ring.wait(1)
    settle(back)
    assert (ring.used, ring.echo(0, 3)) == (1, b"new")
    assert resubmitted(back) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_new_record_is_as_long_as_its_kind_needs(tmp_path: Path, packed: bool) -> None:
    with serving(tmp_path, EchoDevice(queue_count=2), ALL) as back:
        peer = connect(back, None, USUAL | wire.P_INFLIGHT_SHMFD, feature.RING_PACKED if packed else 0)
        peer.send(FrontEndMessage.GET_INFLIGHT_FD, wire.Inflight(0, 0, 2, 128))
        reply = peer.receive()
        area = MappedArea(reply.take_fd(), 8320 if packed else 4224)
        assert reply.payload == wire.Inflight(area.size, 0, 2, 128)
        assert os.fstat(area.fd).st_size == area.size
        assert not any(area.view)
        area.close()
        peer.close()


def test_record_of_too_few_bytes_for_packed_rings_breaks_the_ring(tmp_path: Path) -> None:
    with serving(tmp_path, EchoDevice(), ALL) as back, memory() as area:
        peer = connect(back, area, USUAL | wire.P_INFLIGHT_SHMFD, feature.RING_PACKED)
        fd, size = inflight_area.create(1, SIZE, packed=False)
        assert peer.done(FrontEndMessage.SET_INFLIGHT_FD, wire.Inflight(size, 0, 1, SIZE), [fd])
        os.close(fd)
        ring = Ring(peer, area).set_up(base=0x8000_8000).enable()
        os.eventfd_write(ring.kick, 1)
        assert event(ring.error) == 1
        peer.close()
        ring.close()


def test_without_a_record_the_driver_submits_again(tmp_path: Path) -> None:
    async def use() -> None:
        first = EchoDevice()
        first.hold = True
        back = Serving(tmp_path / "vhost.sock", first)
        driver = EchoDriver()
        end = FrontEnd(back.path, driver, config_size=8, protocol_features=0x208)
        await end.start()
        driver.send(b"one", b"two")
        await until(lambda: len(first.held) == 2)
        back.close()
        await until(lambda: not end.connected)
        with serving(tmp_path, EchoDevice()) as back:
            await until(lambda: len(driver.answers) == 2)
            assert driver.starts == 2
            await end.close()

    asyncio.run(use())


def powervio_block(socket_path: Path, image: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "powervio", "vhost-user", "block", "--socket-path", str(socket_path)]
    process = subprocess.Popen(
        [*command, "--image", str(image), *options], stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    assert "serving at" in process.stderr.readline()
    return process


@pytest.mark.parametrize("ring", ["split", "packed", "packed-chains"])
def test_back_end_killed_with_64_writes_in_flight_loses_none(tmp_path: Path, ring: str) -> None:
    block, count, deaths = 65536, 64, 3
    options = [] if ring == "split" else ["--packed"]
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 2 * block * count)

    async def use() -> None:
        process = powervio_block(tmp_path / "s", image, *options)
        driver = BlockDriver(buffers=count, buffer_size=block)
        end = FrontEnd(tmp_path / "s", driver, ring_features=RINGS[ring], queue_size=256)
        await end.start()
        assert bool(end.features & feature.RING_PACKED) is (ring != "split")
        for death in range(deaths):
            contents = [os.urandom(block) for _ in range(count)]
            os.kill(process.pid, signal.SIGSTOP)  # so that all of them are in flight
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            tasks = [
                asyncio.ensure_future(driver.write(number * block, content)) for number, content in enumerate(contents)
            ]
            await until(lambda: driver.in_flight == count)
            os.kill(process.pid, signal.SIGCONT)
            while driver.in_flight > count - 5 * death:  # it is killed at another point each time
                await asyncio.sleep(0)
            process.kill()
            process.wait()
            assert process.stderr is not None
            process.stderr.close()
            process = powervio_block(tmp_path / "s", image, *options)
            async with asyncio.timeout(20):
                await asyncio.gather(*tasks)
            await driver.flush()
            for number, content in enumerate(contents):
                assert await driver.read(number * block, block) == content
            assert driver.resubmitted == 0
        assert end.sessions == deaths + 1
        await end.close()
        process.terminate()
        assert process.wait(10) == 0
        assert process.stderr is not None
        process.stderr.close()
        data = image.read_bytes()
        assert data[: block * count] == b"".join(contents)
        assert not any(data[block * count :])

    asyncio.run(use())
