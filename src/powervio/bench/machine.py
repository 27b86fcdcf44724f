"""What a figure has to be read with: the processors, and who else uses them."""

from __future__ import annotations

import os
import platform
import time
from contextlib import suppress
from pathlib import Path

from powervio import _compiled

_TICKS = os.sysconf("SC_CLK_TCK")


def conditions() -> dict[str, object]:
    """What every result has with it, as far as it is known when a run begins."""
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": processor_name(),
        "processors": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "compiled": _compiled.is_compiled(),
        "load_average_before": load_average(),
    }


def load_average() -> float:
    """Of the last minute."""
    return round(os.getloadavg()[0], 2)


def processor_name() -> str:
    """As the kernel calls it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "cpu"):
            return value.strip()
    return "unknown"


def busy_seconds() -> float:
    """How long the processors, all together, have been at work or were stolen since the machine started."""
    ticks = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    user, nice, system, _idle, _waiting, interrupts, soft, stolen = map(int, ticks)
    return (user + nice + system + interrupts + soft + stolen) / _TICKS


def own_seconds() -> float:
    """Processor time of this process and of those that it has started and that are there, so far."""
    found, own = 0, os.getpid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                words = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                if own in (int(entry.name), int(words[1])):
                    found += int(words[11]) + int(words[12])
    return found / _TICKS


class Others:
    """Who else uses the processors, from when this is made."""

    def __init__(self) -> None:
        self._begin = time.monotonic()
        self._busy, self._own = busy_seconds(), own_seconds()

    def so_far(self) -> float:
        """Processors that were busy for anybody else, or stolen, on average; coarse."""
        used = busy_seconds() - self._busy - (own_seconds() - self._own)
        return max(0.0, round(used / (time.monotonic() - self._begin), 3))
