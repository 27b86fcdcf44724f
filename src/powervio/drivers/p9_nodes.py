# cython: language_level=3, annotation_typing=False
"""What a client knows of the files of a 9P2000.L share: nodes, fids, open files, and what the server says of them.

Nothing here sends a message; offsets and sizes are bytes, names are one component each.
"""

from __future__ import annotations

import os
from typing import NamedTuple

ATTRIBUTES = 0x3FFF
"""Of Tgetattr: everything."""
BASIC = 0x7FF
HAS_BTIME = 0x800
HAS_GEN = 0x1000

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = (1 << bit for bit in range(7))
SET_ATIME_GIVEN, SET_MTIME_GIVEN = 1 << 7, 1 << 8
"""Of Tsetattr: the times are those in the message, not the server's present."""

APPEND = 0o2000
_OPEN_FLAGS = (
    (os.O_TRUNC, 0o1000),
    (os.O_APPEND, APPEND),
    (os.O_DSYNC, 0o10000),
    (os.O_DIRECTORY, 0o200000),
    (os.O_NOFOLLOW, 0o400000),
    (os.O_NOATIME, 0o1000000),
)
_SYNC = 0o4000000
EXCLUSIVE = 0o200


class Attributes(NamedTuple):
    """Rgetattr. Times are seconds and nanoseconds."""

    valid: int
    qid: tuple[int, int, int]
    """Type, version, path."""
    mode: int
    uid: int
    gid: int
    nlink: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime: int
    atime_nsec: int
    mtime: int
    mtime_nsec: int
    ctime: int
    ctime_nsec: int
    btime: int
    btime_nsec: int
    gen: int
    data_version: int


class Entry(NamedTuple):
    """One of a directory's entries."""

    qid: tuple[int, int, int]
    offset: int
    """Where Treaddir goes on behind it."""
    kind: int
    """DT_ of readdir(3)."""
    name: bytes


class Fid(NamedTuple):
    """A fid and the connection that it is of."""

    number: int
    epoch: int


class Node:
    """One file that was met; the root always is."""

    __slots__ = (
        "acl_seen", "cached", "children", "fids", "handle", "key", "lookups", "mode", "names", "openers", "owners",
        "version",
    )  # fmt: skip

    def __init__(self, key: tuple[int, int, int]) -> None:
        self.key = key
        """qid.path, type bits of the mode, generation: the same for as long as it is this file."""
        self.fids: dict[int, Fid] = {}
        """By the user that the server knows it as."""
        self.names: dict[tuple[Node, bytes], None] = {}
        """Where it was seen, oldest first."""
        self.children: dict[bytes, Node] = {}
        self.mode = 0
        self.version = 0
        """The qid.version that was seen last."""
        # what a mount keeps of it
        self.handle = 0
        self.lookups = 0
        self.cached: int | None = None
        """The version of what is in the page cache, if that is known."""
        self.acl_seen = -1.0
        self.openers: dict[int, OpenFile] = {}
        self.owners: dict[int, int] = {}


class OpenFile:
    """A file or directory that is open at the server."""

    __slots__ = ("append", "fid", "flags", "locks", "node", "stale", "who")

    def __init__(self, node: Node, fid: Fid, flags: int, who: int) -> None:
        self.node = node
        self.fid = fid
        self.flags = flags
        """Of Tlopen, without those of creation."""
        self.who = who
        self.stale = False
        """It is not there any more after a server's restart."""
        self.locks: dict[int, list[tuple[int, int, int]]] = {}
        """By owner (proc_id): kind, first byte, last byte."""
        self.append: OpenFile | None = None
        """The same file for writes that are not to be appended, if this one appends."""


def open_flags(flags: int) -> int:
    """Tlopen's flags for open(2)'s; without O_DIRECT, whose alignment is the server's matter."""
    made = flags & os.O_ACCMODE
    for ours, theirs in _OPEN_FLAGS:
        if flags & ours == ours:
            made |= theirs
    if flags & os.O_SYNC == os.O_SYNC:
        made |= _SYNC
    return made
