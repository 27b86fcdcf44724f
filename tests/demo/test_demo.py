"""`powervio demo`: the project's main job, as a program and part by part."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from powervio.cli import peers
from powervio.errors import LocalError
from powervio.evaluate import demo, filesystem
from powervio.evaluate.demo import Programs, Watcher, run_demo
from powervio.evaluate.handshake import Step
from powervio.storage.image import Image

HANDSHAKE_R0 = [
    "PROBE",
    "RDMA_HEADER",
    "ACKNOWLEDGE",
    "RDMA_CONFIG",
    "DRIVER",
    "FINALIZE_FEATURES",
    "FIND_VQS",
    "DRIVER_OK",
    "RDMA_FEATURES",
]
HANDSHAKE_R1 = [
    "PROBE",
    "RDMA_HEADER",
    "ACKNOWLEDGE",
    "RDMA_CONFIG",
    "DRIVER",
    "FINALIZE_FEATURES",
    "FEATURES_OK",
    "RDMA_FEATURES",
    "FIND_VQS",
    "DRIVER_OK",
]


def powervio(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "powervio", *words]
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR")}
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=100,
        check=False,
        env={**inherited, **environment},
    )


def programs() -> Programs:
    found = {peer.name: peer.find() for peer in peers.PEERS}
    return Programs(found["mke2fs"], found["e2fsck"])


def some_image(path: Path, size: int) -> str:
    path.write_bytes(random.Random(2).randbytes(size))
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Listener(Watcher):
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.notes: list[str] = []
        self.totals = 0

    def handshake(self, revision: int, steps: list[Step]) -> None:
        self.steps = steps

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, what: str, total: int) -> None:
        self.totals += total


@pytest.mark.parametrize(("revision", "handshake"), [(0, HANDSHAKE_R0), (1, HANDSHAKE_R1)])
def test_demo_reads_writes_and_counts_in_both_revisions(revision: int, handshake: list[str]) -> None:
    result = powervio("demo", "--json", "--revision", str(revision))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["digest_match"] is True
    assert report["fsck_clean"] is True
    assert report["revision"] == revision
    assert report["handshake"] == handshake
    assert report["hcalls_per_request"]["qd1"]["total"] == 13.0
    assert report["hcalls_per_request"]["qd32"]["total"] == 0.4375
    assert report["remote_copies_per_request"]["qd1"]["total"] == 5.0
    assert report["remote_copies_per_request"]["qd32"]["total"] == 0.125
    assert report["bytes_read"] >= 2 * report["image_bytes"]
    assert report["bytes_written"] >= report["image_bytes"]
    # every byte went by remote DMA: what was read and what was written, each through its own adapter pair
    assert report["rdma_bytes"] > report["bytes_read"] + report["bytes_written"]
    assert report["iops"]["qd1"] > 0
    assert report["iops"]["qd32"] > 0
    assert report["failures"] == []


def test_default_revision_is_that_of_the_slides() -> None:
    result = powervio("demo", "--json")
    assert json.loads(result.stdout)["revision"] == 0


def test_screen_draws_the_handshake_in_order_without_colours_in_80_columns() -> None:
    result = powervio("demo", PYTHONIOENCODING="utf-8")
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    drawn = re.findall(r"^(?:[◀─].* )?([A-Z_]{5,})(?: .*)?$", result.stdout.split("Work of")[0], re.MULTILINE)
    assert drawn == HANDSHAKE_R0
    for word in ("Guest LPAR", "VIO LPAR", "block device", "BLK_SIZE", "descriptor table", "e2fsck", "All well"):
        assert word in result.stdout


def test_screen_needs_no_unicode() -> None:
    result = powervio("demo", "--revision", "1", PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()
    assert "PROBE ----" in result.stdout


def test_image_that_is_no_ext_is_read_and_left_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "user.img"
    before = some_image(path, 3_000_001)  # not even whole sectors
    stamp = path.stat().st_mtime_ns
    result = powervio("demo", "--json", "--image", str(path))
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["digest_match"] is True
    assert report["fsck_clean"] is None
    assert report["image_bytes"] == 3_000_320
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert path.stat().st_mtime_ns == stamp


def test_image_with_a_file_system_is_checked(tmp_path: Path) -> None:
    mke2fs = programs().mke2fs
    assert mke2fs is not None
    path = tmp_path / "user.img"
    filesystem.make_image(mke2fs, path, at_least=8 << 20)
    report = run_demo(programs(), path, 1, Watcher())
    assert report.fsck_clean is True
    assert report.failures == []


def test_damage_that_was_there_before_is_told_and_not_ours(tmp_path: Path) -> None:
    mke2fs = programs().mke2fs
    assert mke2fs is not None
    path = tmp_path / "user.img"
    filesystem.make_image(mke2fs, path)
    with open(path, "r+b") as file:
        file.seek(1024 + 12)  # the count of free blocks
        file.write(b"\x01\x00\x00\x00")
    listener = Listener()
    report = run_demo(programs(), path, 0, listener)
    assert report.digest_match
    assert (report.fsck_clean, report.image_was_clean) == (False, False)
    assert report.failures == []
    assert any("not clean to begin with" in note for note in listener.notes)


def test_image_without_e2fsck_is_not_judged(tmp_path: Path) -> None:
    mke2fs = programs().mke2fs
    assert mke2fs is not None
    path = tmp_path / "user.img"
    filesystem.make_image(mke2fs, path, at_least=8 << 20)
    listener = Listener()
    report = run_demo(Programs(mke2fs, None), path, 0, listener)
    assert report.fsck_clean is None
    assert report.failures == []
    assert any(filesystem.PACKAGE in note for note in listener.notes)


@pytest.mark.parametrize("size", [512, 1024, 4096, 5 * 4096, (1 << 20) + 512])
def test_small_images_work(tmp_path: Path, size: int) -> None:
    path = tmp_path / "user.img"
    some_image(path, size)
    report = run_demo(programs(), path, 0, Watcher())
    assert report.digest_match
    assert bool(report.costs) is (size >= 4096)


def test_only_the_first_part_of_a_large_image_is_worked_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "WORK_LIMIT", 1 << 20)
    path = tmp_path / "user.img"
    some_image(path, 3 << 20)
    listener = Listener()
    report = run_demo(programs(), path, 0, listener)
    assert report.digest_match
    assert report.image_bytes == 3 << 20
    assert listener.totals == 2 << 20
    assert report.bytes_read < 3 << 20
    assert any("only the first" in note for note in listener.notes)


@pytest.mark.parametrize(
    ("name", "told"), [("none.img", "does not exist"), (".", "is a directory"), ("empty.img", "is empty")]
)
def test_image_that_cannot_be_used_is_one_line_and_status_1(tmp_path: Path, name: str, told: str) -> None:
    (tmp_path / "empty.img").touch()
    result = powervio("demo", "--json", "--image", str(tmp_path / name))
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr


def test_missing_mke2fs_names_its_package() -> None:
    with pytest.raises(LocalError, match="apt-get install e2fsprogs"):
        run_demo(Programs(None, None), None, 0, Watcher())


def test_too_little_room_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user.img"
    some_image(path, 1 << 20)
    monkeypatch.setattr(demo, "_SPARE", 1 << 60)
    with pytest.raises(LocalError, match="TMPDIR"):
        run_demo(programs(), path, 0, Watcher())


def test_wrong_data_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "user.img"
    some_image(path, 1 << 20)
    right = Image.read_into

    def wrong(self: Image, position: int, buffer: memoryview) -> None:
        right(self, position, buffer)
        if position == 0 and self.read_only:
            buffer[5] ^= 1

    monkeypatch.setattr(Image, "target", None)  # all data by the methods
    monkeypatch.setattr(Image, "read_into", wrong)
    report = run_demo(programs(), path, 0, Watcher())
    assert not report.read_matches
    assert not report.written_matches
    assert len(report.failures) == 2


@pytest.mark.parametrize("revision", [0, 1])
def test_steps_tell_by_which_call_they_crossed(tmp_path: Path, revision: int) -> None:
    path = tmp_path / "user.img"
    some_image(path, 1 << 20)
    listener = Listener()
    run_demo(programs(), path, revision, listener)
    steps = {step.name: step for step in listener.steps}
    assert list(steps) == (HANDSHAKE_R1 if revision else HANDSHAKE_R0)
    assert (steps["RDMA_HEADER"].hcall, steps["RDMA_HEADER"].rdma_bytes) == ("H_WRITE_RDMA", 48 if revision else 13)
    assert (steps["RDMA_FEATURES"].hcall, steps["RDMA_FEATURES"].rdma_bytes) == ("H_READ_RDMA", 16 if revision else 4)
    assert steps["RDMA_CONFIG"].hcall == "H_COPY_RDMA"
    for name in ("PROBE", "ACKNOWLEDGE", "DRIVER", "FIND_VQS", "DRIVER_OK"):
        assert steps[name].hcall == "H_SEND_CRQ"
        assert steps[name].by_client
    assert steps["FINALIZE_FEATURES"].hcall == ""
    assert any("2048 sectors" in line for line in steps["RDMA_CONFIG"].carried)


def test_project_files_are_those_that_people_wrote() -> None:
    root, files = filesystem.project_files()
    names = {str(path.relative_to(root)) for path in files}
    assert "src/powervio/evaluate/demo.py" in names
    assert "pyproject.toml" in names
    assert not [name for name in names if name.startswith((".git/", ".venv", "build/")) or name.endswith(".so")]


def test_project_files_leave_out_what_is_not_the_projects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src" / "powervio"
    package.mkdir(parents=True)
    for name in ("src/powervio/a.py", "src/powervio/large.py", "mine.iso", "src/mine.txt", "docs.md"):
        (tmp_path / name).write_bytes(b"x" * ((1 << 20) + 1 if "large" in name else 10))
    monkeypatch.setattr(filesystem.powervio, "__file__", str(package / "__init__.py"))  # type: ignore[attr-defined]
    assert filesystem.project_files() == (package, [package / "a.py"])
    git = ["git", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True, capture_output=True)
    subprocess.run([*git, "add", "src/powervio", "docs.md"], check=True, capture_output=True)
    assert filesystem.project_files() == (tmp_path, [tmp_path / "docs.md", package / "a.py"])


def test_empty_image_path_is_wrong_usage() -> None:
    result = powervio("demo", "--image", "")
    assert result.returncode == 2
    assert "it is empty; expected the path of a disk image" in result.stderr


@pytest.mark.parametrize("command", ["demo", "doctor", "bench"])
def test_screens_fit_40_columns(command: str) -> None:
    words = ["bench", "crq", "--seconds", "0.05", "--size", "1M"] if command == "bench" else [command]
    result = powervio(*words, COLUMNS="40")
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if "apt-get" not in line]
    assert max(map(len, lines)) <= 40
    assert "…" not in result.stdout, "something was cut off"
