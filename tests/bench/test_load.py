"""The load generator at our own back end: what it counts, and what it makes of a device that is wrong."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vhost_user.harness import Serving, serving

from powervio.bench.load import EventPort, Load
from powervio.bench.load_vhost_user import RING_FEATURES, VhostUserDisk
from powervio.bench.reads import BLOCK, write_numbered
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Backing
from powervio.storage.image import open_image
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.virtio import features as feature
from powervio.virtio.device import Device
from powervio.virtio.queue import DeviceQueue

pytestmark = pytest.mark.dual

BLOCKS = 64
FIRST = 1000


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    write_numbered(path, BLOCKS * BLOCK, FIRST)
    return path


@contextmanager
def served(
    folder: Path, backing: Backing, ring_features: int = RING_FEATURES, *, device: Device | None = None
) -> Iterator[tuple[Serving, VhostUserDisk]]:
    device = device or BlockDevice(backing, BlockOptions())
    options = BackEndOptions(packed=bool(ring_features & feature.RING_PACKED))
    with serving(folder, device, options) as back, VhostUserDisk(back.path, ring_features=ring_features) as disk:
        assert disk.features & ring_features == ring_features
        yield back, disk


@pytest.mark.parametrize("polling", [False, True], ids=["sleeping", "polling"])
@pytest.mark.parametrize(
    "ring_features",
    [
        feature.VERSION_1,
        RING_FEATURES,
        RING_FEATURES | feature.RING_PACKED,
        feature.VERSION_1 | feature.RING_PACKED | feature.INDIRECT_DESC,
    ],
    ids=["plain", "split", "packed", "packed-no-events"],
)
def test_reads_are_counted_and_come_back_in_one_piece(
    tmp_path: Path, image: Path, ring_features: int, polling: bool
) -> None:
    with open_image(image) as backing, served(tmp_path, backing, ring_features) as (back, disk):
        disk.port.polling = polling
        assert disk.blocks == BLOCKS
        deep, single = disk.load(32, first=FIRST), disk.load(1, first=FIRST)
        counts = [load.run(0.02) for load in (deep, single, deep)]
        assert min(counts) > 0
        assert counts[0] >= 32
        assert deep.requests == counts[0] + counts[2]
        assert deep.nanoseconds >= 20_000_000
        assert disk.port.kicks > 0
        assert (disk.port.sleeps == 0) is polling
        assert back.server.failures == []


def test_run_of_no_time_is_one_request_for_each_place(tmp_path: Path, image: Path) -> None:
    with open_image(image) as backing, served(tmp_path, backing) as (_, disk):
        assert disk.load(8, first=FIRST).run(0.0) == 8


def test_writes_put_the_numbers_where_the_device_said_so(tmp_path: Path, image: Path) -> None:
    first = FIRST + 5000
    with open_image(image) as backing, served(tmp_path, backing) as (_, disk):
        load = disk.load(4, writes=True, first=first)
        assert load.run(0.02) > 0
        touched = load.touched
    content = image.read_bytes()
    assert 0 < sum(touched) <= BLOCKS
    for block in range(BLOCKS):
        number = (first if touched[block] else FIRST) + block
        data = content[block * BLOCK :][:BLOCK]
        assert data[:8] == data[-8:] == number.to_bytes(8, "little")


@pytest.mark.parametrize(("offset", "what"), [(0, "0x0 at its start"), (BLOCK - 8, "0x0 at its end")])
def test_wrong_data_is_told_and_ends_the_load(tmp_path: Path, image: Path, offset: int, what: str) -> None:
    with image.open("r+b") as file:
        for block in range(BLOCKS):
            file.seek(block * BLOCK + offset)
            file.write(bytes(8))
    with open_image(image) as backing, served(tmp_path, backing) as (_, disk):
        load = disk.load(4, first=FIRST)
        with pytest.raises(LocalError, match=f"block 10.. was read as .*{what}"):
            load.run(1.0)
        assert load.requests == 0
        with pytest.raises(LocalError, match="has failed before"):
            load.run(1.0)


class Unreadable(Backing):
    """A disk of errors."""

    size = BLOCKS * BLOCK
    read_only = False
    block_size = 512
    can_discard = False

    def read_into(self, position: int, buffer: memoryview) -> None:
        raise OSError(errno.EIO, "broken")

    def write_from(self, position: int, buffer: memoryview) -> None:
        raise OSError(errno.EIO, "broken")

    def flush(self) -> None:
        pass

    def discard(self, position: int, length: int) -> None:
        raise NotImplementedError

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        raise NotImplementedError

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]

    def close(self) -> None:
        pass


@pytest.mark.parametrize("writes", [False, True])
def test_error_of_the_device_is_told(tmp_path: Path, writes: bool) -> None:
    with served(tmp_path, Unreadable()) as (_, disk):
        load = disk.load(4, writes=writes)
        with pytest.raises(LocalError, match="the device gave the status 0x1"):
            load.run(1.0)
        assert sum(load.touched) == 0


class Deaf(BlockDevice):
    """It serves nothing."""

    def process(self, queue: DeviceQueue) -> None:
        pass


def test_device_that_does_nothing_is_waited_for_with_a_limit(tmp_path: Path) -> None:
    backing = Unreadable()
    with served(tmp_path, backing, device=Deaf(backing, BlockOptions())) as (_, disk):
        for polling in (False, True):
            disk.port.polling = polling
            load = disk.load(2, patience=0.1)
            with pytest.raises(LocalError, match=r"no request completed for 0\.1 s, with 2 in flight"):
                load.run(0.01)


def test_broken_ring_is_the_devices_fault(tmp_path: Path, image: Path) -> None:
    with open_image(image) as backing, served(tmp_path, backing) as (back, disk):
        back.call(back.server.close)
        queue = disk._queue
        assert queue is not None
        queue.memory.used[2:4] = (5000).to_bytes(2, "little")
        with pytest.raises(RemoteError, match=r"used\.idx is 5000 ahead"):
            disk.load(2).run(0.01)


def test_depth_that_has_no_room_is_refused(tmp_path: Path, image: Path) -> None:
    with open_image(image) as backing, served(tmp_path, backing, feature.VERSION_1) as (_, disk):
        disk.load(42)
        for depth in (0, 43):
            with pytest.raises(LocalError, match="descriptors, and the queue has 128"):
                disk.load(depth)


def test_nobody_listening_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="no back end at"):
        VhostUserDisk(tmp_path / "nothing")


def test_port_that_is_none_raises(tmp_path: Path, image: Path) -> None:
    with open_image(image) as backing, served(tmp_path, backing) as (_, disk):
        port = EventPort(disk.port.ring, 999_999, 999_999, indirect=True)
        load = Load(port, disk._memory.allocate, 1, BLOCKS)
        with pytest.raises(OSError, match="the device cannot be kicked"):
            load.run(0.01)
