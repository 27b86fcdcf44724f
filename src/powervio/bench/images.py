"""Images to be read and written by a benchmark: where they are, whether the page cache has them, what is in them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from struct import Struct

from powervio.bench.reads import BLOCK
from powervio.errors import LocalError

_PIECE = 1 << 20
_NUMBER = Struct("<Q")


def filesystem(path: Path) -> str:
    """The type of the file system that a file is in, such as "ext4"; "unknown" if the kernel does not say."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        if words[2] == wanted:
            return words[words.index("-") + 1]
    return "unknown"


def read_all(path: Path) -> None:
    """Bring a file into the page cache."""
    buffer = memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def resident(path: Path) -> float:
    """Which part of a file the page cache has, from 0 to 1; what is read does not wait for the medium."""
    buffer = memoryview(bytearray(_PIECE))
    found = 0
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        for position in range(0, size, _PIECE):
            with suppress(BlockingIOError):
                found += os.preadv(file.fileno(), [buffer[: size - position]], position, os.RWF_NOWAIT)
    return found / size


def forget(path: Path) -> None:
    """Have the page cache forget a file, whose contents are stable first."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def check_written(path: Path, first: int, writers: Sequence[tuple[int, bytearray]]) -> int:
    """Whether each block carries a number that it may: returns how many carry that of a writer.

    A writer is the number that it gave to the first block, and which blocks it has written. A block that none has
    written carries what was there before, with `first` for the first block. Raises `LocalError`.
    """
    written = 0
    with open(path, "rb") as file:
        for block, data in enumerate(iter(lambda: file.read(BLOCK), b"")):
            begin, end = _NUMBER.unpack_from(data)[0], _NUMBER.unpack_from(data, BLOCK - _NUMBER.size)[0]
            may = [base + block for base, touched in writers if touched[block]]
            if begin != end or begin not in (may or [first + block]):
                raise LocalError(
                    f"block {block} was written, and holds {begin:#x} at its start and {end:#x} at its end"
                )
            written += bool(may)
    return written
