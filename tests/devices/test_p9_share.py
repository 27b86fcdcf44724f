"""The 9P device with a session and a share behind it: what becomes of fids, and that any bytes have an end."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from powervio.devices.p9 import P9Device
from powervio.errors import PowervioError
from powervio.files import p9_codec as codec
from powervio.files.p9_session import Session
from powervio.files.tree import Tree
from powervio.testing.direct import DirectLink
from powervio.testing.pair import PartitionPair
from powervio.testing.raw import Exchange, RawDriver
from powervio.virtio import p9

pytestmark = pytest.mark.dual
MSIZE = 256 * 1024
MESSAGES = st.tuples(st.sampled_from(sorted(codec.MESSAGES)), st.binary(max_size=40))
EVERYBODY = (codec.NO_FID, b"", b"", 0)


class Rig:
    """A device that shares a folder, a raw driver, and the way between them."""

    def __init__(self, folder: Path, way: str) -> None:
        self.tree = Tree(folder)
        self.device = P9Device("share", lambda: Session(self.tree), close=self.tree.close)
        self.driver = RawDriver()
        self.driver.device_id = p9.DEVICE_ID  # type: ignore[misc]
        self.pair: PartitionPair | None = None
        self.link: DirectLink | None = None
        if way == "direct":
            self.link = DirectLink(self.device, self.driver)
            self.link.connect()
        else:
            redirect = way == "redirected"
            self.pair = PartitionPair(
                self.device, self.driver, memory=32 << 20, redirect=redirect, redirect_min=4096
            ).start()

    def run(self) -> None:
        if self.link is not None:
            self.link.run()
        elif self.pair is not None:
            self.pair.settle()

    def raw(self, text: bytes, room: int = 512) -> bytes:
        exchange = self.driver.send([text], [room])
        self.run()
        assert exchange.times == 1
        assert exchange.used is not None
        return exchange.answer[: exchange.used]

    def ask(self, kind: int, *fields: Any, room: int = 512) -> tuple[Any, ...]:
        """The fields of the answer, after it was looked at. Raises `OSError` for an Rlerror."""
        answer = self.raw(codec.pack(kind, 7, *fields), room)
        size, said = int.from_bytes(answer[:4], "little"), answer[4]
        assert (size, int.from_bytes(answer[5:7], "little")) == (len(answer), 7)
        if said == codec.RLERROR:
            raise OSError(*codec.unpack(said, answer), "Rlerror")
        assert said == kind + 1
        return codec.unpack(said, answer)

    def attach(self) -> None:
        assert self.ask(codec.TVERSION, MSIZE, b"9P2000.L") == (MSIZE, b"9P2000.L")
        self.ask(codec.TATTACH, 1, *EVERYBODY)

    def open(self, fid: int, name: bytes, flags: int = 0) -> None:
        self.ask(codec.TWALK, 1, fid, [name])
        self.ask(codec.TLOPEN, fid, flags)

    def close(self) -> None:
        if self.link is not None:
            self.link.close()
        elif self.pair is not None:
            self.pair.close()
        self.device.close()


@pytest.fixture(params=["direct", "copied", "redirected"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    (tmp_path / "file").write_bytes(bytes(at % 251 for at in range(500_000)))
    rig = Rig(tmp_path, request.param)
    yield rig
    rig.close()


@pytest.mark.parametrize("count", [0, 1, 4096, 16_373, 16_374, 65_536, MSIZE - 11])
def test_reads_of_every_size_are_the_files(rig: Rig, tmp_path: Path, count: int) -> None:  # F3.5
    rig.attach()
    rig.open(2, b"file")
    data = (tmp_path / "file").read_bytes()
    for position in (0, 3, 499_000, 500_000, 1 << 40):
        (answer,) = rig.ask(codec.TREAD, 2, position, count, room=11 + count)
        assert bytes(answer) == data[position : position + count]


@pytest.mark.parametrize("count", [1, 4073, 4074, 65_536, MSIZE - 23])
def test_writes_of_every_size_are_in_the_file(rig: Rig, tmp_path: Path, count: int) -> None:
    rig.attach()
    rig.open(2, b"file", os.O_RDWR)
    data = os.urandom(count)
    assert rig.ask(codec.TWRITE, 2, 7, data) == (count,)
    assert (tmp_path / "file").read_bytes()[7 : 7 + count] == data


def test_message_that_comes_alone_is_copied_once_and_so_is_its_answer(tmp_path: Path) -> None:
    """The other three are of a split ring: what is available, the descriptors, what is used."""
    rig = Rig(tmp_path, "copied")
    assert rig.pair is not None
    rig.attach()
    ledger = rig.pair.server_adapter.ledger
    before = ledger.snapshot()
    rig.ask(codec.TGETATTR, 1, 0x7FF, room=160)
    calls = (ledger.snapshot() - before)["hcalls"]
    assert {name: count for name, count in calls.items() if "RDMA" in name} == {"H_COPY_RDMA": 5}
    rig.close()


@pytest.mark.parametrize("way", ["direct", "copied"])
def test_messages_of_several_users_that_come_together_are_each_of_its_own(way: str) -> None:
    """The thread keeps an identity from message to message, and is the server again behind them."""
    keep = [f"{name}={os.environ[name]}" for name in ("PYTHONPATH", "POWERVIO_INTERPRETED") if name in os.environ]
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    command = [*root, "env", *keep, sys.executable, __file__, way]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr


def serve_several_users(folder: Path, way: str) -> None:
    """To be called as root."""
    (folder / "file").write_bytes(b"x")
    (folder / "file").chmod(0o600)
    os.chown(folder / "file", 1000, 1000)
    rig = Rig(folder, way)
    rig.ask(codec.TVERSION, MSIZE, b"9P2000.L")
    for user in (1000, 1001):
        rig.ask(codec.TATTACH, user, codec.NO_FID, b"", b"", user)
        for number in range(3):
            rig.ask(codec.TWALK, user, 10 * user + number, [b"file"])
    sent = [
        (user, rig.driver.send([codec.pack(codec.TLOPEN, 7, 10 * user + number, 0)], [64]))
        for number in range(3)
        for user in (1000, 1001)
    ]
    rig.run()
    for user, exchange in sent:
        assert exchange.used == (24 if user == 1000 else 11)
    fields = dict(line.split(":\t") for line in Path("/proc/thread-self/status").read_text().splitlines())
    assert fields["Uid"].split("\t")[3] == str(os.geteuid())
    rig.close()


@pytest.mark.parametrize("lost", ["message", "answer"])
def test_memory_that_is_not_there_fails_a_message_that_comes_alone(tmp_path: Path, lost: str) -> None:  # F5.1
    rig = Rig(tmp_path, "copied")
    rig.attach()
    transport = rig.driver.transport
    assert transport is not None
    here, gone = (transport.allocate(4096, mapped=True) for _ in range(2))
    here.view[:11] = codec.pack(codec.TCLUNK, 7, 99)
    readable, writable = (gone, here) if lost == "message" else (here, gone)
    exchange = Exchange(writable, 0, 512)
    assert transport.queues[0].add([(readable, 0, 11)], [(writable, 0, 512)], exchange)
    transport.release(gone)
    transport.queues[0].kick()
    rig.run()
    assert exchange.used == 0
    assert rig.device.counters.refused == 1
    assert rig.ask(codec.TGETATTR, 1, 0x7FF, room=160)
    rig.close()


def test_directory_is_listed_as_far_as_there_is_room(rig: Rig, tmp_path: Path) -> None:  # F3.3
    for number in range(300):
        (tmp_path / f"name{number}").touch()
    rig.attach()
    rig.ask(codec.TWALK, 1, 2, [])
    rig.ask(codec.TLOPEN, 2, os.O_DIRECTORY)
    names = set()
    offset, turns = 0, 0
    while True:
        (data,) = rig.ask(codec.TREADDIR, 2, offset, 8000, room=2000)
        entries = list(codec.entries(data))
        if not entries:
            break
        turns += 1
        names |= {name for _, _, _, name in entries}
        offset = entries[-1][1]
    assert names == {os.fsencode(name) for name in os.listdir(tmp_path)} | {b".", b".."}
    assert turns > 5


def test_nothing_is_done_before_version(rig: Rig) -> None:  # F4.2
    for kind, *fields in ((codec.TATTACH, 1, *EVERYBODY), (codec.TCLUNK, 1), (codec.TREAD, 1, 0, 10)):
        with pytest.raises(OSError, match="Rlerror") as refused:
            rig.ask(kind, *fields)
        assert refused.value.errno == errno.EPROTO


def test_version_forgets_every_fid(rig: Rig) -> None:  # F4.2
    rig.attach()
    rig.open(2, b"file")
    rig.ask(codec.TVERSION, MSIZE, b"9P2000.L")
    with pytest.raises(OSError, match="Rlerror") as refused:
        rig.ask(codec.TREAD, 2, 0, 10)
    assert refused.value.errno == errno.EBADF


def test_reset_forgets_every_fid_and_closes_what_was_open(tmp_path: Path) -> None:  # F4.1, F4.3
    (tmp_path / "file").touch()
    rig = Rig(tmp_path, "copied")
    assert rig.pair is not None
    rig.attach()
    for fid in range(2, 40):
        rig.open(fid, b"file")
    assert rig.tree.open_count == 38
    rig.pair.server.reset()
    rig.pair.settle()
    assert rig.tree.open_count == 0
    with pytest.raises(OSError, match="Rlerror") as refused:
        rig.ask(codec.TREAD, 2, 0, 10)
    assert refused.value.errno == errno.EPROTO
    rig.attach()
    rig.open(2, b"file")
    rig.close()


def test_flush_is_answered_after_what_it_names(rig: Rig) -> None:  # F3.6, F3.7
    rig.attach()
    rig.open(2, b"file")
    read = rig.driver.send([codec.pack(codec.TREAD, 8, 2, 0, 100)], [200])
    flush = rig.driver.send([codec.pack(codec.TFLUSH, 9, 8)], [200])
    rig.run()
    assert [exchange.answer[4] for exchange in (read, flush)] == [117, 109]
    assert [exchange.times for exchange in (read, flush)] == [1, 1]


def test_fids_stay_while_the_device_is_suspended(tmp_path: Path) -> None:  # F4.4
    (tmp_path / "file").write_text("text")
    rig = Rig(tmp_path, "copied")
    assert rig.pair is not None
    rig.attach()
    rig.open(2, b"file")
    outcomes: list[PowervioError | None] = []
    rig.pair.client.suspend(outcomes.append)
    rig.pair.settle()
    assert outcomes == [None]
    rig.pair.client.resume()
    rig.pair.settle()
    (data,) = rig.ask(codec.TREAD, 2, 0, 10)
    assert bytes(data) == b"text"
    rig.close()


@settings(max_examples=60)
@given(st.lists(st.one_of(st.binary(min_size=1, max_size=60), MESSAGES), max_size=12))
def test_any_bytes_have_an_answer_or_a_length_of_nothing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("share")
    (folder / "file").write_text("text")
    rig = Rig(folder, "direct")
    rig.attach()
    for text in texts:
        if isinstance(text, tuple):
            kind, body = text
            text = (7 + len(body)).to_bytes(4, "little") + bytes([kind, 1, 0]) + body
        answer = rig.raw(text, 4096)
        assert not answer or int.from_bytes(answer[:4], "little") == len(answer)
    rig.attach()
    rig.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="powervio-test-") as place:
        os.chmod(place, 0o755)
        serve_several_users(Path(place), sys.argv[1])
