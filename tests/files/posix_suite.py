"""Runs the POSIX table (`posix_table.TABLE`) on any directory: ext4, a FUSE mount, a 9p mount.

    with Actors(folder) as actors:
        for case in CASES:
            assert actors.run(case) == [], case.title

`folder` is on the file system that is tested, is root's, and everybody may enter it (0755); nothing else is in it. The
calls are made by processes of root, alice and bob (`ACTORS`), which root starts; with `sudo` if need be.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .posix_table import TABLE

ACTORS = {"root": (0, 0, "-"), "alice": (10001, 10001, "10003"), "bob": (10002, 10002, "-")}
"""User, group, supplementary groups."""
ROOT = [] if os.geteuid() == 0 else ["sudo", "-n"]
_PROGRAM = Path(__file__).with_name("posix_actor.py")


@dataclass(frozen=True)
class Step:
    """One call and what it is to do: `ok`, `= VALUE`, an errno; `|` stands between several, any of which will do."""

    actor: str
    call: tuple[str, ...]
    expected: str
    line: int


@dataclass
class Case:
    """Steps in a directory of its own, in which everybody may write."""

    title: str
    steps: list[Step] = field(default_factory=list)


def parsed(table: str) -> list[Case]:
    """The cases of a table: a title at the margin, steps below it (`actor call arguments -> expected`)."""
    cases: list[Case] = []
    for number, line in enumerate(table.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith(" "):
            cases.append(Case(line.strip()))
            continue
        words, _, expected = line.replace("\\0", "\0").replace("\\n", "\n").partition("->")
        actor, *call = shlex.split(words)
        assert actor in ACTORS, f"line {number}: {actor} is nobody"
        cases[-1].steps.append(Step(actor, tuple(call), expected.strip() or "ok", number))
    titles = [case.title for case in cases]
    assert len(set(titles)) == len(titles), "two cases have one title"
    return cases


CASES = parsed(TABLE)


class Actors:
    """The processes that make the calls, in one directory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._actors: dict[str, subprocess.Popen[str]] = {}
        self._count = 0

    def __enter__(self) -> Actors:
        for name, (uid, gid, groups) in ACTORS.items():
            command = [*ROOT, sys.executable, str(_PROGRAM), str(uid), str(gid), groups, str(self._folder)]
            self._actors[name] = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for process in self._actors.values():
            assert process.stdin is not None
            process.stdin.close()
        for process in self._actors.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
            if process.stdout is not None:
                process.stdout.close()

    def call(self, actor: str, *call: str) -> str:
        """Have one make a call; what it did, as in `Step.expected`."""
        process = self._actors[actor]
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(call) + "\n")
        process.stdin.flush()
        return str(json.loads(process.stdout.readline()))

    def run(self, case: Case) -> list[str]:
        """Run a case in a new directory; what was not as expected, one line for each step."""
        self._count += 1
        name = f"case{self._count}"
        done = [self.call("root", "mkdir", name, "0777"), self.call("root", "chmod", name, "0777")]
        done += [self.call(actor, "case", name) for actor in ACTORS]
        assert done == ["ok"] * len(done), done
        problems: list[str] = []
        for step in case.steps:
            result = self.call(step.actor, *step.call)
            said = "ok" if step.expected == "ok" and result.startswith("= ") else result
            if said not in step.expected.split("|"):
                problems.append(f"{step.actor} {' '.join(step.call)} -> {result}, not {step.expected}")
        for actor in ACTORS:
            self.call(actor, "leave")
        self.call("root", "rmtree", name)
        return problems


def main(folder: str) -> None:
    """Run the whole table on a directory, and say what was not as expected: one JSON line for each case, and `END`."""
    with Actors(Path(folder)) as actors:
        for case in CASES:
            print("\n" + json.dumps({"case": case.title, "problems": actors.run(case)}), flush=True)
    print("\nEND", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
