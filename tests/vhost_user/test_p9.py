"""`powervio vhost-user p9`, with our driver and client as the guest. (QEMU 7.2 has no front end for it.)"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from tests.files.slow_disk import SlowDisk
from tests.vhost_user.harness import LIMIT, RawFrontEnd, serving, until
from tests.vhost_user.program import finish, start

from powervio.attach.p9_device import P9Device
from powervio.drivers.p9 import P9Client
from powervio.drivers.p9_channel import P9Driver
from powervio.drivers.p9_core import P9Core
from powervio.drivers.p9_tree import P9Tree
from powervio.errors import PowervioError, RemoteError
from powervio.files import p9_syncs
from powervio.files.tree_open import OpenFile
from powervio.system.vhost_user import Share, open_share
from powervio.transport.vhost_user import protocol as wire
from powervio.transport.vhost_user.back_end import BackEndOptions
from powervio.transport.vhost_user.front_end import RING_FEATURES, FrontEnd
from powervio.virtio import features


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    share = tmp_path / "share"
    share.mkdir()
    (share / "large").write_bytes(os.urandom(3_000_001))
    (share / "one").write_text("one")
    return share


def made_link() -> tuple[P9Device, P9Client]:
    link = P9Device(P9Core(msize=P9Driver.most_bytes), soon=lambda call: asyncio.get_running_loop().call_soon(call))
    return link, P9Client(P9Tree(link.core))


def test_files_are_read_written_and_listed_by_the_program(tmp_path: Path, folder: Path) -> None:
    process = start("p9", str(folder), "--tag", "mine", "--socket-path", str(tmp_path / "s"))

    async def use() -> None:
        link, client = made_link()
        end = FrontEnd(tmp_path / "s", link.driver)
        await end.start()
        async with asyncio.timeout(LIMIT):
            await link.start()
            assert link.driver.tag == "mine"
            assert await client.read("large") == (folder / "large").read_bytes()
            data = os.urandom(2_000_000)
            await client.write("new", data)
            assert (folder / "new").read_bytes() == data
            names = {entry.name for entry in await client.listdir()}
            assert names - {b".", b".."} == {b"large", b"one", b"new"}
            with pytest.raises(OSError, match="No such file"):
                await client.read("none")
        await link.close()
        await end.close()

    asyncio.run(use())
    assert finish(process) == 0


@pytest.mark.parametrize("packed", [False, True])
def test_rings_of_both_kinds_and_a_read_only_share(tmp_path: Path, folder: Path, packed: bool) -> None:
    device = open_share(Share(str(folder), "share", readonly=True))

    async def use(path: Path) -> None:
        link, client = made_link()
        end = FrontEnd(path, link.driver, ring_features=RING_FEATURES | (features.RING_PACKED if packed else 0))
        await end.start()
        async with asyncio.timeout(LIMIT):
            await link.start()
            reads = [client.read("large") for _ in range(5)]
            assert set(await asyncio.gather(*reads)) == {(folder / "large").read_bytes()}
            with pytest.raises(OSError, match="Read-only") as refused:
                await client.write("new", b"")
            assert refused.value.errno == errno.EROFS
        await link.close()
        await end.close()

    with serving(tmp_path, device, BackEndOptions(packed=packed)) as made:
        asyncio.run(use(made.path))
    device.close()


def test_killed_back_end_loses_the_fids_and_the_client_finds_its_files_again(  # F4.2, F4.3
    tmp_path: Path, folder: Path
) -> None:
    words = ("p9", str(folder), "--socket-path", str(tmp_path / "s"))
    process = start(*words)

    async def use() -> None:
        nonlocal process
        link, client = made_link()
        end = FrontEnd(tmp_path / "s", link.driver)
        await end.start()
        async with asyncio.timeout(3 * LIMIT):
            await link.start()
            kept = await client.open("one")
            lost = await client.open("large")
            assert await kept.read(10, 0) == b"one"
            process.send_signal(signal.SIGKILL)
            process.wait(LIMIT)
            assert process.stderr is not None
            process.stderr.close()
            await until(lambda: not link.core.msize)
            (folder / "large").rename(folder / "elsewhere")
            (folder / "large").write_text("another one")
            (folder / "one").write_text("two")
            process = await asyncio.to_thread(start, *words)
            assert await kept.read(10, 0) == b"two"
            with pytest.raises(OSError, match=r"[Ss]tale") as stale:
                await lost.read(10, 0)
            assert stale.value.errno == errno.ESTALE
        await link.close()
        await end.close()

    asyncio.run(use())
    assert finish(process) == 0


def test_back_end_does_not_hide_that_it_was_lost(tmp_path: Path, folder: Path) -> None:  # F4.3
    device = open_share(Share(str(folder), "share"))
    with serving(tmp_path, device) as made:
        raw = RawFrontEnd(made.path)
        assert not raw.get(wire.FrontEnd.GET_PROTOCOL_FEATURES) & wire.P_INFLIGHT_SHMFD
        raw.close()
    device.close()


def test_device_is_stopped_when_every_tfsync_is_answered(  # F4.4
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The place in the ring that the front end is told says that it has everything back."""
    disk = SlowDisk()
    monkeypatch.setattr(p9_syncs, "sync", disk.sync)
    device = open_share(Share(str(folder), "share"))

    async def use(path: Path) -> None:
        link, client = made_link()
        end = FrontEnd(path, link.driver)
        await end.start()
        async with asyncio.timeout(LIMIT):
            await link.start()
            file = await client.open("one")
            syncs = [asyncio.ensure_future(file.fsync()) for _ in range(3)]
            await asyncio.to_thread(disk.wait)
            assert await client.read("one") == b"one"
            assert [each.done() for each in syncs] == [False] * 3
            opener = threading.Timer(0.05, disk.gate.set)
            opener.start()
            end.stop_rings()
            opener.join()
            assert len(disk.calls) == 3
            await asyncio.gather(*syncs)
        await link.close()
        await end.close()

    with serving(tmp_path, device) as made:
        asyncio.run(use(made.path))
    device.close()


def test_front_end_that_goes_is_not_waited_for(  # F4.1
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may have no end; the next front end is served beside it."""
    disk = SlowDisk()
    ended = threading.Event()

    def sync(opened: OpenFile, data_only: bool) -> int:
        try:
            return disk.sync(opened, data_only)
        finally:
            ended.set()

    def crash(end: FrontEnd) -> list[int]:
        raise RemoteError("it has crashed")

    monkeypatch.setattr(p9_syncs, "sync", sync)
    monkeypatch.setattr(FrontEnd, "stop_rings", crash)
    device = open_share(Share(str(folder), "share"))

    async def use(path: Path, goes: bool) -> None:
        link, client = made_link()
        end = FrontEnd(path, link.driver)
        await end.start()
        async with asyncio.timeout(LIMIT):
            await link.start()
            assert await client.read("one") == b"one"
            assert not ended.is_set()
            if goes:
                file = await client.open("one")
                waiting = asyncio.ensure_future(file.fsync())
                await asyncio.to_thread(disk.wait)
        await end.close()
        if goes:
            with suppress(OSError, PowervioError, asyncio.CancelledError):
                waiting.cancel()
                await waiting
        await link.close()

    with serving(tmp_path, device) as made:
        asyncio.run(use(made.path, True))
        asyncio.run(use(made.path, False))
        disk.gate.set()
    device.close()
    assert device.counters.errors == 0
