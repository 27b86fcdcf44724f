"""An image in memory, which is served through a mapping: its holes stay, and it may be cut off at any time."""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.vhost_user.harness import Serving, serving
from tests.vhost_user.program import finish, start

from powervio import _compiled
from powervio.devices.block import BlockDevice, BlockOptions
from powervio.drivers.block import BlockDriver, BlockError
from powervio.memory.target import FileTarget
from powervio.storage.image import Image, open_image
from powervio.transport.vhost_user.front_end import FrontEnd

pytestmark = pytest.mark.dual

MIB = 1 << 20
PAGE = mmap.PAGESIZE
Use = Callable[[BlockDriver], Coroutine[Any, Any, None]]


def target_of(image: Image) -> FileTarget:
    target = image.target
    assert target is not None
    assert target.mapped is _compiled.is_compiled()
    return target


def known(target: FileTarget) -> int:
    """Bytes of the pages that the mapping is used for."""
    return target.mapping.known if _compiled.is_compiled() else 0


def with_disk(folder: Path, image: Image, use: Use, options: BlockOptions | None = None) -> BlockDevice:
    """Serve the image and use it; the device, when all is over."""

    async def run(back: Serving) -> None:
        driver = BlockDriver(buffers=32, buffer_size=65536, max_queues=4)
        end = FrontEnd(back.path, driver)
        await end.start()
        await use(driver)
        await end.close()

    device = BlockDevice(image, options)
    with serving(folder, device) as made:
        asyncio.run(run(made))
        assert made.server.failures == []
    return device


async def failure(request: Coroutine[Any, Any, object]) -> int | None:
    """The errno with which a request failed; None: it did not."""
    try:
        await request
    except BlockError as error:
        return error.errno
    return None


