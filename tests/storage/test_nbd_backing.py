"""A backing on an NBD server that forgets, dies, refuses and comes back."""

from __future__ import annotations

import errno
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from powervio.errors import LocalError
from powervio.storage.nbd import protocol as nbd
from powervio.storage.nbd.protocol import Command, Error
from powervio.storage.nbd_backing import NbdBacking
from powervio.storage.open import parse_uri

from .nbd_server import FLAGS, VolatileServer

SIZE = 1 << 20


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pvio-", dir="/tmp") as made:
        yield Path(made)


@pytest.fixture
def server(folder: Path) -> Iterator[VolatileServer]:
    made = VolatileServer(folder / "s", SIZE)
    yield made
    made.die()


@pytest.fixture
def backing(server: VolatileServer) -> Iterator[NbdBacking]:
    made = NbdBacking(str(server.path), reconnect_limit=5.0)
    yield made
    made.close()


def read(backing: NbdBacking, position: int, length: int) -> bytes:
    memory = bytearray(length)
    backing.read_into(position, memoryview(memory))
    return bytes(memory)


def test_everything_a_backing_does(backing: NbdBacking, server: VolatileServer) -> None:
    data = os.urandom(5000)
    backing.write_from(1000, memoryview(data))
    assert read(backing, 1000, 5000) == data
    backing.flush()
    assert server.stable[1000:6000] == data
    backing.write_zeroes(2048, 1024, unmap=True)
    backing.discard(4096, 512)
    assert read(backing, 2048, 1024) == bytes(1024)
    assert backing.extents(512, 4096) == [(1536, True), (1024, False), (1024, True), (512, False)]
    assert (backing.size, backing.block_size, backing.can_discard, backing.read_only) == (SIZE, 512, True, False)
    for position, length in ((-1, 1), (SIZE, 1), (SIZE - 1, 2)):
        with pytest.raises(OSError, match="outside") as caught:
            backing.write_from(position, memoryview(bytes(length)))
        assert caught.value.errno == errno.EINVAL


def test_servers_errors_come_with_their_words_and_the_connection_goes_on(
    backing: NbdBacking, server: VolatileServer
) -> None:
    server.fail = {Command.WRITE: Error.ENOSPC}
    with pytest.raises(OSError, match="as the test wants it") as caught:
        backing.write_from(0, memoryview(b"x" * 512))
    assert caught.value.errno == errno.ENOSPC
    server.fail.clear()
    backing.write_from(0, memoryview(b"y" * 512))
    assert backing.reconnections == 0


def test_unflushed_writes_are_replayed_in_order_and_covered_by_the_next_flush(
    backing: NbdBacking, server: VolatileServer
) -> None:
    backing.write_from(0, memoryview(b"flushed!" * 64))
    backing.flush()
    for letter in b"abc":  # the last one wins
        backing.write_from(512, memoryview(bytes([letter]) * 1024))
    backing.write_zeroes(1024, 512, unmap=False)
    server.die()
    assert not any(server.cached[512:2048])
    server.start()
    backing.flush()
    assert server.stable[:2048] == b"flushed!" * 64 + b"c" * 512 + bytes(1024)
    assert backing.replayed == 4
    server.die()
    server.start()
    assert read(backing, 512, 512) == b"c" * 512
    assert backing.replayed == 4  # what was flushed is not written again


@pytest.mark.parametrize("command", [Command.WRITE, Command.FLUSH, Command.READ])
@pytest.mark.parametrize("obey_first", [False, True])
def test_request_in_flight_when_the_server_dies_is_sent_again(
    backing: NbdBacking, server: VolatileServer, command: Command, obey_first: bool
) -> None:
    backing.write_from(0, memoryview(b"1" * 512))
    server.die_at, server.obey_first = command, obey_first

    def resurrect() -> None:
        while server._listener is not None:
            time.sleep(0.005)
        server.die_at = None
        server.start()

    threading.Thread(target=resurrect, daemon=True).start()
    backing.write_from(512, memoryview(b"2" * 512))
    backing.flush()
    assert read(backing, 0, 1024) == b"1" * 512 + b"2" * 512
    assert server.stable[:1024] == b"1" * 512 + b"2" * 512
    assert backing.reconnections == 1


def test_journal_is_bounded_by_a_flush(server: VolatileServer) -> None:
    backing = NbdBacking(str(server.path), journal_bytes=8192)
    for at in range(0, 64 * 1024, 4096):
        backing.write_from(at, memoryview(bytes([at >> 12]) * 4096))
    flushes = [entry for entry in server.log if entry[0] == "FLUSH"]
    assert len(flushes) == 7
    server.die()
    server.start()
    assert [read(backing, at, 1)[0] for at in range(0, 64 * 1024, 4096)] == list(range(16))
    assert backing.replayed == 2
    backing.close()


def test_failed_flush_is_told_and_the_next_one_writes_everything_again(
    backing: NbdBacking, server: VolatileServer
) -> None:
    backing.write_from(0, memoryview(b"x" * 512))
    server.fail = {Command.FLUSH: Error.EIO}
    with pytest.raises(OSError, match="as the test wants it"):
        backing.flush()
    server.cached[:] = server.stable  # as a kernel drops pages that it could not write
    server.fail.clear()
    backing.flush()
    assert server.stable[:512] == b"x" * 512


def test_replay_that_fails_fails_the_flush_and_is_tried_again(backing: NbdBacking, server: VolatileServer) -> None:
    backing.write_from(0, memoryview(b"x" * 512))
    server.die()
    server.start()
    server.fail = {Command.WRITE: Error.ENOSPC}
    with pytest.raises(OSError, match="could not be written again"):
        backing.flush()
    server.fail.clear()
    backing.flush()
    assert server.stable[:512] == b"x" * 512


