"""The block driver's awaitable operations, on an event loop."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver, BlockError
from powervio.errors import LocalError
from powervio.storage.image import Image, open_image
from powervio.testing.direct import DirectLink

MIB = 1 << 20
SIZE = 8 * MIB


class Disk:
    def __init__(self, image: Image, driver: BlockDriver, options: BlockOptions | None, queue_size: int) -> None:
        self.image = image
        self.driver = driver
        self.device = BlockDevice(image, options)
        loop = asyncio.get_running_loop()
        self.hold = False
        """While it is true nothing reaches the device or the driver."""

        def later(run: object) -> None:
            if not self.hold:
                loop.call_soon(self.link.run)

        self.link = DirectLink(self.device, driver, queue_size=queue_size, schedule=later)


@asynccontextmanager
async def disk_of(
    path: Path,
    driver: BlockDriver | None = None,
    options: BlockOptions | None = None,
    *,
    queue_size: int = 128,
    connect: bool = True,
) -> AsyncIterator[Disk]:
    with open_image(path / "disk.img", create_size=SIZE) as image:
        disk = Disk(image, driver or BlockDriver(buffer_size=65536, buffers=8), options, queue_size)
        if connect:
            disk.link.connect()
        yield disk
        disk.hold = True
        disk.link.close()


def test_smaller_pool_lets_buffers_go_when_they_are_free_and_a_larger_one_serves_who_waits(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            driver = disk.driver
            taken = [await driver.acquire_buffer(512) for _ in range(8)]
            driver.limit_buffers(2)
            for buffer in taken:
                driver.release_buffer(buffer)
            assert driver.pool.count == 2
            taken = [await driver.acquire_buffer(512) for _ in range(2)]
            waiting = asyncio.ensure_future(driver.acquire_buffer(512))
            await asyncio.sleep(0)
            assert not waiting.done()
            driver.limit_buffers(3)
            driver.release_buffer(await waiting)
            for buffer in taken:
                driver.release_buffer(buffer)

    run(main())


def test_released_driver_gives_every_buffer_back_also_those_in_use(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            driver = disk.driver
            first, second = await driver.acquire_buffer(512), await driver.acquire_buffer(512)
            driver.release_buffer(first)
            back: list[object] = []
            driver.fail_all("over")
            disk.link.disconnect()
            driver.release(back.append)
            assert first in back
            assert second not in back
            driver.release_buffer(second)
            assert back[-1] is second

    run(main())


def run(main: Coroutine[Any, Any, None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main

    asyncio.run(limited())


@pytest.mark.parametrize(
    "options", [None, BlockOptions(size_max=4096, seg_max=3), BlockOptions(queues=4), BlockOptions(writeback=False)]
)
def test_write_and_read_any_length_round_trip(tmp_path: Path, options: BlockOptions | None) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, options=options) as disk:
            for length in (512, 4096, 65536, 65536 + 512, 3 * MIB):
                data = os.urandom(length)
                await disk.driver.write(1024, data)
                assert await disk.driver.read(1024, length) == data
                target = bytearray(length)
                await disk.driver.read_into(1024, memoryview(target))
                assert target == data
            assert await disk.driver.read(0, 1024) == bytes(1024)
            assert await disk.driver.read(0, 0) == b""
            await disk.driver.write(0, b"")

    run(main())


def test_buffer_operations_move_a_part_of_a_buffer(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, options=BlockOptions(size_max=1024, seg_max=2)) as disk:
            buffer = await disk.driver.acquire_buffer(65536)
            data = os.urandom(8192)
            buffer.view[100:8292] = data
            await disk.driver.write_buffer(512, buffer, 100, 8192, fua=True)
            assert disk.device.counters.flushes == 1
            assert disk.device.counters.writes == 4
            buffer.view[:] = bytes(len(buffer.view))
            await disk.driver.read_buffer(512, buffer, 7, 8192)
            assert buffer.view[7:8199] == data
            assert not any(buffer.view[:7])
            assert not any(buffer.view[8199:])
            disk.driver.release_buffer(buffer)

    run(main())


def test_one_turn_of_the_loop_is_one_kick(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=32)) as disk:
            await asyncio.gather(*(disk.driver.read(index * 4096, 4096) for index in range(32)))
            assert disk.link.kicks == 1

    run(main())


def test_discard_is_split_at_the_device_s_limit_and_alignment(tmp_path: Path) -> None:
    async def main() -> None:
        options = BlockOptions(max_discard_sectors=20, physical_block_size=4096)
        async with disk_of(tmp_path, options=options) as disk:
            ranges: list[tuple[int, int]] = []
            disk.image.discard = lambda position, length: ranges.append((position, length))  # type: ignore[method-assign]
            await disk.driver.discard(512, 30 * 512)
            assert ranges == [(512, 8192 - 512), (8192, 30 * 512 + 512 - 8192)]
            ranges.clear()
            await disk.driver.discard(0, SIZE)
            assert sum(length for _, length in ranges) == SIZE
            assert all(position % 4096 == 0 and length <= 20 * 512 for position, length in ranges)

    run(main())


@pytest.mark.parametrize("offered", [True, False])
def test_write_zeroes_reads_zero_with_and_without_the_feature(tmp_path: Path, offered: bool) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, options=BlockOptions(max_write_zeroes_sectors=100), connect=False) as disk:
            if not offered:
                disk.driver.select_features = lambda offered: 0  # type: ignore[method-assign]
            disk.link.connect()
            await disk.driver.write(0, b"x" * MIB)
            await disk.driver.write_zeroes(512, 300 * 1024, unmap=True)
            data = await disk.driver.read(0, MIB)
            assert data == b"x" * 512 + bytes(300 * 1024) + b"x" * (MIB - 512 - 300 * 1024)
            assert (disk.device.counters.write_zeroes == 6) is offered

    run(main())


def test_get_id_is_the_serial(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, options=BlockOptions(serial="PVIO-42")) as disk:
            assert await disk.driver.get_id() == "PVIO-42"

    run(main())


def test_flush_without_the_feature_asks_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, connect=False) as disk:
            disk.driver.select_features = lambda offered: 0  # type: ignore[method-assign]
            disk.link.connect()
            await disk.driver.flush()
            assert disk.link.kicks == 0

    run(main())


def test_error_of_one_piece_is_raised_after_all_ended(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            os.truncate(disk.image.path, MIB)
            with pytest.raises(BlockError, match="I/O error") as caught:
                await disk.driver.read(MIB - 4 * 65536, 8 * 65536)
            assert caught.value.errno == errno.EIO
            assert disk.driver.in_flight == disk.driver.pending == 0
            assert await disk.driver.read(0, 512) == bytes(512)

    run(main())


def test_range_outside_the_disk_is_einval(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            for position, length in ((SIZE, 512), (0, 100), (100, 512)):
                with pytest.raises(BlockError) as caught:
                    await disk.driver.read(position, length)
                assert caught.value.errno == errno.EINVAL

    run(main())


# Buffers


def test_buffers_exhausted_waits_for_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=2)) as disk:
            driver = disk.driver
            first, second = await driver.acquire_buffer(1), await driver.acquire_buffer(4096)
            waiting = asyncio.create_task(driver.acquire_buffer(512))
            await asyncio.sleep(0)
            assert not waiting.done()
            driver.release_buffer(first)
            assert await waiting is first
            driver.release_buffer(first)
            driver.release_buffer(second)
            with pytest.raises(LocalError, match="more than the 4096"):
                await driver.acquire_buffer(4097)

    run(main())


def test_many_operations_share_two_buffers(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=2)) as disk:
            data = [os.urandom(8192) for _ in range(50)]
            await asyncio.gather(*(disk.driver.write(i * 8192, one) for i, one in enumerate(data)))
            back = await asyncio.gather(*(disk.driver.read(i * 8192, 8192) for i in range(50)))
            assert list(back) == data

    run(main())


def test_buffers_bounded_by_memory_are_shared_too(tmp_path: Path) -> None:
    async def main() -> None:
        with open_image(tmp_path / "disk.img", create_size=SIZE) as image:
            driver = BlockDriver(buffer_size=65536, buffers=1000)
            loop = asyncio.get_running_loop()
            link = DirectLink(BlockDevice(image), driver, memory=MIB, schedule=loop.call_soon)
            link.connect()
            data = os.urandom(4 * MIB)
            await driver.write(0, data)
            assert await driver.read(0, 4 * MIB) == data
            link.close()

    run(main())


def test_no_memory_for_one_buffer_is_a_local_error(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=128 * MIB)) as disk:
            with pytest.raises(LocalError, match="no 134217728 left"):
                await disk.driver.read(0, 512)

    run(main())


def test_cancelled_wait_for_a_buffer_loses_none(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=1)) as disk:
            driver = disk.driver
            buffer = await driver.acquire_buffer(1)
            waiting = asyncio.create_task(driver.acquire_buffer(1))
            await asyncio.sleep(0)
            driver.release_buffer(buffer)  # it is the waiter's now
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert await driver.acquire_buffer(1) is buffer
            gone = asyncio.create_task(driver.acquire_buffer(1))
            await asyncio.sleep(0)
            gone.cancel()
            await asyncio.sleep(0)
            driver.release_buffer(buffer)
            assert await driver.acquire_buffer(1) is buffer

    run(main())


@pytest.mark.parametrize("bad", [{"buffers": 0}, {"buffer_size": 100}, {"buffer_size": 1000}])
def test_impossible_pool_is_a_local_error(bad: dict[str, int]) -> None:
    with pytest.raises(LocalError):
        BlockDriver(**bad)  # type: ignore[arg-type]


# Sessions and cancellation


def test_operations_wait_for_the_first_session(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, connect=False) as disk:
            tasks = [
                asyncio.create_task(disk.driver.ready()),
                asyncio.create_task(disk.driver.write(0, b"x" * MIB)),
                asyncio.create_task(disk.driver.flush()),
                asyncio.create_task(disk.driver.discard(4 * MIB, MIB)),
                asyncio.create_task(disk.driver.write_zeroes(2 * MIB, MIB)),
            ]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in tasks)
            disk.link.connect()
            await asyncio.gather(*tasks)
            await disk.driver.ready()
            assert await disk.driver.read(0, MIB) == b"x" * MIB

    run(main())


def test_session_lost_with_32_in_flight_is_not_noticed(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=64)) as disk:
            disk.hold = True
            data = [os.urandom(4096) for _ in range(32)]
            tasks = [asyncio.create_task(disk.driver.write(i * 4096, one)) for i, one in enumerate(data)]
            while disk.driver.in_flight < 32:
                await asyncio.sleep(0)
            await asyncio.sleep(0)
            disk.link.run_device()
            disk.link.disconnect()
            await asyncio.sleep(0)
            assert not any(task.done() for task in tasks)
            disk.hold = False
            disk.link.connect()
            await asyncio.gather(*tasks)
            assert await disk.driver.read(0, 32 * 4096) == b"".join(data)
            assert disk.driver.resubmitted == 32

    run(main())


def test_fail_all_ends_everything_with_eshutdown(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=2), connect=False) as disk:
            tasks = [
                asyncio.create_task(one)
                for one in (
                    disk.driver.ready(),
                    disk.driver.read(0, 512),
                    disk.driver.read(0, MIB),
                    disk.driver.flush(),
                )
            ]
            await asyncio.sleep(0)
            disk.driver.fail_all("the system stops")
            for outcome in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(outcome, BlockError)
                assert outcome.errno == errno.ESHUTDOWN
            for call in (disk.driver.ready(), disk.driver.acquire_buffer(1), disk.driver.flush()):
                with pytest.raises(BlockError, match="the system stops"):
                    await call

    run(main())


def test_cancelled_operation_keeps_its_buffer_until_the_device_gave_it_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path, BlockDriver(buffer_size=4096, buffers=1)) as disk:
            disk.hold = True
            task = asyncio.create_task(disk.driver.read(0, 4096))
            while not disk.driver.in_flight:
                await asyncio.sleep(0)
            for _ in range(3):
                task.cancel()
                await asyncio.sleep(0.001)
            assert not task.done()
            assert not disk.driver.pool.free
            disk.link.run()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(disk.driver.pool.free) == 1

    run(main())


def test_cancelled_operation_without_a_session_ends_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            disk.hold = True
            task = asyncio.create_task(disk.driver.read(0, 4 * 65536))
            while disk.driver.in_flight < 4:
                await asyncio.sleep(0)
            disk.link.disconnect()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert disk.driver.pending == 0
            assert len(disk.driver.pool.free) == 4

    run(main())


def test_cancelled_in_flight_then_session_lost_ends(tmp_path: Path) -> None:
    async def main() -> None:
        async with disk_of(tmp_path) as disk:
            disk.hold = True
            task = asyncio.create_task(disk.driver.flush())
            while not disk.driver.in_flight:
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            disk.link.disconnect()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())
