"""The compiled loop of a disk (`devices/block_loop.py`): what it serves, what it leaves to others, and how it ends."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.vhost_user.harness import Serving, serving, until

from powervio import _compiled
from powervio.devices import block_loop
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.block_loop import BlockLoop
from powervio.drivers.block import BlockDriver, BlockError
from powervio.storage.image import Image, open_image
from powervio.testing.direct import DirectLink
from powervio.testing.raw import RawDriver
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.front_end import FrontEnd
from powervio.virtio import block as blk
from powervio.virtio import features as feature

pytestmark = pytest.mark.dual

MIB = 1 << 20
Use = Callable[[FrontEnd, BlockDriver, Serving], Coroutine[Any, Any, None]]


def with_disk(
    folder: Path, image: Image, use: Use, options: BlockOptions | None = None, back: BackEndOptions | None = None
) -> BlockDevice:
    """Serve the image and use it; the device, when all is over."""

    async def run(serving: Serving) -> None:
        driver = BlockDriver(buffers=32, buffer_size=65536, max_queues=4)
        end = FrontEnd(serving.path, driver)
        await end.start()
        await use(end, driver, serving)
        await end.close()

    device = BlockDevice(image, options)
    with serving(folder, device, back) as made:
        asyncio.run(run(made))
        assert made.server.failures == []
    assert device._loops == []
    return device


def loops(device: BlockDevice) -> list[BlockLoop]:
    return list(device._loops)


def test_each_queue_has_a_loop_and_python_serves_only_what_is_rare(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        device = back.device
        assert isinstance(device, BlockDevice)
        assert len(end.queues) == 3
        await until(lambda: len(loops(device)) == 3)
        at_work = loops(device)
        data = os.urandom(MIB)
        await asyncio.gather(*(driver.write(at, data[at : at + 65536]) for at in range(0, MIB, 65536)))
        for at in range(0, MIB, 4096):
            assert await driver.read(at, 4096) == data[at : at + 4096]
        assert sum(loop.handed_over for loop in at_work) == 0
        assert await driver.get_id() == "looped"
        await driver.discard(0, 4096)
        assert sum(loop.handed_over for loop in at_work) == 2
        assert device.counters.reads == 256
        assert device.counters.writes == 16
        with pytest.raises(BlockError):
            await driver.read(2 * MIB - 512, 1024)  # the driver refuses what is beyond the end

    with open_image(tmp_path / "image", create_size=2 * MIB) as image:
        device = with_disk(tmp_path, image, use, BlockOptions(serial="looped", queues=3))
    counters = device.counters
    assert (counters.reads, counters.writes, counters.discards, counters.errors) == (256, 16, 1, {})
    assert counters.bytes_written == MIB
    assert device.requests == 256 + 16 + 2


@pytest.mark.parametrize("defers", [True, False], ids=["results when asked for", "results at once"])
def test_direct_io_goes_to_io_uring_and_flushes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, defers: bool
) -> None:
    """Both kinds of kernel: since Linux 6.1, and before."""
    monkeypatch.setattr(block_loop, "DEFERS", defers)

    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        data = os.urandom(MIB)
        await asyncio.gather(*(driver.write(at, data[at : at + 65536]) for at in range(0, MIB, 65536)))
        await driver.flush()
        blocks = await asyncio.gather(*(driver.read(at, 4096) for at in range(0, MIB, 4096)))
        assert b"".join(blocks) == data
        (loop,) = loops(back.device)  # type: ignore[arg-type]
        if _compiled.is_compiled():
            assert loop.deferred == 16 + 1 + 256
            assert loop.handed_over == 0
        assert loop.failed == 0

    with open_image(tmp_path / "image", create_size=MIB, direct=True) as image:
        device = with_disk(tmp_path, image, use)
    assert device.counters.flushes == 1


def test_what_a_file_lost_fails_and_is_not_covered_up(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        data = os.urandom(4096)
        await driver.write(0, data)
        os.truncate(tmp_path / "image", MIB // 2)
        assert await driver.read(0, 4096) == data
        with pytest.raises(BlockError) as lost:
            await driver.read(MIB - 4096, 4096)
        assert lost.value.errno == errno.EIO
        with pytest.raises(BlockError):
            await driver.write(0, data)
        assert (tmp_path / "image").stat().st_size == MIB // 2
        os.truncate(tmp_path / "image", MIB)
        await driver.write(0, data)

    with open_image(tmp_path / "image", create_size=MIB) as image:
        device = with_disk(tmp_path, image, use)
    assert device.counters.errors == {"backing": 2}


def test_after_a_flush_that_failed_no_flush_succeeds(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        await driver.flush()
        image.target.lost = errno.EIO  # type: ignore[union-attr]
        for _ in range(2):
            with pytest.raises(BlockError):
                await driver.flush()

    with open_image(tmp_path / "image", create_size=MIB) as image:
        device = with_disk(tmp_path, image, use)
    assert device.counters.flushes == 1


def test_cache_that_is_switched_off_makes_each_write_stable(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        await driver.write(0, bytes(4096))
        (loop,) = loops(back.device)  # type: ignore[arg-type]
        assert loop.handed_over == 0
        end.write_config(blk.WRITEBACK_OFFSET, b"\0")
        await driver.write(0, bytes(4096))
        assert loop.handed_over == 1

    with open_image(tmp_path / "image", create_size=MIB) as image:
        device = with_disk(tmp_path, image, use)
    assert device.counters.writes == 2


def test_loop_gives_way_to_a_dirty_log_while_requests_run(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        device = back.device
        assert isinstance(device, BlockDevice)

        async def work() -> int:
            done = 0
            while not over.is_set():
                assert await driver.read(done % 16 * 65536, 65536) == data[done % 16 * 65536 :][:65536]
                done += 1
            return done

        data = os.urandom(MIB)
        await asyncio.gather(*(driver.write(at, data[at : at + 65536]) for at in range(0, MIB, 65536)))
        over = asyncio.Event()
        tasks = [asyncio.ensure_future(work()) for _ in range(8)]
        await asyncio.sleep(0.02)
        log = end.start_log()
        assert loops(device) == []
        reads = device.counters.reads
        await until(lambda: device.counters.reads > reads + 20)
        assert any(log)
        over.set()
        assert all(await asyncio.gather(*tasks))
        assert await driver.read(0, 65536) == data[:65536]

    with open_image(tmp_path / "image", create_size=MIB) as image:
        with_disk(tmp_path, image, use)


class Framed(RawDriver):
    """Sends parts that do not follow one another in memory, so that each is a segment of its own."""

    device_id = blk.DEVICE_ID

    def parts(self, readable: list[bytes], writable: list[int]) -> tuple[list[tuple[int, int]], bytearray]:
        assert self.transport is not None
        memory = self._memory
        assert memory is not None
        slices, at = [], 0
        for part in readable:
            memory.view[at : at + len(part)] = part
            slices.append((memory, at, len(part)))
            at += len(part) + 3
        places = []
        for size in writable:
            memory.view[at : at + size] = b"\xee" * size
            slices.append((memory, at, size))
            places.append((at, size))
            at += size + 3
        token = bytearray()
        link = self.transport.queues[0]
        assert link.add(slices[: len(readable)], slices[len(readable) :], token)
        link.kick()
        return places, token

    def completed(self, queue: Any) -> None:
        while (used := queue.reap()) is not None:
            used[0][:] = used[1].to_bytes(4, "little")

    def result(self, places: list[tuple[int, int]], token: bytearray) -> tuple[int, bytes]:
        assert self._memory is not None
        view = self._memory.view
        return int.from_bytes(token, "little"), b"".join(bytes(view[at : at + size]) for at, size in places)


def cuts(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted(place % (len(data) + 1) for place in at), len(data)]
    return [data[begin:end] for begin, end in itertools.pairwise(places) if end > begin]


@given(
    requests=st.lists(
        st.tuples(
            st.sampled_from([blk.T_IN, blk.T_OUT, blk.T_FLUSH, blk.T_GET_ID, blk.T_WRITE_ZEROES, 77]),
            st.integers(0, 24),
            st.sampled_from([0, 1, 20, 511, 512, 1024, 4096]),
            st.lists(st.integers(0, 5000), max_size=4),
            st.lists(st.integers(0, 5000), max_size=4),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=12,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_in_any_pieces_has_the_result_that_python_gives(
    tmp_path: Path,
    requests: list[tuple[int, int, int, list[int], list[int], int]],
) -> None:
    before = bytes(range(256)) * 32

    def shape(request: tuple[int, int, int, list[int], list[int], int]) -> tuple[list[bytes], list[int]]:
        kind, sector, size, where, back, short = request
        given = blk.REQUEST_HEADER["little"].pack(kind, 0, sector)
        given += bytes([sector + 1]) * size if kind in (blk.T_OUT, blk.T_WRITE_ZEROES) else b""
        room = (0 if kind in (blk.T_OUT, blk.T_WRITE_ZEROES) else size) + 1
        readable = cuts(given[: len(given) - short] if short == 3 else given, where)
        return readable, [len(part) for part in cuts(bytes(0 if short == 2 else room), back)]

    async def looped(path: Path) -> list[tuple[int, bytes]]:
        driver = Framed()
        end = FrontEnd(path, driver)
        await end.start()
        results = []
        for request in requests:
            readable, writable = shape(request)
            places, token = driver.parts(readable, writable)
            await until(lambda token=token: token)  # type: ignore[misc]
            results.append(driver.result(places, token))
        await end.close()
        return results

    def direct(image: Image) -> list[tuple[int, bytes]]:
        driver = Framed()
        link = DirectLink(BlockDevice(image), driver, indirect=True)
        link.connect()
        results = []
        for request in requests:
            readable, writable = shape(request)
            places, token = driver.parts(readable, writable)
            link.run()
            results.append(driver.result(places, token))
        link.close()
        return results

    path = tmp_path / "image"
    outcomes = []
    for way in ("loop", "python"):
        path.write_bytes(before)
        with open_image(path) as image:
            if way == "python":
                outcomes.append((direct(image), path.read_bytes()))
            else:
                with serving(tmp_path, BlockDevice(image)) as back:
                    outcomes.append((asyncio.run(looped(back.path)), b""))
                    assert back.server.failures == []
                outcomes[0] = outcomes[0][0], path.read_bytes()
    assert outcomes[0] == outcomes[1]


def test_memory_that_comes_and_goes_under_load(tmp_path: Path) -> None:
    async def use(end: FrontEnd, driver: BlockDriver, back: Serving) -> None:
        async def work() -> None:
            while not over.is_set():
                await driver.write(0, b"\x5a" * 4096)

        over = asyncio.Event()
        tasks = [asyncio.ensure_future(work()) for _ in range(4)]
        for _ in range(10):
            writes = driver.requests
            link = back.server.link
            assert link is not None

            def change(link: Any = link) -> None:
                """As a region is added and taken away: nobody serves, and then all goes on."""
                with link.back_end.service.still():
                    assert loops(link.back_end.device) == []
                    link.back_end.memory._changed()
                    link.back_end._regions_changed()

            back.call(change)
            await until(lambda writes=writes: driver.requests > writes + 5)  # type: ignore[misc]
        over.set()
        await asyncio.gather(*tasks)

    with open_image(tmp_path / "image", create_size=MIB) as image:
        with_disk(tmp_path, image, use)


def test_packed_ring_is_served_by_the_loop_too(tmp_path: Path) -> None:
    async def run(path: Path, device: BlockDevice) -> None:
        driver = BlockDriver()
        rings = feature.VERSION_1 | feature.RING_PACKED | feature.EVENT_IDX | feature.INDIRECT_DESC
        end = FrontEnd(path, driver, ring_features=rings)
        await end.start()
        assert end.features & feature.RING_PACKED
        await driver.write(0, b"\x01" * 4096)
        assert await driver.read(0, 4096) == b"\x01" * 4096
        assert loops(device)[0].reads == 1
        await end.close()

    with open_image(tmp_path / "image", create_size=MIB) as image:
        device = BlockDevice(image)
        with serving(tmp_path, device, BackEndOptions(packed=True)) as back:
            asyncio.run(run(back.path, device))
