"""What a session does for messages that come seldom: each takes a message's fields and gives those of its answer."""

from __future__ import annotations

import errno
import os
import pwd
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from powervio.files import p9_codec as p9
from powervio.files.identity import Caller
from powervio.files.locks import END, WRITE, LockOwner
from powervio.files.sizes import ATTRIBUTE_BYTES, NAME_BYTES, PATH_BYTES

if TYPE_CHECKING:
    from powervio.files.p9_fids import Fid
    from powervio.files.p9_session import Session
    from powervio.files.tree import Node

LOCK_SUCCESS, LOCK_BLOCKED = 0, 1
UNLOCKED = 2
MOST_LOCK_CLIENTS = 1024
"""Different client ids in the locks of one session."""
MOST_LOCK_OWNERS = 16384
"""Processes that hold locks through the fids of one session, which are given up with them; one counts for each fid."""
GROUPS = b"groups="
"""Begins the name of a user that says which groups it has: numbers with commas, its own group first."""
_XATTR_REPLACE = os.XATTR_REPLACE


def _failure(number: int) -> OSError:
    return OSError(number, os.strerror(number))


# -- beginning


def version(session: Session, msize: int, name: bytes) -> tuple[Any, ...]:
    """Tversion ends what was before. What is not 9P2000.L, or is more than it, is offered it; anything else is
    unknown, and then there is no session."""
    agreed = min(msize, session.most_msize)
    known = name == p9.VERSION or name.startswith(p9.VERSION + b".")
    least = 512
    session.restart(agreed if known and agreed >= least else 0)
    if agreed < least:
        raise _failure(errno.EMSGSIZE)
    return agreed, p9.VERSION if known else b"unknown"


def auth(session: Session, *_: Any) -> tuple[Any, ...]:
    """Nobody is asked who he is: a client that would be goes on without."""
    raise _failure(errno.ENOENT)


def attach(session: Session, number: int, auth_fid: int, user: bytes, name: bytes, uid: int) -> tuple[Any, ...]:
    """A fid for the root, or for the directory below it that `name` is a path of."""
    if auth_fid != p9.NO_FID:
        raise _failure(errno.EINVAL)
    session.check_free(number)
    caller = caller_of(session, user, uid)
    node = session.tree.root()
    try:
        for part in _way(session, name):
            below = node.lookup(part, caller)
            node.close()
            node = below
    except OSError:
        node.close()
        raise
    session.add(number, node, caller)
    return (qid_of(node),)


def _way(session: Session, name: bytes) -> list[bytes]:
    """The names from the root on, of a path in the share, or of this machine's path of it."""
    if len(name) >= PATH_BYTES:
        raise _failure(errno.ENAMETOOLONG)
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    own = [part for part in session.tree.path().split(b"/") if part]
    return parts[len(own) :] if name.startswith(b"/") and parts[: len(own)] == own else parts


def caller_of(session: Session, name: bytes, uid: int) -> Caller:
    """Who attaches. 9P says the user alone, so the groups are those that this machine has for it; one that it does not
    know has a group of the same number, and so has everyone where ids are not this machine's. A client may say them in
    place of the user's name (`GROUPS`): who can say that he is any user is believed that, too."""
    identity = session.tree.identity
    try:
        if uid != p9.NO_UID and name.startswith(GROUPS):
            groups = [int(number) for number in name[len(GROUPS) :].split(b",")]
            if not all(0 <= number < p9.NO_UID for number in groups):
                raise ValueError
            return Caller(uid, groups[0], groups[1:])
        if uid == p9.NO_UID:
            uid = pwd.getpwnam(os.fsdecode(name) or "nobody").pw_uid
        if not uid or identity.mapped or identity.translates or not identity.switches:
            return Caller(uid, uid)  # root has no need of groups, and without them is whom a server of root is anyway
        entry = pwd.getpwuid(uid)
        return Caller(uid, entry.pw_gid, os.getgrouplist(entry.pw_name, entry.pw_gid))
    except KeyError:
        if uid == p9.NO_UID:
            raise _failure(errno.EPERM) from None
        return Caller(uid, uid)
    except ValueError:  # a name with NUL, or no user at all
        raise _failure(errno.EPERM) from None


def qid_of(node: Node) -> p9.Qid:
    """The qid of a file as it was found."""
    kind = node.kind
    return p9.QT_DIRECTORY if kind == 0x4000 else p9.QT_SYMLINK if kind == 0xA000 else 0, node.version, node.path


def _made(node: Node) -> tuple[Any, ...]:
    result = (qid_of(node),)
    node.close()
    return result


# -- names


def symlink(session: Session, number: int, name: bytes, target: bytes, gid: int) -> tuple[Any, ...]:
    """A symbolic link."""
    fid = session.fid(number)
    return _made(fid.node.symlink(name, target, fid.caller, session.group(gid)))


