"""A system inside the test's own process: start and stop, also when something goes wrong on the way."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.storage.image import Image, open_image
from powervio.system import system as system_module
from powervio.system.config import Config
from powervio.system.load import load
from powervio.system.system import System
from powervio.transport.crq.client import VirtioVio
from powervio.transport.crq.server import VirtioCrq

from .harness import House

TWO_DISKS = """
[[vios]]
name = "vios1"
thread = {thread}
[[vios]]
name = "vios2"
[[lpar]]
name = "client1"
memory = "16M"
[[lpar.disk]]
vios = "vios1"
image = "a.img"
nbd = "a.sock"
[[lpar.disk]]
vios = "vios2"
image = "b.img"
nbd = "b.sock"
"""


@pytest.fixture(params=["true", "false"], ids=["threads", "one-thread"])
def config(request: pytest.FixtureRequest, house: House) -> Config:
    for name in ("a.img", "b.img"):
        house.image(name, 1 << 20)
    (house.folder / "s.toml").write_text(TWO_DISKS.format(thread=request.param))
    return load(house.folder / "s.toml")


def held() -> tuple[int, list[str]]:
    """What this process holds: open files, and threads."""
    gc.collect()
    return len(os.listdir("/proc/self/fd")), sorted(
        thread.name for thread in threading.enumerate() if thread.name.startswith("partition-")
    )


def run(scenario: Any) -> None:
    """Run in a loop of its own; nothing of the system may be left afterwards."""
    before = held()
    asyncio.run(asyncio.wait_for(scenario, 60))
    assert held() == before


def assert_nothing_left(config: Config) -> None:
    for _, _, disk in config.disks():
        assert disk.nbd is not None
        assert not Path(disk.nbd).exists()
        open_image(disk.image).close()  # raises if it is still locked


def test_it_starts_and_stops_and_leaves_nothing(config: Config) -> None:
    async def scenario() -> None:
        system = System(config)
        await system.start()
        first, second = system.disks
        await first.driver.write(4096, b"x" * 8192)
        await second.driver.write(0, b"y" * 512)
        assert await first.driver.read(4096, 8192) == b"x" * 8192
        report = system.report()
        assert [entry["partition"] for entry in report["adapters"]] == ["client1", "vios1", "client1", "vios2"]
        await system.stop()
        await system.stop()

    run(scenario())
    assert_nothing_left(config)
    assert Path(config.lpar[0].disk[0].image).read_bytes()[4096 : 4096 + 8192] == b"x" * 8192


def test_image_that_went_away_is_told_and_everything_undone(config: Config) -> None:
    Path(config.lpar[0].disk[1].image).unlink()

    async def scenario() -> None:
        with pytest.raises(LocalError, match=r"s\.toml: lpar\[0\]\.disk\[1\]: image .*b\.img does not exist"):
            await System(config).start()

    run(scenario())
    Path(config.lpar[0].disk[1].image).write_bytes(bytes(1 << 20))
    assert_nothing_left(config)


def test_socket_that_cannot_be_made_is_told_and_everything_undone(config: Config) -> None:
    path = Path(config.lpar[0].disk[1].nbd or "")
    path.mkdir()

    async def scenario() -> None:
        with pytest.raises(LocalError, match=r"s\.toml: lpar\[0\]\.disk\[1\]\.nbd: cannot listen at "):
            await System(config).start()

    run(scenario())
    path.rmdir()
    assert_nothing_left(config)


def test_server_that_does_not_answer_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(system_module, "CONNECT_LIMIT", 0.2)
    monkeypatch.setattr(VirtioCrq, "start", lambda self: None)

    async def scenario() -> None:
        with pytest.raises(LocalError) as caught:
            await System(config).start()
        assert str(caught.value).endswith(
            "s.toml: lpar[0].disk[0]: waited 0.2 s for vios1 to serve it; the client is waiting, the server closed"
        )

    run(scenario())
    assert_nothing_left(config)


def test_client_that_gives_up_is_told_at_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioVio, "start", lambda self: None)

    async def scenario() -> None:
        system = System(config)
        start = asyncio.ensure_future(system.start())
        while not system.disks:
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        system.disks[0].client._fail("this will never do", final=True)
        with pytest.raises(LocalError, match=r"s\.toml: lpar\[0\]\.disk\[0\]: this will never do"):
            await start

    run(scenario())
    assert_nothing_left(config)


def test_start_that_is_cancelled_undoes_everything(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VirtioVio, "start", lambda self: None)

    async def scenario() -> None:
        start = asyncio.ensure_future(System(config).start())
        await asyncio.sleep(0.1)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    run(scenario())
    assert_nothing_left(config)


def test_failed_flush_is_told_at_the_end_and_the_rest_is_undone(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_flush(self: Image) -> None:
        raise OSError(5, "Input/output error", self.path)

    async def scenario() -> None:
        system = System(config)
        await system.start()
        monkeypatch.setattr(Image, "flush", no_flush)
        with pytest.raises(LocalError) as caught:
            await system.stop()
        first, second = str(caught.value).splitlines()
        assert first.startswith(f"flushing {config.lpar[0].disk[1].image}: ")
        assert second.startswith(f"flushing {config.lpar[0].disk[0].image}: ")

    run(scenario())
    assert_nothing_left(config)


def test_resets_of_either_side_under_load_lose_nothing(config: Config) -> None:
    size = 1 << 20
    block = 8192
    data = os.urandom(size)

    async def scenario() -> None:
        system = System(config)
        await system.start()
        disk = system.disks[0]
        finished = 0

        async def rewrite(position: int) -> None:
            nonlocal finished
            for _ in range(100):
                await disk.driver.write(position, data[position : position + block])
                assert await disk.driver.read(position, block) == data[position : position + block]
            finished += 1

        async def reset() -> None:
            kernel = system.kernels["vios1"]
            while True:
                await asyncio.to_thread(kernel.call, disk.server.reset) if config.vios[
                    0
                ].thread else disk.server.reset()
                await asyncio.sleep(0.02)
                disk.client.reset()
                await asyncio.sleep(0.02)

        resets = asyncio.ensure_future(reset())
        await asyncio.gather(*(rewrite(position) for position in range(0, size, block)))
        resets.cancel()
        assert finished == size // block
        assert disk.client.sessions > 10
        assert disk.driver.failed == 0
        await system.stop()

    run(scenario())
    assert Path(config.lpar[0].disk[0].image).read_bytes() == data


def test_small_partition_serves_all_its_disks(house: House) -> None:
    disks = ""
    for number in range(3):
        house.image(f"{number}.img", 4 << 20)
        disks += f'[[lpar.disk]]\nvios = "v"\nimage = "{number}.img"\nindirect = "always"\nqueues = 2\n'
    text = f'[[vios]]\nname = "v"\nmemory = "4M"\n[[lpar]]\nname = "c"\nmemory = "8M"\n{disks}'
    (house.folder / "s.toml").write_text(text)

    async def scenario() -> None:
        system = System(load(house.folder / "s.toml"))
        await system.start()
        data = os.urandom(4 << 20)
        await asyncio.gather(*(disk.driver.write(0, data) for disk in system.disks))
        for disk in system.disks:
            assert await disk.driver.read(0, len(data)) == data
        await system.stop()

    run(scenario())
