"""`powervio console` and the sockets of console and rng, with real programs on both sides."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from fcntl import ioctl
from pathlib import Path

import pytest

from powervio.boot.waiting import wait
from powervio.cli.console import Keys

from .harness import House, program, wait_for

EXAMPLE = Path(__file__).parents[2] / "examples" / "console.toml"
VIOS = '[[vios]]\nname = "vios1"\n[[lpar]]\nname = "client1"\nmemory = "32M"\n'


def declare(house: House, text: str) -> str:
    (house.folder / "one.toml").write_text(VIOS + text)
    return "one.toml"


def console(text: str = 'exec = "sh"', kind: str = "virtio") -> str:
    return f'[[lpar.console]]\nvios = "vios1"\ntype = "{kind}"\n{text}\n'


class Terminal:
    """`powervio console` on a terminal of the test's."""

    def __init__(self, house: House, *words: str, rows: int = 24, columns: int = 80) -> None:
        self.master, other = pty.openpty()
        self.resize(rows, columns)
        self.before = termios.tcgetattr(other)
        self.other = other
        command = [sys.executable, "-m", "powervio", "console", *words]
        self.process = subprocess.Popen(
            [*("/bin/sh", "-c", 'exec <>"$0" >&0 2>&0; exec "$@"', os.ttyname(other)), *command],
            cwd=house.folder,
            env=house.environment,
            start_new_session=True,
        )
        self.seen = b""

    def resize(self, rows: int, columns: int) -> None:
        ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: bytes) -> None:
        os.write(self.master, text)

    def wait(self, pattern: bytes, timeout: float = 20) -> re.Match[bytes]:
        """What has appeared since the last time up to a pattern."""
        deadline = time.monotonic() + timeout
        while True:
            found = re.search(pattern, self.seen)
            if found:
                self.seen = self.seen[found.end() :]
                return found
            assert wait([self.master], [], max(0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.master, 65536)

    def end(self) -> int:
        status = self.process.wait(20)
        assert termios.tcgetattr(self.other) == self.before
        os.close(self.master)
        os.close(self.other)
        return status


def test_shell_and_the_size_of_its_terminal(house: House) -> None:
    house.up(declare(house, console()))
    terminal = Terminal(house, "client1", rows=31, columns=97)
    terminal.wait(rb"attached to client1")
    terminal.type(b"stty size\r")
    terminal.wait(rb"\b31 97\b")
    terminal.resize(45, 133)
    os.kill(terminal.process.pid, signal.SIGWINCH)  # the kernel tells the foreground group; be sure of it
    time.sleep(0.3)
    terminal.type(b"stty size; echo $((6*7))\r")
    terminal.wait(rb"\b45 133\b")
    terminal.wait(rb"\b42\b")
    terminal.type(b"\r~.")
    assert terminal.end() == 0


def test_detached_shell_goes_on_and_is_found_again(house: House) -> None:
    house.up(declare(house, console()))
    first = Terminal(house, "client1")
    first.wait(rb"attached")
    first.type(b"marker=here; echo rea''dy\r")
    first.wait(rb"\bready\b")
    first.type(b"\x1d")
    assert first.end() == 0
    second = Terminal(house, "client1")
    second.wait(rb"attached")
    second.type(b"echo still-$marker\r")
    second.wait(rb"still-here")
    assert "attached already" in house.refused("console", "client1")
    second.type(b"exit\r")
    second.wait(rb"the client closed it")
    assert second.end() == 0
    third = Terminal(house, "client1")  # another shell by now
    third.type(b"echo new-$marker-\r")
    third.wait(rb"new--")
    third.type(b"\x1d")
    assert third.end() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_terminal_is_restored_when_the_command_is_killed(how: signal.Signals, house: House) -> None:
    house.up(declare(house, console()))
    terminal = Terminal(house, "client1")
    terminal.wait(rb"attached")
    terminal.process.send_signal(how)
    assert terminal.end() == 128 + how


def test_terminal_is_restored_when_the_system_ends(house: House) -> None:
    system = house.up(declare(house, console()))
    terminal = Terminal(house, "client1")
    terminal.wait(rb"attached")
    house.end(system)
    terminal.wait(rb"system ended")
    assert terminal.end() == 1
    assert house.leftovers() == []


def run(house: House, *words: str, data: bytes = b"", timeout: float = 60) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "powervio", "console", *words],
        input=data,
        cwd=house.folder,
        env=house.environment,
        capture_output=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.dual
@pytest.mark.parametrize("kind", ["virtio", "vterm"])
def test_pipe_in_pipe_out(kind: str, house: House) -> None:
    house.up(declare(house, console(kind=kind)))
    result = run(house, "client1", data=b"stty -echo; echo $((6*7)); tty; exit\n")
    assert result.returncode == 0, result.stderr
    assert b"42\r\n/dev/pts/" in result.stdout
    assert result.stderr == b""


@pytest.mark.parametrize(
    ("kind", "more"),
    [("virtio", ""), ("virtio", "revision = 0"), ("virtio", 'revision = 0\nbyteorder = "big"'), ("vterm", "")],
)
def test_1_mib_through_the_console(kind: str, more: str, house: House) -> None:
    """Out of a raw terminal of the client, compared to the byte."""
    data = os.urandom(1 << 20)
    (house.folder / "data").write_bytes(data)
    # It waits for a word of the operator's: before anybody watches, a console keeps its newest output only.
    command = f"sh -c 'stty raw -echo; head -c 1 >/dev/null; cat {house.folder}/data'"
    house.up(declare(house, console(f'exec = "{command}"\n{more}', kind)))
    time.sleep(0.3)
    result = run(house, "client1", data=b"!")
    assert result.returncode == 0, result.stderr
    assert result.stdout == data


