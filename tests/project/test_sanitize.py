"""The step of `./run test --all` that runs compiled code under sanitizers; it tries out by itself what they see."""

from __future__ import annotations

import runpy
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from powervio import _compiled
from powervio.phyp import tce

sanitize = runpy.run_path("tools/sanitize.py")
check = runpy.run_path("tools/check.py")
PREAMBLE = """\
import ctypes, mmap, sys
sys.path.insert(0, "tools")
import sanitize; sanitize.guard_areas()
from powervio.memory.area import MappedArea
area = MappedArea.create("guarded", 8192)
start = ctypes.addressof(ctypes.c_char.from_buffer(area.view))
"""


def in_guarded_process(program: str) -> int:
    return subprocess.run([sys.executable, "-c", PREAMBLE + program], capture_output=True, check=False).returncode


@pytest.mark.parametrize(
    "place", ["start - 1", "start - mmap.PAGESIZE", "start + 8192", "start + 8191 + mmap.PAGESIZE"]
)
def test_access_outside_a_guarded_area_ends_the_process(place: str) -> None:
    assert in_guarded_process(f"ctypes.string_at({place}, 1)") == -signal.SIGSEGV


def test_guarded_area_is_an_area_otherwise() -> None:
    """Its ends are memory, it can be given back, and a view that somebody kept outlives it."""
    program = """
area.view[0], area.view[8191] = 1, 2
assert ctypes.string_at(start, 1) == b"\\x01" and ctypes.string_at(start + 8191, 1) == b"\\x02"
assert len(area.view) == 8192 and area.view[8191] == 2
area.discard()
assert bytes(area.view) == bytes(8192)
area.view[0] = 3
kept = area.view[:10]
area.close()
assert kept[0] == 3
kept.release()
"""
    assert in_guarded_process(program) == 0


def test_scratch_copy_has_one_more_module_and_nothing_that_was_compiled(tmp_path: Path) -> None:
    sanitize["copy_sources"](Path(), tmp_path)
    there = tomllib.loads((tmp_path / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    assert [line["name"] for line in there] == [sanitize["MODULE"], *_compiled.COMPILED]
    assert all(Path(tmp_path, *line["sources"]).exists() for line in there)
    assert {tuple(line["extra-compile-args"]) for line in there} == {("-O2", "-g")}
    assert not [*tmp_path.rglob("*.so"), *tmp_path.rglob("*.c")]


def test_module_of_the_source_tree_does_not_pass_for_a_sanitized_one() -> None:
    assert not sanitize["is_sanitized"](tce, Path("src").resolve())
    assert not sanitize["is_sanitized"](sys, Path("/"))


def test_runtime_that_is_missing_is_no_path() -> None:
    assert sanitize["find_runtime"](["gcc"], "libnosuch.so") is None
    assert sanitize["find_runtime"](["no-such-compiler"], "libasan.so") is None


def test_sanitizers_are_a_step_of_all_only() -> None:
    def commands(slow: list[str]) -> list[list[str]]:
        return [command for _, command, _ in check["steps"](slow)]

    step = [sys.executable, "tools/sanitize.py"]
    assert step in commands(["--all"])
    assert step not in commands([])
    assert all(Path(test).exists() for test in sanitize["TESTS"])
