"""Programs for guests: compiled for both architectures; what is made for this one runs here."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from powervio.boot import machine, module, programs
from powervio.boot.cache import Cache
from powervio.boot.programs import GUEST_IO, Program
from powervio.errors import LocalError

BLOCK = 4096


@pytest.mark.parametrize("arch", machine.ARCHES.values(), ids=lambda arch: arch.name)
def test_guest_io_compiles_without_a_warning_and_is_kept(tmp_path: Path, arch: machine.Arch) -> None:
    assert programs.build(GUEST_IO, arch, tmp_path / "made") == ""
    said: list[str] = []
    cache = Cache(tmp_path / "cache", said.append)
    made = cache.program(arch, GUEST_IO)
    assert made.read_bytes() == (tmp_path / "made").read_bytes()
    assert made.stat().st_mode & 0o111
    assert cache.program(arch, GUEST_IO) == made
    assert said == [f"compiling guest_io for {arch.name}"]


def test_another_source_is_compiled_and_one_that_is_wrong_is_told(tmp_path: Path) -> None:
    arch = machine.find(machine.of_this_machine())
    cache = Cache(tmp_path / "cache", lambda text: None)
    program = Program(tmp_path / "tool.c")
    with pytest.raises(LocalError, match=r"tool\.c: No such file"):
        cache.program(arch, program)
    program.source.write_text("void _start(void) {}\n")
    first = cache.program(arch, program)
    program.source.write_text("void _start(void) { int }\n")
    with pytest.raises(LocalError, match=r"tool cannot be compiled: .*tool\.c:1:\d+: error:"):
        cache.program(arch, program)
    assert first.exists()
    assert list((tmp_path / "cache").glob("scratch-*")) == []


def test_guest_io_writes_what_it_finds_again(tmp_path: Path) -> None:
    tool = tmp_path / "guest_io"
    programs.build(GUEST_IO, machine.find(machine.of_this_machine()), tool)
    image = tmp_path / "image"
    image.write_bytes(bytes(64 * BLOCK))

    def run(*words: object) -> tuple[int, str]:
        done = subprocess.run([tool, image, *map(str, words)], capture_output=True, text=True, timeout=20, check=False)
        return done.returncode, done.stdout

    assert run("write", 8, 16, 32, 7) == (0, "32\n")
    assert run("check", 32, 16, 32, 7) == (0, "32\n")
    assert run("check", 8, 15, 2, 7) == (1, "another content in block: 15\n")
    assert run("check", 1, 16, 1, 8) == (1, "another content in block: 16\n")
    content = image.read_bytes()
    assert content[: 16 * BLOCK] == bytes(16 * BLOCK)
    assert content[48 * BLOCK :] == bytes(16 * BLOCK)
    assert len({content[at : at + BLOCK] for at in range(16 * BLOCK, 48 * BLOCK, BLOCK)}) == 32
    assert run("read", 1, 10) == (1, "no block device: 0\n")
    assert run("read", 0, 10)[0] == run("write", 1, 0)[0] == run()[0] == 1


def test_options_are_those_that_the_driver_has(tmp_path: Path) -> None:
    driver = tmp_path / f"{module.NAME}.ko"
    driver.write_bytes(b"\0parmtype=shared_tce:bool\0parm=shared_tce:text\0parmtype=pool_kib:uint\0")
    module.check_options([driver], ["shared_tce=0", "pool_kib=64"])
    module.check_options([], [])
    for option in ("shared_tce", "other=1", "pool_kib=", "pool_kib=1 2", "parm=1"):
        with pytest.raises(LocalError, match="expected NAME=VALUE, with a name among pool_kib, shared_tce"):
            module.check_options([driver], [option])
    with pytest.raises(LocalError, match="which this transport does not need"):
        module.check_options([tmp_path / "virtio.ko"], ["shared_tce=0"])