def test_what_is_written_here_is_read_there_and_the_other_way_round(tmp_path: Path, memory_folder: Path) -> None:
    path = memory_folder / "image"

    async def use(driver: BlockDriver) -> None:
        target = target_of(image)
        for round_ in range(3):  # by descriptor first, then through the mapping
            data = os.urandom(MIB // 2)
            await asyncio.gather(*(driver.write(at, data[at : at + 16384]) for at in range(0, len(data), 16384)))
            assert known(target) == (MIB // 2 if _compiled.is_compiled() else 0)
            assert os.pread(fd, len(data), 0) == data
            data = os.urandom(3 * MIB // 4)
            os.pwrite(fd, data, 1536)
            for at in range(0, len(data), 65536 - 512):
                assert await driver.read(1536 + at, min(65536 - 512, len(data) - at)) == data[at : at + 65536 - 512]
            await driver.write(MIB - 512, bytes([round_]) * 512)  # the end of a page
            assert os.pread(fd, 512, MIB - 512) == bytes([round_]) * 512
            os.ftruncate(fd, MIB // 2)
            os.ftruncate(fd, MIB)
            image._target.forget(MIB // 2, MIB // 2)

    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, MIB)
    try:
        with open_image(path) as image:
            device = with_disk(tmp_path, image, use)
    finally:
        os.close(fd)
    assert device.counters.errors == {}


@pytest.mark.parametrize("size", [2 * MIB, 2 * MIB - 512 * 3])
def test_reads_of_holes_allocate_nothing(tmp_path: Path, memory_folder: Path, size: int) -> None:
    path = memory_folder / "image"
    data = os.urandom(3 * PAGE)
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(MIB)
        file.write(data)
        file.seek(MIB + 64 * PAGE)
        file.write(bytes(PAGE))
    whole = path.read_bytes()
    blocks = path.stat().st_blocks

    async def use(driver: BlockDriver) -> None:
        for length in (PAGE, 65536, 512):
            for at in range(0, size, length):
                assert await driver.read(at, min(length, size - at)) == whole[at : at + length]
        assert known(target_of(image)) == (3 * PAGE if _compiled.is_compiled() else 0)

    with open_image(path, read_only=True) as image:
        with_disk(tmp_path, image, use)
    assert path.stat().st_blocks == blocks == 4 * PAGE // 512


@pytest.mark.parametrize("how", ["discard", "write_zeroes"])
def test_what_was_discarded_reads_as_zeroes_and_allocates_nothing(
    tmp_path: Path, memory_folder: Path, how: str
) -> None:
    path = memory_folder / "image"

    async def use(driver: BlockDriver) -> None:
        for at in range(0, MIB, 65536):
            await driver.write(at, os.urandom(65536))
        assert path.stat().st_blocks == MIB // 512
        if how == "discard":
            await driver.discard(MIB // 4, MIB // 2)
        else:
            await driver.write_zeroes(MIB // 4, MIB // 2, unmap=True)
        for _ in range(2):
            for at in range(0, MIB, 16384):
                assert any(await driver.read(at, 16384)) is (at < MIB // 4 or at >= 3 * MIB // 4)
        assert path.stat().st_blocks == MIB // 2 // 512
        assert known(target_of(image)) == (MIB // 2 if _compiled.is_compiled() else 0)
        await driver.write(MIB // 2, b"\x01" * 512)  # a part of a page of the hole
        assert await driver.read(MIB // 2, PAGE) == b"\x01" * 512 + bytes(PAGE - 512)
        assert path.stat().st_blocks == (MIB // 2 + PAGE) // 512

    with open_image(path, create_size=MIB) as image:
        with_disk(tmp_path, image, use)


@pytest.mark.parametrize("left", [MIB // 2, MIB // 2 + 512])
def test_what_was_cut_off_fails_until_it_is_there_again(tmp_path: Path, memory_folder: Path, left: int) -> None:
    path = memory_folder / "image"
    data = os.urandom(MIB)

    async def use(driver: BlockDriver) -> None:
        for at in range(0, MIB, 65536):
            await driver.write(at, data[at : at + 65536])
        os.truncate(path, left)
        assert await failure(driver.read(MIB - PAGE, PAGE)) == errno.EIO
        assert await failure(driver.read(MIB // 2, PAGE)) == errno.EIO, "the rest of the last page is lost, too"
        assert await driver.read(0, PAGE) == data[:PAGE]
        assert await driver.read(left - 512, 512) == data[left - 512 : left]
        for at in (0, MIB // 2, MIB - PAGE):
            assert await failure(driver.write(at, bytes(PAGE))) == errno.EIO
        assert path.stat().st_size == left
        os.truncate(path, MIB)
        assert await driver.read(MIB // 2, MIB // 2) == data[MIB // 2 : left] + bytes(MIB - left)
        await driver.write(MIB - PAGE, data[:PAGE])
        assert await driver.read(MIB - PAGE, PAGE) == data[:PAGE]

    with open_image(path, create_size=MIB) as image:
        device = with_disk(tmp_path, image, use)
    assert device.counters.errors == {"backing": 5}


def test_image_that_shrinks_and_grows_under_load_of_two_threads(tmp_path: Path, memory_folder: Path) -> None:
    """Each request has its data, zeroes from after a loss, or an error; whoever serves it lives."""
    path = memory_folder / "image"
    block, count = 65536, 16
    loads = [bytes([number + 1]) * block for number in range(count)]
    over = threading.Event()

    def cut(target: FileTarget) -> None:
        for _ in range(500):
            os.truncate(path, 3 * PAGE)
            time.sleep(0.001)  # so that it is noticed
            os.truncate(path, count * block)
            time.sleep(0.001)
            if _compiled.is_compiled() and target.mapping.broken:
                break
        over.set()

    async def use(driver: BlockDriver) -> None:
        async def work(number: int, writes: bool) -> None:
            at = number * block
            while not over.is_set():
                if writes:
                    assert await failure(driver.write(at, loads[number])) in (None, errno.EIO)
                else:
                    with suppress(BlockError):
                        found = await driver.read(at, block)
                        assert set(found) <= {number + 1, 0}

        for number in range(count):
            await driver.write(number * block, loads[number])
        cutter = threading.Thread(target=cut, args=[target_of(image)])
        cutter.start()
        await asyncio.gather(*(work(number, writes) for number in range(count) for writes in (False, True)))
        cutter.join()
        for number in range(count):
            await driver.write(number * block, loads[number])
            assert await driver.read(number * block, block) == loads[number]
        assert path.read_bytes() == b"".join(loads)

    with open_image(path, create_size=count * block) as image:
        device = with_disk(tmp_path, image, use, BlockOptions(queues=2))
    assert set(device.counters.errors) <= {"backing"}


def test_back_end_lives_when_its_image_is_truncated(tmp_path: Path, memory_folder: Path) -> None:
    path, listens = memory_folder / "image", tmp_path / "socket"
    data = os.urandom(MIB)
    path.write_bytes(data)
    back = start("block", "--socket-path", str(listens), "--image", str(path), "--queues", "2")

    async def use() -> None:
        driver = BlockDriver(max_queues=2)
        end = FrontEnd(listens, driver)
        await end.start()
        for _ in range(2):
            assert await driver.read(0, MIB) == data
        os.truncate(path, 0)
        outcomes = await asyncio.gather(
            *(failure(driver.read(at, PAGE)) for at in range(0, MIB, 65536)),
            *(failure(driver.write(at, bytes(PAGE))) for at in range(0, MIB, 65536)),
        )
        assert outcomes == [errno.EIO] * 32
        os.truncate(path, MIB)
        await driver.write(0, data[:PAGE])
        assert await driver.read(0, MIB) == data[:PAGE] + bytes(MIB - PAGE)
        await end.close()

    try:
        asyncio.run(use())
    finally:
        assert finish(back) == 0


@pytest.mark.parametrize(("option", "maps"), [([], True), (["--mmap"], True), (["--no-mmap"], False)])
def test_option_says_whether_an_image_is_mapped(
    tmp_path: Path, memory_folder: Path, option: list[str], maps: bool
) -> None:
    path = memory_folder / "image"
    path.write_bytes(bytes(MIB))
    back = start("block", "--socket-path", str(tmp_path / "socket"), "--image", str(path), *option)
    try:
        found = str(path) in Path(f"/proc/{back.pid}/maps").read_text()
        assert found is (maps and _compiled.is_compiled())
    finally:
        assert finish(back) == 0
