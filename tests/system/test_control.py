"""The control socket and the folder that it is in."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.system import control, rundir
from powervio.system.control import LINE_LIMIT, MAX_CLIENTS, ControlServer
from powervio.system.rundir import NameInUse, RunName

from .harness import House


@pytest.fixture
def run_base(house: House, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(house.folder))
    return house.folder


async def echo(arguments: dict[str, Any]) -> dict[str, Any]:
    if arguments.get("fail"):
        raise LocalError("as you wished")
    if arguments.get("break"):
        raise ZeroDivisionError
    return arguments


async def talk(path: Path, *lines: bytes, idle_limit: float = 5.0) -> list[bytes]:
    """What a server answers to each line, on one connection; the last is what comes until the end."""
    server = ControlServer(path, {"echo": echo}, idle_limit=idle_limit)
    await server.start()
    reader, writer = await asyncio.open_unix_connection(str(path))
    answers = []
    try:
        for line in lines:
            writer.write(line)
            async with asyncio.timeout(10):
                answers.append(await (reader.readline() if line.endswith(b"\n") else reader.read()))
    finally:
        writer.close()
        await server.close()
    return answers


BAD_LINES = {
    "no JSON": (b"hello\n", "not a request: "),
    "no object": (b"[1]\n", "not a request: "),
    "no request": (b"{}\n", "not a request: Object missing required field `request`"),
    "unknown field": (b'{"request": "echo", "x": 1}\n', "not a request: Object contains unknown field `x`"),
    "unknown request": (b'{"request": "sing"}\n', "there is no request 'sing'; expected one of echo"),
    "wrong type": (b'{"request": 3}\n', "not a request: Expected `str`, got `int` - at `$.request`"),
    "not UTF-8": (b'{"request": "\xff"}\n', "not a request: "),
    "zero bytes": (b"\0\0\0\n", "not a request: "),
    "deep": (b'{"request": "echo", "arguments": ' + b"[" * 50_000 + b"\n", "not a request: "),
    "local error": (b'{"request": "echo", "arguments": {"fail": 1}}\n', "as you wished"),
    "fault of ours": (
        b'{"request": "echo", "arguments": {"break": 1}}\n',
        "echo failed in the system: ZeroDivisionError()",
    ),
}


@pytest.mark.parametrize("line", BAD_LINES)
def test_bad_request_is_told_and_the_connection_goes_on(line: str, run_base: Path) -> None:
    sent, expected = BAD_LINES[line]
    good = b'{"request": "echo", "arguments": {"a": 1}}\n'
    first, second = asyncio.run(talk(run_base / "c", sent, good))
    told = json.loads(first)
    assert told["ok"] is False
    assert told["error"].startswith(expected)
    assert json.loads(second) == {"ok": True, "result": {"a": 1}}


def test_too_long_line_is_told_and_ends_the_connection(run_base: Path) -> None:
    (answer,) = asyncio.run(talk(run_base / "c", b"x" * (LINE_LIMIT + 1)))
    assert json.loads(answer)["error"] == f"a request has at most {LINE_LIMIT} bytes"


def test_silent_client_is_sent_away(run_base: Path) -> None:
    assert asyncio.run(talk(run_base / "c", b"{", idle_limit=0.05)) == [b""]


def test_too_many_clients_are_refused(run_base: Path) -> None:
    async def scenario() -> bytes:
        path = run_base / "c"
        server = ControlServer(path, {"echo": echo})
        await server.start()
        clients = [await asyncio.open_unix_connection(str(path)) for _ in range(MAX_CLIENTS + 1)]
        line = await clients[-1][0].readline()
        for _, writer in clients:
            writer.close()
        await server.close()
        return line

    assert json.loads(asyncio.run(scenario()))["error"].startswith(f"there are {MAX_CLIENTS} control connections")


def test_request_in_hand_is_answered_before_the_server_closes(run_base: Path) -> None:
    async def scenario() -> bytes:
        begun, may_end = asyncio.Event(), asyncio.Event()

        async def slow(arguments: dict[str, Any]) -> dict[str, Any]:
            begun.set()
            await may_end.wait()
            return {}

        path = run_base / "c"
        server = ControlServer(path, {"slow": slow})
        await server.start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b'{"request": "slow"}\n')
        await begun.wait()
        closing = asyncio.ensure_future(server.close())
        await asyncio.sleep(0)
        may_end.set()
        answer = await reader.readline()
        await closing
        writer.close()
        assert not path.exists()
        return answer

    assert json.loads(asyncio.run(scenario())) == {"ok": True, "result": {}}


def test_system_survives_whatever_its_socket_is_sent(house: House) -> None:
    house.image("disk.img", 1 << 20)
    system = house.up(house.declare())
    for junk in (b"", b"\n", b"\xff" * 200_000, b'{"request": "ps"}', b'{"request": "down", "x": 1}\n'):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(house.run_folder / "one.sock"))
            try:
                client.sendall(junk)
                client.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it has had enough of us
    assert house.client()["state"] == "running"
    house.end(system)


def test_folder_and_socket_are_the_users_alone(house: House) -> None:
    house.image("disk.img", 1 << 20)
    house.up(house.declare())
    assert house.run_folder.stat().st_mode & 0o777 == 0o700
    assert (house.run_folder / "one.sock").stat().st_mode & 0o777 == 0o600
    assert (house.folder / "one.sock").stat().st_mode & 0o777 == 0o600


def test_folder_that_others_can_write_to_is_refused(run_base: Path) -> None:
    folder = run_base / "powervio"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(LocalError, match="must be a folder that is yours and that only you can write to"):
        rundir.run_folder()


def test_folder_that_is_a_link_is_refused(run_base: Path) -> None:
    (run_base / "elsewhere").mkdir(mode=0o700)
    (run_base / "powervio").symlink_to("elsewhere")
    with pytest.raises(LocalError, match="must be a folder"):
        rundir.run_folder()


def test_folder_that_cannot_be_made_is_told(run_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run_base / "no"))
    with pytest.raises(LocalError, match=r"\(from XDG_RUNTIME_DIR\) for control sockets: No such file or directory"):
        rundir.run_folder()


def test_name_belongs_to_one_process_at_a_time(run_base: Path) -> None:
    held = RunName("x")
    assert rundir.running_names() == ["x"]
    script = "from powervio.system.rundir import RunName; RunName('x')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert f'a system named "x" is running (process {os.getpid()})' in result.stderr
    with pytest.raises(NameInUse):
        RunName("x")
    held.release()
    held.release()
    assert rundir.running_names() == []
    RunName("x").release()


def test_looking_at_names_does_not_keep_one_from_being_taken(run_base: Path) -> None:
    for _ in range(200):
        assert not rundir.is_running("x")
        RunName("x").release()


def test_stale_socket_is_replaced(run_base: Path) -> None:
    folder = rundir.run_folder()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(folder / "x.sock"))
    (folder / "x.lock").write_text("process 1\n")
    assert rundir.running_names() == []
    name = RunName("x")

    async def scenario() -> None:
        server = ControlServer(name.socket, {"echo": echo})
        await server.start()
        assert await asyncio.to_thread(control.ask, "x", "echo", {"a": 2}) == {"a": 2}
        with pytest.raises(LocalError, match="as you wished"):
            await asyncio.to_thread(control.ask, "x", "echo", {"fail": True})
        await server.close()

    asyncio.run(scenario())
    name.release()


def test_system_that_does_not_answer_is_told(run_base: Path) -> None:
    name = RunName("x")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(name.socket))
        silent.listen()
        with pytest.raises(LocalError, match=r'the system "x" did not answer ps within 0\.2 s'):
            control.ask("x", "ps", timeout=0.2)
    assert not control.wait_until_down("x", 0.05)
    name.release()
    assert control.wait_until_down("x", 0.05)
    with pytest.raises(LocalError, match='the system "x" cannot be reached'):
        control.ask("x", "ps", timeout=0.2)
