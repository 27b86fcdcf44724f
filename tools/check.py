"""`./run test`: every check in order, stopping at the first that fails.

    ./run test                 what fits in a working day's patience
    ./run test --all           the same with the tests marked `slow`, and the compiled modules under sanitizers
    ./run test ARGS ...        only pytest, with these arguments

A test that skips itself makes the run fail: what a test needs is installed or the run stops before it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time

from powervio import _compiled
from powervio.cli import peers

PYTHON = [sys.executable, "-m"]
TOGETHER = ["-n", str(os.cpu_count() or 1), "--dist", "loadfile"]  # files of tests, one on each processor
STRICT = {"POWERVIO_CHECK": "1"}  # tests/conftest.py: a skip is a failure
INTERPRETED = {**STRICT, "POWERVIO_INTERPRETED": "1"}


def main(arguments: list[str]) -> int:
    """Run the checks that the arguments ask for; returns the exit status."""
    if arguments == ["--peers"]:
        return install_peers()
    if not _compiled.is_compiled():
        forced = os.environ.get("POWERVIO_INTERPRETED", "0") not in ("", "0")
        if not (forced and arguments):
            print("check: the hot path is not compiled; see build/compile.log", file=sys.stderr)
            return 1
    slow = ["--all"] if "--all" in arguments else []
    if arguments != slow:
        return run("pytest", [*PYTHON, "pytest", *arguments], STRICT)
    for name, command, environment in steps(slow):
        status = run(name, command, environment)
        if status:
            print(f"check: FAILED at: {name}", file=sys.stderr)
            return status
    print("check: all passed")
    return 0


def steps(slow: list[str]) -> list[tuple[str, list[str], dict[str, str]]]:
    """The checks in their order, as name, command and environment; `slow` is `--all` or nothing."""
    everything = [
        ("ruff check", [*PYTHON, "ruff", "check", "."], {}),
        ("ruff format", [*PYTHON, "ruff", "format", "--check", "."], {}),
        ("mypy --strict", [*PYTHON, "mypy"], {}),
        ("import rules", [sys.executable, "tools/layers.py"], {}),
        ("tests, compiled", [*PYTHON, "pytest", *TOGETHER, "-m", "not alone", *slow], STRICT),
        ("tests that run alone", [*PYTHON, "pytest", "-m", "alone", *slow], STRICT),
        (
            "tests of the compiled modules, interpreted",
            [*PYTHON, "pytest", *TOGETHER, "-m", "dual", *slow],
            INTERPRETED,
        ),
    ]
    if slow:
        everything.append(("compiled modules under the sanitizers", [sys.executable, "tools/sanitize.py"], {}))
    return everything


def run(name: str, command: list[str], environment: dict[str, str]) -> int:
    """Run one step, and say how long it took."""
    print(f"check: {name}", flush=True)
    started = time.monotonic()
    status = subprocess.run(command, env={**os.environ, **environment}, check=False).returncode
    result = "ok" if status == 0 else f"status {status}"
    print(f"check: {name}: {result}, {time.monotonic() - started:.1f} s", flush=True)
    return status


def install_peers() -> int:
    """Install the Debian packages that the tests need and that are missing: one announced command, or its text."""
    wanted = peers.missing(for_tests=True)
    if not wanted:
        return 0
    names = ", ".join(peer.name for peer in wanted)
    command = peers.install_command(wanted)
    sudo = ["sudo", "-n"]
    if os.geteuid() == 0:
        sudo = []
    elif not shutil.which("sudo") or subprocess.run([*sudo, "true"], capture_output=True, check=False).returncode:
        print(f"check: the tests need {names}; install them with:\n  sudo {shlex.join(command)}", file=sys.stderr)
        return 1
    if not shutil.which("apt-get"):
        print(f"check: the tests need {names}, and there is no apt-get to install them", file=sys.stderr)
        return 1
    print(f"check: the tests need {names}; running: {shlex.join([*sudo, *command])}", file=sys.stderr)
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive"]
    for attempt in (1, 2):
        # An index that is just being synchronised fails the update and leaves the install possible: only that counts.
        subprocess.run([*sudo, "apt-get", "-q", "update"], stdout=sys.stderr, check=False)
        installed = subprocess.run([*sudo, *quiet, *command, "-q"], stdout=sys.stderr, check=False).returncode == 0
        still = peers.missing(for_tests=True)
        if installed and not still:
            return 0
        print(f"check: attempt {attempt} did not give all", file=sys.stderr)
    print(f"check: still missing: {', '.join(peer.name for peer in still)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        print("check: interrupted", file=sys.stderr)
        sys.exit(130)
