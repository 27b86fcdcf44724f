"""`powervio vhost-user console`: what is at the operator's end of it, with our driver as the guest."""

from __future__ import annotations

import asyncio
import os
import pty
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from fcntl import ioctl
from pathlib import Path

import pytest
from tests.vhost_user.harness import LIMIT, until
from tests.vhost_user.program import COMMAND, finish, run, start

from powervio.drivers.console import ConsoleDriver, PortStream
from powervio.transport.vhost_user.front_end import FrontEnd

MIB = 1 << 20


@asynccontextmanager
async def guest(path: Path) -> AsyncIterator[ConsoleDriver]:
    """A guest that has the console open."""
    driver = ConsoleDriver()
    end = FrontEnd(path, driver)
    await end.start()
    driver.stream().port.set_open(True)
    async with asyncio.timeout(LIMIT):
        yield driver
    await end.close()


async def read(stream: PortStream, length: int) -> bytes:
    """So many bytes, exactly."""
    data = b""
    while len(data) < length:
        data += await stream.read(length - len(data))
    return data


async def operator(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_unix_connection(path)


def test_operators_at_a_socket_have_the_console_one_after_the_other(tmp_path: Path) -> None:
    process = start("console", "--socket-path", str(tmp_path / "s"), "--console-socket", str(tmp_path / "c"))

    async def use() -> None:
        async with guest(tmp_path / "s") as driver:
            stream = driver.stream()
            await stream.write(b"nobody watched this")
            await stream.drain()
            reader, writer = await operator(tmp_path / "c")
            assert await reader.readexactly(19) == b"nobody watched this"
            await until(lambda: stream.port.host_open)
            refused, other = await operator(tmp_path / "c")
            assert await refused.read() == b""
            other.close()
            writer.write(b"typed")
            assert await read(stream, 5) == b"typed"
            await stream.write(b"answer")
            assert await reader.readexactly(6) == b"answer"
            writer.close()
            await until(lambda: not stream.port.host_open)
            reader, writer = await operator(tmp_path / "c")
            writer.write(b"again")
            assert await read(stream, 5) == b"again"
            writer.close()

    asyncio.run(use())
    assert finish(process) == 0
    assert not (tmp_path / "c").exists()


def test_streams_beside_the_console_push_back(tmp_path: Path) -> None:
    process = start(
        *("console", "--socket-path", str(tmp_path / "s"), "--console-socket", str(tmp_path / "c")),
        *("--port", f"data={tmp_path / 'd'}"),
    )
    content = os.urandom(MIB)

    async def use() -> None:
        async with guest(tmp_path / "s") as driver:
            stream = driver.stream(1)
            stream.port.set_open(True)
            reader, writer = await operator(tmp_path / "d")
            await until(lambda: stream.port.host_open)
            assert driver.port(1).name == "data"
            sending = asyncio.ensure_future(stream.write(content))
            writer.write(content)
            await asyncio.sleep(0.05)
            assert not sending.done(), "nobody reads"
            assert await read(stream, MIB) == content
            assert await reader.readexactly(MIB) == content
            await sending
            writer.close()

    asyncio.run(use())
    assert finish(process) == 0


def test_standard_input_and_output_are_the_console_without_a_terminal(tmp_path: Path) -> None:
    command = [*COMMAND, "console", "--socket-path", str(tmp_path / "s")]
    content = os.urandom(MIB)

    async def use() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        assert b"serving at" in await process.stderr.readline()
        async with guest(tmp_path / "s") as driver:
            process.stdin.write(content)
            process.stdin.close()
            assert await read(driver.stream(), MIB) == content
            sending = asyncio.ensure_future(driver.stream().write(content))  # input has ended, output goes on
            assert await process.stdout.readexactly(MIB) == content
            await sending
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
        assert await process.stderr.read() == b""

    asyncio.run(use())


def test_program_at_the_operators_end_is_started_again_when_it_ends(tmp_path: Path) -> None:
    process = start("console", "--socket-path", str(tmp_path / "s"), "--exec", "sh -c 'printf up; exec head -c 5'")

    async def use() -> None:
        async with guest(tmp_path / "s") as driver:
            for text in (b"first", b"again"):
                assert await read(driver.stream(), 2) == b"up"  # what is written before goes to the one that has ended
                await driver.stream().write(text)
                assert await read(driver.stream(), 5) == text

    asyncio.run(use())
    assert finish(process) == 0


def test_terminal_has_its_size_in_the_guest_and_is_as_before_afterwards(tmp_path: Path) -> None:
    master, other = pty.openpty()
    before = termios.tcgetattr(other)
    ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    command = [*COMMAND, "console", "--socket-path", str(tmp_path / "s")]
    with closing(os.fdopen(master, "r+b", buffering=0)) as terminal:
        process = subprocess.Popen(
            ["/bin/sh", "-c", 'exec <>"$0" >&0 2>&0; exec "$@"', os.ttyname(other), *command], start_new_session=True
        )
        assert b"ends it" in terminal.read(200)

        async def use() -> None:
            async with guest(tmp_path / "s") as driver:
                port = driver.stream().port
                await until(lambda: (port.columns, port.rows) == (100, 30))
                ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 31, 101, 0, 0))
                await until(lambda: (port.columns, port.rows) == (101, 31))
                terminal.write(b"\x03~~q\r")  # Ctrl-C too is the guest's
                assert await read(driver.stream(), 5) == b"\x03~~q\r"
                await driver.stream().write(b"guest\n")
                seen = b""
                while len(seen) < 6:
                    seen += await asyncio.to_thread(terminal.read, 6 - len(seen))
                assert seen == b"guest\n"  # raw: nothing was added, and nothing typed came back
                terminal.write(b"~.")

        asyncio.run(use())
        assert process.wait(LIMIT) == 0
        assert termios.tcgetattr(other) == before
    os.close(other)


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--exec", "x", "--console-socket", "y"], "expected one of --console-socket and --exec"),
        (["--port", "a=b", "--port", "a=c"], "expected --port NAME=SOCKET, each name once"),
        (["--port", "console=b"], '"console" cannot be the name of a port'),
        (["--exec", "/nowhere/program"], "/nowhere/program cannot be started"),
        (["--console-socket", "/nowhere/c"], "cannot listen at /nowhere/c"),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path: Path, arguments: list[str], what: str) -> None:
    result = run("console", "--socket-path", str(tmp_path / "s"), *arguments)
    assert result.returncode in (1, 2)
    assert what in result.stderr
    assert "Traceback" not in result.stderr
