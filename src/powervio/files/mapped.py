"""Owners, modes and devices kept in an attribute of each file: for a server that may not give files to others.

The attribute `OWNER_ATTRIBUTE` is `uid:gid:mode:device` as text: decimal, decimal, octal with the type, decimal. A file
without one, or with one that is no such text, is as the host has it. What the host could not make for this server, or
could not give such an attribute (device, FIFO, socket, symbolic link), is a regular file whose mode says what it is; a
link's contents are where it points to. On the host all of it belongs to the server, who alone may read and write it.

Nobody is asked here whether a caller may do something: the client's kernel does that, by the modes that it is shown.
A share that several clients write to, who do not trust each other, belongs behind another identity.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from powervio.files.sizes import PATH_BYTES

if TYPE_CHECKING:
    from powervio.files.identity import Caller

OWNER_ATTRIBUTE = b"user.powervio.owner"
_FILE_MODE, _DIRECTORY_MODE = 0o600, 0o700
_IDS = 0xFFFF_FFFF
_KINDS = frozenset({stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK})
_NOT_THERE = frozenset({errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM})
_TEXT_BYTES = 64


@dataclass(frozen=True)
class Owner:
    """What the attribute has; `mode` with the type."""

    uid: int
    gid: int
    mode: int
    device: int = 0

    def text(self) -> bytes:
        """As it is kept."""
        return b"%d:%d:%o:%d" % (self.uid, self.gid, self.mode, self.device)


def parsed(text: bytes, real: int) -> Owner | None:
    """What a text says of a file whose type is `real`; None if that makes no sense."""
    fields = text.split(b":")
    if len(text) > _TEXT_BYTES or len(fields) != 4 or not all(field.isdigit() for field in fields):
        return None
    try:
        owner = Owner(int(fields[0]), int(fields[1]), int(fields[2], 8), int(fields[3]))
    except ValueError:
        return None
    kind = stat.S_IFMT(owner.mode)
    fits = kind in _KINDS if real == stat.S_IFREG else kind == real
    if not fits or owner.mode > 0o177777 or max(owner.uid, owner.gid) >= _IDS or owner.device >> 64:
        return None
    return owner


def owner_of(fd: int, real: int) -> Owner | None:
    """What the attribute of a file says, by a descriptor and the type that the host has; None if there is none."""
    if real not in (stat.S_IFREG, stat.S_IFDIR):
        return None
    try:
        text = os.getxattr(_path(fd), OWNER_ATTRIBUTE)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return None
        raise
    return parsed(text, real)


def current(fd: int) -> Owner:
    """The same; without an attribute what the host has."""
    facts = os.fstat(fd)
    known = owner_of(fd, stat.S_IFMT(facts.st_mode))
    return known or Owner(facts.st_uid, facts.st_gid, facts.st_mode, facts.st_rdev)


def born(directory: int, caller: Caller, mode: int, device: int = 0) -> Owner:
    """The owner of what a caller makes in a directory: the group is the directory's if that has set-group-ID."""
    parent = current(directory)
    gid = caller.gid
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if stat.S_ISDIR(mode):
            mode |= stat.S_ISGID
    return Owner(caller.uid, gid, mode, device)


def make_file(directory: int, name: bytes, owner: Owner, contents: bytes, flags: int) -> int:
    """Make a file with its attribute and contents; it has the name when all of it is there. Open with `flags`."""
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE, dir_fd=directory)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
        return _make_at_once(directory, name, owner, contents, flags)
    try:
        _furnish(fd, owner, contents)
        os.link(_path(fd), name, dst_dir_fd=directory, follow_symlinks=True)
        return os.open(_path(fd), flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC)
    finally:
        os.close(fd)


def _make_at_once(directory: int, name: bytes, owner: Owner, contents: bytes, flags: int) -> int:
    """The same where a file system has no nameless files."""
    fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE, dir_fd=directory)
    try:
        _furnish(fd, owner, contents)
        return os.open(_path(fd), flags & ~(os.O_CREAT | os.O_EXCL) | os.O_CLOEXEC)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _furnish(fd: int, owner: Owner, contents: bytes) -> None:
    os.fchmod(fd, _FILE_MODE)
    if contents:
        os.write(fd, contents)
    os.setxattr(fd, OWNER_ATTRIBUTE, owner.text())


def make_directory(directory: int, name: bytes, owner: Owner) -> None:
    """Make a directory; for a moment it is the server's."""
    os.mkdir(name, _DIRECTORY_MODE, dir_fd=directory)
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.setxattr(fd, OWNER_ATTRIBUTE, owner.text())
    except BaseException:
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def change(fd: int, mode: int | None, uid: int | None, gid: int | None) -> None:
    """Change what is kept; giving a file away takes set-user-ID and set-group-ID from it, as chown(2) does."""
    owner = current(fd)
    if stat.S_ISLNK(os.fstat(fd).st_mode):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))  # the host's own link has no attributes
    if uid is not None or gid is not None:
        kept = owner.mode
        if stat.S_ISREG(kept):
            kept &= ~stat.S_ISUID
            if kept & stat.S_IXGRP:
                kept &= ~stat.S_ISGID
        owner = replace(owner, uid=owner.uid if uid is None else uid, gid=owner.gid if gid is None else gid, mode=kept)
    if mode is not None:
        owner = replace(owner, mode=stat.S_IFMT(owner.mode) | mode & 0o7777)
    os.setxattr(_path(fd), OWNER_ATTRIBUTE, owner.text())


def permits(owner: Owner, caller: Caller, wanted: int) -> bool:
    """Whether the mode lets a caller do R_OK, W_OK and X_OK of `wanted`."""
    mode = owner.mode
    if caller.uid == 0:
        return not wanted & os.X_OK or stat.S_ISDIR(mode) or bool(mode & 0o111)
    if caller.uid == owner.uid:
        mode >>= 6
    elif owner.gid in (caller.gid, *caller.groups):
        mode >>= 3
    return mode & wanted == wanted


def read_link(fd: int) -> bytes:
    """Where a link points to that is kept as a file."""
    opened = os.open(_path(fd), os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(opened, PATH_BYTES, 0)
    finally:
        os.close(opened)


def check_attribute(name: bytes, kind: int, *, reads: bool) -> None:
    """Which attributes a client has: user.* of files and directories, but for the one that is ours."""
    if name == OWNER_ATTRIBUTE:
        code = errno.ENODATA if reads else errno.EPERM
    elif not name.startswith(b"user."):
        code = errno.EOPNOTSUPP
    elif kind not in (stat.S_IFREG, stat.S_IFDIR):
        code = errno.ENODATA if reads else errno.EPERM
    else:
        return
    raise OSError(code, os.strerror(code))


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"
