"""Our front end and our back end together: block, entropy and console devices with the drivers as they are."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from tests.vhost_user.harness import serving, until

from powervio.devices.block import BlockDevice, BlockOptions
from powervio.devices.console import ConsoleDevice
from powervio.devices.entropy import EntropyDevice
from powervio.devices.throttle import Limits
from powervio.drivers.block import BlockDriver, BlockError
from powervio.drivers.console import ConsoleDriver
from powervio.drivers.entropy import EntropyDriver
from powervio.errors import RemoteError
from powervio.storage.image import open_image
from powervio.testing.echo import EchoDevice, EchoDriver
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.driver_memory import GUEST_BASE
from powervio.transport.vhost_user.front_end import PROTOCOL_FEATURES, FrontEnd
from powervio.transport.vhost_user.protocol import P_CONFIG
from powervio.virtio import features as feature

pytestmark = pytest.mark.dual

SPLIT = feature.VERSION_1
RINGS = {
    "split": SPLIT,
    "split-indirect": SPLIT | feature.INDIRECT_DESC,
    "split-event": SPLIT | feature.INDIRECT_DESC | feature.EVENT_IDX,
    "packed": SPLIT | feature.RING_PACKED,
    "packed-event": SPLIT | feature.RING_PACKED | feature.INDIRECT_DESC | feature.EVENT_IDX,
    "in-order": SPLIT | feature.INDIRECT_DESC | feature.IN_ORDER,
    "platform": SPLIT | feature.INDIRECT_DESC | feature.EVENT_IDX | feature.ACCESS_PLATFORM,
}
EVERYTHING = BackEndOptions(packed=True, in_order=True, platform=True)


@pytest.fixture(params=list(RINGS.values()), ids=list(RINGS))
def ring_features(request: pytest.FixtureRequest) -> int:
    value = request.param
    assert isinstance(value, int)
    return value


def test_disk_is_written_flushed_read_and_told_of_its_size(tmp_path: Path, ring_features: int) -> None:
    data = os.urandom(1 << 20)

    async def use(path: Path) -> None:
        driver = BlockDriver(max_queues=2)
        end = FrontEnd(path, driver, ring_features=ring_features)
        await end.start()
        assert end.features & ~driver.features == end.features & ring_features & ~driver.features
        assert end.features & ring_features == ring_features
        assert len(end.queues) == 2
        assert driver.capacity == 8 << 20
        await asyncio.gather(*(driver.write(at, data[at : at + 65536]) for at in range(0, len(data), 65536)))
        await driver.flush()
        assert await driver.read(0, len(data)) == data
        assert await driver.get_id() == "a serial"
        await driver.write_zeroes(4096, 4096)
        assert await driver.read(0, 12288) == data[:4096] + bytes(4096) + data[8192:12288]
        with pytest.raises(BlockError):
            await driver.read(8 << 20, 512)
        await end.close()

    with open_image(tmp_path / "image", create_size=8 << 20) as image:
        device = BlockDevice(image, BlockOptions(serial="a serial", queues=2))
        with serving(tmp_path, device, EVERYTHING) as back:
            asyncio.run(use(back.path))
            assert back.server.failures == []
        assert device.counters.errors.get("memory", 0) == 0
        back_data = bytearray(1 << 20)
        image.read_into(0, memoryview(back_data))
    assert bytes(back_data) == data[:4096] + bytes(4096) + data[8192:]


def test_entropy_device_gives_bytes(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        driver = EntropyDriver()
        end = FrontEnd(path, driver, protocol_features=PROTOCOL_FEATURES & ~P_CONFIG)
        await end.start()
        data = await driver.read(10000)
        assert len(data) == 10000
        assert len(set(data)) == 256
        await end.close()

    with serving(tmp_path, EntropyDevice()) as back:
        asyncio.run(use(back.path))


def test_console_carries_both_directions(tmp_path: Path) -> None:
    device = ConsoleDevice()

    async def use(path: Path) -> None:
        driver = ConsoleDriver()
        end = FrontEnd(path, driver, config_size=12)
        await end.start()
        stream = driver.stream(0)
        await stream.write(b"from the guest")
        await until(lambda: len(device.ports[0].from_driver) == 14)
        device.in_thread(lambda: device.ports[0].to_driver.put_all(b"to the guest"))
        device.in_thread(lambda: device.wake(0))
        assert await stream.read() == b"to the guest"
        await end.close()

    with serving(tmp_path, device) as back:
        asyncio.run(use(back.path))


def test_config_change_is_told_and_config_is_written(tmp_path: Path) -> None:
    device = EchoDevice()

    async def use(path: Path) -> None:
        driver = EchoDriver()
        end = FrontEnd(path, driver, config_size=8)
        await end.start()
        assert driver.transport is not None
        driver.transport.write_config(4, (77).to_bytes(4, "little"))
        assert device.written == 77
        with pytest.raises(RemoteError, match="refused SET_CONFIG"):
            driver.transport.write_config(0, bytes(4))

        def change() -> None:
            device.counter = 99
            device.config_changed()

        device.scheduler.call_soon_threadsafe(change)  # type: ignore[union-attr]
        await until(lambda: driver.config_changes)
        assert driver.transport.config()[:4] == (99).to_bytes(4, "little")
        await end.close()

    with serving(tmp_path, device) as back:
        asyncio.run(use(back.path))


def test_limits_of_a_disk_use_the_loops_time(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        driver = BlockDriver()
        end = FrontEnd(path, driver)
        await end.start()
        await asyncio.gather(*(driver.read(at * 4096, 4096) for at in range(24)))
        await end.close()

    with open_image(tmp_path / "image", create_size=1 << 20) as image:
        device = BlockDevice(image, BlockOptions(limits=Limits(requests_per_second=200, burst_requests=8)))
        with serving(tmp_path, device) as back:
            asyncio.run(use(back.path))
        assert device.counters.reads == 24
        assert device.counters.throttled > 0


def test_one_front_end_after_the_other(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        for turn in range(3):
            driver = EchoDriver()
            end = FrontEnd(path, driver, config_size=8)
            await end.start()
            driver.send(b"turn %d" % turn)
            await until(lambda driver=driver: driver.answers)  # type: ignore[misc]
            assert driver.answers == [(b"turn %d" % turn, b"turn %d" % turn)]
            await end.close()

    with serving(tmp_path, EchoDevice()) as back:
        asyncio.run(use(back.path))
        assert back.server.served == 3
        assert back.server.failures == []


def test_spinning_back_end_serves_and_sleeps_at_the_end(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        driver = BlockDriver()
        end = FrontEnd(path, driver)
        await end.start()
        for at in range(50):
            await driver.write(at * 512, bytes([at]) * 512)
        assert await driver.read(49 * 512, 512) == bytes([49]) * 512
        await asyncio.sleep(0.05)  # longer than it spins: a kick has to wake it
        assert await driver.read(512, 512) == bytes([1]) * 512
        await end.close()

    with (
        open_image(tmp_path / "image", create_size=1 << 20) as image,
        serving(tmp_path, BlockDevice(image), BackEndOptions(spin=0.002)) as back,
    ):
        asyncio.run(use(back.path))


def test_everything_written_is_in_the_dirty_log(tmp_path: Path) -> None:
    async def use(path: Path) -> None:
        driver = BlockDriver(buffers=4, buffer_size=65536)
        end = FrontEnd(path, driver)
        await end.start()
        await driver.read(0, 65536)
        log = end.start_log()
        before = bytes(end.memory.area.view)
        await asyncio.gather(*(driver.read(at, 65536) for at in range(0, 4 * 65536, 65536)))
        after = end.memory.area.view
        driver_writes = {queue.memory.address(0, 0, 0).log >> 12 for queue in end.queues}
        changed = 0
        for page in range(len(before) // 4096):
            number = (GUEST_BASE >> 12) + page
            logged = log[number >> 3] >> (number & 7) & 1
            if before[page * 4096 : page * 4096 + 4096] != after[page * 4096 : page * 4096 + 4096]:
                changed += logged
        dirty = {number - (GUEST_BASE >> 12) for number in range(8 * len(log)) if log[number >> 3] >> (number & 7) & 1}
        data_pages = sum(1 for page in dirty if after[page * 4096 : page * 4096 + 4096] == b"\x5a" * 4096)
        assert data_pages >= 16  # at least one whole buffer; buffers are used again
        assert {number - (GUEST_BASE >> 12) for number in driver_writes} <= dirty
        assert changed >= 1
        await end.close()

    with open_image(tmp_path / "image", create_size=1 << 20) as image:
        image.write_from(0, memoryview(b"\x5a" * (1 << 20)))
        with serving(tmp_path, BlockDevice(image)) as back:
            asyncio.run(use(back.path))
            assert back.server.failures == []
