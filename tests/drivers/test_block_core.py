"""The block driver's core against the block device: batches, sessions that are lost, limits, hostile answers."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block_core import BlockCore
from powervio.drivers.block_request import BlockError, BlockRequest
from powervio.errors import LocalError, RemoteError
from powervio.memory.area import PAGE_SIZE
from powervio.storage.image import Image, open_image
from powervio.testing.direct import DirectDriverQueue, DirectLink, bytewise, whole
from powervio.virtio import block as blk
from powervio.virtio.queue import Buffer, BufferSlice, ByteOrder, DriverQueue, DriverTransport

pytestmark = pytest.mark.dual

MIB = 1 << 20
SIZE = 4 * MIB
BLOCK = 4096


class Disk:
    """Image, device, driver and link, and a record of what was completed."""

    def __init__(
        self,
        path: Path,
        *,
        options: BlockOptions | None = None,
        read_only: bool = False,
        byteorder: ByteOrder = "little",
        indirect: bool = False,
        event_idx: bool = False,
        packed: bool = False,
        in_order: bool = False,
        queue_size: int = 128,
        framing: Callable[[tuple[int, int]], list[tuple[int, int]]] = whole,
        max_queues: int = 16,
    ) -> None:
        self.image: Image = open_image(path, read_only=read_only, create_size=None if path.exists() else SIZE)
        self.device = BlockDevice(self.image, options)
        self.driver = BlockCore(max_queues=max_queues)
        self.link = DirectLink(
            self.device, self.driver, byteorder=byteorder, indirect=indirect, event_idx=event_idx,
            packed=packed, in_order=in_order, queue_size=queue_size, framing=framing,
        )  # fmt: skip
        self.completed: list[BlockRequest] = []

    def request(self, kind: int, position: int = 0, length: int = 0, buffer: Buffer | None = None) -> BlockRequest:
        slices: list[BufferSlice] = [] if buffer is None else [(buffer, 0, length)]
        return BlockRequest(kind, position, length, slices, self.completed.append)

    def submit(self, kind: int, position: int = 0, length: int = 0, buffer: Buffer | None = None) -> BlockRequest:
        request = self.request(kind, position, length, buffer)
        self.driver.submit(request)
        return request

    def run(self) -> None:
        self.driver.kick()
        self.link.run()

    def buffer(self, content: bytes = bytes(BLOCK)) -> Buffer:
        buffer = self.link.memory.allocate(len(content))
        buffer.view[:] = content
        return buffer

    def close(self) -> None:
        self.link.close()
        self.image.close()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    made: list[Disk] = []

    def make_disk(**options: object) -> Disk:
        disk = Disk(tmp_path / f"disk{len(made)}.img", **options)  # type: ignore[arg-type]
        made.append(disk)
        return disk

    yield make_disk
    for disk in made:
        disk.close()


@pytest.fixture
def disk(make: Callable[..., Disk]) -> Disk:
    made = make()
    made.link.connect()
    return made


# What is negotiated


def test_start_learns_the_disk(disk: Disk) -> None:
    driver = disk.driver
    assert driver.capacity == SIZE
    assert (driver.block_size, driver.physical_block_size) == (512, 4096)
    assert driver.seg_max == 126
    assert driver.can_discard
    assert driver.can_write_zeroes
    assert driver.needs_flush
    assert not driver.read_only


def test_small_limits_are_taken_over(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(size_max=1000, seg_max=3, max_discard_sectors=16), queue_size=4)
    disk.link.connect()
    assert disk.driver.size_max == 512  # whole sectors
    assert disk.driver.seg_max == 2  # header and status are in the queue too
    assert disk.driver.max_discard == 8192


class _Config:
    """A transport that has nothing but a config space."""

    def __init__(self, config: blk.BlockConfig, features: int) -> None:
        self.features = features
        self.byteorder: ByteOrder = "little"
        self.queues = [_Full()]
        self._config = blk.pack_config(config, "little")

    def config(self) -> bytes:
        return self._config

    def allocate(self, length: int, *, mapped: bool = False) -> Buffer:
        return Buffer(memoryview(bytearray(length)), 0, 0)


class _Full(DriverQueue):
    """A queue without room."""

    index = 0
    size = 8

    def add(self, readable: object, writable: object, token: object) -> bool:
        return False

    def kick(self) -> None:
        pass

    def reap(self) -> tuple[object, int] | None:
        return None


def start(driver: BlockCore, config: blk.BlockConfig, features: int) -> None:
    transport = _Config(config, features)
    DriverTransport.register(_Config)
    driver.start(transport)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "features", "what"),
    [
        (blk.BlockConfig(blk_size=0), blk.F_BLK_SIZE, "block size 0"),
        (blk.BlockConfig(blk_size=256), blk.F_BLK_SIZE, "block size 256"),
        (blk.BlockConfig(blk_size=1000), blk.F_BLK_SIZE, "block size 1000"),
        (blk.BlockConfig(size_max=100), blk.F_SIZE_MAX, "hold no sector"),
    ],
)
def test_config_that_cannot_be_is_a_remote_error(config: blk.BlockConfig, features: int, what: str) -> None:
    driver = BlockCore()
    with pytest.raises(RemoteError, match=what):
        start(driver, config, features)
    assert not driver.connected


def test_config_without_optional_values_gives_usable_limits() -> None:
    driver = BlockCore()
    features = blk.F_SEG_MAX | blk.F_TOPOLOGY | blk.F_DISCARD | blk.F_WRITE_ZEROES
    start(driver, blk.BlockConfig(capacity=1, physical_block_exp=255), features)
    assert driver.seg_max == 1
    assert driver.physical_block_size == 512
    assert driver.max_discard == driver.max_write_zeroes == 0xFFFF_FFFF * 512
    assert driver.discard_alignment == 512


def test_request_that_does_not_fit_into_an_empty_queue_fails() -> None:
    driver = BlockCore()
    start(driver, blk.BlockConfig(capacity=100), 0)
    request = BlockRequest(blk.T_GET_ID)
    driver.submit(request)
    assert request.error is not None
    assert request.error.errno == errno.E2BIG


def test_mq_is_left_out_when_one_queue_is_wanted(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(queues=4), max_queues=1)
    disk.link.connect()
    assert len(disk.link.driver_queues) == 1


def test_queues_up_to_the_wanted_number_are_used(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(queues=4), max_queues=3)
    disk.link.connect()
    assert len(disk.link.driver_queues) == 3


# Requests


MODES = [
    {},
    {"indirect": True},
    {"event_idx": True},
    {"byteorder": "big"},
    {"framing": bytewise},
    {"options": BlockOptions(queues=3)},
    {"queue_size": 4},
    {"packed": True},
    {"packed": True, "in_order": True, "event_idx": True, "queue_size": 5},
    {"packed": True, "indirect": True, "queue_size": 3, "options": BlockOptions(queues=2)},
    {"in_order": True, "queue_size": 4},
    {"queue_size": 4, "indirect": True, "event_idx": True, "options": BlockOptions(queues=2)},
]


def _name(mode: dict[str, object]) -> str:
    """Of a mode; the same in every run."""
    return ", ".join(f"{key}={getattr(value, '__name__', value)}" for key, value in mode.items())


@pytest.mark.parametrize("mode", MODES, ids=_name)
def test_many_requests_at_once_each_complete_once(make: Callable[..., Disk], mode: dict[str, object]) -> None:
    if mode.get("framing") is bytewise:
        mode = {**mode, "queue_size": 128}
    disk = make(**mode)
    disk.link.connect()
    buffers = [disk.buffer(os.urandom(BLOCK)) for _ in range(200)]
    writes = [disk.request(blk.T_OUT, index * BLOCK, BLOCK, buffer) for index, buffer in enumerate(buffers)]
    disk.driver.submit_many(writes)
    disk.run()
    assert len(disk.completed) == 200
    assert all(request.done and request.error is None for request in writes)
    targets = [disk.buffer() for _ in range(200)]
    for index, target in enumerate(targets):
        disk.submit(blk.T_IN, index * BLOCK, BLOCK, target)
    disk.run()
    assert len(disk.completed) == 400
    assert len(set(map(id, disk.completed))) == 400
    for buffer, target in zip(buffers, targets, strict=True):
        assert buffer.view == target.view
    assert disk.driver.in_flight == disk.driver.pending == 0
    assert disk.driver.requests == 400


def test_requests_are_spread_over_the_queues(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(queues=4))
    disk.link.connect()
    buffer = disk.buffer()
    for _ in range(32):
        disk.submit(blk.T_OUT, 0, BLOCK, buffer)
    assert [len(queue.ring.in_flight) for queue in disk.link.driver_queues] == [8, 8, 8, 8]
    disk.run()
    assert len(disk.completed) == 32


def test_batch_is_one_kick(disk: Disk) -> None:
    buffer = disk.buffer()
    for _ in range(40):
        disk.submit(blk.T_OUT, 0, BLOCK, buffer)
    disk.run()
    assert disk.link.kicks == 1


def test_callback_may_submit_the_next_request(disk: Disk) -> None:
    buffer = disk.buffer()
    left = 500

    def again(request: BlockRequest) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            disk.driver.submit(BlockRequest(blk.T_IN, 0, BLOCK, request.slices, again))

    disk.driver.submit(BlockRequest(blk.T_IN, 0, BLOCK, ((buffer, 0, BLOCK),), again))
    disk.run()
    assert left == 0


def test_pending_requests_keep_their_order(make: Callable[..., Disk]) -> None:
    disk = make(queue_size=4)
    disk.link.connect()
    buffer = disk.buffer()
    requests = [disk.submit(blk.T_OUT, index * BLOCK, BLOCK, buffer) for index in range(50)]
    assert disk.driver.pending > 40
    disk.run()
    assert disk.completed == requests


def test_flush_discard_zeroes_and_id_work(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(serial="PVIO-7"))
    disk.link.connect()
    buffer = disk.buffer(b"x" * BLOCK)
    disk.submit(blk.T_OUT, 0, BLOCK, buffer)
    disk.submit(blk.T_FLUSH)
    disk.submit(blk.T_WRITE_ZEROES, 512, 1024)
    disk.submit(blk.T_DISCARD, 8192, 8192)
    name = disk.submit(blk.T_GET_ID)
    target = disk.buffer()
    disk.submit(blk.T_IN, 0, BLOCK, target)
    disk.run()
    assert [request.error for request in disk.completed] == [None] * 6
    assert name.answer == b"PVIO-7".ljust(20, b"\0")
    assert target.view == b"x" * 512 + bytes(1024) + b"x" * (BLOCK - 1536)
    counters = disk.device.counters
    assert (counters.flushes, counters.write_zeroes, counters.discards) == (1, 1, 1)


def test_flush_without_the_feature_completes_at_once(disk: Disk) -> None:
    disk.link.disconnect()
    disk.driver.select_features = lambda offered: offered & ~blk.F_FLUSH  # type: ignore[method-assign]
    disk.link.connect()
    request = disk.submit(blk.T_FLUSH)
    assert request.done
    assert request.error is None
    assert disk.device.counters.flushes == 0


def test_slots_share_no_page_with_data(disk: Disk) -> None:
    pages = {buffer.address // PAGE_SIZE for buffer in disk.driver._slot_memory}
    data = disk.buffer(bytes(3 * BLOCK))
    assert not pages & set(range(data.address // PAGE_SIZE, (data.address + data.length) // PAGE_SIZE + 1))


# Mistakes of the caller


@pytest.mark.parametrize(
    ("kind", "position", "length", "code"),
    [
        (blk.T_IN, 100, 512, errno.EINVAL),
        (blk.T_IN, -512, 512, errno.EINVAL),
        (blk.T_OUT, 0, 100, errno.EINVAL),
        (blk.T_IN, SIZE, 512, errno.EINVAL),
        (blk.T_OUT, SIZE - 512, 1024, errno.EINVAL),
        (blk.T_DISCARD, SIZE, 512, errno.EINVAL),
    ],
)
def test_impossible_range_is_a_block_error(disk: Disk, kind: int, position: int, length: int, code: int) -> None:
    buffer = disk.buffer() if kind != blk.T_DISCARD else None
    with pytest.raises(BlockError, match=f"{length} bytes at {position}") as caught:
        disk.submit(kind, position, length, buffer)
    assert caught.value.errno == code
    assert disk.driver.in_flight == disk.driver.pending == 0


def test_impossible_request_is_a_local_error(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(size_max=8192, seg_max=2, max_discard_sectors=8))
    disk.link.connect()
    driver, buffer = disk.driver, disk.buffer(bytes(16384))
    for bad in (
        BlockRequest(99),
        BlockRequest(blk.T_IN, 0, 512, ()),
        BlockRequest(blk.T_IN, 0, 0, ()),
        BlockRequest(blk.T_IN, 0, 1024, ((buffer, 0, 512),)),
        BlockRequest(blk.T_FLUSH, 0, 0, ((buffer, 0, 512),)),
        BlockRequest(blk.T_IN, 0, 1536, ((buffer, 0, 512),) * 3),
        BlockRequest(blk.T_IN, 0, 16384, ((buffer, 0, 16384),)),
        BlockRequest(blk.T_DISCARD, 0, 8192),
    ):
        with pytest.raises(LocalError):
            driver.submit(bad)
    request = disk.submit(blk.T_IN, 0, 512, buffer)
    with pytest.raises(LocalError, match="submitted before"):
        driver.submit(request)


def test_place_that_no_disk_has_is_an_error(disk: Disk) -> None:
    for position in (1 << 70, -(1 << 70)):
        with pytest.raises(BlockError) as caught:
            disk.driver.submit(BlockRequest(blk.T_IN, position, 512, ((disk.buffer(), 0, 512),)))
        assert caught.value.errno == errno.EINVAL


def test_range_that_does_not_fit_into_a_request_fails_though_it_came_before_the_limits(
    make: Callable[..., Disk],
) -> None:
    disk = make()
    request = BlockRequest(blk.T_DISCARD, 0, (1 << 32) * 512)
    disk.driver.submit(request)
    assert not request.done
    disk.link.connect()
    disk.link.run()
    assert request.error is not None
    assert request.error.errno == errno.EINVAL
    assert disk.driver.in_flight == disk.driver.pending == 0


def test_slice_outside_its_buffer_fails_the_request(disk: Disk) -> None:
    request = BlockRequest(blk.T_IN, 0, 512, ((disk.buffer(), 4000, 512),))
    disk.driver.submit(request)
    assert request.error is not None
    assert request.error.errno == errno.EINVAL


def test_change_of_a_read_only_disk_is_erofs(tmp_path: Path, make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(read_only=True))
    disk.link.connect()
    assert disk.driver.read_only
    for kind, buffer in ((blk.T_OUT, disk.buffer()), (blk.T_DISCARD, None), (blk.T_WRITE_ZEROES, None)):
        with pytest.raises(BlockError, match="read-only") as caught:
            disk.submit(kind, 0, BLOCK, buffer)
        assert caught.value.errno == errno.EROFS


def test_discard_that_is_not_offered_is_enotsup(make: Callable[..., Disk]) -> None:
    disk = make(options=BlockOptions(discard=False))
    disk.link.connect()
    assert not disk.driver.can_discard
    with pytest.raises(BlockError) as caught:
        disk.submit(blk.T_DISCARD, 0, BLOCK)
    assert caught.value.errno == errno.ENOTSUP


# Errors of the device


def test_image_that_shrinks_gives_eio_and_the_rest_goes_on(disk: Disk) -> None:
    os.truncate(disk.image.path, MIB)
    bad = disk.submit(blk.T_IN, 2 * MIB, BLOCK, disk.buffer())
    good = disk.submit(blk.T_IN, 0, BLOCK, disk.buffer())
    disk.run()
    assert bad.error is not None
    assert bad.error.errno == errno.EIO
    assert "read of 4096 bytes at 2097152" in str(bad.error)
    assert bad.status == blk.S_IOERR
    assert good.error is None
    assert disk.driver.failed == 1


@pytest.mark.parametrize(
    ("status", "code"), [(1, errno.EIO), (2, errno.ENOTSUP), (3, errno.EIO), (200, errno.EIO), (None, errno.EIO)]
)
def test_status_of_the_device_becomes_an_errno(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, status: int | None, code: int
) -> None:
    def handle(request: object) -> None:
        if status is not None:
            request.writable.write(request.writable.length - 1, bytes([status]))  # type: ignore[attr-defined]
        request.complete(0)  # type: ignore[attr-defined]

    monkeypatch.setattr(disk.device, "handle", handle)
    request = disk.submit(blk.T_FLUSH)
    disk.run()
    assert request.error is not None
    assert request.error.errno == code


def test_broken_used_ring_is_a_remote_error_and_nothing_is_lost(disk: Disk) -> None:
    request = disk.submit(blk.T_IN, 0, BLOCK, disk.buffer())
    disk.driver.kick()
    used = disk.link._rings[0].used
    used[4:12] = (77).to_bytes(4, "little") + bytes(4)
    used[2:4] = (1).to_bytes(2, "little")
    with pytest.raises(RemoteError):
        disk.driver.completed(disk.link.driver_queues[0])
    late = disk.submit(blk.T_IN, 0, BLOCK, disk.buffer())
    disk.link.disconnect()
    disk.link.connect()
    disk.link.run()
    assert disk.completed == [request, late]
    assert [one.error for one in disk.completed] == [None, None]


# Sessions that are lost


def test_requests_before_the_first_session_wait_for_it(make: Callable[..., Disk]) -> None:
    disk = make()
    request = disk.submit(blk.T_OUT, 0, BLOCK, disk.buffer(b"x" * BLOCK))
    disk.driver.kick()
    assert disk.driver.pending == 1
    disk.link.connect()
    disk.link.run()
    assert disk.completed == [request]
    assert request.error is None


def test_request_between_sessions_waits_for_the_next(disk: Disk) -> None:
    disk.link.disconnect()
    request = disk.submit(blk.T_IN, 0, BLOCK, disk.buffer())
    assert not request.done
    disk.link.connect()
    disk.link.run()
    assert disk.completed == [request]
    assert request.error is None


def test_request_without_room_in_the_window_waits_for_those_that_have_it(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = disk.link.driver_queues[0]
    add = queue.add

    def bounded(readable: list[BufferSlice], writable: list[BufferSlice], token: object) -> bool:
        if len(queue.ring.in_flight) >= 3:
            raise LocalError("the window is full")
        return add(readable, writable, token)

    monkeypatch.setattr(queue, "add", bounded)
    requests = [disk.submit(blk.T_IN, 0, BLOCK, disk.buffer()) for _ in range(20)]
    assert disk.driver.in_flight == 3
    disk.run()
    assert disk.completed == requests
    assert not any(request.error for request in requests)


def test_request_that_the_transport_failed_to_take_is_not_lost(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(Exception):
        pass

    def refuse(readable: object, writable: object, token: object) -> bool:
        raise Refused

    buffer = disk.buffer()
    request = disk.request(blk.T_IN, 0, BLOCK, buffer)
    with monkeypatch.context() as patch:
        patch.setattr(disk.link.driver_queues[0], "add", refuse)
        with pytest.raises(Refused):
            disk.driver.submit(request)
    disk.driver.submit(request)
    pending = disk.request(blk.T_IN, 0, BLOCK, buffer)
    disk.link.disconnect()
    disk.driver.submit(pending)
    with monkeypatch.context() as patch:
        patch.setattr(DirectDriverQueue, "add", staticmethod(refuse))
        with pytest.raises(Refused):
            disk.link.connect()
    disk.link.disconnect()
    disk.link.connect()
    disk.link.run()
    assert disk.completed == [request, pending]


@pytest.mark.parametrize("served", [0, 1, 16, 31, 32])
@pytest.mark.parametrize("mode", MODES, ids=_name)
def test_session_lost_with_32_in_flight_completes_each_once(
    make: Callable[..., Disk], monkeypatch: pytest.MonkeyPatch, mode: dict[str, object], served: int
) -> None:
    disk = make(**mode)
    disk.link.connect()
    contents = [os.urandom(BLOCK) for _ in range(32)]
    requests = [disk.submit(blk.T_OUT, i * BLOCK, BLOCK, disk.buffer(data)) for i, data in enumerate(contents)]
    disk.driver.kick()
    handle = disk.device.handle
    count = 0

    class Killed(Exception):
        pass

    def dying(request: object) -> None:
        nonlocal count
        if count == served:
            raise Killed
        count += 1
        handle(request)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(disk.device, "handle", dying)
        with suppress(Killed):
            # Served, in the used ring perhaps, and not seen by the driver.
            disk.link.run_device()
    assert disk.completed == []
    disk.link.disconnect()
    assert disk.driver.in_flight == 0
    assert disk.driver.pending == 32
    disk.link.connect()
    disk.link.run()
    assert sorted(map(id, disk.completed)) == sorted(map(id, requests))
    assert all(request.error is None for request in requests)
    for index, data in enumerate(contents):
        back = bytearray(BLOCK)
        disk.image.read_into(index * BLOCK, memoryview(back))
        assert back == data


def test_lost_requests_go_before_pending_ones_in_their_old_order(make: Callable[..., Disk]) -> None:
    disk = make(queue_size=8)
    disk.link.connect()
    buffer = disk.buffer()
    requests = [disk.submit(blk.T_OUT, 0, BLOCK, buffer) for _ in range(20)]
    disk.driver.kick()
    in_flight = disk.driver.in_flight
    assert 0 < in_flight < 20
    for _ in range(3):
        disk.link.disconnect()
        assert list(disk.driver._pending) == requests
        disk.link.connect()
    assert disk.driver.resubmitted == 3 * in_flight
    disk.link.run()
    assert disk.completed == requests


def test_next_session_with_more_queues_and_other_order_serves_what_is_pending(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk.img", options=BlockOptions(queue_size=8))
    disk.link.connect()
    data = [disk.buffer(os.urandom(BLOCK)) for _ in range(20)]
    for index, buffer in enumerate(data):
        disk.submit(blk.T_OUT, index * BLOCK, BLOCK, buffer)
    disk.driver.kick()
    disk.link.disconnect()
    other = BlockDevice(disk.image, BlockOptions(queues=4, queue_size=64))
    disk.link.device = other
    disk.link.byteorder = "big"
    disk.link.connect()
    disk.link.run()
    assert len(disk.completed) == 20
    for index, buffer in enumerate(data):
        back = bytearray(BLOCK)
        disk.image.read_into(index * BLOCK, memoryview(back))
        assert back == buffer.view
    disk.close()


def test_next_session_with_a_smaller_disk_fails_what_does_not_fit(disk: Disk) -> None:
    request = disk.submit(blk.T_OUT, SIZE - BLOCK, BLOCK, disk.buffer())
    disk.link.disconnect()
    disk.device.resize(MIB)
    disk.link.connect()
    disk.link.run()
    assert request.error is not None
    assert request.error.errno == errno.EIO


def test_fail_all_fails_pending_at_once_and_the_rest_with_the_session(make: Callable[..., Disk]) -> None:
    disk = make(queue_size=8)
    disk.link.connect()
    requests = [disk.submit(blk.T_OUT, 0, BLOCK, disk.buffer()) for _ in range(10)]
    in_flight = disk.driver.in_flight
    disk.driver.fail_all("the system stops")
    assert len(disk.completed) == 10 - in_flight
    disk.link.disconnect()
    assert sorted(map(id, disk.completed)) == sorted(map(id, requests))
    for request in requests:
        assert request.error is not None
        assert request.error.errno == errno.ESHUTDOWN
        assert "the system stops" in str(request.error)
    with pytest.raises(BlockError, match="the system stops"):
        disk.submit(blk.T_FLUSH)


def test_withdrawn_request_ends_once(make: Callable[..., Disk]) -> None:
    disk = make(queue_size=4)
    disk.link.connect()
    requests = [disk.submit(blk.T_IN, 0, BLOCK, disk.buffer()) for _ in range(4)]
    last, first = requests[-1], requests[0]
    disk.driver.withdraw(last)
    assert last.error is not None
    assert last.error.errno == errno.ECANCELED
    disk.driver.withdraw(first)
    assert disk.completed == [last]  # the device has the first
    disk.link.disconnect()
    assert first.error is not None
    assert first.error.errno == errno.ECANCELED
    disk.driver.withdraw(first)
    disk.link.connect()
    disk.link.run()
    assert sorted(map(id, disk.completed)) == sorted(map(id, requests))
    disk.driver.withdraw(BlockRequest(blk.T_FLUSH))


def test_resize_is_noticed(disk: Disk) -> None:
    told: list[int] = []
    disk.driver.on_resize = lambda: told.append(disk.driver.capacity)
    disk.image.resize(2 * SIZE)
    disk.device.resize(2 * SIZE)
    assert told == [2 * SIZE]
    disk.link.disconnect()
    disk.driver.config_changed()
    assert told == [2 * SIZE]


# Against a model


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), mode=st.sampled_from(MODES), losses=st.integers(0, 4))
def test_random_operations_with_lost_sessions_equal_a_bytearray(
    seed: int, mode: dict[str, object], losses: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    disk = Disk(tmp_path_factory.mktemp("model") / "disk.img", **mode)  # type: ignore[arg-type]
    model = bytearray(256 * 1024)
    choose = random.Random(seed)
    disk.link.connect()
    for _ in range(losses + 1):
        # Ranges that do not overlap, so that the order of execution does not matter.
        starts = choose.sample(range(0, len(model), 8192), 24)
        reads = []
        for start in starts:
            length = choose.randrange(1, 17) * 512
            kind = choose.choice([blk.T_IN, blk.T_OUT, blk.T_OUT, blk.T_WRITE_ZEROES])
            if kind == blk.T_WRITE_ZEROES:
                disk.submit(kind, start, length)
                model[start : start + length] = bytes(length)
            elif kind == blk.T_OUT:
                data = choose.randbytes(length)
                disk.submit(kind, start, length, disk.buffer(data))
                model[start : start + length] = data
            else:
                target = disk.buffer(bytes(length))
                disk.submit(kind, start, length, target)
                reads.append((target, bytes(model[start : start + length])))
        disk.driver.kick()
        if choose.random() < 0.7:
            disk.link.run_device()
        disk.link.disconnect()
        disk.link.connect()
        disk.link.run()
        for target, expected in reads:
            assert target.view == expected
    assert len(disk.completed) == 24 * (losses + 1)
    assert all(request.error is None for request in disk.completed)
    back = bytearray(len(model))
    disk.image.read_into(0, memoryview(back))
    assert back == model
    disk.close()
