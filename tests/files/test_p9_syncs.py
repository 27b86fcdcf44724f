"""Tfsync beside a connection's other messages: what goes on meanwhile, what waits, and what is left of it."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.files.slow_disk import LIMIT, SlowDisk
from tests.files.test_identity import own_identity
from tests.files.test_p9_server import Line, unread, wait_for

from powervio.files import p9_codec as p9
from powervio.files import p9_server, p9_syncs
from powervio.files.identity import Caller
from powervio.files.p9_server import P9Server
from powervio.files.p9_session import Session
from powervio.files.p9_stream import P9Stream
from powervio.files.p9_syncs import MOST, MOST_FLUSHES, Syncs
from powervio.files.tree import Tree, TreeOptions
from powervio.files.tree_open import OpenFile

pytestmark = pytest.mark.dual
FSYNC, FLUSH, GETATTR, CLUNK, VERSION = p9.TFSYNC, p9.TFLUSH, p9.TGETATTR, p9.TCLUNK, p9.TVERSION


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    made = SlowDisk()
    monkeypatch.setattr(p9_syncs, "sync", made.sync)
    yield made
    made.gate.set()


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Tree]:
    (tmp_path / "share").mkdir()
    with Tree(tmp_path / "share", TreeOptions()) as tree:
        yield tree


@pytest.fixture
def server(share: Tree, disk: SlowDisk, tmp_path: Path) -> Iterator[P9Server]:
    with P9Server(share, [f"unix:{tmp_path / 'socket'}"]) as made:
        yield made
        disk.gate.set()


@pytest.fixture
def line(server: P9Server) -> Iterator[Line]:
    """Fid 1 is a file that is open for writing."""
    with Line(server.places[0]).begin() as line:
        line.ask(p9.TWALK, 0, 1, [])
        line.ask(p9.TLCREATE, 1, b"f", os.O_RDWR, 0o600, p9.NO_FID)
        line.ask(p9.TWRITE, 1, 0, b"data")
        yield line


def send(line: Line, kind: int, *fields: object, tag: int) -> None:
    line.socket.sendall(p9.pack(kind, tag, *fields))


def heads(line: Line, count: int) -> list[tuple[int, int]]:
    return [line.answer()[:2] for _ in range(count)]


def is_silent(line: Line) -> bool:
    """Whether what was sent to it has no answer yet, but for this message's."""
    return line.ask(GETATTR, 0, 0x7FF, tag=999) != ()


def test_others_are_answered_before_it(line: Line, disk: SlowDisk) -> None:
    send(line, FSYNC, 1, 1, tag=7)
    disk.wait()
    for tag in range(10, 20):
        line.ask(GETATTR, 1, 0x7FF, tag=tag)
    assert line.ask(p9.TWRITE, 1, 4, b"more") == (4,)
    disk.gate.set()
    assert line.answer() == (FSYNC + 1, 7, ())
    line.ask(FSYNC, 1, 0, tag=7)
    assert disk.calls == [True, False]


def test_it_is_the_servers_own_doing(line: Line, disk: SlowDisk) -> None:
    """Its thread is born while the connection's acts as a client, with what the kernel takes from that."""
    disk.gate.set()
    line.ask(p9.TATTACH, 2, p9.NO_FID, b"", b"", 4711)
    line.ask(p9.TLOPEN, 2, os.O_RDONLY)
    line.ask(FSYNC, 2, 0)
    assert disk.callers == [own_identity()]


def test_its_error_is_told(line: Line, disk: SlowDisk) -> None:
    disk.fails = errno.EIO
    disk.gate.set()
    send(line, FSYNC, 1, 0, tag=7)
    assert line.answer() == (p9.RLERROR, 7, (errno.EIO,))


def test_what_is_none_is_refused_in_its_place(line: Line, disk: SlowDisk) -> None:
    for message, code in (
        (p9.pack(FSYNC, 7, 0, 0), errno.EBADF),
        (p9.pack(FSYNC, 7, 99, 0), errno.EBADF),
        (b"\x0b\0\0\0" + p9.pack(FSYNC, 7, 1, 0)[4:11], errno.EPROTO),
        (b"\x10\0\0\0" + p9.pack(FSYNC, 7, 1, 0)[4:] + b"x", errno.EPROTO),
    ):
        line.socket.sendall(message)
        assert line.answer() == (p9.RLERROR, 7, (code,))
    assert disk.calls == []


