"""A guest's first root file system: an archive in the "newc" format of cpio, made as a value.

Format: Linux, Documentation/driver-api/early-userspace/buffer-format.rst. All numbers are 8 hexadecimal digits; header
with name, and content, are each filled up to 4 bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
_HEADER = 110


@dataclass(frozen=True, slots=True)
class Node:
    """One file, folder, link or device of the archive; all belong to root."""

    path: str
    """From the root, without a leading slash."""
    mode: int
    """Type and permissions, as in `st_mode`."""
    content: bytes = b""
    """Of a file; of a symbolic link where it points to."""
    device: tuple[int, int] = (0, 0)
    """Major and minor number, of a device."""


def folder(path: str, mode: int = 0o755) -> Node:
    """A folder."""
    return Node(path, stat.S_IFDIR | mode)


def file(path: str, content: bytes, mode: int = 0o644) -> Node:
    """A regular file."""
    return Node(path, stat.S_IFREG | mode, content)


def link(path: str, target: str) -> Node:
    """A symbolic link."""
    return Node(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, mode: int = 0o600) -> Node:
    """A character device."""
    return Node(path, stat.S_IFCHR | mode, device=(major, minor))


def pack(nodes: Iterable[Node]) -> bytes:
    """The archive of these nodes; a folder has to come before what is in it. Raises `ValueError` for a bad path."""
    parts = []
    for number, node in enumerate(nodes, 1):
        if not node.path or node.path.startswith("/") or "\0" in node.path or node.path == _TRAILER:
            raise ValueError(f"bad path {node.path!r}")
        parts.append(_record(number, node))
    parts.append(_record(0, Node(_TRAILER, 0)))
    return b"".join(parts)


def room(archive: bytes, page: int) -> int:
    """Bytes of memory that the files of archives need when they are unpacked, in pages of so many bytes."""
    total = at = 0
    while at < len(archive):
        mode, length, name = (int(archive[at + place : at + place + 8], 16) for place in (14, 54, 94))
        if stat.S_ISREG(mode):
            total += -(-length // page) * page
        at += _HEADER + name
        at += -at % 4
        at += length + -length % 4
    return total


def _record(number: int, node: Node) -> bytes:
    name = node.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(node.mode) else 1
    fields = (number, node.mode, 0, 0, links, 0, len(node.content), 0, 0, *node.device, len(name), 0)
    head = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return _filled(head) + _filled(node.content)


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
