"""`powervio bench scale`: what each of many client partitions takes, by how many there are (`bench.crowd`)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from powervio import _compiled
from powervio.bench.crowd import Crowd
from powervio.bench.crq import default_folder
from powervio.bench.folder import scratch_folder
from powervio.errors import LocalError

SIZES = (1, 16, 64, 256, 1000)
"""Client partitions, if nobody says how many."""
MOST = 4096
"""Client partitions of one crowd."""
_LIMIT = 300.0
"""Seconds for a crowd beside its reads; what it waits for has shorter limits."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run measured."""

    seconds: float
    """Of reading, for each crowd."""
    folder: str
    """Where the images were."""
    compiled: bool
    """Whether the hot path ran compiled."""
    crowds: list[Crowd]

    def as_json(self) -> dict[str, object]:
        """The plain values that `--json` prints."""
        return asdict(self)


def measure(
    sizes: Sequence[int],
    seconds: float,
    progress: Callable[[str, float], None] | None = None,
    folder: Path | None = None,
) -> Result:
    """Measure crowds of these sizes, one after the other, with images made in `folder`. Raises `LocalError`.

    `progress` is told what is done now and how much of all is done, from 0 to 1.
    """
    tell = progress or (lambda what, part: None)
    place = folder or default_folder()
    crowds = []
    try:
        for number, size in enumerate(sizes):
            tell(f"{size} client partition{'s' if size > 1 else ''}", number / len(sizes))
            # Sockets elsewhere than the images: their paths are short.
            with scratch_folder("powervio-scale-", place) as images, scratch_folder("powervio-") as sockets:
                crowds.append(_in_own_process(size, seconds, images, sockets))
    except OSError as error:
        raise LocalError(f"the benchmark failed: {error}") from error
    return Result(seconds, str(place), _compiled.is_compiled(), crowds)


def _in_own_process(size: int, seconds: float, images: Path, sockets: Path) -> Crowd:
    words = [sys.executable, "-m", "powervio.bench.crowd", str(size), str(seconds), str(images), str(sockets)]
    # A session of its own: Ctrl-C is for us, and leaving the block ends it.
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            said, _ = process.communicate(timeout=seconds + _LIMIT)
        except subprocess.TimeoutExpired:
            raise LocalError(f"{size} client partitions: not done within {seconds + _LIMIT:.0f} s") from None
        finally:
            process.kill()
    try:
        answer = json.loads(said)
    except ValueError:
        raise LocalError(f"{size} client partitions: the process ended with {process.returncode}") from None
    if "error" in answer:
        raise LocalError(f"{size} client partitions: {answer['error']}")
    return Crowd(**answer["crowd"])
