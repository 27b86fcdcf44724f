"""The client library against diod: every operation, and what becomes of what is open when the server was away."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pytest
from tests.attach.p9_servers import Diod, Ours, Server

from powervio.attach.p9_socket import P9Socket, parse_address
from powervio.drivers.p9 import P9Client
from powervio.drivers.p9_core import P9Core
from powervio.drivers.p9_files import LOCK_NONE, LOCK_READ, LOCK_WRITE
from powervio.drivers.p9_tree import P9Tree
from powervio.errors import LocalError

pytestmark = pytest.mark.dual
T = TypeVar("T")


@pytest.fixture(params=[Diod, Ours], ids=["diod", "ours"])
def server(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    made: Server = request.param(tmp_path)
    yield made
    made.kill()


@asynccontextmanager
async def client_of(server: Server, *, msize: int = 1 << 20, patience: float = 10) -> AsyncIterator[P9Client]:
    link = P9Socket(P9Core(msize=msize), parse_address(server.address), patience=patience)
    await link.start()
    try:
        yield P9Client(P9Tree(link.core, share=server.name.encode(), client=b"%d" % id(link)))
    finally:
        await link.close()


def with_client(server: Server, body: Callable[[P9Client], Awaitable[T]], *, msize: int = 1 << 20) -> T:
    async def run() -> T:
        async with asyncio.timeout(30), client_of(server, msize=msize) as client:
            result = await body(client)
            while client.tree.core.in_flight:  # clunks, which nobody waits for
                await asyncio.sleep(0.001)
            assert not client.tree.nodes, "a node was kept"
            return result

    return asyncio.run(run())


def test_files_are_written_and_read(server: Server) -> None:
    data = os.urandom(200_000)

    async def body(client: P9Client) -> None:
        await client.write("/file", data, 0o640)
        assert await client.read(b"file") == data
        async with await client.open("file", os.O_RDWR) as file:
            assert await file.write(b"middle", 100) == 6
            assert await file.read(10, 98) == data[98:100] + b"middle" + data[106:108]
            assert await file.read(10, len(data)) == b""
            await file.truncate(5)
            await file.fsync()
            assert (await file.stat()).size == 5

    for msize in (8192, 1 << 20):
        with_client(server, body, msize=msize)
    assert (server.share / "file").read_bytes() == data[:5]
    assert stat.S_IMODE((server.share / "file").stat().st_mode) == 0o640


def test_names_are_made_moved_and_removed(server: Server) -> None:
    async def body(client: P9Client) -> None:
        await client.mkdir("d", 0o750)
        await client.mkdir("d/e")
        await client.write("d/file", b"1")
        await client.link("d/file", "d/other")
        assert (await client.stat("d/file")).nlink == 2
        await client.rename("d/other", "d/e/moved")
        assert {entry.name for entry in await client.listdir("d")} == {b"file", b"e"}
        assert [entry.name for entry in await client.listdir("d/e")] == [b"moved"]
        await client.unlink("d/e/moved")
        await client.rmdir("d/e")
        await client.mknod("d/pipe", stat.S_IFIFO | 0o600)
        assert stat.S_ISFIFO((await client.stat("d/pipe")).mode)
        with pytest.raises(OSError, match="not empty"):
            await client.rmdir("d")

    with_client(server, body)
    assert set(os.listdir(server.share / "d")) == {"file", "pipe"}


def test_symbolic_links_are_followed_within_the_share(server: Server) -> None:
    (server.share / "a/b").mkdir(parents=True)
    (server.share / "a/b/file").write_text("here")

    async def body(client: P9Client) -> None:
        await client.symlink("/a/b", "absolute")
        await client.symlink("../../a/./b/file", "a/b/up")
        await client.symlink("../../../../etc/passwd", "out")
        await client.symlink("round", "round")
        assert await client.read("absolute/file") == b"here"
        assert await client.read("absolute/up") == b"here"
        assert await client.readlink("absolute") == b"/a/b"
        assert stat.S_ISLNK((await client.stat("absolute", follow=False)).mode)
        for path, code in (("out", errno.ENOENT), ("round", errno.ELOOP)):
            with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
                await client.stat(path)
            assert caught.value.errno == code

    with_client(server, body)


def test_attributes_are_changed(server: Server) -> None:
    (server.share / "file").write_text("text")

    async def body(client: P9Client) -> None:
        await client.chmod("file", 0o4711)
        await client.utime("file", 1_000_000_001, 2_000_000_000_000_000_003)
        await client.truncate("file", 1000)
        await client.chown("file", 12, -1)
        await client.setxattr("file", b"user.one", b"1" * 3000)
        await client.setxattr("file", b"user.two", b"2")
        assert await client.getxattr("file", b"user.one") == b"1" * 3000
        await client.removexattr("file", b"user.one")
        assert await client.listxattr("file") == [b"user.two"]
        with pytest.raises(OSError, match="No data"):
            await client.getxattr("file", b"user.one")
        found = await client.stat("file")
        assert (found.uid, found.size, found.atime) == (12, 1000, 1_000_000_001)
        assert (await client.statfs()).namelen == 255

    with_client(server, body)
    there = (server.share / "file").stat()
    assert (there.st_uid, there.st_gid, there.st_size) == (12, os.getegid(), 1000)


def test_large_directory_is_listed_whole(server: Server) -> None:
    names = {b"%d" % number * 20 for number in range(2000)}
    for name in names:
        (server.share / os.fsdecode(name)).touch()

    async def body(client: P9Client) -> None:
        assert {entry.name for entry in await client.listdir()} == names

    with_client(server, body, msize=8192)


def test_deep_path_takes_more_than_one_walk_to_be_found_again(server: Server) -> None:
    path = "/".join(f"d{number}" for number in range(40))
    (server.share / path).mkdir(parents=True)
    (server.share / path / "file").write_text("deep")

    async def body(client: P9Client) -> None:
        async with await client.open(f"{path}/file") as file:
            server.kill()
            server.start()
            assert await file.read(10, 0) == b"deep"

    with_client(server, body)


def test_operations_wait_for_the_server_and_many_find_it_together(server: Server) -> None:
    for number in range(50):
        (server.share / f"file{number}").write_text(str(number))

    async def body(client: P9Client) -> None:
        files = [await client.open(f"file{number}") for number in range(50)]
        server.kill()
        reads = asyncio.gather(*(file.read(10, 0) for file in files), *(client.read("file7") for _ in range(20)))
        await asyncio.sleep(0.05)
        server.start()
        assert await reads == [b"%d" % number for number in range(50)] + [b"7"] * 20
        for file in files:
            file.close()

    with_client(server, body)


def test_locks_are_taken_again_in_the_new_connection(server: Server) -> None:
    (server.share / "file").touch()

    async def body(client: P9Client) -> None:
        async with await client.open("file", os.O_RDWR) as file:
            assert await file.lock(LOCK_WRITE)
            server.kill()
            server.start()
            assert await file.read(1, 0) == b""
            async with client_of(server) as other, await other.open("file", os.O_RDWR) as theirs:
                assert not await theirs.lock(LOCK_READ, owner=5)
                assert await file.lock(LOCK_NONE)
                assert await theirs.lock(LOCK_READ, owner=5)

    with_client(server, body)


def test_cancelled_operation_lets_the_connection_go_on(server: Server) -> None:
    (server.share / "file").write_bytes(bytes(1 << 20))

    async def body(client: P9Client) -> None:
        async with await client.open("file") as file:
            for _ in range(20):
                task = asyncio.create_task(file.read(60000, 0))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert len(await file.read(1000, 0)) == 1000

    with_client(server, body)


def test_server_that_answers_nothing_is_left(tmp_path: Path) -> None:
    place = tmp_path / "socket"
    connections = 0

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        size = int.from_bytes(await reader.readexactly(4), "little")
        said = await reader.readexactly(size - 4)
        writer.write(size.to_bytes(4, "little") + bytes([said[0] + 1]) + said[1:])
        with suppress(asyncio.CancelledError):
            await reader.read()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_unix_server(silent, place)
        link = P9Socket(P9Core(), parse_address(str(place)), patience=0.05)
        async with asyncio.timeout(10), server:
            await link.start()
            reading = asyncio.create_task(P9Client(P9Tree(link.core)).stat("file"))
            while connections < 3:
                await asyncio.sleep(0.01)
            assert not reading.done()
            reading.cancel()
            await link.close()
            with suppress(asyncio.CancelledError, OSError):
                await reading

    asyncio.run(run())
    assert connections >= 3


def test_no_server_is_a_local_error(tmp_path: Path) -> None:
    async def run() -> None:
        await P9Socket(P9Core(), parse_address(str(tmp_path / "nobody"))).start()

    with pytest.raises(LocalError, match="No such file"):
        asyncio.run(run())


@pytest.mark.parametrize("text", ["tcp:host", "tcp::1", "tcp:host:0", "tcp:host:70000", "tcp:host:x"])
def test_address_that_is_none(text: str) -> None:
    with pytest.raises(LocalError, match="expected tcp:HOST:PORT"):
        parse_address(text)
