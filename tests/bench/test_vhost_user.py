"""`powervio bench vhost-user`, with the real peer, in slices that are too short to say anything of speed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powervio.bench import vhost_user
from powervio.bench.back_ends import BackEnd, Image, Kind, ours, peers
from powervio.bench.images import check_written, filesystem, forget, read_all, resident
from powervio.bench.reads import BLOCK, write_numbered
from powervio.bench.vhost_user import ROWS, Comparison, Measured, Result, Row, Slice, usual_rows
from powervio.errors import LocalError

PEERS = ["threads", "threads+iothread", "io_uring", "io_uring+iothread"]


MARK = "POWERVIO_TEST_RUN"
"""A variable of what a test starts, and of what that starts."""


def powervio(*words: str, path: str | None = None, mark: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "powervio", "bench", "vhost-user", *words]
    environment = {**os.environ, "PATH": os.environ["PATH"] if path is None else path, MARK: mark}
    return subprocess.run(
        command, capture_output=True, text=True, errors="replace", timeout=100, check=False, env=environment
    )


def started_by(mark: str) -> set[str]:
    """Processes with the mark."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes()
        except OSError:
            continue
        if f"{MARK}={mark}".encode() in variables.split(b"\0"):
            found.add(process.name)
    return found


def test_json_has_every_row_with_both_sides_and_what_was_counted(tmp_path: Path) -> None:
    names = "read-sleep,read-poll,no-mmap-sleep,write,warm,direct,python"
    result = powervio(
        *("--json", "--seconds", "0.05", "--size", "1M", "--placement", "pinned", "--rows", names),
        *("--disk-folder", str(tmp_path)),
        mark=str(tmp_path),
    )
    assert result.returncode == 0, result.stderr
    values = json.loads(result.stdout)
    assert [row["row"] for row in values["rows"]] == names.split(",")
    for row in values["rows"]:
        more = ["native", "native+iothread"] if row["row"] == "direct" else []
        assert [peer["name"] for peer in row["peers"]] == PEERS + more
        assert row["best_peer"] == max(row["peers"], key=lambda peer: peer["iops"])["name"]
        assert row["placement"] == "pinned"
        assert row["ours"]["name"] == ("memory_disk.py" if row["row"] == "python" else "powervio")
        assert ("--no-mmap" in row["ours"]["command"]) is (row["row"] == "no-mmap-sleep")
        assert row["writes"] is (row["row"] == "write")
        for side in (row["ours"], *row["peers"]):
            assert len(side["slices"]) == values["conditions"]["slices"]
            for part in side["slices"]:
                assert part["requests"] >= row["depth"]
                assert part["cpu_us"] > 0
                assert part["seconds"] > 0
                assert part["others"] >= 0
                assert (part["resident"] is not None) is (row["row"] == "warm")
        sleeps = sum(part["sleeps"] for side in (row["ours"], *row["peers"]) for part in side["slices"])
        assert (sleeps == 0) is (row["client"] == "polls")
        assert row["ratio"] > 0
        assert row["cpu_ratio"] > 0
    requests = {
        writes: sum(
            part["requests"]
            for row in values["rows"]
            if row["writes"] is writes
            for side in (row["ours"], *row["peers"])
            for part in side["slices"]
        )
        for writes in (False, True)
    }
    assert values["verified_reads"] == requests[False]
    assert values["verified_writes"] == requests[True]
    assert values["others"] >= 0
    conditions = values["conditions"]
    assert conditions["peer"].startswith("qemu-storage-daemon version")
    assert conditions["image_bytes"] == 1 << 20
    assert conditions["filesystems"]["memory"] == "tmpfs"
    assert {"kernel", "cpu", "processors", "load_average_before", "load_average_after"} <= conditions.keys()
    assert not list(tmp_path.iterdir())
    assert not started_by(str(tmp_path))


def test_screen_says_what_is_wanted_and_fits_80_columns() -> None:
    result = powervio("--seconds", "0.05", "--size", "1M", "--rows", "one-sleep")
    assert result.returncode == 0, result.stderr
    for word in ("pinned", "unpinned", "one-sleep", ">= 0.95", "were verified", "QEMU", "qemu-storage"):
        assert word in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "\x1b" not in result.stdout


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--rows", "read-sleep,fast"], "'fast' is no row"),
        (["--size", "5000"], "expected 1M or more"),
        (["--seconds", "0"], "--seconds"),
        (["--placement", "best"], "--placement"),
        (["--disk-folder", "/nowhere"], "--disk-folder"),
    ],
)
def test_mistake_is_told(words: list[str], what: str) -> None:
    result = powervio(*words)
    assert result.returncode == 2
    assert what in " ".join(result.stderr.split())


def test_missing_peer_is_told_with_its_package(tmp_path: Path) -> None:
    result = powervio("--rows", "read-sleep", path=str(tmp_path))
    assert result.returncode == 1
    assert "apt-get install qemu-system-common" in " ".join(result.stderr.split())


