"""Programs of ours for guests that have busybox alone: one C file each, which needs no C library.

For another architecture there may be none on this machine.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from powervio.boot import commands
from powervio.boot.machine import Arch
from powervio.boot.module import Compiler
from powervio.errors import LocalError

COMPILE_LIMIT = 60.0
"""Seconds for the compiler."""
_FLAGS = (
    *("-O2", "-Wall", "-Wextra", "-static", "-nostdlib", "-nostartfiles"),
    *("-ffreestanding", "-fno-stack-protector", "-fno-pie", "-no-pie"),
)
_MORE_FLAGS = {"x86_64": ("-mno-sse",)}


@dataclass(frozen=True, slots=True)
class Program:
    """A program's source."""

    source: Path

    @property
    def name(self) -> str:
        """Under which a guest has it in /bin."""
        return self.source.stem

    def digest(self) -> str:
        """What a compiled one is known by. Raises `LocalError` when there is no source."""
        try:
            content = self.source.read_bytes()
        except OSError as error:
            raise LocalError(f"{self.source}: {error.strerror}") from error
        return hashlib.sha256(repr((_FLAGS, _MORE_FLAGS)).encode() + content).hexdigest()[:16]


GUEST_IO = Program(Path(__file__).with_name("guest_io.c"))
"""Reads at random, and writes that can be checked, with many in flight and past the page cache."""
ALL = {program.name: program for program in (GUEST_IO,)}


def build(program: Program, arch: Arch, made: Path) -> str:
    """Compile it into the file `made`; what the compiler said. Raises `LocalError`."""
    compiler = Compiler.of(arch, program.name, tools=())
    command = [f"{compiler.prefix}gcc", *_FLAGS, *_MORE_FLAGS.get(arch.name, ()), "-o", str(made), str(program.source)]
    late = f"{command[0]} to compile {program.source}"
    done = commands.run(command, os.environ, limit=COMPILE_LIMIT, late=late)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or ["it said nothing"]
        raise LocalError(f"{program.name} cannot be compiled: {lines[0]}")
    return done.stderr
