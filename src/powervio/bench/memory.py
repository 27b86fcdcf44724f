"""What this process has in memory, told apart by what it is for: proc(5), `smaps` and `status`.

Partition memory is what the partitions' memfds have in use. Everything else is the price of serving: Python's objects,
TCE tables, code. Page tables are the kernel's, and so in neither. What else the kernel keeps for a descriptor (an
eventfd, a socket) it tells nobody, so descriptors are only counted.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ .*$")
_PARTITION = "/memfd:powervio-"
_KIB = 1024


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """All in bytes, but `descriptors`."""

    partitions: int
    """Pages of partition memory that this process has touched."""
    beside: int
    """Resident pages of every other mapping."""
    page_tables: int
    descriptors: int

    @classmethod
    def now(cls) -> ProcessMemory:
        """What it is at this moment."""
        partitions = beside = 0
        is_partition = False
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("Rss:"):
                    size = int(line.split()[1]) * _KIB
                    if is_partition:
                        partitions += size
                    else:
                        beside += size
                elif _MAPPING.match(line):
                    is_partition = _PARTITION in line
        (page_tables,) = re.findall(r"^VmPTE:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
        return cls(partitions, beside, int(page_tables) * _KIB, len(os.listdir("/proc/self/fd")))

    def __sub__(self, earlier: ProcessMemory) -> ProcessMemory:
        return ProcessMemory(
            self.partitions - earlier.partitions,
            self.beside - earlier.beside,
            self.page_tables - earlier.page_tables,
            self.descriptors - earlier.descriptors,
        )