def test_folder_of_the_wrong_kind_is_told(tmp_path: Path) -> None:
    result = powervio("--rows", "warm", "--disk-folder", "/dev/shm")
    assert result.returncode == 1
    assert "/dev/shm is tmpfs; rows on a disk need a folder there" in result.stderr
    if filesystem(tmp_path) != "tmpfs":
        result = powervio("--rows", "write", "--memory-folder", str(tmp_path))
        assert result.returncode == 1
        assert "rows on tmpfs need a folder there" in " ".join(result.stderr.split())


def test_back_end_that_does_not_start_is_told_with_its_words(tmp_path: Path) -> None:
    image = Image(tmp_path / "none")
    for kind, what in ((ours(), "does not exist"), (peers(direct=False)[0], "No such file")):
        with pytest.raises(LocalError, match=rf"{kind.name} ended with status 1: .*{what}"):
            BackEnd(kind, image, tmp_path)
    with pytest.raises(LocalError, match="true ended with status 0: it said nothing"):
        BackEnd(Kind("true", lambda image, socket: ["/bin/true"]), image, tmp_path)


def test_processor_time_is_that_of_all_threads(tmp_path: Path) -> None:
    write_numbered(tmp_path / "image", 64 * BLOCK)
    end = BackEnd(peers(direct=False)[1], Image(tmp_path / "image"), tmp_path, [min(os.sched_getaffinity(0))])
    try:
        before = end.cpu_ns()
        assert end.disk.load(4).run(0.05) > 0
        assert end.cpu_ns() > before > 0
        (pid,) = (pid for pid in daemons_of(end.socket))
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        assert len(tasks) > 1
        allowed = {
            line
            for task in tasks
            for line in (task / "status").read_text().splitlines()
            if line.startswith("Cpus_allowed_list")
        }
        assert len(allowed) == 1
        assert end.failed() == ""
    finally:
        end.close()


def daemons_of(socket: Path) -> list[str]:
    return [
        process.parent.name
        for process in Path("/proc").glob("[0-9]*/cmdline")
        if str(socket).encode() in process.read_bytes()
    ]


def test_written_blocks_have_to_carry_a_number_of_whoever_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "image"
    write_numbered(path, 4 * BLOCK)
    first, second = (1 << 32, bytearray(b"\0\1\1\0")), (2 << 32, bytearray(b"\0\0\1\0"))

    def write(block: int, number: int, end: int | None = None) -> None:
        with path.open("r+b") as file:
            file.seek(block * BLOCK)
            file.write(number.to_bytes(8, "little"))
            file.seek((block + 1) * BLOCK - 8)
            file.write((number if end is None else end).to_bytes(8, "little"))

    write(1, (1 << 32) + 1)
    write(2, (2 << 32) + 2)
    assert check_written(path, 0, [first, second]) == 2
    with pytest.raises(LocalError, match="block 2"):
        check_written(path, 0, [first])
    write(1, (1 << 32) + 1, 1)
    with pytest.raises(LocalError, match="block 1 was written, and holds 0x100000001 at its start and 0x1 at its end"):
        check_written(path, 0, [first, second])
    write(1, 1)
    with pytest.raises(LocalError, match="block 1"):
        check_written(path, 0, [first, second])


def test_page_cache_is_filled_looked_at_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "image"
    write_numbered(path, 2 << 20)
    read_all(path)
    if filesystem(path) != "tmpfs":
        assert resident(path) == 1.0
        forget(path)
        assert resident(path) < 1.0


def test_file_systems_are_known_by_name() -> None:
    assert filesystem(Path("/proc")) == "proc"
    assert filesystem(Path("/dev/shm")) == "tmpfs"


def test_rows_have_names_of_their_own_and_what_is_wanted() -> None:
    assert len({row.name for row in ROWS}) == len(ROWS)
    wanted = {row.name: (row.wanted, row.wanted_cpu) for row in ROWS}
    assert wanted["read-sleep"] == (2.5, 0.5)
    assert wanted["read-poll"] == (1.9, 0.5)


def test_example_that_is_not_there_is_left_out_or_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert usual_rows() == list(ROWS)
    monkeypatch.setattr(vhost_user, "EXAMPLE", tmp_path / "none.py")
    assert [row.name for row in ROWS if row not in usual_rows()] == ["python"]
    with pytest.raises(LocalError, match="which a checkout of powervio has"):
        vhost_user.measure(ROWS, ["unpinned"], 0.05, 1 << 20, Path("/dev/shm"), tmp_path)


def test_comparison_takes_the_best_peer_and_medians() -> None:
    def measured(name: str, *rates: int) -> Measured:
        return Measured(name, [], [Slice(rate, 1.0, 1000 / rate, 0.1, 0, 0, 0.5, (1.0, rate / 1000)) for rate in rates])

    comparison = Comparison(
        Row("a", "b"), "pinned", measured("us", 400, 100, 500), [measured("x", 100, 900, 100), measured("y", 200, 200)]
    )
    assert comparison.best.name == "y"
    assert comparison.ratio == 2.0
    assert comparison.cpu_ratio == 0.5
    assert comparison.least_resident == 0.1
    assert Result({}, [comparison]).others == 0.5
