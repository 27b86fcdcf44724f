"""`powervio bench files`: the load generator, and a short run beside diod."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import powervio
from powervio.bench import files
from powervio.bench.load_9p import Load9P
from powervio.cli.files import files as command
from powervio.cli.main import Options
from powervio.errors import LocalError
from powervio.files import p9_codec as p9
from powervio.files.p9_server import P9Server
from powervio.files.tree import Tree

BLOCK = 4096


@pytest.fixture
def line(tmp_path: Path) -> Iterator[files.Connection]:
    share = files.make_share(tmp_path / "share", 1 << 20)
    with Tree(share) as tree, P9Server(tree, [f"unix:{tmp_path / 'socket'}"]):
        made = files.Connection(tmp_path / "socket", os.fsencode(share), 1 << 20)
        yield made
        made.close()


@pytest.mark.dual
@pytest.mark.parametrize("depth", [1, 7])
@pytest.mark.parametrize("kind", files.KINDS, ids=lambda kind: kind.name)
def test_every_kind_is_played(line: files.Connection, kind: files.Kind, depth: int, tmp_path: Path) -> None:
    assert line.play(kind, depth, 0.02, 1 << 20) > 0
    assert list((tmp_path / "share/new").iterdir()) == []
    assert line.play(kind, depth, 0.02, 1 << 20) > 0  # again, on the same connection


@pytest.mark.dual
def test_whole_scripts_are_played_and_data_counted(line: files.Connection) -> None:
    line.ask(p9.pack(p9.TWALK, 0, 0, 1, [b"many", b"file-0000"]))
    line.ask(p9.pack(p9.TLOPEN, 0, 1, os.O_RDONLY))
    script = [p9.pack(p9.TREAD, 0, 1, 0, BLOCK), p9.pack(p9.TGETATTR, 0, 1, 0x7FF)]
    load = Load9P(line.fileno(), [script] * 3)
    load.run(0.01)
    assert load.answers % 2 == 0
    assert load.answers >= 6
    assert load.moved == load.answers // 2 * BLOCK
    assert load.failed == 0


@pytest.mark.dual
def test_refusals_are_told(line: files.Connection) -> None:
    load = Load9P(line.fileno(), [[p9.pack(p9.TGETATTR, 0, 99, 0x7FF)]])
    load.run(0)
    assert (load.failed, load.failed_errno) == (p9.TGETATTR, 9)
    kind = files.Kind("none", "", lambda _slot, _msize: [p9.pack(p9.TCLUNK, 0, 99)], 1)
    with pytest.raises(LocalError, match="Tclunk was refused: Bad file descriptor"):
        line.play(kind, 1, 0.01, 0)


@pytest.mark.dual
@pytest.mark.parametrize("answer", [b"", b"\x06\0\0\0\0\0\0", p9.pack(p9.TCLUNK + 1, 500)])
def test_server_that_breaks_the_protocol(answer: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(answer)
        theirs.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError):
            Load9P(ours.fileno(), [[p9.pack(p9.TCLUNK, 0, 1)]]).run(1)


def test_sequential_reads_go_through_the_file(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for count in (10, 10, 5, 10):
            theirs.sendall(p9.pack(p9.TREAD + 1, 0, bytes(count)))
        theirs.shutdown(socket.SHUT_WR)
        load = Load9P(ours.fileno(), [[p9.pack(p9.TREAD, 0, 1, 0, 10)]], sequential=25)
        with pytest.raises(ConnectionError):
            load.run(10)
        asked = theirs.recv(1000)
        offsets = [p9.unpack(p9.TREAD, asked[at : at + 23])[1] for at in range(0, len(asked), 23)]
        assert offsets == [0, 10, 20, 0, 10]


def test_run_beside_diod(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command,
        ["--json", "--seconds", "0.06", "--slices", "2", "--size", "1M", "--folder", str(tmp_path)],
        obj=Options(debug=False),
    )
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)
    assert told["msize"] == min(told["longest_msize"].values())
    assert told["longest_msize"]["ours"] == 1 << 20
    rows = {(row["kind"], row["depth"]): row for row in told["rows"]}
    assert set(rows) == {(kind.name, depth) for kind in files.KINDS for depth in files.DEPTHS}
    assert all(len(row["slices"][who]) == 2 for row in rows.values() for who in ("ours", "theirs"))
    assert all(rate > 0 for row in rows.values() for rate in (row["ours"], row["theirs"]))
    assert list(tmp_path.iterdir()) == []


def test_what_a_peer_that_crashes_leaves_goes_with_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools, caller = tmp_path / "tools", tmp_path / "caller"
    for folder in (tools, caller, caller / "scratch"):
        folder.mkdir()
    peer = tools / "diod"
    peer.write_text('#!/bin/sh\n: >core\nls "$PWD" >&2\nexit 1\n')
    peer.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(powervio.__file__).parents[1]))
    monkeypatch.chdir(caller)
    with pytest.raises(LocalError, match="diod does not listen: core"):
        files.measure(0.01, Path("scratch"), file_bytes=1 << 20)
    assert list(caller.iterdir()) == [caller / "scratch"]
    assert list((caller / "scratch").iterdir()) == []


def test_table(tmp_path: Path) -> None:
    words = "--seconds 0.05 --slices 1 --size 1M --kinds getattr,read --folder"
    options = [*words.split(" "), str(tmp_path)]
    done = CliRunner().invoke(command, options, obj=Options(debug=False))
    assert done.exit_code == 0, done.output
    assert "getattr" in done.output
    assert "read, 1048576 bytes" in done.output
    assert CliRunner().invoke(command, ["--kinds", "x"], obj=Options(debug=False)).exit_code == 2
