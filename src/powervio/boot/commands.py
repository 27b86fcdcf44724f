"""Programs that are run to their end (apt, make), each with a limit, none of which leaves a helper behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from powervio.errors import LocalError


def run(
    command: Sequence[str],
    environment: Mapping[str, str],
    *,
    limit: float,
    late: str,
    folder: Path | None = None,
    together: bool = False,
) -> subprocess.CompletedProcess[str]:
    """What a program says, as text in the C locale; with `together`, both of its outputs in one, as `stdout`.

    Raises `LocalError` that begins with "waited LIMIT s for" and `late` when it takes more than `limit` seconds.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if together else subprocess.PIPE,
        text=True,
        errors="replace",
        env={**environment, "LC_ALL": "C"},
        start_new_session=True,  # its helpers end with it
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        raise LocalError(f"waited {limit:.0f} s for {late}") from None
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)
