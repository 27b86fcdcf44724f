"""The entropy device and its driver, joined directly and over CRQ."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powervio.devices.entropy import MOST_BYTES, EntropyDevice
from powervio.drivers.entropy import EntropyCore, EntropyDriver
from powervio.errors import LocalError
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import RawDriver
from powervio.virtio.queue import DeviceQueue


def counted() -> tuple[list[int], EntropyDevice]:
    """A device whose "random" bytes say how many were drawn before."""
    drawn: list[int] = []

    def source(length: int) -> bytes:
        start = sum(drawn)
        drawn.append(length)
        return bytes((start + at) % 251 for at in range(length))

    return drawn, EntropyDevice(rate=1 << 30, source=source)


def raw(device: EntropyDevice) -> tuple[DirectLink, RawDriver]:
    driver = RawDriver()
    driver.device_id = device.device_id  # type: ignore[misc]
    link = DirectLink(device, driver)
    link.connect()
    return link, driver


def test_buffer_is_filled_and_its_length_told() -> None:
    link, driver = raw(EntropyDevice())
    exchange = driver.send([], [100])
    link.run()
    assert exchange.used == 100
    assert exchange.answer != b"\xee" * 100
    link.close()


def test_source_that_gives_less_is_told_honestly() -> None:
    link, driver = raw(EntropyDevice(source=lambda length: b"\1"))
    exchange = driver.send([], [100])
    link.run()
    assert exchange.used == 1
    assert exchange.answer == b"\1" + b"\xee" * 99
    link.close()


def test_long_buffer_gets_a_part() -> None:
    link, driver = raw(EntropyDevice(rate=1 << 30))
    exchange = driver.send([], [MOST_BYTES + 5])
    link.run()
    assert exchange.used == MOST_BYTES
    link.close()


def test_buffer_without_room_comes_back_and_is_counted() -> None:
    device = EntropyDevice()
    link, driver = raw(device)
    exchange = driver.send([b"not random at all"], [])
    link.run()
    assert (exchange.used, device.errors) == (0, 1)
    link.close()


def test_source_of_bytes_each_of_which_is_given_once() -> None:
    drawn, device = counted()
    driver = EntropyCore()
    link = DirectLink(device, driver)
    got: list[bytes | None] = []
    driver.request(3, got.append)
    driver.request(10_000, got.append)
    link.connect()
    link.run()
    first, second = got
    assert first is not None
    assert second is not None
    assert first + second == bytes(at % 251 for at in range(10_003))
    assert sum(drawn) == device.bytes_given == driver.bytes_received
    link.close()


def test_rate_leaves_buffers_in_the_ring_until_time_has_passed() -> None:
    device = EntropyDevice(rate=1000)
    link, driver = raw(device)
    exchanges = [driver.send([], [500]) for _ in range(6)]
    link.run()
    assert [exchange.used for exchange in exchanges] == [500, 500, None, None, None, None]
    link.advance(0.5)
    assert [exchange.used for exchange in exchanges[:4]] == [500, 500, 500, None]
    for _ in range(10):
        link.advance(0.5)
    assert all(exchange.used for exchange in exchanges)
    assert device.bytes_given <= 1000 + 5500
    link.close()


def test_rate_of_nothing_is_refused() -> None:
    with pytest.raises(LocalError):
        EntropyDevice(rate=0)


def test_reset_while_it_waits_for_its_rate_is_harmless() -> None:
    device = EntropyDevice(rate=100)
    driver = EntropyCore()
    link = DirectLink(device, driver)
    got: list[bytes | None] = []
    link.connect()
    driver.request(250, got.append)
    link.run()
    link.disconnect()
    link.advance(1)
    link.connect()
    link.run()
    for _ in range(50):
        link.advance(0.25)
    (data,) = got
    assert data is not None
    assert len(data) == 250
    link.close()


class EmptyDevice(EntropyDevice):
    """Hostile: it gives buffers back with nothing in them."""

    def process(self, queue: DeviceQueue) -> None:
        while (request := queue.pop()) is not None:
            request.complete(0)


def test_device_that_gives_nothing_is_given_up() -> None:
    driver = EntropyCore()
    link = DirectLink(EmptyDevice(), driver)
    got: list[bytes | None] = []
    driver.request(10, got.append)
    link.connect()
    link.run()
    assert got == [None]
    assert driver.broken
    driver.request(1, got.append)
    assert got == [None, None]
    link.close()


@given(st.lists(st.one_of(st.integers(1, 9000), st.just(None)), max_size=12))
def test_every_request_gets_its_bytes_whatever_sessions_do(steps: list[int | None]) -> None:
    driver = EntropyCore()
    link = DirectLink(EntropyDevice(rate=1 << 30), driver)
    got: list[bytes | None] = []
    link.connect()
    for step in steps:
        if step is None:
            link.run_device()
            link.disconnect()
            link.connect()
        else:
            driver.request(step, got.append)
    for _ in range(20):  # what the lost sessions took of the rate has to come back first
        link.advance(0.1)
    assert [len(data or b"") for data in got] == [step for step in steps if step is not None]
    link.close()


def test_memory_that_the_device_saw_is_wiped() -> None:
    _, device = counted()
    driver = EntropyCore()
    link = DirectLink(device, driver)
    link.connect()
    got: list[bytes | None] = []
    driver.request(4000, got.append)
    link.run()
    assert got[0] is not None
    assert bytes(link.memory.view).find(got[0][100:200]) < 0
    link.close()


@pytest.mark.dual
@pytest.mark.parametrize("revision", [0, 1])
def test_over_crq(revision: int) -> None:
    device, driver = EntropyDevice(), EntropyCore()
    pair = PartitionPair(device, driver, revision=revision).start()
    got: list[bytes | None] = []
    driver.request(5000, got.append)
    pair.settle()
    pair.server.reset()
    pair.settle()
    driver.request(6000, got.append)
    pair.advance(0.1)
    assert [len(data or b"") for data in got] == [5000, 6000]
    assert device.bytes_given == 11000
    pair.close()


def test_reader_is_served() -> None:
    async def read() -> None:
        driver = EntropyDriver()
        link = DirectLink(EntropyDevice(), driver, schedule=asyncio.get_running_loop().call_soon)
        link.connect()
        assert len(await driver.read(100)) == 100
        assert await driver.read(0) == b""
        driver.close()
        with pytest.raises(OSError, match="went away"):
            await driver.read(1)
        link.close()

    asyncio.run(read())