def test_flush_is_answered_behind_it_and_a_flush_of_the_flush_behind_that(line: Line, disk: SlowDisk) -> None:
    send(line, FSYNC, 1, 0, tag=7)
    disk.wait()
    send(line, FLUSH, 7, tag=8)
    send(line, FLUSH, 8, tag=9)
    line.ask(FLUSH, 6, tag=10)
    assert is_silent(line)
    disk.gate.set()
    assert heads(line, 3) == [(FSYNC + 1, 7), (FLUSH + 1, 8), (FLUSH + 1, 9)]
    line.ask(FLUSH, 7, tag=8)


def test_fid_that_ends_meanwhile(line: Line, disk: SlowDisk, share: Tree, tmp_path: Path) -> None:
    line.ask(p9.TWALK, 0, 2, [b"f"])
    line.ask(p9.TLOPEN, 2, os.O_RDONLY)
    for fid in (1, 2):
        send(line, FSYNC, fid, 0, tag=6 + fid)
    disk.wait()
    line.ask(p9.TREMOVE, 1)
    line.ask(CLUNK, 2)
    assert os.listdir(tmp_path / "share") == []
    assert share.open_count == 2
    line.ask(p9.TWALK, 0, 1, [])  # the numbers are others' now
    line.ask(CLUNK, 1)
    disk.gate.set()
    assert heads(line, 2) == [(FSYNC + 1, 7), (FSYNC + 1, 8)]
    wait_for(lambda: share.open_count == 0)


def test_version_begins_behind_it(line: Line, disk: SlowDisk, share: Tree) -> None:
    send(line, FSYNC, 1, 0, tag=7)
    disk.wait()
    send(line, FLUSH, 7, tag=8)
    send(line, VERSION, 8192, p9.VERSION, tag=p9.NO_TAG)
    disk.gate.set()
    assert heads(line, 3) == [(FSYNC + 1, 7), (FLUSH + 1, 8), (VERSION + 1, p9.NO_TAG)]
    assert share.open_count == 0


def test_no_more_wait_than_may(line: Line, disk: SlowDisk) -> None:
    """One more is carried out in its place, where nobody slows it down; so is one whose tag is in use."""
    for tag in range(100, 100 + MOST):
        send(line, FSYNC, 1, 0, tag=tag)
    disk.wait()
    line.ask(FSYNC, 1, 0, tag=7)
    line.ask(FSYNC, 1, 0, tag=100)
    assert is_silent(line)
    assert len(disk.calls) == 1
    disk.gate.set()
    assert heads(line, MOST) == [(FSYNC + 1, tag) for tag in range(100, 100 + MOST)]
    assert len(disk.calls) == MOST


def test_flushes_have_a_bound_beyond_which_the_connection_waits(line: Line, disk: SlowDisk) -> None:
    send(line, FSYNC, 1, 0, tag=7)
    disk.wait()
    for tag in range(100, 100 + MOST_FLUSHES):
        send(line, FLUSH, 7, tag=tag)
    assert is_silent(line)
    for tag in (200, 201):
        send(line, FLUSH, 7, tag=tag)
    disk.gate.set()
    found = heads(line, MOST_FLUSHES + 3)
    assert found[0] == (FSYNC + 1, 7)
    assert found[1:] == [(FLUSH + 1, tag) for tag in (*range(100, 100 + MOST_FLUSHES), 200, 201)]


def test_connection_that_ends_waits_for_the_disk_and_leaves_nothing(
    server: P9Server, line: Line, disk: SlowDisk, share: Tree
) -> None:
    threads = threading.active_count()
    for tag in (7, 8, 9):
        send(line, FSYNC, 1, 0, tag=tag)
    disk.wait()
    line.socket.close()
    with Line(server.places[0]).begin() as other:
        other.ask(GETATTR, 0, 0x7FF)
        assert server.connected == 2
    disk.gate.set()
    wait_for(lambda: server.connected == 0 and threading.active_count() < threads)
    assert share.open_count == 0
    assert len(disk.calls) == 1  # nobody asks any more


