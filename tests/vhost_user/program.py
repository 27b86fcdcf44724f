"""`powervio vhost-user` as a program."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

COMMAND = [sys.executable, "-m", "powervio", "vhost-user"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False, timeout=20)


def start(*arguments: str, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    """Start it, and wait until it serves."""
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True, pass_fds=pass_fds)
    assert process.stderr is not None
    line = process.stderr.readline()
    assert "serving at" in line, line
    return process


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """End it by a signal, which takes no time; its status, and what it said."""
    began = time.monotonic()
    process.send_signal(number)
    status = process.wait(20)
    assert time.monotonic() - began < 5
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read()
    assert "Traceback" not in said
    return status, said


def finish(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """End it by a signal; its status."""
    return end(process, number)[0]
