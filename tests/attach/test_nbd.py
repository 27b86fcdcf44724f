"""The NBD server of an attached disk: requests, errors, many clients, clients that vanish or stall, its socket."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.attach.memory_disk import MemoryDisk
from tests.attach.raw_client import RawClient

from powervio.attach.nbd import NbdServer
from powervio.attach.nbd_connection import IN_FLIGHT
from powervio.errors import LocalError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import Command, Error, Option, Request

MIB = 1 << 20
Body = Callable[[RawClient], Awaitable[None]]


def serve(disk: MemoryDisk, path: Path, body: Body, *, structured: bool = True, patience: float = 30) -> None:
    """Run `body` with a client of a server of `disk`; afterwards every buffer is back in the pool."""

    async def main() -> None:
        async with NbdServer(disk, path, patience=patience) as server:
            client = await RawClient.connect(path, structured=structured)
            await body(client)
            await client.close()
            await until(lambda: server.clients == 0)
        assert disk.free_buffers == disk.buffers
        assert not path.exists()

    asyncio.run(asyncio.wait_for(main(), 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "disk.sock"


# --- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("structured", [False, True])
@pytest.mark.parametrize("length", [512, 4096, 256 << 10, (256 << 10) + 512, 3 * MIB])
def test_write_and_read_of_any_length_move_the_bytes(path: Path, length: int, structured: bool) -> None:
    disk = MemoryDisk(8 * MIB)
    data = os.urandom(length)

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.WRITE, MIB, data=data)).error == 0
        assert disk.data[MIB : MIB + length] == data
        answered = await client.do(Command.READ, MIB, length)
        assert answered.error == 0
        assert answered.data == data

    serve(disk, path, body, structured=structured)


@pytest.mark.parametrize("structured", [False, True])
def test_longest_request_goes_through_a_pool_of_one_buffer(path: Path, structured: bool) -> None:
    disk = MemoryDisk(33 * MIB, buffers=1, max_transfer=64 << 10)
    data = os.urandom(32 * MIB)

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.WRITE, MIB, data=data)).error == 0
        assert (await client.do(Command.READ, MIB, len(data))).data == data

    serve(disk, path, body, structured=structured)


def test_replies_wait_while_a_long_simple_reply_is_on_its_way(path: Path) -> None:
    disk = MemoryDisk(8 * MIB, buffers=3, max_transfer=64 << 10)
    disk.data[:] = os.urandom(8 * MIB)

    async def body(client: RawClient) -> None:
        wanted = {}
        for at in range(6):
            length = 2 * MIB if at % 2 == 0 else 4096
            wanted[client.send(Command.READ, at * MIB, length)] = disk.data[at * MIB : at * MIB + length]
        for _ in range(6):
            answered = await client.answer()
            assert answered.data == wanted.pop(answered.cookie)

    serve(disk, path, body, structured=False)


@pytest.mark.parametrize(
    ("command", "flags", "calls"),
    [
        (Command.FLUSH, 0, ["flush"]),
        (Command.FLUSH, nbd.CMD_FUA, ["flush"]),
        (Command.WRITE, nbd.CMD_FUA, ["write fua"]),
        (Command.TRIM, 0, ["discard"]),
        (Command.TRIM, nbd.CMD_FUA, ["discard", "flush"]),
        (Command.WRITE_ZEROES, 0, ["write_zeroes unmap"]),
        (Command.WRITE_ZEROES, nbd.CMD_FAST_ZERO, ["write_zeroes unmap"]),
        (Command.WRITE_ZEROES, nbd.CMD_NO_HOLE | nbd.CMD_FUA, ["write_zeroes", "flush"]),
        (Command.CACHE, 0, ["read"]),
        (Command.READ, nbd.CMD_FUA | nbd.CMD_DF, ["read"]),
    ],
)
def test_command_becomes_these_calls_of_the_disk(path: Path, command: Command, flags: int, calls: list[str]) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        data = bytes(4096) if command == Command.WRITE else b""
        length = 0 if command in (Command.FLUSH, Command.WRITE) else 4096
        assert (await client.do(command, 0, length, flags=flags, data=data)).error == 0
        assert disk.calls == calls

    serve(disk, path, body)


def test_fua_write_of_several_pieces_is_flushed_once_behind_the_last(path: Path) -> None:
    disk = MemoryDisk(MIB, max_transfer=64 << 10)

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.WRITE, data=bytes(256 << 10), flags=nbd.CMD_FUA)).error == 0
        assert disk.calls == ["write"] * 4 + ["flush"]

    serve(disk, path, body)


def test_block_status_says_data_when_the_disk_cannot_know(path: Path) -> None:
    async def body(client: RawClient) -> None:
        assert (await client.do(Command.BLOCK_STATUS, 0, MIB)).extents == ((MIB, 0),)

    serve(MemoryDisk(MIB), path, body)


def test_block_status_says_what_the_disk_knows(path: Path) -> None:
    disk = MemoryDisk(MIB)
    disk.knows_holes = True

    async def body(client: RawClient) -> None:
        await client.do(Command.WRITE, 8192, data=bytes(4096))
        assert (await client.do(Command.BLOCK_STATUS, 0, MIB)).extents == ((8192, 3), (4096, 0), (MIB - 12288, 3))
        one = await client.do(Command.BLOCK_STATUS, 8192, MIB - 8192, flags=nbd.CMD_REQ_ONE)
        assert one.extents == ((4096, 0),)

    serve(disk, path, body)


def test_requests_of_one_client_are_with_the_disk_together_and_answered_as_they_complete(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        disk.gate = asyncio.Event()
        slow = client.send(Command.READ, 0, 512)
        await until(lambda: disk.calls == ["read"])
        gate, disk.gate = disk.gate, None
        quick = client.send(Command.READ, 512, 512)
        assert (await client.answer()).cookie == quick
        gate.set()
        assert (await client.answer()).cookie == slow

    serve(disk, path, body)


def test_requests_in_flight_are_bounded_and_the_rest_follow(path: Path) -> None:
    disk = MemoryDisk(MIB, buffers=200)

    async def body(client: RawClient) -> None:
        disk.gate = asyncio.Event()
        for _ in range(3 * IN_FLIGHT):
            client.send(Command.READ, 0, 512)
        await asyncio.sleep(0.1)
        assert len(disk.calls) == IN_FLIGHT
        disk.gate.set()
        assert len({(await client.answer()).cookie for _ in range(3 * IN_FLIGHT)}) == 3 * IN_FLIGHT

    serve(disk, path, body)


def test_refused_requests_do_not_pile_up_when_nobody_reads_the_answers(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.transport.set_write_buffer_limits(high=0)
        blocked = False
        for _ in range(2000):
            for _ in range(50):
                client.send(99, 0, 512)
            try:
                await asyncio.wait_for(client.writer.drain(), 0.3)
            except TimeoutError:
                blocked = True
                break
        assert blocked
        client.writer.transport.abort()

    serve(disk, path, body)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.EIO, Error.EIO),
        (errno.ENOSPC, Error.ENOSPC),
        (errno.EROFS, Error.EPERM),
        (errno.EINVAL, Error.EINVAL),
        (errno.ESHUTDOWN, Error.ESHUTDOWN),
        (errno.EOPNOTSUPP, Error.EINVAL),  # ENOTSUP is for FAST_ZERO alone
        (errno.ENODEV, Error.EIO),
    ],
)
@pytest.mark.parametrize("structured", [False, True])
def test_failure_of_the_disk_is_told_and_the_rest_goes_on(
    path: Path, number: int, error: Error, structured: bool
) -> None:
    disk = MemoryDisk(MIB)
    disk.fail = dict.fromkeys(("read", "write", "discard", "flush", "write_zeroes unmap", "block_status"), number)

    async def body(client: RawClient) -> None:
        for command in (Command.READ, Command.WRITE, Command.TRIM, Command.FLUSH, Command.WRITE_ZEROES, Command.CACHE):
            data = bytes(512) if command == Command.WRITE else b""
            answered = await client.do(command, 0, 0 if data or command == Command.FLUSH else 512, data=data)
            assert answered.error == error
            assert answered.message == (os.strerror(number) if structured else "")
        disk.fail = {}
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body, structured=structured)


def test_fast_zero_that_the_disk_cannot_do_is_told_as_enotsup(path: Path) -> None:
    disk = MemoryDisk(MIB)
    disk.fail = {"write_zeroes unmap": errno.EOPNOTSUPP}

    async def body(client: RawClient) -> None:
        answered = await client.do(Command.WRITE_ZEROES, 0, 512, flags=nbd.CMD_FAST_ZERO)
        assert answered.error == Error.ENOTSUP

    serve(disk, path, body)


def test_exception_that_a_disk_must_not_raise_fails_only_the_request(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disk = MemoryDisk(MIB)

    async def broken() -> None:
        raise ZeroDivisionError("oops")

    async def body(client: RawClient) -> None:
        disk.flush = broken  # type: ignore[method-assign]
        assert (await client.do(Command.FLUSH)).error == Error.EIO
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)
    assert "the disk failed in an unexpected way" in caplog.text


def test_long_structured_read_that_fails_half_way_ends_with_the_error(path: Path) -> None:
    disk = MemoryDisk(MIB, max_transfer=64 << 10)
    disk.fail_from = 128 << 10

    async def body(client: RawClient) -> None:
        answered = await client.do(Command.READ, 0, MIB)
        assert (answered.error, answered.message, len(answered.data)) == (Error.EIO, "bad block", 128 << 10)
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)


def test_long_simple_read_that_fails_behind_its_header_closes(path: Path) -> None:
    disk = MemoryDisk(MIB, max_transfer=64 << 10)
    disk.fail_from = 128 << 10

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.READ, 128 << 10, 256 << 10)).error == Error.EIO  # nothing was announced yet
        with pytest.raises(asyncio.IncompleteReadError):
            await client.do(Command.READ, 0, MIB)

    serve(disk, path, body, structured=False)


def test_write_of_several_pieces_that_fails_is_answered_once(path: Path) -> None:
    disk = MemoryDisk(MIB, max_transfer=64 << 10)
    disk.fail = {"write": errno.ENOSPC}

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.WRITE, data=bytes(MIB), flags=nbd.CMD_FUA)).error == Error.ENOSPC
        assert "flush" not in disk.calls
        disk.fail = {}
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)


@pytest.mark.parametrize("length", [512, 512 << 10])
def test_disk_without_buffers_fails_requests_and_the_connection_goes_on(path: Path, length: int) -> None:
    disk = MemoryDisk(MIB)
    left = 1

    async def acquire(size: int) -> object:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ESHUTDOWN, "the disk is gone")
        return await MemoryDisk.acquire(disk, size)

    async def body(client: RawClient) -> None:
        nonlocal left
        disk.acquire = acquire  # type: ignore[method-assign, assignment]
        for given in (0, 1 if length > disk.max_transfer else 0):
            left = given
            assert (await client.do(Command.READ, 0, length)).error == Error.ESHUTDOWN
            left = given
            assert (await client.do(Command.WRITE, data=bytes(length))).error == Error.ESHUTDOWN
        assert (await client.do(Command.FLUSH)).error == 0

    serve(disk, path, body)


def test_client_that_breaks_the_protocol_is_closed_and_others_are_served(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        bad = await RawClient.connect(path)
        bad.writer.write(bytes(28))
        assert await bad.reader.read() == b""
        await bad.close()
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)


def test_read_only_disk_refuses_writes(path: Path) -> None:
    disk = MemoryDisk(MIB, read_only=True)

    async def body(client: RawClient) -> None:
        assert (await client.do(Command.WRITE, data=bytes(512))).error == Error.EPERM
        assert (await client.do(Command.WRITE_ZEROES, 0, 512)).error == Error.EPERM
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)


# --- many clients, and those that vanish or stall -------------------------------------------------------------------


def test_flush_of_one_client_follows_completed_writes_of_another(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        other = await RawClient.connect(path)
        assert (await other.do(Command.WRITE, 4096, data=bytes(512))).error == 0
        assert (await client.do(Command.FLUSH)).error == 0
        assert disk.calls == ["write", "flush"]
        await other.close()

    serve(disk, path, body)


def test_many_clients_at_once_each_keep_their_own_data(path: Path) -> None:
    disk = MemoryDisk(16 * MIB, buffers=4)

    async def one(at: int) -> None:
        client = await RawClient.connect(path, structured=at % 2 == 0)
        for turn in range(20):
            data = bytes([at, turn]) * 4096
            assert (await client.do(Command.WRITE, at * MIB // 2 + turn * 8192, data=data)).error == 0
            assert (await client.do(Command.READ, at * MIB // 2 + turn * 8192, 8192)).data == data
        await client.close()

    async def body(client: RawClient) -> None:
        await asyncio.gather(*(one(at) for at in range(24)))

    serve(disk, path, body)


def test_disconnect_at_any_byte_frees_the_buffers_and_harms_nobody(path: Path) -> None:
    disk = MemoryDisk(MIB, buffers=2)
    hello = nbd.ClientFlags(3).pack() + nbd.pack_option(Option.GO, nbd.ExportChoice("", ()).pack())
    write = nbd.Request(0, Command.WRITE, 1, 0, 1024).pack() + bytes(1024)
    read = nbd.Request(0, Command.READ, 2, 0, 4096).pack()
    talk = hello + write + read
    begin = len(hello)
    places = [*range(begin + 60), *range(begin + 60, len(talk) - 40, 97), *range(len(talk) - 40, len(talk) + 1)]

    async def body(client: RawClient) -> None:
        for place in places:
            with socket.socket(socket.AF_UNIX) as bad:
                bad.connect(os.fspath(path))
                bad.sendall(talk[:place])
            if place % 10 == 0:
                await asyncio.sleep(0)
        assert (await client.do(Command.READ, 0, 512)).error == 0
        await until(lambda: disk.free_buffers == disk.buffers)

    serve(disk, path, body)


def test_request_of_a_client_that_vanished_runs_to_its_end_before_its_buffer_is_released(path: Path) -> None:
    disk = MemoryDisk(MIB, buffers=2)

    async def body(client: RawClient) -> None:
        disk.gate = asyncio.Event()
        bad = await RawClient.connect(path)
        bad.send(Command.WRITE, data=b"w" * 512)
        bad.send(Command.READ, 0, 512)
        await until(lambda: len(disk.calls) == 2)
        bad.writer.transport.abort()
        await asyncio.sleep(0.05)
        assert disk.free_buffers == 0  # the device still has them
        disk.gate.set()
        await until(lambda: disk.free_buffers == 2)
        assert disk.data[:512] == b"w" * 512

    serve(disk, path, body)


def test_client_that_does_not_send_its_data_is_cut_when_others_wait(path: Path) -> None:
    disk = MemoryDisk(MIB, buffers=1)

    async def body(client: RawClient) -> None:
        bad = await RawClient.connect(path)
        bad.send(Command.WRITE, 0, 4096)  # and never its data
        await until(lambda: disk.free_buffers == 0)
        await asyncio.sleep(0.5)
        assert not bad.reader.at_eof()  # nobody waits: it may take its time
        assert (await client.do(Command.READ, 0, 512)).error == 0
        assert await bad.reader.read() == b""
        await bad.close()

    serve(disk, path, body, patience=0.2)


def test_client_that_does_not_read_its_replies_is_cut_when_others_wait(path: Path) -> None:
    disk = MemoryDisk(4 * MIB, buffers=2)

    async def body(client: RawClient) -> None:
        bad = socket.socket(socket.AF_UNIX)
        bad.connect(os.fspath(path))
        bad.sendall(nbd.ClientFlags(3).pack() + nbd.pack_option(Option.EXPORT_NAME))
        bad.sendall(b"".join(nbd.Request(0, Command.READ, n, 0, 256 << 10).pack() for n in range(20)))
        await until(lambda: disk.free_buffers == 0)
        assert (await client.do(Command.READ, 0, 512)).error == 0
        bad.close()

    serve(disk, path, body, patience=0.2)


# --- start and end --------------------------------------------------------------------------------------------------


def test_disc_is_followed_by_the_replies_to_what_was_asked_and_the_end(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        disk.gate = asyncio.Event()
        cookie = client.send(Command.READ, 0, 512)
        client.send(Command.DISC)
        await asyncio.sleep(0.05)
        disk.gate.set()
        assert (await client.answer()).cookie == cookie
        assert await client.reader.read() == b""

    serve(disk, path, body)


def test_close_answers_what_is_in_flight(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        server = NbdServer(disk, path)
        await server.start()
        client = await RawClient.connect(path)
        disk.gate = asyncio.Event()
        cookie = client.send(Command.READ, 0, 512)
        await until(lambda: len(disk.calls) == 1)
        asyncio.get_running_loop().call_later(0.1, disk.gate.set)
        await server.close()
        answered = await client.answer()
        assert (answered.cookie, answered.error) == (cookie, 0)
        assert await client.reader.read() == b""
        await client.close()
        assert disk.free_buffers == disk.buffers

    asyncio.run(asyncio.wait_for(main(), 10))


def test_close_with_grace_refuses_further_requests_until_the_client_leaves(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        server = NbdServer(disk, path)
        await server.start()
        client = await RawClient.connect(path)
        disk.gate = asyncio.Event()
        cookie = client.send(Command.READ, 0, 512)
        await until(lambda: len(disk.calls) == 1)
        closing = asyncio.ensure_future(server.close(grace=20))
        await until(lambda: not path.exists())
        await asyncio.sleep(0.01)
        assert (await client.do(Command.WRITE, data=bytes(4096))).error == Error.ESHUTDOWN
        assert (await client.do(Command.READ, 0, 512)).error == Error.ESHUTDOWN
        assert len(disk.calls) == 1
        disk.gate.set()
        answered = await client.answer()
        assert (answered.cookie, answered.error) == (cookie, 0)
        assert not closing.done()
        await client.close()
        await closing
        assert server.clients == 0
        assert disk.free_buffers == disk.buffers

    asyncio.run(asyncio.wait_for(main(), 10))


def test_paused_server_ends_what_it_began_and_goes_on_where_it_stopped(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        async with NbdServer(disk, path) as server:
            client = await RawClient.connect(path)
            disk.gate = asyncio.Event()
            first = client.send(Command.WRITE, 0, data=b"1" * 4096)
            await until(lambda: len(disk.calls) == 1)
            pausing = asyncio.ensure_future(server.pause(20))
            await asyncio.sleep(0.01)
            second = client.send(Command.WRITE, 4096, data=b"2" * 4096)
            third = client.send(Command.READ, 4096, 4096)
            await asyncio.sleep(0.02)
            assert not pausing.done()
            disk.gate.set()
            assert await pausing
            answered = await client.answer()
            assert (answered.cookie, answered.error) == (first, 0)
            await asyncio.sleep(0.02)
            assert disk.calls == ["write"]
            server.unpause()
            assert {(await client.answer()).cookie for _ in range(2)} == {second, third}
            assert bytes(disk.data[4096:8192]) == b"2" * 4096
            await client.close()
        assert disk.free_buffers == disk.buffers

    asyncio.run(asyncio.wait_for(main(), 10))


def test_paused_server_that_closes_drops_what_it_did_not_begin_without_an_answer(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        server = NbdServer(disk, path)
        await server.start()
        clients = [await RawClient.connect(path) for _ in range(3)]
        assert await server.pause(20)
        clients[0].send(Command.WRITE, 0, data=b"1" * 4096)
        clients[1].writer.write(Request(0, Command.WRITE, 1, 0, 8192).pack() + b"half of it")
        await asyncio.sleep(0.02)
        waiting = asyncio.ensure_future(asyncio.open_unix_connection(path))
        await asyncio.sleep(0.01)
        await server.close()
        for client in clients:
            assert await client.reader.read() == b""
            await client.close()
        reader, writer = await waiting
        await reader.read()
        writer.close()
        assert disk.calls == []
        assert disk.free_buffers == disk.buffers

    asyncio.run(asyncio.wait_for(main(), 10))


def test_pause_says_that_a_disk_hangs(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        async with NbdServer(disk, path) as server:
            client = await RawClient.connect(path)
            disk.gate = asyncio.Event()
            cookie = client.send(Command.READ, 0, 512)
            await until(lambda: len(disk.calls) == 1)
            assert not await server.pause(0.05)
            server.unpause()
            disk.gate.set()
            assert (await client.answer()).cookie == cookie
            await client.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_client_that_stays_is_closed_when_the_grace_is_over(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        server = NbdServer(disk, path)
        await server.start()
        client = await RawClient.connect(path)
        await server.close(grace=0.05)
        assert await client.reader.read() == b""
        await client.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_who_connects_after_the_disk_grew_is_told_the_new_size(path: Path) -> None:
    disk = MemoryDisk(2 * MIB)
    disk.size = MIB

    async def main() -> None:
        async with NbdServer(disk, path) as server:
            before = await RawClient.connect(path)
            disk.size = 2 * MIB
            after = await RawClient.connect(path)
            assert (await before.do(Command.READ, MIB, 512)).error == Error.EINVAL
            assert (await after.do(Command.READ, MIB, 512)).error == 0
            assert server.export.size == 2 * MIB
            for client in (before, after):
                await client.close()

    asyncio.run(asyncio.wait_for(main(), 10))


def test_close_does_not_wait_longer_than_told_for_a_disk_that_hangs(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def main() -> None:
        server = NbdServer(disk, path)
        await server.start()
        client = await RawClient.connect(path)
        disk.gate = asyncio.Event()
        client.send(Command.READ, 0, 512)
        await until(lambda: len(disk.calls) == 1)
        started = asyncio.get_running_loop().time()
        await server.close(timeout=0.2)
        assert asyncio.get_running_loop().time() - started < 2
        assert await client.reader.read() == b""
        await client.close()
        disk.gate.set()  # the late completion is harmless
        await until(lambda: disk.free_buffers == disk.buffers)
        await until(lambda: server.clients == 0)

    asyncio.run(asyncio.wait_for(main(), 10))


def test_stale_socket_file_is_replaced_and_removed_at_the_end(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))

    async def body(client: RawClient) -> None:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(MemoryDisk(MIB), path, body)


def test_socket_that_somebody_answers_on_is_left_alone(path: Path) -> None:
    disk = MemoryDisk(MIB)

    async def body(client: RawClient) -> None:
        with pytest.raises(LocalError, match="somebody answers there already"):
            await NbdServer(MemoryDisk(MIB), path).start()
        assert (await client.do(Command.READ, 0, 512)).error == 0

    serve(disk, path, body)


def test_file_that_is_not_a_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")

    async def main() -> None:
        with pytest.raises(LocalError, match="is not a socket"):
            await NbdServer(MemoryDisk(MIB), path).start()

    asyncio.run(main())
    assert path.read_text() == "precious"


def test_directory_that_does_not_exist_is_said(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(LocalError, match="No such file or directory"):
            await NbdServer(MemoryDisk(MIB), tmp_path / "no" / "disk.sock").start()

    asyncio.run(main())


def test_path_too_long_for_a_socket_is_said_with_its_length(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(LocalError, match="at most 107 bytes, this one has"):
            NbdServer(MemoryDisk(MIB), tmp_path / ("x" * 100))

    asyncio.run(main())


def test_file_that_another_server_put_there_is_not_removed_at_close(path: Path) -> None:
    async def main() -> None:
        first = NbdServer(MemoryDisk(MIB), path)
        await first.start()
        path.unlink()
        async with NbdServer(MemoryDisk(MIB), path):
            await first.close()
            assert path.exists()

    asyncio.run(main())


@pytest.mark.parametrize("max_transfer", [32 << 10, (64 << 10) + 1])
def test_disk_whose_buffers_do_not_fit_is_our_error(path: Path, max_transfer: int) -> None:
    async def main() -> None:
        with pytest.raises(LocalError, match="needed for NBD"):
            NbdServer(MemoryDisk(MIB, max_transfer=max_transfer), path)

    asyncio.run(main())


def test_client_beyond_the_limit_is_closed_at_once(path: Path) -> None:
    async def main() -> None:
        async with NbdServer(MemoryDisk(MIB), path, max_clients=1):
            client = await RawClient.connect(path)
            reader, writer = await asyncio.open_unix_connection(path)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert (await client.do(Command.READ, 0, 512)).error == 0
            await client.close()

    asyncio.run(main())