def test_server_that_stays_away_fails_calls_in_time_and_nothing_is_lost_when_it_returns(
    server: VolatileServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    backing = NbdBacking(str(server.path), reconnect_limit=1.5)
    backing.write_from(0, memoryview(b"x" * 512))
    server.die()
    for least, most in ((1.4, 20.0), (0.0, 1.4)):  # waits once, then fails at once
        began = time.monotonic()
        with pytest.raises(OSError, match="cannot connect") as caught:
            backing.flush()
        assert caught.value.errno == errno.EIO
        assert least <= time.monotonic() - began < most
    server.start()
    backing.flush()
    assert server.stable[:512] == b"x" * 512
    backing.close()


def test_close_ends_a_wait_for_the_server(server: VolatileServer) -> None:
    backing = NbdBacking(str(server.path), reconnect_limit=60)
    server.die()
    threading.Timer(0.3, backing.close).start()
    began = time.monotonic()
    with pytest.raises(OSError, match="being closed"):
        read(backing, 0, 512)
    assert time.monotonic() - began < 5


def test_smaller_export_is_not_the_one_that_was_lost(server: VolatileServer, folder: Path) -> None:
    backing = NbdBacking(str(server.path), reconnect_limit=0.5)
    server.die()
    other = VolatileServer(folder / "s", SIZE // 2)
    with pytest.raises(OSError, match="another export"):
        read(backing, 0, 512)
    backing.close()
    other.die()


def test_server_without_flush_has_no_journal(folder: Path) -> None:
    server = VolatileServer(folder / "s", SIZE, flags=0)
    backing = NbdBacking(str(server.path))
    backing.write_from(0, memoryview(b"x" * 512))
    backing.flush()
    backing.write_zeroes(0, 512, unmap=True)  # it has no such request: zeroes are sent
    assert [name for name, _, _ in server.log] == ["WRITE", "WRITE"]
    assert not backing._journal
    backing.close()
    server.die()


def test_read_only_export_refuses_changes(folder: Path) -> None:
    server = VolatileServer(folder / "s", SIZE, flags=nbd.READ_ONLY)
    backing = NbdBacking(str(server.path))
    assert backing.read_only
    changes: list[Callable[[], None]] = [
        lambda: backing.write_from(0, memoryview(bytes(512))),
        lambda: backing.discard(0, 512),
        lambda: backing.write_zeroes(0, 512, unmap=True),
    ]
    for change in changes:
        with pytest.raises(OSError, match="read-only") as caught:
            change()
        assert caught.value.errno == errno.EROFS
    backing.flush()
    backing.close()
    server.die()


def test_blocks_of_the_server_are_respected_whatever_is_asked(folder: Path) -> None:
    server = VolatileServer(folder / "s", SIZE, flags=FLAGS, minimum_block=4096)
    backing = NbdBacking(str(server.path))
    assert backing.block_size == 4096
    model, random = bytearray(SIZE), Random(1)
    for _ in range(200):
        at, length = random.randrange(SIZE - 20000), random.randrange(1, 20000)
        data = random.randbytes(length)
        if random.random() < 0.3:
            backing.write_zeroes(at, length, unmap=True)
            data = bytes(length)
        else:
            backing.write_from(at, memoryview(data))
        model[at : at + length] = data
        at = random.randrange(SIZE - 20000)
        assert read(backing, at, length) == model[at : at + length]
    assert sum(count for count, _ in backing.extents(100, 9000)) == 9000
    backing.close()
    server.die()


def test_nobody_there_and_no_such_export_are_told(folder: Path, server: VolatileServer) -> None:
    with pytest.raises(LocalError, match=r"nbd\+unix:///\?socket=.*nobody: cannot connect"):
        NbdBacking(str(folder / "nobody"))
    with pytest.raises(LocalError, match="export 'x' is refused"):
        NbdBacking(str(server.path), "x")


@pytest.mark.parametrize("words", [[], ["--no-sr"]], ids=["structured", "simple"])
def test_nbdkit_over_tcp_with_and_without_structured_replies(folder: Path, words: list[str]) -> None:
    port_file = folder / "pid"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["nbdkit", "-f", "-i", "127.0.0.1", "-p", str(port), "-P", str(port_file), *words, "memory", "64M"]
    )
    try:
        while not port_file.exists():
            time.sleep(0.01)
        backing = NbdBacking(("127.0.0.1", port), request_limit=10)
        data = os.urandom(40 << 20)  # more than one request may carry
        backing.write_from(4096, memoryview(data))
        assert read(backing, 4096, len(data)) == data
        assert backing._export.structured == (not words)
        backing.flush()
        backing.close()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.parametrize(
    ("uri", "address", "export"),
    [
        ("nbd://host", ("host", 10809), ""),
        ("nbd://[::1]:1234/a%20b", ("::1", 1234), "a b"),
        ("nbd+unix:///disk?socket=/run/x.sock", "/run/x.sock", "disk"),
    ],
)
def test_uri_is_an_address_and_an_export(uri: str, address: object, export: str) -> None:
    found = parse_uri(uri)
    assert (found.address, found.export) == (address, export)


@pytest.mark.parametrize(
    "uri", ["nbds://host/x", "nbd:///x", "nbd://host:99999/x", "nbd://h/x?socket=y", "nbd+unix:///x", "http://x"]
)
def test_uri_that_is_none_is_refused(uri: str) -> None:
    with pytest.raises(LocalError):
        parse_uri(uri)
