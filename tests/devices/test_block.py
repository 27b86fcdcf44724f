"""The block device's answers to what a driver can send (virtio 1.4, 5.2), well-formed and not."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.errors import LocalError, RemoteError
from powervio.memory.abstract import Backing
from powervio.storage.image import Image, open_image
from powervio.testing.direct import BASE, DirectLink, bytewise, whole
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import block as blk
from powervio.virtio.queue import ByteOrder, Segment

MIB = 1 << 20
SIZE = MIB
ALL = (1 << 128) - 1


class MemoryBacking(Backing):
    """A backing that remembers what was asked of it and fails when told to."""

    def __init__(self, size: int = SIZE, *, read_only: bool = False, can_discard: bool = True) -> None:
        self.data = bytearray(size)
        self.size = size
        self.read_only = read_only
        self.block_size = 512
        self.can_discard = can_discard
        self.can_secure_erase = False
        self.calls: list[str] = []
        self.failure: OSError | None = None

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.failure is not None:
            raise self.failure

    def read_into(self, position: int, buffer: memoryview) -> None:
        self._call("read")
        buffer[:] = self.data[position : position + len(buffer)]

    def write_from(self, position: int, buffer: memoryview) -> None:
        self._call("write")
        self.data[position : position + len(buffer)] = buffer

    def flush(self) -> None:
        self._call("flush")

    def discard(self, position: int, length: int) -> None:
        self._call(f"discard {position} {length}")
        self.data[position : position + length] = b"\xdd" * length

    def secure_erase(self, position: int, length: int) -> None:
        self._call(f"erase {position} {length}")
        self.data[position : position + length] = b"\xff" * length

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        self._call(f"zero {position} {length}{' unmap' if unmap else ''}")
        self.data[position : position + length] = bytes(length)

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]

    def close(self) -> None:
        pass


class Setup:
    """A device with a raw driver."""

    def __init__(
        self,
        backing: Backing,
        options: BlockOptions | None = None,
        features: int = ALL,
        byteorder: ByteOrder = "little",
        queues: int = 1,
        framing: Callable[[Segment], list[Segment]] = whole,
    ) -> None:
        self.device = BlockDevice(backing, options)
        self.driver = RawDriver(features, queues)
        self.link = DirectLink(self.device, self.driver, byteorder=byteorder, memory=32 * MIB, framing=framing)
        self.link.connect()
        self.header = blk.REQUEST_HEADER[byteorder]
        self.segment = blk.SEGMENT[byteorder]

    def send(self, readable: list[bytes], writable: list[int], queue: int = 0) -> Exchange:
        exchange = self.driver.send(readable, writable, queue)
        self.link.run()
        assert exchange.times == 1
        return exchange

    def status(self, kind: int, sector: int, data: bytes = b"", room: int = 0) -> tuple[int, int | None]:
        """Send one request; its status and the used length."""
        exchange = self.send([self.header.pack(kind, 0, sector) + data], [room + 1])
        return exchange.answer[-1], exchange.used

    def ranges(self, kind: int, *ranges: tuple[int, int, int]) -> int:
        """Send a discard or a write of zeroes of `(sector, count, flags)`; its status."""
        return self.status(kind, 0, b"".join(self.segment.pack(*one) for one in ranges))[0]


@pytest.fixture
def backing() -> MemoryBacking:
    return MemoryBacking()


@pytest.fixture
def disk(backing: MemoryBacking) -> Setup:
    return Setup(backing)


# Reading and writing


def test_write_then_read_gives_the_data_and_exact_used_lengths(disk: Setup, backing: MemoryBacking) -> None:
    data = os.urandom(4096)
    assert disk.status(blk.T_OUT, 8, data) == (blk.S_OK, 1)
    assert backing.data[4096:8192] == data
    exchange = disk.send([disk.header.pack(blk.T_IN, 0, 8)], [4096, 1])
    assert exchange.answer == data + b"\0"
    assert exchange.used == 4097


@pytest.mark.parametrize("sizes", [[1], [16, 4096], [4, 4, 8, 2048, 2048], [1] * 20 + [4092]])
def test_write_framed_in_any_way_is_the_same_write(disk: Setup, backing: MemoryBacking, sizes: list[int]) -> None:
    data = os.urandom(4096)
    stream = disk.header.pack(blk.T_OUT, 0, 0) + data
    parts = []
    for size in sizes:
        parts.append(stream[:size])
        stream = stream[size:]
    if stream:
        parts.append(stream)
    exchange = disk.send(parts, [1])
    assert exchange.answer == b"\0"
    assert backing.data[:4096] == data


@pytest.mark.parametrize("sizes", [[513], [512, 1], [1, 512], [1] * 100 + [413], [256, 257]])
def test_read_framed_in_any_way_is_the_same_read(disk: Setup, backing: MemoryBacking, sizes: list[int]) -> None:
    backing.data[:512] = os.urandom(512)
    exchange = disk.send([disk.header.pack(blk.T_IN, 0, 0)], sizes)
    assert exchange.answer == bytes(backing.data[:512]) + b"\0"
    assert exchange.used == 513


def test_requests_in_descriptors_of_one_byte_work(backing: MemoryBacking) -> None:
    disk = Setup(backing, framing=bytewise)
    data = os.urandom(1024)
    assert disk.status(blk.T_OUT, 2, data) == (blk.S_OK, 1)
    assert disk.send([disk.header.pack(blk.T_IN, 0, 2)], [1025]).answer == data + b"\0"


def test_request_of_no_data_succeeds_without_touching_the_backing(disk: Setup, backing: MemoryBacking) -> None:
    assert disk.status(blk.T_IN, 0) == (blk.S_OK, 1)
    assert disk.status(blk.T_OUT, 0) == (blk.S_OK, 1)
    assert backing.calls == []


@pytest.mark.parametrize(
    ("sector", "length"),
    [(2048, 512), (2047, 1024), (0, 511), (0, 513), (1 << 55, 512), ((1 << 64) - 1, 512), ((1 << 64) - 1, 1024)],
)
def test_range_that_is_not_on_the_disk_is_ioerr(disk: Setup, backing: MemoryBacking, sector: int, length: int) -> None:
    assert disk.status(blk.T_OUT, sector, b"x" * length) == (blk.S_IOERR, 1)
    # Nothing was written before the status, so the used length must not cover it.
    assert disk.status(blk.T_IN, sector, room=length) == (blk.S_IOERR, 0)
    assert not any(backing.data)
    assert disk.device.counters.errors == {"range": 2}


def test_last_sector_can_be_read_and_written(disk: Setup) -> None:
    assert disk.status(blk.T_OUT, 2047, b"x" * 512)[0] == blk.S_OK
    assert disk.status(blk.T_IN, 2047, room=512)[0] == blk.S_OK


def test_write_with_more_room_than_a_status_reports_nothing_written(disk: Setup) -> None:
    exchange = disk.send([disk.header.pack(blk.T_OUT, 0, 0) + bytes(512)], [5])
    assert exchange.answer == b"\xee" * 4 + b"\0"
    assert exchange.used == 0


@pytest.mark.parametrize("kind", [blk.T_IN, blk.T_OUT, blk.T_FLUSH, 99])
def test_request_without_room_for_a_status_is_given_back_empty(disk: Setup, backing: MemoryBacking, kind: int) -> None:
    exchange = disk.send([disk.header.pack(kind, 0, 0) + bytes(512)], [])
    assert exchange.used == 0
    assert backing.calls == []
    assert disk.device.counters.errors == {"no status": 1}


@pytest.mark.parametrize("length", [0, 1, 15])
def test_short_header_is_ioerr(disk: Setup, length: int) -> None:
    exchange = disk.send([bytes(length)] if length else [], [513])
    assert exchange.answer[-1] == blk.S_IOERR
    assert exchange.used == 0


# Caches


def test_flush_flushes_the_backing(disk: Setup, backing: MemoryBacking) -> None:
    assert disk.status(blk.T_OUT, 0, bytes(512))[0] == blk.S_OK
    assert disk.status(blk.T_FLUSH, 0) == (blk.S_OK, 1)
    assert backing.calls == ["write", "flush"]


def test_flush_not_negotiated_makes_each_change_stable(backing: MemoryBacking) -> None:
    disk = Setup(backing, features=ALL & ~blk.F_FLUSH)
    assert disk.link.features & blk.F_CONFIG_WCE
    assert disk.device.config("little")[blk.WRITEBACK_OFFSET] == 0
    disk.status(blk.T_OUT, 0, bytes(512))
    disk.ranges(blk.T_WRITE_ZEROES, (0, 1, 0))
    disk.ranges(blk.T_DISCARD, (0, 1, 0))
    assert backing.calls == ["write", "flush", "zero 0 512", "flush", "discard 0 512", "flush"]
    disk.driver.transport.write_config(blk.WRITEBACK_OFFSET, b"\1")  # type: ignore[union-attr]
    assert not disk.device.writeback


def test_writeback_is_switched_by_the_driver_until_reset(disk: Setup, backing: MemoryBacking) -> None:
    transport = disk.driver.transport
    assert transport is not None
    assert blk.unpack_config(transport.config(), "little").writeback == 1
    transport.write_config(blk.WRITEBACK_OFFSET, b"\0")
    assert blk.unpack_config(transport.config(), "little").writeback == 0
    disk.status(blk.T_OUT, 0, bytes(512))
    assert backing.calls == ["write", "flush"]
    transport.write_config(blk.WRITEBACK_OFFSET, b"\1")
    disk.status(blk.T_OUT, 0, bytes(512))
    assert backing.calls == ["write", "flush", "write"]
    transport.write_config(blk.WRITEBACK_OFFSET, b"\0")
    disk.device.reset()
    assert disk.device.writeback


@pytest.mark.parametrize(
    ("offset", "data"), [(0, b"\0"), (32, b"\0\0"), (32, b"\2"), (33, b"\0"), (200, b"\0"), (32, b"")]
)
def test_write_of_other_config_is_a_remote_error(disk: Setup, offset: int, data: bytes) -> None:
    with pytest.raises(RemoteError):
        disk.device.write_config(offset, data, "little")


def test_write_of_writeback_without_the_feature_is_a_remote_error(backing: MemoryBacking) -> None:
    disk = Setup(backing, features=ALL & ~blk.F_CONFIG_WCE)
    with pytest.raises(RemoteError, match="without CONFIG_WCE"):
        disk.device.write_config(blk.WRITEBACK_OFFSET, b"\0", "little")


def test_write_through_option_flushes_each_write(backing: MemoryBacking) -> None:
    disk = Setup(backing, BlockOptions(writeback=False))
    disk.status(blk.T_OUT, 0, bytes(512))
    assert backing.calls == ["write", "flush"]


# Discard and zeroes


def test_write_zeroes_reads_back_zero(disk: Setup, backing: MemoryBacking) -> None:
    backing.data[:] = b"x" * SIZE
    assert disk.ranges(blk.T_WRITE_ZEROES, (2, 3, 0), (10, 1, blk.SEGMENT_UNMAP)) == blk.S_OK
    assert backing.calls == ["zero 1024 1536", "zero 5120 512 unmap"]
    assert disk.send([disk.header.pack(blk.T_IN, 0, 2)], [1537]).answer == bytes(1537)


def test_discard_reaches_the_backing(disk: Setup, backing: MemoryBacking) -> None:
    assert disk.ranges(blk.T_DISCARD, (2, 3, 0), (0, 0, 0)) == blk.S_OK
    assert backing.calls == ["discard 1024 1536", "discard 0 0"]
    assert disk.device.counters.discards == 1


@pytest.mark.parametrize(
    ("kind", "flags"),
    [(blk.T_DISCARD, 1), (blk.T_DISCARD, 2), (blk.T_WRITE_ZEROES, 2), (blk.T_WRITE_ZEROES, 1 << 31)],
)
def test_unknown_flag_of_a_range_is_unsupp_and_changes_nothing(
    disk: Setup, backing: MemoryBacking, kind: int, flags: int
) -> None:
    assert disk.ranges(kind, (0, 1, 0), (1, 1, flags)) == blk.S_UNSUPP
    assert backing.calls == []


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
@pytest.mark.parametrize("bad", [(2048, 1, 0), (0, 2049, 0), (1 << 63, 1, 0), ((1 << 64) - 1, (1 << 32) - 1, 0)])
def test_range_beyond_the_disk_is_ioerr_and_changes_nothing(
    disk: Setup, backing: MemoryBacking, kind: int, bad: tuple[int, int, int]
) -> None:
    assert disk.ranges(kind, (0, 1, 0), bad) == blk.S_IOERR
    assert backing.calls == []


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
def test_range_longer_than_the_limit_is_ioerr(backing: MemoryBacking, kind: int) -> None:
    disk = Setup(backing, BlockOptions(max_discard_sectors=8, max_write_zeroes_sectors=8))
    assert disk.ranges(kind, (0, 8, 0)) == blk.S_OK
    assert disk.ranges(kind, (0, 9, 0)) == blk.S_IOERR


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
@pytest.mark.parametrize("data", [b"", bytes(15), bytes(17), bytes(16 * 17)])
def test_malformed_ranges_are_ioerr(disk: Setup, backing: MemoryBacking, kind: int, data: bytes) -> None:
    assert disk.status(kind, 0, data) == (blk.S_IOERR, 1)
    assert backing.calls == []


@pytest.mark.parametrize("kind", [blk.T_DISCARD, blk.T_WRITE_ZEROES])
def test_range_request_that_was_not_negotiated_is_unsupp(backing: MemoryBacking, kind: int) -> None:
    disk = Setup(backing, features=blk.F_FLUSH)
    assert disk.ranges(kind, (0, 1, 0)) == blk.S_UNSUPP
    assert backing.calls == []


def test_backing_without_discard_is_not_offered_it(backing: MemoryBacking) -> None:
    device = BlockDevice(MemoryBacking(can_discard=False))
    assert not device.features & blk.F_DISCARD
    assert device.features & blk.F_WRITE_ZEROES
    assert blk.unpack_config(device.config("little"), "little").write_zeroes_may_unmap == 0


# Other requests


@pytest.mark.parametrize("room", [0, 1, 19, 20, 21, 100])
def test_get_id_fills_up_to_20_bytes(backing: MemoryBacking, room: int) -> None:
    disk = Setup(backing, BlockOptions(serial="PVIO-0001"))
    exchange = disk.send([disk.header.pack(blk.T_GET_ID, 0, 0)], [room, 1] if room else [1])
    full = b"PVIO-0001".ljust(20, b"\0")
    assert exchange.answer[:20][:room] == full[:room]
    assert exchange.answer[-1] == blk.S_OK
    assert exchange.used == (room + 1 if room <= 20 else 20)


@pytest.mark.parametrize("kind", [2, 3, 6, 7, 9, 10, 12, 14, 15, 16, 18, 20, 22, 24, 26, 255, 1 << 31, (1 << 32) - 1])
def test_other_request_is_unsupp(disk: Setup, backing: MemoryBacking, kind: int) -> None:
    assert disk.status(kind, 0, bytes(16), 512) == (blk.S_UNSUPP, 0)
    assert backing.calls == []


# Read-only


@pytest.mark.parametrize("by", ["backing", "option"])
def test_change_of_a_read_only_disk_is_refused_and_nothing_written(by: str) -> None:
    backing = MemoryBacking(read_only=by == "backing")
    disk = Setup(backing, BlockOptions(read_only=by == "option"))
    assert disk.device.features & blk.F_RO
    assert disk.status(blk.T_OUT, 0, b"x" * 512) == (blk.S_IOERR, 1)
    assert disk.ranges(blk.T_WRITE_ZEROES, (0, 1, 0)) == blk.S_UNSUPP
    assert disk.ranges(blk.T_DISCARD, (0, 1, 0)) == blk.S_UNSUPP
    assert disk.status(blk.T_IN, 0, room=512)[0] == blk.S_OK
    assert disk.status(blk.T_FLUSH, 0)[0] == blk.S_OK
    assert backing.calls == ["read", "flush"]


def test_write_of_a_read_only_disk_without_the_feature_is_refused_too() -> None:
    backing = MemoryBacking(read_only=True)
    disk = Setup(backing, features=0)
    assert disk.status(blk.T_OUT, 0, b"x" * 512) == (blk.S_IOERR, 1)
    assert backing.calls == []


# Faults


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_failing_backing_is_ioerr_and_the_rest_goes_on(disk: Setup, backing: MemoryBacking, code: int) -> None:
    backing.failure = OSError(code, os.strerror(code))
    assert disk.status(blk.T_OUT, 0, bytes(512)) == (blk.S_IOERR, 1)
    assert disk.status(blk.T_IN, 0, room=512) == (blk.S_IOERR, 0)
    assert disk.status(blk.T_FLUSH, 0) == (blk.S_IOERR, 1)
    assert disk.ranges(blk.T_DISCARD, (0, 1, 0)) == blk.S_IOERR
    assert disk.ranges(blk.T_WRITE_ZEROES, (0, 1, 0)) == blk.S_IOERR
    backing.failure = None
    assert disk.status(blk.T_OUT, 0, bytes(512)) == (blk.S_OK, 1)
    assert disk.device.counters.errors == {"backing": 5}


def test_write_through_with_failing_flush_is_ioerr(backing: MemoryBacking) -> None:
    disk = Setup(backing, BlockOptions(writeback=False))

    def fail() -> None:
        raise OSError(errno.EIO, "lost")

    backing.flush = fail  # type: ignore[method-assign]
    assert disk.status(blk.T_OUT, 0, bytes(512)) == (blk.S_IOERR, 1)


def _add(disk: Setup, segments: list[tuple[int, int]], readable: int) -> Exchange:
    """Put a buffer with any device addresses into the ring and let the device serve it."""
    memory = disk.link.memory.allocate(1)
    exchange = Exchange(memory, 0, 0)
    queue = disk.link.driver_queues[0]
    assert queue.ring.add(segments, readable, (exchange, None)) >= 0
    queue.kick()
    disk.link.run()
    assert exchange.times == 1
    return exchange


OUTSIDE = BASE - 4096


def test_header_that_cannot_be_read_is_ioerr(disk: Setup) -> None:
    status = disk.link.memory.allocate(1)
    assert status.device_address is not None
    exchange = _add(disk, [(OUTSIDE, 16), (status.device_address, 1)], 1)
    assert status.view[0] == blk.S_IOERR
    assert exchange.used == 1
    assert disk.device.counters.errors == {"memory": 1}


def test_data_that_cannot_be_reached_is_ioerr(disk: Setup, backing: MemoryBacking) -> None:
    memory = disk.link.memory.allocate(64)
    at = memory.device_address
    assert at is not None
    disk.header.pack_into(memory.view, 0, blk.T_IN, 0, 0)
    exchange = _add(disk, [(at, 16), (OUTSIDE, 512), (at + 16, 1)], 1)
    assert memory.view[16] == blk.S_IOERR
    assert exchange.used == 0


def test_status_that_cannot_be_written_gives_the_buffer_back(disk: Setup) -> None:
    memory = disk.link.memory.allocate(64)
    at = memory.device_address
    assert at is not None
    disk.header.pack_into(memory.view, 0, blk.T_FLUSH, 0, 0)
    assert _add(disk, [(at, 16), (OUTSIDE, 1)], 1).used == 0
    assert disk.device.counters.errors == {"no status": 1}
    assert disk.status(blk.T_IN, 0, room=512)[0] == blk.S_OK


@given(readable=st.binary(max_size=80), room=st.integers(0, 1100), kind=st.sampled_from([0, 1, 4, 8, 11, 13, 77]))
@settings(max_examples=300)
def test_any_request_gets_one_answer_and_no_exception(readable: bytes, room: int, kind: int) -> None:
    disk = Setup(MemoryBacking())
    parts = [kind.to_bytes(4, "little") + readable]
    exchange = disk.send(parts, [room] if room else [])
    assert exchange.used is not None
    assert exchange.used <= room
    assert 0xEE not in exchange.answer[: exchange.used] or kind in (0, 8)
    if room:
        assert exchange.answer[-1] in (blk.S_OK, blk.S_IOERR, blk.S_UNSUPP)
    disk.link.close()


# Byte order, queues, config


def test_big_endian_legacy_guest_is_served_in_its_order(backing: MemoryBacking) -> None:
    disk = Setup(backing, byteorder="big")
    data = os.urandom(512)
    assert disk.status(blk.T_OUT, 3, data) == (blk.S_OK, 1)
    assert backing.data[1536:2048] == data
    assert disk.ranges(blk.T_WRITE_ZEROES, (3, 1, 0)) == blk.S_OK
    assert not any(backing.data)
    assert disk.driver.transport is not None
    assert disk.driver.transport.config()[:8] == (2048).to_bytes(8, "big")


def test_each_of_several_queues_is_served(backing: MemoryBacking) -> None:
    disk = Setup(backing, BlockOptions(queues=4), queues=4)
    assert disk.device.features & blk.F_MQ
    for queue in range(4):
        data = bytes([queue]) * 512
        exchange = disk.send([disk.header.pack(blk.T_OUT, 0, queue) + data], [1], queue)
        assert exchange.answer == b"\0"
    assert backing.data[:2048] == b"".join(bytes([queue]) * 512 for queue in range(4))


def test_config_tells_what_the_options_say() -> None:
    options = BlockOptions(
        queues=2, block_size=1024, physical_block_size=4096, optimal_io_size=65536, size_max=65536, seg_max=32,
        max_discard_sectors=1000, max_write_zeroes_sectors=500, max_segments=3,
    )  # fmt: skip
    device = BlockDevice(MemoryBacking(), options)
    config = blk.unpack_config(device.config("little"), "little")
    assert config.capacity == 2048  # sectors, whatever the block size
    assert (config.size_max, config.seg_max, config.num_queues) == (65536, 32, 2)
    assert (config.blk_size, config.physical_block_exp, config.min_io_size, config.opt_io_size) == (1024, 2, 4, 64)
    assert (config.max_discard_sectors, config.max_discard_seg, config.discard_sector_alignment) == (1000, 3, 8)
    assert (config.max_write_zeroes_sectors, config.max_write_zeroes_seg) == (500, 3)
    assert config.write_zeroes_may_unmap == 1
    assert len(device.config("little")) == 60


def test_features_are_those_that_are_served() -> None:
    assert BlockDevice(MemoryBacking()).features == (
        blk.F_SIZE_MAX | blk.F_SEG_MAX | blk.F_BLK_SIZE | blk.F_FLUSH | blk.F_TOPOLOGY | blk.F_CONFIG_WCE
        | blk.F_DISCARD | blk.F_WRITE_ZEROES
    )  # fmt: skip
    assert not BlockDevice(MemoryBacking(), BlockOptions(config_wce=False)).features & blk.F_CONFIG_WCE
    assert not BlockDevice(MemoryBacking(), BlockOptions(discard=False)).features & blk.F_DISCARD


@pytest.mark.parametrize(
    "options",
    [
        BlockOptions(block_size=256),
        BlockOptions(block_size=3000),
        BlockOptions(physical_block_size=5000),
        BlockOptions(optimal_io_size=100),
        BlockOptions(queues=0),
        BlockOptions(queues=70000),
        BlockOptions(queue_size=100),
        BlockOptions(queue_size=2),
        BlockOptions(seg_max=127),
        BlockOptions(seg_max=0),
        BlockOptions(size_max=100),
        BlockOptions(max_discard_sectors=0),
        BlockOptions(max_segments=0),
        BlockOptions(serial="x" * 21),
        BlockOptions(serial="é"),
    ],
)
def test_impossible_option_is_a_local_error(options: BlockOptions) -> None:
    with pytest.raises(LocalError):
        BlockDevice(MemoryBacking(), options)


def test_resize_changes_capacity_and_tells_the_driver(disk: Setup, backing: MemoryBacking) -> None:
    assert disk.status(blk.T_IN, 1024, room=512)[0] == blk.S_OK
    disk.device.resize(512 * 1024)
    assert disk.driver.config_changes == 1
    assert disk.device.config_generation == 1
    assert disk.driver.transport is not None
    assert blk.unpack_config(disk.driver.transport.config(), "little").capacity == 1024
    assert disk.status(blk.T_IN, 1024, room=512)[0] == blk.S_IOERR
    disk.device.resize(512 * 1024)
    assert disk.driver.config_changes == 1
    with pytest.raises(LocalError):
        disk.device.resize(2 * SIZE)
    with pytest.raises(LocalError):
        disk.device.resize(1000)


def test_counters_tell_what_happened(disk: Setup) -> None:
    disk.status(blk.T_OUT, 0, bytes(1024))
    disk.status(blk.T_IN, 0, room=512)
    disk.status(blk.T_FLUSH, 0)
    disk.status(99, 0)
    counters = disk.device.counters
    assert (counters.reads, counters.bytes_read) == (1, 512)
    assert (counters.writes, counters.bytes_written) == (1, 1024)
    assert counters.flushes == 1
    assert counters.errors == {"unsupported": 1}
    assert disk.device.requests == 4


def test_state_is_taken_over_by_another_device(disk: Setup, backing: MemoryBacking) -> None:
    assert disk.driver.transport is not None
    disk.driver.transport.write_config(blk.WRITEBACK_OFFSET, b"\0")
    disk.device.resize(SIZE // 2)
    other = BlockDevice(backing)
    other.restore(disk.device.state())
    assert (other.writeback, other.capacity) == (False, SIZE // 2)
    bad: tuple[dict[str, object], ...] = (
        {},
        {"writeback": True, "capacity": 2 * SIZE},
        {"writeback": 1, "capacity": SIZE},
    )
    for state in bad:
        with pytest.raises(LocalError):
            other.restore(state)


# A real image


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Image]:
    with open_image(tmp_path / "disk.img", create_size=4 * MIB) as made:
        yield made


def test_image_that_shrinks_fails_its_requests_only(image: Image) -> None:
    disk = Setup(image)
    assert disk.status(blk.T_OUT, 0, b"x" * 512)[0] == blk.S_OK
    os.truncate(image.path, MIB)
    assert disk.status(blk.T_IN, 2 * MIB // 512, room=512) == (blk.S_IOERR, 0)
    assert disk.status(blk.T_OUT, 2 * MIB // 512, bytes(512)) == (blk.S_IOERR, 1)
    assert disk.send([disk.header.pack(blk.T_IN, 0, 0)], [513]).answer == b"x" * 512 + b"\0"


def test_discard_of_a_sparse_image_gives_space_back(image: Image) -> None:
    disk = Setup(image)
    for sector in range(0, 8192, 512):
        assert disk.status(blk.T_OUT, sector, os.urandom(512 * 512))[0] == blk.S_OK
    assert disk.status(blk.T_FLUSH, 0)[0] == blk.S_OK
    before = os.stat(image.path).st_blocks
    assert disk.ranges(blk.T_DISCARD, (0, 4096, 0)) == blk.S_OK
    assert os.stat(image.path).st_blocks < before


# SECURE_ERASE


@pytest.fixture
def erasing(backing: MemoryBacking) -> Setup:
    backing.can_secure_erase = True
    return Setup(backing, BlockOptions(max_secure_erase_sectors=64))


def test_secure_erase_is_offered_only_where_the_backing_can(backing: MemoryBacking, erasing: Setup) -> None:
    assert erasing.device.features & blk.F_SECURE_ERASE
    config = blk.unpack_config(erasing.device.config("little"), "little")
    limits = (config.max_secure_erase_sectors, config.max_secure_erase_seg, config.secure_erase_sector_alignment)
    assert limits == (64, 16, 1)
    backing.can_secure_erase = False
    plain = BlockDevice(backing)
    assert not plain.features & blk.F_SECURE_ERASE
    assert len(plain.config("little")) == 60
    backing.can_secure_erase = True
    assert not BlockDevice(backing, BlockOptions(read_only=True)).features & blk.F_SECURE_ERASE


def test_secure_erase_erases_every_range(backing: MemoryBacking, erasing: Setup) -> None:
    assert erasing.ranges(blk.T_SECURE_ERASE, (8, 8, 0), (100, 1, 0)) == blk.S_OK
    assert backing.calls == ["erase 4096 4096", "erase 51200 512"]
    assert erasing.device.counters.secure_erases == 1


@pytest.mark.parametrize(
    ("ranges", "status"),
    [
        ([(0, 8, blk.SEGMENT_UNMAP)], blk.S_UNSUPP),
        ([(0, 65, 0)], blk.S_IOERR),
        ([(SIZE // 512, 1, 0)], blk.S_IOERR),
        ([(0, 1, 0)] * 17, blk.S_IOERR),
        ([], blk.S_IOERR),
    ],
)
def test_secure_erase_that_must_not_be_touches_nothing(
    backing: MemoryBacking, erasing: Setup, ranges: list[tuple[int, int, int]], status: int
) -> None:
    assert erasing.ranges(blk.T_SECURE_ERASE, *ranges) == status
    assert not backing.calls


def test_secure_erase_that_was_not_negotiated_or_that_the_backing_cannot_is_unsupported(
    backing: MemoryBacking, erasing: Setup
) -> None:
    backing.failure = OSError(errno.EOPNOTSUPP, "no")
    assert erasing.ranges(blk.T_SECURE_ERASE, (0, 8, 0)) == blk.S_UNSUPP
    assert Setup(backing, features=ALL & ~blk.F_SECURE_ERASE).ranges(blk.T_SECURE_ERASE, (0, 8, 0)) == blk.S_UNSUPP
