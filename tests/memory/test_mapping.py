"""Mapped files that are cut off: who survives, and who does not."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from powervio import _compiled
from powervio.errors import LocalError
from powervio.memory.mapping import Guard, guard, map_file
from powervio.storage.image import open_image

pytestmark = pytest.mark.dual

PAGE = mmap.PAGESIZE
MIB = 1 << 20


@pytest.fixture
def file() -> Iterator[int]:
    fd = os.memfd_create("mapped", os.MFD_CLOEXEC)
    os.ftruncate(fd, 8 * PAGE)
    yield fd
    os.close(fd)


def test_access_to_what_was_cut_off_is_noted_and_goes_on(file: int) -> None:
    memory = mmap.mmap(file, 8 * PAGE)
    other = mmap.mmap(file, 8 * PAGE)
    own, others = guard(memory, file), guard(other, file)
    assert [own is not None, others is not None] == [_compiled.is_compiled()] * 2
    if own is None or others is None:
        return
    memory[3 * PAGE : 3 * PAGE + 4] = b"data"
    os.ftruncate(file, 2 * PAGE + 100)
    assert memory[2 * PAGE] == memory[3 * PAGE - 1] == 0, "the rest of a page is there, and is no data"
    seen = own.broken, memory[3 * PAGE], own.broken
    assert seen == (False, 0, True)
    memory[0:4] = b"lost"
    assert os.pread(file, 4, 0) == bytes(4), "it is private memory now, all of it"
    seen = others.broken, other[7 * PAGE], others.broken
    assert seen == (False, 0, True)


PREAMBLE = """\
import faulthandler, mmap, os, signal, sys
from powervio.memory.mapping import guard
def file():
    fd = os.memfd_create("mapped")
    os.ftruncate(fd, 8192)
    return fd
fds = file(), file()
guarded, bare = (mmap.mmap(fd, 8192) for fd in fds)
"""
BREAK = """
own = guard(guarded, fds[0])
for fd in fds:
    os.ftruncate(fd, 0)
guarded[0]
assert own.broken
sys.stdout.write("alive\\n")
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ("", "bare[0]", ""),
        ("", "os.kill(os.getpid(), signal.SIGBUS); signal.pause()", ""),
        ("faulthandler.enable()", "bare[0]", "Fatal Python error: Bus error"),
        ("faulthandler.enable()", "os.kill(os.getpid(), signal.SIGBUS); signal.pause()", "Fatal Python error"),
    ],
)
def test_other_faults_end_the_process_as_before(before: str, after: str, says: str) -> None:
    if not _compiled.is_compiled():
        return
    result = subprocess.run(
        [sys.executable, "-c", PREAMBLE + before + BREAK + after],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.stdout == "alive\n", result.stderr
    assert result.returncode == -signal.SIGBUS
    assert says in result.stderr


def test_signal_that_was_ignored_or_handled_still_is() -> None:
    if not _compiled.is_compiled():
        return
    program = """
signal.signal(signal.SIGBUS, HANDLER)
own = guard(guarded, fds[0])
os.kill(os.getpid(), signal.SIGBUS)
os.ftruncate(fds[0], 0)
guarded[0]
assert own.broken
"""
    for handler, says in (("signal.SIG_IGN", ""), ("lambda *_: print('handled')", "handled\n")):
        words = [sys.executable, "-c", PREAMBLE + program.replace("HANDLER", handler)]
        result = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stdout, result.stderr) == (0, says, "")


def test_full_table_leaves_a_file_unmapped_and_room_is_given_back(file: int, memory_folder: Path) -> None:
    guards: list[Guard] = []
    while (one := guard(mmap.mmap(file, PAGE), file)) is not None:
        guards.append(one)
    assert (len(guards) > 900) is _compiled.is_compiled()
    assert map_file(file, 8 * PAGE, writable=True) is None
    with open_image(memory_folder / "image", create_size=MIB) as image:
        assert image.target is not None
        assert not image.target.mapped
    guards.clear()
    assert (map_file(file, 8 * PAGE, writable=True) is not None) is _compiled.is_compiled()


def test_files_in_memory_are_mapped_by_themselves_and_others_if_asked(tmp_path: Path, memory_folder: Path) -> None:
    def mapped(path: Path, map_file: bool | None, *, read_only: bool = False) -> bool:
        with open_image(path, create_size=None if read_only else MIB, read_only=read_only, map_file=map_file) as image:
            assert image.target is not None
            return image.target.mapped

    here, there = tmp_path / "image", memory_folder / "image"
    can = _compiled.is_compiled()
    assert [mapped(there, None), mapped(there, True), mapped(there, False)] == [can, can, False]
    assert mapped(there, None, read_only=True) is can
    assert [mapped(here, True), mapped(here, False)] == [can, False]
    with open_image(here) as image:
        assert image.target is not None
        if not image.target.in_memory:
            assert not image.target.mapped
    with pytest.raises(LocalError, match="direct I/O goes around it"):
        open_image(here, direct=True, map_file=True)


def test_file_that_cannot_be_mapped_is_used_without(file: int) -> None:
    assert map_file(file, 0, writable=True) is None
    reader = os.open(f"/proc/self/fd/{file}", os.O_RDONLY)
    try:
        assert map_file(reader, 8 * PAGE, writable=True) is None
    finally:
        os.close(reader)