def test_server_that_ends_meanwhile_waits_so_long_and_leaves_nothing(
    server: P9Server, line: Line, disk: SlowDisk, share: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p9_server, "ENDING", 0.05)
    for tag in (7, 8):
        send(line, FSYNC, 1, 0, tag=tag)
    disk.wait()
    server.close()
    assert server.connected == 1
    share.close()
    disk.gate.set()
    wait_for(lambda: server.connected == 0)
    assert (share.open_count, len(share.cache)) == (0, 0)
    assert len(disk.calls) == 1
    assert line.ended()


def test_nothing_follows_half_an_answer(share: Tree, disk: SlowDisk, tmp_path: Path) -> None:
    """The client does not read, until the connection's patience is at an end in the middle of an Rread."""
    ours, theirs = socket.socketpair()
    (tmp_path / "share/f").write_bytes(bytes(1 << 20))
    line = Line.of(theirs)
    session = Session(share)
    with ours, line:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("=qq", 0, 200_000))
        stream = P9Stream(ours.fileno(), session)
        why: list[str] = []
        thread = threading.Thread(target=lambda: why.append(stream.serve()), daemon=True)
        thread.start()
        line.begin()
        line.ask(p9.TWALK, 0, 1, [b"f"])
        line.ask(p9.TLOPEN, 1, os.O_RDWR)
        send(line, FSYNC, 1, 0, tag=7)
        disk.wait()
        send(line, p9.TREAD, 1, 0, 1 << 19, tag=8)
        wait_for(lambda: unread(theirs) > 0)
        disk.gate.set()
        thread.join(LIMIT)
        ours.shutdown(socket.SHUT_WR)
        kind, tag, rest = p9.TREAD + 1, 8, line.rest()
        assert rest[4:7] == bytes([kind]) + tag.to_bytes(2, "little")
        assert rest[11:] == bytes(len(rest) - 11)
        assert len(rest) < 1 << 19
        assert why == [os.strerror(errno.EAGAIN)]
    session.close()
    assert share.open_count == 0


def test_nothing_is_sent_after_another_could_not(share: Tree, disk: SlowDisk) -> None:
    _, opened = share.root().create(b"f", os.O_RDWR, 0o600, Caller(os.geteuid(), os.getegid()))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        syncs = Syncs(ours.fileno(), share.identity)
        for tag in (7, 8):
            assert syncs.take(tag, opened, False)
        disk.wait()
        with syncs.lock:
            syncs.broken = errno.EAGAIN
        disk.gate.set()
        syncs.wait()
        assert not syncs.take(9, opened, False)
        assert not syncs.flush(10, 8)
        syncs.close()
        assert unread(theirs) == 0
        assert ours.fileno() == os.dup2(ours.fileno(), ours.fileno())  # it was not closed
    assert (syncs.sent, syncs.broken, len(disk.calls)) == (0, errno.EAGAIN, 1)
    opened.close()
    assert share.open_count == 0


def test_what_should_not_happen_is_an_error(
    line: Line, share: Tree, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def sync(opened: OpenFile, data_only: bool) -> int:
        raise MemoryError

    monkeypatch.setattr(p9_syncs, "sync", sync)
    for tag in (7, 8):
        send(line, FSYNC, 1, 0, tag=tag)
        assert line.answer() == (p9.RLERROR, tag, (errno.EIO,))
    line.ask(CLUNK, 1)
    assert share.open_count == 0
    assert [one.message for one in caplog.records] == ["9P server: Tfsync"] * 2


def test_without_a_thread_it_is_done_in_its_place(line: Line, disk: SlowDisk, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        line.ask(FSYNC, 1, 0)
        assert disk.calls == []
    disk.gate.set()
    line.ask(FSYNC, 1, 0)
    assert disk.calls == [False]


def test_everything_that_was_sent_is_counted(server: P9Server, line: Line, disk: SlowDisk) -> None:
    disk.gate.set()
    line.ask(FSYNC, 1, 0, tag=7)
    line.socket.close()
    wait_for(lambda: server.connected == 0)
    counted = server.counters
    assert counted.messages == 6
    assert counted.sent == 21 + 20 + 9 + 24 + 11 + 7
