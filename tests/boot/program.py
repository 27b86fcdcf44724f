"""`powervio boot` as a program, and what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

LIMIT = 110
COMMAND = [sys.executable, "-m", "powervio", "boot"]


def run(
    cache: Path, *arguments: str, environment: Mapping[str, str] | None = None, limit: float = LIMIT
) -> subprocess.CompletedProcess[bytes]:
    """Run it to its end, in `limit` seconds."""
    command = [*COMMAND, "--cache", str(cache), *arguments]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=limit,
        env={**os.environ, **(environment or {})},
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def start(cache: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start it, and wait until its command runs."""
    process = subprocess.Popen(
        [*COMMAND, "--cache", str(cache), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if b"running the command" in line:
            return process
    raise AssertionError(b"".join(said).decode())


def children(pid: int) -> list[int]:
    """Processes that a process has started and that are there."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_until_gone(pids: Sequence[int]) -> None:
    """Wait until none of the processes is there any more; one that nobody waits for is none."""
    deadline = time.monotonic() + 20
    for pid in pids:
        while _is_running(pid):
            assert time.monotonic() < deadline, f"process {pid} is still there"
            time.sleep(0.02)


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
