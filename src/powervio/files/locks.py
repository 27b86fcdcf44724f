"""Byte-range locks of a share's clients: one table for each file, and one lock of the server's for other processes.

Ranges are POSIX's (fcntl(2), F_SETLK): a lock belongs to an owner, one of the same owner replaces, splits or joins what
it overlaps with, and a file is locked through whichever open file of it. On the host the server holds, by one open file
description of its own, the strongest of its clients' locks on each byte, so that other processes see them and their
locks are seen. Nothing waits here: a lock that conflicts is refused, and whoever wants to wait asks to be told
(`when_released`) of what clients let go; a process of the host gives no such sign, so that one looks again by time.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from typing import NamedTuple

READ, WRITE, UNLOCK = 0, 1, 2
"""Kinds of locks, as F_RDLCK, F_WRLCK and F_UNLCK are numbered on most machines and in 9P2000.L."""
END = (1 << 63) - 1
"""The last byte that there can be: a lock of length 0 goes to the end."""
_NONE, _SAME = -1, -2
FILE_LIMIT = 1024
"""Ranges in one file: each change looks at all of them."""
_HOST_KINDS = {_NONE: fcntl.F_UNLCK, READ: fcntl.F_RDLCK, WRITE: fcntl.F_WRLCK, UNLOCK: fcntl.F_UNLCK}
_KINDS = {fcntl.F_RDLCK: READ, fcntl.F_WRLCK: WRITE}
_FLOCK = struct.Struct("hhqqi0q")

FileKey = tuple[int, int]
"""Device and inode."""


class LockOwner(NamedTuple):
    """Whose a lock is: a client (anything that is its own), and a number that it has for one of its processes."""

    client: Hashable
    process: int


@dataclass(frozen=True)
class Lock:
    """A lock. Its owner is None when it is a process of the host's; `process` is then that one's, or -1."""

    kind: int
    start: int
    length: int
    owner: LockOwner | None
    process: int = 0


class _Range(NamedTuple):
    start: int
    end: int  # the last byte
    kind: int
    owner: LockOwner


class _Piece(NamedTuple):
    start: int
    end: int
    kind: int


class _Change(NamedTuple):
    start: int
    end: int
    before: int
    after: int


class _File:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ranges: list[_Range] = []
        self.mirror: list[_Piece] = []
        self.waiters: list[Callable[[], None]] = []


class LockTable:
    """The locks of one share, for any thread: connections that have one each lock the same files."""

    def __init__(self, limit: int = 65536) -> None:
        """`limit`: ranges of all clients together, beyond which there is ENOLCK."""
        self.limit = limit
        self.count = 0
        self._files: dict[FileKey, _File] = {}
        self._guard = threading.Lock()

    def lock(
        self, key: FileKey, open_file: Callable[[], int], kind: int, start: int, length: int, owner: LockOwner
    ) -> bool:
        """Take, change or give up a lock; False when another's is in the way, and then nothing has changed.

        `open_file` gives a descriptor of the file with an open file description of its own, for reading and writing
        where that can be; it is closed here when the last lock is gone. Raises `OSError`: EINVAL for a range that is
        none, ENOLCK for too many.
        """
        end = last_byte(start, length)
        if kind not in (READ, WRITE, UNLOCK):
            raise OSError(errno.EINVAL, f"{kind} is no kind of lock")
        told: list[Callable[[], None]] = []
        with self._guard:
            file = self._files.get(key)
            if kind == UNLOCK:
                done = True
                if file is not None:
                    self._set(key, file, carved(file.ranges, start, end, owner), told)
            elif self.count >= self.limit or (file is not None and len(file.ranges) >= FILE_LIMIT):
                raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
            elif file is not None and conflict(file.ranges, kind, start, end, owner) is not None:
                done = False
            else:
                if file is None:
                    file = self._files[key] = _File(open_file())
                ranges = joined([*carved(file.ranges, start, end, owner), _Range(start, end, kind, owner)])
                done = self._set(key, file, ranges, told)
        for waiter in told:
            waiter()
        return done

    def conflict(self, key: FileKey, fd: int, kind: int, start: int, length: int, owner: LockOwner) -> Lock | None:
        """A lock that is in the way of this one, or None; `fd` is any descriptor of the file."""
        end = last_byte(start, length)
        if kind not in (READ, WRITE):
            raise OSError(errno.EINVAL, f"{kind} is no kind of lock that could be taken")
        with self._guard:
            file = self._files.get(key)
            if file is not None:
                other = conflict(file.ranges, kind, start, end, owner)
                if other is not None:
                    size = 0 if other.end == END else other.end - other.start + 1
                    return Lock(other.kind, other.start, size, other.owner, other.owner.process)
                fd = file.fd
            asked = _FLOCK.pack(_HOST_KINDS[kind], os.SEEK_SET, start, length_of(start, end), 0)
            told, _, at, size, process = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))
        return None if told == fcntl.F_UNLCK else Lock(_KINDS[told], at, size, None, process)

    def release(self, client: Hashable, process: int | None = None, key: FileKey | None = None) -> None:
        """Give up all locks of a client, or of one of its processes, in all files or in one."""
        self._release(
            lambda owner: owner.client == client and (process is None or owner.process == process),
            key,
        )

    def release_all(self, clients: Collection[Hashable]) -> None:
        """Give up all locks of these clients."""
        self._release(lambda owner: owner.client in clients, None)

    def holds(self, key: FileKey, owner: LockOwner) -> bool:
        """Whether an owner has locked anything in a file."""
        with self._guard:
            file = self._files.get(key)
            return file is not None and any(one.owner == owner for one in file.ranges)

    def _release(self, ends: Callable[[LockOwner], bool], key: FileKey | None) -> None:
        told: list[Callable[[], None]] = []
        with self._guard:
            for which in [key] if key is not None else list(self._files):
                file = self._files.get(which)
                if file is None:
                    continue
                left = [lock for lock in file.ranges if not ends(lock.owner)]
                if len(left) < len(file.ranges):
                    self._set(which, file, left, told)
        for waiter in told:
            waiter()

    def when_released(self, key: FileKey, told: Callable[[], None]) -> Callable[[], None]:
        """Have `told` called, once, when something in this file has been given up; what is returned withdraws that."""
        with self._guard:
            file = self._files.get(key)
            if file is not None:
                file.waiters.append(told)
        if file is None:
            told()
            return _nothing

        def withdraw() -> None:
            with self._guard:
                if told in file.waiters:
                    file.waiters.remove(told)

        return withdraw

    def close(self) -> None:
        """Give up everything."""
        told: list[Callable[[], None]] = []
        with self._guard:
            for key, file in list(self._files.items()):
                self._set(key, file, [], told)
        for waiter in told:
            waiter()

    def _set(self, key: FileKey, file: _File, ranges: list[_Range], told: list[Callable[[], None]]) -> bool:
        """Have these ranges, if the host lets us; True when it does. Who is to be told of it is added to `told`."""
        mirror = strongest(ranges)
        granted = False
        try:
            granted = self._mirror(file, mirror)
        finally:
            if not granted and not file.ranges:
                self._end(key, file)
        if not granted:
            return False
        freed = lost(file.ranges, ranges)
        self.count += len(ranges) - len(file.ranges)
        file.ranges, file.mirror = ranges, mirror
        if freed:
            told += file.waiters
            file.waiters = []
        if not ranges:
            self._end(key, file)
        return True

    def _end(self, key: FileKey, file: _File) -> None:
        del self._files[key]
        os.close(file.fd)

    def _mirror(self, file: _File, wanted: list[_Piece]) -> bool:
        """Have the host see these; first what is more than before, which alone may be refused, then what is less."""
        done: list[_Change] = []
        changed = changes(file.mirror, wanted)
        for change in changed:
            if change.after <= change.before:
                continue
            try:
                _host_lock(file.fd, change.after, change.start, change.end)
            except OSError as error:
                for other in done:
                    _host_lock(file.fd, other.before, other.start, other.end)
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return False
                raise
            done.append(change)
        for change in changed:
            if change.after < change.before:
                _host_lock(file.fd, change.after, change.start, change.end)
        return True


def _nothing() -> None:
    """Withdraws nothing."""


def _host_lock(fd: int, kind: int, start: int, end: int) -> None:
    asked = _FLOCK.pack(_HOST_KINDS[kind], os.SEEK_SET, start, length_of(start, end), 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, asked)


def last_byte(start: int, length: int) -> int:
    """The last byte of a range; raises `OSError` (EINVAL, EOVERFLOW) for one that is none."""
    if start < 0 or length < 0:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    if start > END or length > END - start + 1:
        raise OSError(errno.EOVERFLOW, os.strerror(errno.EOVERFLOW))
    return start + length - 1 if length else END


def length_of(start: int, end: int) -> int:
    """The length of a range as fcntl has it."""
    return 0 if end == END else end - start + 1


def conflict(ranges: list[_Range], kind: int, start: int, end: int, owner: LockOwner) -> _Range | None:
    """The first range of another owner that is in the way."""
    for other in ranges:
        if (
            other.owner != owner
            and other.start <= end
            and start <= other.end
            and (kind == WRITE or other.kind == WRITE)
        ):
            return other
    return None


def carved(ranges: list[_Range], start: int, end: int, owner: LockOwner) -> list[_Range]:
    """The ranges without what this owner has between `start` and `end`."""
    result: list[_Range] = []
    for one in ranges:
        if one.owner != owner or one.end < start or one.start > end:
            result.append(one)
            continue
        if one.start < start:
            result.append(one._replace(end=start - 1))
        if one.end > end:
            result.append(one._replace(start=end + 1))
    return result


def joined(ranges: list[_Range]) -> list[_Range]:
    """The ranges in order, with neighbours of one owner and kind as one."""
    result: list[_Range] = []
    last: dict[LockOwner, int] = {}
    for one in sorted(ranges, key=lambda one: one.start):
        at = last.get(one.owner)
        if at is not None and result[at].kind == one.kind and result[at].end + 1 >= one.start:
            result[at] = result[at]._replace(end=max(one.end, result[at].end))
        else:
            last[one.owner] = len(result)
            result.append(one)
    return result


def strongest(ranges: list[_Range]) -> list[_Piece]:
    """What the host is to see of all of them, apart from each other and in order."""
    edges: dict[int, list[int]] = {}
    for one in ranges:
        edges.setdefault(one.start, [0, 0])[one.kind] += 1
        edges.setdefault(one.end + 1, [0, 0])[one.kind] -= 1
    result: list[_Piece] = []
    counts = [0, 0]
    start, kind = 0, _NONE
    for at in sorted(edges):
        counts = [counts[READ] + edges[at][READ], counts[WRITE] + edges[at][WRITE]]
        now = WRITE if counts[WRITE] else READ if counts[READ] else _NONE
        if now != kind:
            if kind != _NONE:
                result.append(_Piece(start, at - 1, kind))
            start, kind = at, now
    return result


def changes(before: list[_Piece], after: list[_Piece]) -> list[_Change]:
    """Where the two are different, in order."""
    edges: dict[int, list[int]] = {}
    for which, pieces in enumerate((before, after)):
        for piece in pieces:
            edges.setdefault(piece.end + 1, [_SAME, _SAME])[which] = _NONE
        for piece in pieces:  # a piece that begins where another ends
            edges.setdefault(piece.start, [_SAME, _SAME])[which] = piece.kind
    result: list[_Change] = []
    kinds = [_NONE, _NONE]
    start = 0
    for at in sorted(edges):
        if kinds[0] != kinds[1]:
            result.append(_Change(start, at - 1, kinds[0], kinds[1]))
        kinds = [old if new == _SAME else new for old, new in zip(kinds, edges[at], strict=True)]
        start = at
    return result


def lost(before: list[_Range], after: list[_Range]) -> bool:
    """Whether somebody else might have got something by the change."""
    kept = set(after)
    return any(one not in kept for one in before)
