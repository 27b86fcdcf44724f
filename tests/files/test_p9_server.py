"""The 9P server on real sockets: pipelined and broken messages, limits, ends; and diod's own clients."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from powervio.errors import LocalError
from powervio.files import p9_codec as p9
from powervio.files.p9_server import P9Server
from powervio.files.tree import Tree

pytestmark = pytest.mark.dual


class Line:
    """A client's end of a connection."""

    def __init__(self, place: str) -> None:
        kind, _, rest = place.partition(":")
        if kind == "unix":
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.socket.connect(rest)
        else:
            host, _, port = rest.rpartition(":")
            self.socket = socket.create_connection((host.strip("[]"), int(port)))
        self.socket.settimeout(20)

    @classmethod
    def of(cls, end: socket.socket) -> Line:
        """One that is connected already."""
        made = cls.__new__(cls)
        made.socket = end
        end.settimeout(20)
        return made

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def exactly(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            part = self.socket.recv(count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def answer(self) -> tuple[int, int, tuple[Any, ...]]:
        size = self.exactly(4)
        message = size + self.exactly(int.from_bytes(size, "little") - 4)
        kind, tag = p9.head(message)
        return kind, tag, p9.unpack(kind, message)

    def ask(self, kind: int, *fields: Any, tag: int = 1) -> tuple[Any, ...]:
        self.socket.sendall(p9.pack(kind, tag, *fields))
        told, answered, values = self.answer()
        assert (told, answered) == (kind + 1, tag), values
        return values

    def begin(self, msize: int = 1 << 20) -> Line:
        self.ask(p9.TVERSION, msize, p9.VERSION, tag=p9.NO_TAG)
        self.ask(p9.TATTACH, 0, p9.NO_FID, b"", b"", os.geteuid())
        return self

    def rest(self) -> bytes:
        """What comes until the server ends it."""
        return b"".join(iter(lambda: self.socket.recv(1 << 20), b""))

    def ended(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


def unread(end: socket.socket) -> int:
    """Bytes that came and were not read yet."""
    return int.from_bytes(fcntl.ioctl(end, termios.FIONREAD, bytes(4)), sys.byteorder)


def wait_for(true: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Tree]:
    folder = tmp_path / "share"
    folder.mkdir()
    with Tree(folder) as tree:
        yield tree


@pytest.fixture
def server(share: Tree, tmp_path: Path) -> Iterator[P9Server]:
    with P9Server(share, [f"unix:{tmp_path / 'socket'}", "tcp:127.0.0.1:0", "tcp:[::1]:0"]) as made:
        yield made


def test_serves_at_every_place(server: P9Server, tmp_path: Path) -> None:
    (tmp_path / "share/f").write_bytes(b"contents")
    for place in server.places:
        with Line(place).begin() as line:
            line.ask(p9.TWALK, 0, 1, [b"f"])
            line.ask(p9.TLOPEN, 1, os.O_RDONLY)
            assert line.ask(p9.TREAD, 1, 0, 100) == (b"contents",)
    wait_for(lambda: server.connected == 0)
    assert (server.counters.connections, server.counters.messages) == (3, 15)


def test_connection_for_which_there_is_no_thread_is_refused(server: P9Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with Line(server.places[0]) as line:
            assert line.ended()
    assert (server.counters.refused, server.counters.connections) == (1, 0)
    with Line(server.places[0]).begin() as line:
        line.ask(p9.TGETATTR, 0, 0x7FF)


def test_messages_that_come_together_and_in_pieces(server: P9Server, tmp_path: Path) -> None:
    (tmp_path / "share/f").write_bytes(bytes(range(256)))
    with Line(server.places[0]).begin() as line:
        messages = [p9.pack(p9.TWALK, 5, 0, 1, [b"f"]), p9.pack(p9.TLOPEN, 6, 1, 2)]
        messages += [p9.pack(p9.TREAD, 100 + number, 1, number, 7) for number in range(200)]
        line.socket.sendall(b"".join(messages))
        assert [line.answer()[:2] for _ in range(2)] == [(111, 5), (13, 6)]
        for number in range(200):
            assert line.answer() == (117, 100 + number, (bytes(range(number, number + 7)),))
        for byte in p9.pack(p9.TREAD, 9, 1, 3, 4):
            line.socket.sendall(bytes([byte]))
            time.sleep(0.001)
        assert line.answer() == (117, 9, (b"\3\4\5\6",))


def test_longest_messages(server: P9Server, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    with Line(server.places[0]).begin() as line:
        line.ask(p9.TLCREATE, 0, b"f", 0o102, 0o600, os.getegid())
        part = (1 << 20) - 23
        sent = 0
        while sent < len(data):
            (count,) = line.ask(p9.TWRITE, 0, sent, data[sent : sent + part])
            sent += count
        assert (tmp_path / "share/f").read_bytes() == data
        read = 0
        while read < len(data):
            (some,) = line.ask(p9.TREAD, 0, read, 0xFFFFFFFF)
            assert bytes(some) == data[read : read + len(some)]
            read += len(some)
            assert len(some) == (1 << 20) - 11 or read == len(data)


@pytest.mark.parametrize("size", [0, 6, 4097, 0xFFFFFFFF])
def test_length_that_no_message_has_ends_the_connection(server: P9Server, size: int) -> None:
    with Line(server.places[0]).begin(4096) as line:
        line.socket.sendall(p9.pack(p9.TFLUSH, 1, 0) + size.to_bytes(4, "little") + b"xyz")
        assert line.answer() == (109, 1, ())  # what came before it is answered
        assert line.ended()
    with Line(server.places[0]).begin():
        pass


def test_client_that_goes_leaves_nothing(server: P9Server, share: Tree, tmp_path: Path) -> None:
    (tmp_path / "share/f").touch()
    with Line(server.places[0]).begin() as line:
        line.ask(p9.TWALK, 0, 1, [b"f"])
        line.ask(p9.TLOPEN, 1, 2)
        assert line.ask(p9.TLOCK, 1, 1, 0, 0, 0, 7, b"one") == (0,)
        with Line(server.places[0]).begin() as other:
            other.ask(p9.TWALK, 0, 1, [b"f"])
            other.ask(p9.TLOPEN, 1, 2)
            assert other.ask(p9.TLOCK, 1, 1, 1, 0, 0, 7, b"two") == (1,)
            line.socket.sendall(p9.pack(p9.TWRITE, 1, 1, 0, bytes(100))[:50])
            line.socket.close()
            wait_for(lambda: server.connected == 1)
            assert other.ask(p9.TLOCK, 1, 1, 1, 0, 0, 7, b"two") == (0,)
    wait_for(lambda: server.connected == 0)
    assert share.open_count == 0
    assert (tmp_path / "share/f").stat().st_size == 0


def test_connections_are_bounded(share: Tree, tmp_path: Path) -> None:
    with P9Server(share, [f"unix:{tmp_path / 'socket'}"], most_connections=2) as server:
        with Line(server.places[0]).begin(), Line(server.places[0]).begin(), Line(server.places[0]) as third:
            assert third.ended()
        wait_for(lambda: server.connected == 0)
        with Line(server.places[0]).begin():
            pass
        assert server.counters.refused == 1


def test_unix_socket_is_its_users_own_and_goes_with_the_server(share: Tree, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with P9Server(share, [f"unix:{path}"]) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with pytest.raises(LocalError, match="in use"):
            P9Server(share, [f"unix:{path}"])
        with Line(server.places[0]).begin() as line:
            server.close()
            assert line.ended()
    assert not path.exists()
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with P9Server(share, [f"unix:{path}"], mode=0o666):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


@pytest.mark.parametrize(
    "place", ["", "unix:", "tcp:1", "tcp::5", "tcp:127.0.0.1:65536", "/path", "tcp:nowhere.invalid:1"]
)
def test_places_that_are_none(share: Tree, place: str) -> None:
    with pytest.raises(LocalError):
        P9Server(share, [place])


def test_path_that_is_no_socket_is_left_alone(share: Tree, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(LocalError):
        P9Server(share, [f"unix:{tmp_path / 'file'}"])
    assert (tmp_path / "file").read_text() == "mine"


# -- a client that does not know us


def diod_client(*command: str) -> bytes:
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("which", [0, 1])
def test_diods_clients(server: P9Server, tmp_path: Path, which: int) -> None:
    share = tmp_path / "share"
    data = os.urandom(300_000)
    (share / "big").write_bytes(data)
    (share / "folder").mkdir()
    (share / "folder/inner").write_text("inner")
    place = server.places[which].partition(":")[2]
    for name in (str(share), "/"):
        assert sorted(diod_client("diodls", "-s", place, "-a", name).split()) == [b"big", b"folder"]
        assert diod_client("diodcat", "-s", place, "-a", name, "-m", "8192", "big") == data
    assert diod_client("diodcat", "-s", place, "-a", str(share), "folder/inner") == b"inner"
    listed = diod_client("diodls", "-s", place, "-a", str(share), "-l").decode().splitlines()
    facts = (share / "big").stat()
    (line,) = (line.split() for line in listed if line.endswith("big"))
    assert line[0].startswith("-rw-r--r--")
    assert line[4] == str(facts.st_size)


def test_diods_load(server: P9Server, tmp_path: Path) -> None:
    folder = tmp_path / "share/ctl"
    folder.mkdir()
    with (folder / "zero").open("wb") as zero:
        zero.truncate(1 << 30)
    (folder / "null").touch()
    for options in ((), ("-g",)):
        done = subprocess.run(
            ["diodload", "-s", server.places[0][5:], "-n", "4", "-r", "1", *options],
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0
        assert b"error" not in done.stderr + done.stdout
        told = (done.stderr + done.stdout).split(b"diodload: ")[-1]
        assert int(told.split(b" ops/s")[0]) > 0