def mknod(session: Session, number: int, name: bytes, mode: int, major: int, minor: int, gid: int) -> tuple[Any, ...]:
    """A device, FIFO, socket or file."""
    fid = session.fid(number)
    if major >> 12 or minor >> 20:
        raise _failure(errno.EINVAL)
    return _made(fid.node.mknod(name, mode & 0o177777, os.makedev(major, minor), fid.caller, session.group(gid)))


def link(session: Session, directory: int, number: int, name: bytes) -> tuple[Any, ...]:
    """One more name."""
    fid = session.fid(directory)
    fid.node.link(session.fid(number).node, name, fid.caller)
    return ()


def renameat(session: Session, old: int, old_name: bytes, new: int, new_name: bytes) -> tuple[Any, ...]:
    """Another name, or another directory."""
    fid = session.fid(old)
    fid.node.rename(old_name, session.fid(new).node, new_name, fid.caller)
    return ()


def rename(session: Session, number: int, directory: int, name: bytes) -> tuple[Any, ...]:
    """The same for a fid, whose name and directory are looked for."""
    fid = session.fid(number)
    target = session.fid(directory).node
    parent, old_name = place_of(session, fid)
    try:
        parent.rename(old_name, target, name, fid.caller)
    finally:
        parent.close()
    return ()


def remove(session: Session, number: int) -> tuple[Any, ...]:
    """Remove a fid's file; the fid is gone in any case."""
    fid = session.fid(number)
    try:
        parent, name = place_of(session, fid)
        try:
            parent.unlink(name, fid.node.is_directory, fid.caller)
        finally:
            parent.close()
    finally:
        session.remove(number)
    return ()


def place_of(session: Session, fid: Fid) -> tuple[Node, bytes]:
    """The directory that a fid's file is in, to be closed, and its name there. ESTALE: it has none that is known."""
    if fid.parent is not None and fid.name is not None:
        with suppress(OSError):
            if fid.parent.has(fid.name, fid.node, fid.caller):
                return fid.parent.duplicate(), fid.name
    names = fid.node.place()
    if not names:
        raise _failure(errno.EBUSY)
    node = session.tree.root()
    try:
        for name in names[:-1]:
            below = node.lookup(name, fid.caller)
            node.close()
            node = below
        if not node.has(names[-1], fid.node, fid.caller):
            raise _failure(errno.ESTALE)
    except FileNotFoundError:
        node.close()
        raise _failure(errno.ESTALE) from None
    except OSError:
        node.close()
        raise
    return node, names[-1]


# -- files


def readlink(session: Session, number: int) -> tuple[Any, ...]:
    """Where a symbolic link points to."""
    return (session.fid(number).node.readlink(),)


def statfs(session: Session, number: int) -> tuple[Any, ...]:
    """The file system of a file."""
    found = session.fid(number).node.statfs()
    return (
        found.type & 0xFFFF_FFFF,
        found.bsize & 0xFFFF_FFFF,
        found.blocks,
        found.bfree,
        found.bavail,
        found.files,
        found.ffree,
        found.fsid,
        min(found.namelen, NAME_BYTES),
    )


def fsync(session: Session, number: int, datasync: int) -> tuple[Any, ...]:
    """Make what was written stable."""
    opened = session.fid(number).opened
    if opened is None:
        raise _failure(errno.EBADF)
    opened.fsync(datasync != 0)
    return ()


# -- locks


class LockClient(NamedTuple):
    """Whose locks are whose: client ids are names within a session."""

    session: int
    name: bytes


def _owner(session: Session, name: bytes, process: int) -> LockOwner:
    client = LockClient(id(session), name)
    if len(name) > NAME_BYTES:
        raise _failure(errno.EINVAL)
    if client not in session.lock_clients:
        if len(session.lock_clients) >= MOST_LOCK_CLIENTS:
            raise _failure(errno.ENOLCK)
        session.lock_clients.add(client)
    return LockOwner(client, process)


def lock(
    session: Session, number: int, kind: int, flags: int, start: int, length: int, process: int, client: bytes
) -> tuple[Any, ...]:
    """Take or give up a lock. Nobody waits here: BLOCKED says to ask again."""
    fid = session.fid(number)
    if fid.opened is None:
        raise _failure(errno.EBADF)
    if flags & ~3:
        raise _failure(errno.EINVAL)
    owner = _owner(session, client, process)
    known = fid.lock_owners
    is_new = kind != UNLOCKED and (known is None or owner not in known)
    if is_new and session.lock_owners >= MOST_LOCK_OWNERS:
        raise _failure(errno.ENOLCK)
    opened = fid.opened
    done = opened.lock(kind, *_range(start, length), owner)
    if done and is_new:
        session.lock_owners += 1
        if known is None:
            fid.lock_owners = {owner}
        else:
            known.add(owner)
    elif kind == UNLOCKED and known and owner in known and not session.tree.locks.holds(opened.lock_key, owner):
        session.lock_owners -= 1
        known.remove(owner)
    return (LOCK_SUCCESS if done else LOCK_BLOCKED,)