def test_1_mib_into_a_port_and_back(house: House) -> None:
    """A named port with a socket: what the operator sends a program gets, and the other way round."""
    text = '[[lpar.console.port]]\nname = "agent"\nsocket = "agent.sock"\n'
    house.up(declare(house, console() + text))
    data = os.urandom(1 << 20)
    with socket.socket(socket.AF_UNIX) as agent:
        agent.settimeout(30)
        agent.connect(str(house.folder / "agent.sock"))
        with subprocess.Popen(
            [sys.executable, "-m", "powervio", "console", "client1", "--port", "agent"],
            cwd=house.folder,
            env=house.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as command:
            assert command.stdin is not None
            assert command.stdout is not None
            got = bytearray()
            at = 0
            os.set_blocking(command.stdin.fileno(), False)
            while len(got) < len(data):
                readable, writable = wait([agent], [command.stdin] if at < len(data) else [], 30)
                if writable:
                    at += os.write(command.stdin.fileno(), data[at : at + 65536])
                if readable:
                    got += agent.recv(65536)
            assert got == data
            with ThreadPoolExecutor() as reading:  # nobody takes what nobody reads
                back = reading.submit(command.stdout.read)
                agent.sendall(data)
                agent.shutdown(socket.SHUT_WR)
            command.stdin.close()
        assert command.returncode == 0
        assert back.result() == data


def test_console_of_nobody(house: House) -> None:
    house.up(declare(house, console()))
    assert "no client partition" in house.refused("console", "client7")
    assert 'no port "x"' in house.refused("console", "client1", "--port", "x")


def test_client_without_console(house: House) -> None:
    house.up(declare(house, ""))
    assert "[[lpar.console]] declares one" in house.refused("console", "client1")


def test_rng_is_read_by_a_program(house: House) -> None:
    house.up(declare(house, '[[lpar.rng]]\nvios = "vios1"\nsocket = "rng.sock"\nrate = 1000000\n'))
    script = (
        "import socket,sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "d = b''\n"
        "while len(d) < 300000: d += s.recv(65536)\n"
        "print(len(set(d)), max(d.count(b) for b in range(256)))\n"
    )
    said = program(sys.executable, "-c", script, str(house.folder / "rng.sock"))
    different, most = map(int, said.split())
    assert different == 256
    assert most < 2 * 300000 / 256 * 2
    ends = {entry["role"]: entry for entry in house.ps()["adapters"]}
    assert ends["client"]["type"] == "entropy"
    assert ends["client"]["rdma_bytes"] >= 300000
    assert "entropy" in house.ok("ps")


def test_ps_shows_consoles(house: House) -> None:
    house.up(declare(house, console() + '[[lpar]]\nname = "client2"\n' + console(kind="vterm")))
    wait_for(lambda: all(entry["state"] == "running" for entry in house.ps()["adapters"]))
    said = house.ok("ps")
    assert said.count("console") >= 1
    assert said.count("vterm") >= 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (console('socket = "c.sock"\nexec = "sh"'), "lpar[0].console[0].socket: there is exec; expected one of them"),
        (console("exce = 1"), 'lpar[0].console[0].exce: there is no such option; did you mean "exec"?'),
        (console().replace("vios1", "vios9"), 'lpar[0].console[0].vios: "vios9" is not one of the VIO servers (vios1)'),
        ('[[lpar.rng]]\nvios = "vios1"\nrate = 0\n', "lpar[0].rng[0].rate: expected an integer from 1 to"),
        ('[[lpar.rng]]\nvios = "vios1"\nsocket = "no/x.sock"\n', "lpar[0].rng[0].socket: the folder"),
        ("[[lpar.rng]]\n", "lpar[0].rng[0].vios: it is missing; expected a string"),
        (console() + '[[lpar.console.port]]\nname = "console"\n', "lpar[0].console[0].port: a name is there twice"),
        (console("max_ports = 1") + '[[lpar.console.port]]\nname = "a"\n', "max_ports: 1; there are 2"),
        (console(kind="vterm") + '[[lpar.console.port]]\nname = "a"\n', "has no ports"),
    ],
)
def test_mistakes_are_told(text: str, told: str, house: House) -> None:
    assert told in house.refused("up", declare(house, text))


def test_example_starts_and_its_shells_answer(house: House) -> None:
    shutil.copy(EXAMPLE, house.folder)
    house.ok("up", "-d", "console.toml")
    for client in ("client1", "client2"):
        result = run(house, client, data=b"echo $((6*7))\nexit\n")
        assert result.returncode == 0, result.stderr
        assert b"42" in result.stdout
    house.ok("down")


def typed(*pieces: bytes) -> tuple[bytes, bool]:
    keys = Keys()
    out = b""
    for piece in pieces:
        passed, detach = keys.pass_on(piece)
        out += passed
        if detach:
            return out, True
    return out, False


@pytest.mark.parametrize(
    ("pieces", "passed"),
    [
        ((b"~.",), (b"", True)),
        ((b"ls\r~", b"."), (b"ls\r", True)),
        ((b"a~.",), (b"a~.", False)),
        ((b"~~.",), (b"~.", False)),
        ((b"~x.",), (b"~x.", False)),
        ((b"abc\x1ddef",), (b"abc", True)),
        ((b"~\x1d",), (b"~", True)),
    ],
)
def test_keys(pieces: tuple[bytes, ...], passed: tuple[bytes, bool]) -> None:
    assert typed(*pieces) == passed
