"""The command's process: missing standard files, signals at any moment, output that cannot be written."""

from __future__ import annotations

import errno
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from powervio.errors import LocalError
from powervio.system import rundir
from powervio.system.rundir import RunName

from .harness import House, wait_for

MIB = 1 << 20


def shell(house: House, command: str) -> subprocess.CompletedProcess[str]:
    """`powervio` is `$P` there."""
    return subprocess.run(
        ["sh", "-c", command],
        cwd=house.folder,
        env={**house.environment, "P": f"{sys.executable} -m powervio"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def begin(house: House, *words: str) -> subprocess.Popen[bytes]:
    """Start `powervio`; returns when Python is there and our own code begins."""
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"  # main's first line, without the gap before it
        "from powervio.__main__ import main; print('begin', flush=True); main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=house.folder,
        env=house.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"begin\n"
    return process


@pytest.mark.parametrize("closed", ["<&-", "<&- >&-", "<&- >&- 2>&-"])
def test_background_system_is_found_when_standard_files_are_closed(house: House, closed: str) -> None:
    house.image("disk.img", MIB)
    result = shell(house, f"$P up -d {house.declare()} {closed}")
    assert result.returncode == 0, result.stderr
    assert house.ps()["system"]["name"] == "one"
    assert house.ok("down") == "one is down\n"


def test_background_system_closes_what_the_caller_had_open_and_knows_its_file(house: House) -> None:
    house.image("disk.img", MIB)
    house.declare()
    result = shell(house, "exec 7>held; $P up -d one.toml")
    assert result.returncode == 0, result.stderr
    system = house.ps()["system"]
    assert system["file"] == str(house.folder / "one.toml")
    held = [os.readlink(link) for link in Path(f"/proc/{system['pid']}/fd").iterdir() if link.is_symlink()]
    assert not [path for path in held if path.endswith("/held")]


def test_background_system_that_cannot_be_told_of_is_no_failure(house: House) -> None:
    house.image("disk.img", MIB)
    result = shell(house, f"$P up -d {house.declare()} >/dev/full")
    assert result.returncode == 0
    assert result.stderr == "powervio: one is up, but that cannot be written: No space left on device\n"
    assert house.ok("down") == "one is down\n"


@pytest.mark.parametrize("words", ["doctor", "doctor --json", "--help", "demo --help"])
def test_output_that_cannot_be_written_is_one_line(house: House, words: str) -> None:
    result = shell(house, f"$P {words} >/dev/full")
    assert result.returncode == 1
    assert result.stderr == "powervio: the output cannot be written: No space left on device\n"
    assert shell(house, f"$P {words} >&-").stderr == ""


def test_path_that_the_output_cannot_encode_is_escaped(house: House) -> None:
    house.image("dïsk.img", MIB)
    file = house.declare(image="dïsk.img")
    result = house.run("up", "-d", file, PYTHONIOENCODING="ascii")
    assert result.returncode == 0, result.stderr
    result = house.run("ps", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_at_any_moment_of_up_leaves_nothing(house: House, how: signal.Signals) -> None:
    house.image("disk.img", MIB)
    file = house.declare()
    for number in range(8):
        system = begin(house, "up", file)
        time.sleep(0.06 * number)
        system.send_signal(how)
        _, errors = system.communicate(timeout=30)
        assert b"Traceback" not in errors, errors.decode()
        assert house.leftovers() == [], number


@pytest.mark.parametrize(("how", "status", "said"), [(signal.SIGTERM, 143, ""), (signal.SIGINT, 130, "interrupted\n")])
def test_signal_while_a_class_is_made_ends_the_command(how: signal.Signals, status: int, said: str) -> None:
    script = (
        "import os\n"
        "from powervio.cli import main\n"
        "class Field:\n"
        "    def __set_name__(self, owner, name):\n"
        f"        os.kill(os.getpid(), {how:d})\n"
        "        [None for _ in range(10_000)]\n"
        "main._run = lambda *_: type('Made', (), {'field': Field()})\n"
        "main.main([])\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr.removeprefix("powervio: ")) == (status, said)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_parent_that_goes_leaves_no_half_started_system(house: House, how: signal.Signals) -> None:
    house.image("disk.img", MIB)
    file = house.declare()
    # the system takes a second to start, in which its parent goes
    script = (
        "import asyncio, sys\n"
        "from powervio.system.system import System\n"
        "start = System._start\n"
        "async def slow(self):\n"
        "    await asyncio.sleep(20)\n"
        "    await start(self)\n"
        "System._start = slow\n"
        "from powervio.cli.main import main\n"
        f"main(['up', '-d', {file!r}])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=house.folder, env=house.environment, stderr=subprocess.DEVNULL
    )
    wait_for((house.run_folder / "one.sock").exists)
    parent.send_signal(how)
    parent.wait(20)
    wait_for(lambda: house.leftovers() == [])


@pytest.mark.parametrize("word", ["demo", "bench"])
def test_signals_leave_no_folder_of_the_demo_or_the_bench(house: House, word: str, tmp_path: Path) -> None:
    words = ["demo"] if word == "demo" else ["bench", "crq", "--folder", str(tmp_path), "--size", "4M"]
    house.environment["TMPDIR"] = str(tmp_path)
    for number in range(9):
        process = begin(house, *words)
        wait_for(lambda process=process: list(tmp_path.iterdir()) or process.poll() is not None)
        time.sleep(0.05 * number)
        how = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[number % 3]
        process.send_signal(how)
        time.sleep(0.01)
        process.send_signal(how)  # impatience changes nothing
        _, errors = process.communicate(timeout=30)
        assert b"Traceback" not in errors, errors.decode()
        assert process.returncode in (128 + how, -how), (number, how, errors)
        assert list(tmp_path.iterdir()) == [], (number, how)


def test_cursor_comes_back_when_the_demo_is_ended(house: House) -> None:
    reading, writing = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "powervio", "demo"],
        env={**house.environment, "TMPDIR": str(house.folder), "TERM": "xterm"},
        stdin=writing,
        stdout=writing,
        stderr=writing,
    )
    os.close(writing)
    said = b""
    while b"\x1b[?25l" not in said:
        said += os.read(reading, 65536)
    process.send_signal(signal.SIGTERM)
    while True:
        try:
            piece = os.read(reading, 65536)
        except OSError:
            break
        said += piece
    os.close(reading)
    assert process.wait(30) == 143
    assert said.rindex(b"\x1b[?25h") > said.rindex(b"\x1b[?25l")


def test_image_that_was_made_goes_when_the_start_fails(house: House) -> None:
    house.image("mine.img", MIB)
    held = house.up(house.declare("mine", "mine.img"))
    more = 'size = "1M"\n[[lpar.disk]]\nvios = "vios1"\nimage = "mine.img"\nnbd = "x.sock"'
    for words in (("up",), ("up", "-d")):
        assert "is in use" in house.refused(*words, house.declare("two", "new.img", more))
        assert not (house.folder / "new.img").exists()
    house.end(held)
    house.end(house.up(house.declare("two", "new.img", more)))
    assert (house.folder / "new.img").stat().st_size == MIB


def test_size_of_an_image_that_exists_is_told_and_changes_nothing(house: House) -> None:
    image = house.image("disk.img", MIB)
    said = house.ok("up", "-d", house.declare(more='size = "2M"'))
    told = f"lpar[0].disk[0].size: {image} exists and keeps its 1M; size = 2M would only make it\n"
    assert told in said
    assert image.stat().st_size == MIB


def test_full_run_folder_is_one_sentence_and_leaves_no_lock(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(house.folder))
    with monkeypatch.context() as patch:
        patch.setattr(rundir.os, "write", full)  # type: ignore[attr-defined]
        with pytest.raises(LocalError, match=r"x\.lock: No space left on device$"):
            RunName("x")
    assert house.leftovers() == []
    RunName("x").release()


def test_relative_xdg_runtime_dir_is_ignored(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(house.folder)
    monkeypatch.setenv("XDG_RUNTIME_DIR", ".")
    assert rundir.run_folder() in (Path("/run/powervio"), Path(f"/tmp/powervio-{os.getuid()}"))
    assert not house.run_folder.exists()


def test_demo_says_whether_the_hot_path_is_compiled(house: House) -> None:
    image = house.image("disk.img", MIB)
    report = json.loads(house.run("demo", "--json", "--image", str(image), POWERVIO_INTERPRETED="1").stdout)
    assert report["compiled"] is False