def getlock(
    session: Session, number: int, kind: int, start: int, length: int, process: int, client: bytes
) -> tuple[Any, ...]:
    """A lock that is in the way, or the question with the kind of none."""
    opened = session.fid(number).opened
    if opened is None:
        raise _failure(errno.EBADF)
    if kind == UNLOCKED:  # Linux's client asks so for every F_GETLK, whichever lock it is about (6.1): for any
        kind = WRITE
    found = opened.getlock(kind, *_range(start, length), LockOwner(LockClient(id(session), client), process))
    if found is None:
        return UNLOCKED, start, length, process, client
    owner = found.owner.client if found.owner is not None else None
    name = owner.name if isinstance(owner, LockClient) else b""
    return found.kind, found.start, found.length, found.process & 0xFFFF_FFFF, name


def _range(start: int, length: int) -> tuple[int, int]:
    """Linux says the end of all files by one byte more than there can be."""
    if start > END:
        raise _failure(errno.EINVAL)
    return start, 0 if length > END - start else length


# -- extended attributes


class ReadAttribute:
    """A fid of the value of an attribute, or of the list of them."""

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.size = len(value)

    def read(self, position: int, count: int) -> bytes:
        """A part of it."""
        return self.value[position : position + max(count, 0)]

    def check(self, position: int, count: int) -> None:
        """It is not written."""
        raise _failure(errno.EBADF)

    def write(self, position: int, data: bytes) -> None:
        """See `check`."""

    def finish(self, fid: Fid) -> None:
        """Nothing is to be done at its end."""


class WrittenAttribute:
    """A fid that an attribute's value is written to; it is set when the fid ends and all of it has come."""

    def __init__(self, name: bytes, size: int, flags: int) -> None:
        self.name = name
        self.size = size
        self.flags = flags
        self.value = bytearray()

    def read(self, position: int, count: int) -> bytes:
        """It is not read."""
        raise _failure(errno.EBADF)

    def check(self, position: int, count: int) -> None:
        """Bytes follow each other, and are not more than was said."""
        if position != len(self.value):
            raise _failure(errno.EINVAL)
        if count > self.size - position:
            raise _failure(errno.ENOSPC)

    def write(self, position: int, data: bytes) -> None:
        """More of it."""
        self.value += data

    def finish(self, fid: Fid) -> None:
        """Set it. Nothing, in place of what must be there, is how Linux says that it is to be removed."""
        if len(self.value) != self.size:
            raise _failure(errno.EINVAL)
        if self.size == 0 and self.flags & _XATTR_REPLACE:
            fid.node.removexattr(self.name, fid.caller)
        else:
            fid.node.setxattr(self.name, bytes(self.value), self.flags, fid.caller)


def xattrwalk(session: Session, number: int, new: int, name: bytes) -> tuple[Any, ...]:
    """A fid of an attribute's value, or without a name of all names."""
    fid = session.fid(number)
    session.check_free(new)
    if name:
        value = fid.node.getxattr(name, fid.caller)
    else:
        value = b"".join(text + b"\0" for text in fid.node.listxattr(fid.caller))
    session.reserve(len(value))
    session.add(new, fid.node.duplicate(), fid.caller).attribute = ReadAttribute(value)
    return (len(value),)


def xattrcreate(session: Session, number: int, name: bytes, size: int, flags: int) -> tuple[Any, ...]:
    """The fid becomes one that the value is written to."""
    fid = session.fid(number)
    if fid.opened is not None or fid.attribute is not None:
        raise _failure(errno.EINVAL)
    if not name or b"\0" in name:
        raise _failure(errno.EINVAL)
    if len(name) > NAME_BYTES:
        raise _failure(errno.ERANGE)
    if size > ATTRIBUTE_BYTES:
        raise _failure(errno.E2BIG)
    session.reserve(size)
    fid.attribute = WrittenAttribute(name, size, flags)
    return ()


def _row(kind: int, operation: Callable[..., tuple[Any, ...]]) -> Callable[[Session, bytes], tuple[Any, ...]]:
    return partial(_run, kind, operation)


def _run(kind: int, operation: Callable[..., tuple[Any, ...]], session: Session, message: bytes) -> tuple[Any, ...]:
    return operation(session, *p9.unpack(kind, message))


OPERATIONS: dict[int, Callable[[Any, bytes], tuple[Any, ...]]] = {
    kind: _row(kind, operation)
    for kind, operation in (
        (p9.TVERSION, version),
        (p9.TAUTH, auth),
        (p9.TATTACH, attach),
        (p9.TSTATFS, statfs),
        (p9.TSYMLINK, symlink),
        (p9.TMKNOD, mknod),
        (p9.TRENAME, rename),
        (p9.TREADLINK, readlink),
        (p9.TXATTRWALK, xattrwalk),
        (p9.TXATTRCREATE, xattrcreate),
        (p9.TFSYNC, fsync),
        (p9.TLOCK, lock),
        (p9.TGETLOCK, getlock),
        (p9.TLINK, link),
        (p9.TRENAMEAT, renameat),
        (p9.TREMOVE, remove),
    )
}
"""By the type of the T-message."""
