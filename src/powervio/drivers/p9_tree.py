# cython: language_level=3, annotation_typing=False
"""The files of a 9P2000.L share as a client knows them: nodes with fids, open files, and what can be done with them.

Each operation is a generator of what it waits for (`p9_core.Work`), so that it runs in any loop or in none. All raise
`OSError`; names are bytes, one component each; offsets and sizes are bytes.

**When the server was lost and is there again**, fids are gone. A node is found again by the names under which it was
seen last, an open file is opened again, and its locks are taken again; each only if it is the same file (its qid.path
and type). Else it is ESTALE, for an open file for good: never another file under the same name. An operation that was
in flight and changes names or makes files may have been carried out or not; it ends with EIO. Others are asked again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, NamedTuple, ParamSpec

from powervio.drivers.p9_core import All, Connected, P9Core, P9Error, P9Lost, Work
from powervio.files import p9_codec as p9

P = ParamSpec("P")

ATTRIBUTES = 0x3FFF
"""Of Tgetattr: everything."""
BASIC = 0x7FF
HAS_BTIME = 0x800
HAS_GEN = 0x1000
HEADROOM = p9.IO_HEADER
"""Bytes of a message beside its data. A Twrite has 23, an Rread 11; some servers refuse more than Linux asks for."""
GROUPS = b"groups="
"""Begins the name of a user (uname) that says which groups it has: numbers with commas, its own group first."""
MOST_CALLERS = 4096
"""Users with their groups that are told apart; beyond, the server says which groups a user has."""
MOST_DEPTH = 4096
"""Directories between a node and the root; more are a loop that the server made up."""

SET_MODE, SET_UID, SET_GID, SET_SIZE, SET_ATIME, SET_MTIME, SET_CTIME = (1 << bit for bit in range(7))
SET_ATIME_GIVEN, SET_MTIME_GIVEN = 1 << 7, 1 << 8
"""Of Tsetattr: the times are those in the message, not the server's present."""

LAST_BYTE = 0x7FFF_FFFF_FFFF_FFFF
"""Of a file of any size; a lock that ends there goes to the end of the file."""
LOCK_READ, LOCK_WRITE, LOCK_NONE = range(3)
LOCK_SUCCESS, LOCK_BLOCKED, LOCK_ERROR, LOCK_GRACE = range(4)
LOCK_BLOCK = 1
_CHANGES = frozenset(
    (p9.TLCREATE, p9.TSYMLINK, p9.TMKNOD, p9.TLINK, p9.TMKDIR, p9.TRENAME, p9.TRENAMEAT, p9.TUNLINKAT, p9.TREMOVE)
)
"""Messages that have another result when they come twice."""
_APPEND = 0o2000
_OPEN_FLAGS = (
    (os.O_TRUNC, 0o1000),
    (os.O_APPEND, _APPEND),
    (os.O_DSYNC, 0o10000),
    (os.O_DIRECTORY, 0o200000),
    (os.O_NOFOLLOW, 0o400000),
    (os.O_NOATIME, 0o1000000),
)
_SYNC = 0o4000000
_EXCLUSIVE = 0o200


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


def steady(method: Callable[P, Work]) -> Callable[P, Work]:
    """Ask again after a lost connection, when a new one is there, unless the outcome may be known to others."""

    @wraps(method)
    def again(*args: P.args, **options: P.kwargs) -> Work:
        while True:
            try:
                return (yield from method(*args, **options))
            except P9Lost as lost:
                if lost.sent and lost.kind in _CHANGES:
                    raise OSError(errno.EIO, "the connection was lost; it may have been done or not") from lost
                tree = args[0]
                assert isinstance(tree, P9Tree)
                yield Connected(tree.core)

    return again


class P9Tree:
    """A share. `uid` below is the user on whose behalf something is done, or a number of `caller`."""

    def __init__(
        self,
        core: P9Core,
        *,
        share: bytes = b"",
        user: int | None = None,
        name: bytes = b"",
        client: bytes = b"powervio",
    ) -> None:
        """`share` is the name of what to attach to (aname).

        Everything is done as one `user`, or as each caller if that is None; `name` is the user's name for servers that
        want one (uname). `client` distinguishes our byte-range locks from those of other clients.
        """
        self.core = core
        self.share = share
        self.user = user
        self.user_name = name
        self.client = client
        self.root = Node((0, stat.S_IFDIR, 0))
        self.nodes: dict[tuple[int, int, int], Node] = {}
        self._root_path: int | None = None
        self._users: dict[tuple[int, int, tuple[int, ...]], int] = {}
        self._identities: dict[int, tuple[int, bytes]] = {}
        self._has_at = True

    def who(self, uid: int) -> int:
        """The user that the server is told."""
        return uid if self.user is None else self.user

    def caller(self, uid: int, gid: int, groups: tuple[int, ...]) -> int:
        """A number that stands for a user with just these groups, wherever `uid` is asked for here.

        9P has a user's number only. A server that knows us reads the groups in the user's name (`GROUPS`), another
        one takes those that it has for the user. The number of root is 0 whatever its groups.
        """
        if not uid or self.user is not None or self.user_name:
            return uid
        known = self._users.get((uid, gid, groups))
        if known is None:
            if len(self._users) >= MOST_CALLERS:
                return uid
            known = -1 - len(self._users)
            self._users[uid, gid, groups] = known
            name = GROUPS + b",".join(b"%d" % number for number in (gid, *groups))
            self._identities[known] = (uid, name)
        return known

    # Fids

    def _fid(self, node: Node, who: int) -> Work:
        """The number of a fid of the node."""
        fid = node.fids.get(who)
        if fid is not None and fid.epoch == self.core.epoch:
            return fid.number
        return (yield from self._reach(node, who))

    def _both(self, first: Node, second: Node, who: int) -> Work:
        """The numbers of fids of two nodes, both of them good at the same moment."""
        while True:
            one = yield from self._fid(first, who)
            two = yield from self._fid(second, who)
            if one == (yield from self._fid(first, who)):
                return one, two

    def any_fid(self, node: Node, uid: int) -> Work:
        """A fid of the node, another user's if there is one: for what needs no permission."""
        epoch = self.core.epoch
        fid = node.fids.get(self.who(uid))
        if fid is not None and fid.epoch == epoch:
            return fid.number
        for fid in node.fids.values():
            if fid.epoch == epoch:
                return fid.number
        for file in node.openers.values():
            if file.fid.epoch == epoch and not file.stale:
                return file.fid.number
        return (yield from self._reach(node, self.who(uid)))

    def _reach(self, node: Node, who: int) -> Work:
        if node is self.root:
            return (yield from self._attach(who))
        for base, names in self._routes(node, who):
            try:
                start = yield from self._fid(base, who)
                fid, qid = yield from self._walk(start, names)
            except P9Error as error:
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ELOOP):
                    continue
                raise
            if qid is None or qid[2] != node.key[0] or bool(qid[0] & 0x80) != stat.S_ISDIR(node.key[1]):
                self.core.clunk(*fid)
                continue
            known = node.fids.get(who)
            if known is not None and known.epoch == self.core.epoch:
                self.core.clunk(*fid)  # somebody was faster
                return known.number
            node.fids[who] = fid
            return fid.number
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _routes(self, node: Node, who: int) -> Iterator[tuple[Node, list[bytes]]]:
        """Ways to the node: a node with a fid, or the root, and the names from there."""
        for parent, name in list(node.names):
            names = [name]
            at = parent
            while at is not self.root and len(names) < MOST_DEPTH:
                fid = at.fids.get(who)
                if fid is not None and fid.epoch == self.core.epoch:
                    break
                above = next(reversed(at.names), None)
                if above is None:
                    break
                at = above[0]
                names.append(above[1])
            else:
                if at is not self.root:
                    continue
            names.reverse()
            yield at, names

    def _attach(self, who: int) -> Work:
        number, epoch = self.core.new_fid(), self.core.epoch
        uid, name = self._identities.get(who, (who, self.user_name))
        try:
            (qid,) = yield self.core.call(p9.TATTACH, number, p9.NO_FID, name, self.share, uid)
        except P9Error:
            self.core.free_fid(number, epoch)
            raise
        if self._root_path is None:
            self._root_path = qid[2]
            self.root.key = (qid[2], stat.S_IFDIR, 0)
        elif self._root_path != qid[2]:
            self.core.clunk(number, epoch)
            raise OSError(errno.ESTALE, "the server has another share under this name")
        known = self.root.fids.get(who)
        if known is not None and known.epoch == epoch:
            self.core.clunk(number, epoch)
            return known.number
        self.root.fids[who] = Fid(number, epoch)
        return number

    def _walk(self, start: int, names: Sequence[bytes]) -> Work:
        """A new fid from `start`, and the qid of the last name (None without a name)."""
        core = self.core
        number, epoch = core.new_fid(), core.epoch
        begun = False
        qid = None
        at = 0
        while at < len(names) or not begun:
            part = list(names[at : at + p9.MOST_NAMES])
            try:
                (qids,) = yield core.call(p9.TWALK, number if begun else start, number, part)
                if len(qids) > len(part):
                    raise P9Error(errno.EIO, "the server walked further than it was asked")
                if len(qids) < len(part):
                    raise P9Error(errno.ENOENT, os.strerror(errno.ENOENT))
            except P9Error:
                if begun:
                    core.clunk(number, epoch)
                else:
                    core.free_fid(number, epoch)
                raise
            begun = True
            at += len(part)
            if qids:
                qid = qids[-1]
        return Fid(number, epoch), qid

    def _adopt(self, attr: Attributes, who: int, fid: Fid | None, parent: Node | None, name: bytes) -> Node:
        """The node that these are the attributes of."""
        key = (attr.qid[2], stat.S_IFMT(attr.mode), attr.gen if attr.valid & HAS_GEN else 0)
        node = self.root if key[0] == self.root.key[0] and stat.S_ISDIR(attr.mode) else self.nodes.get(key)
        if node is None:
            node = self.nodes[key] = Node(key)
        if fid is not None:
            known = node.fids.get(who)
            if known is not None:
                self.core.retire(*known)  # some servers' fids are names, and the new one's is true
            node.fids[who] = fid
        if parent is not None:
            self._name(node, parent, name)
        node.mode = attr.mode
        node.version = attr.qid[1]
        return node

    def _name(self, node: Node, parent: Node, name: bytes) -> None:
        before = parent.children.get(name)
        if before is node:
            return
        if before is not None:
            before.names.pop((parent, name), None)
        parent.children[name] = node
        node.names[(parent, name)] = None

    def _unname(self, parent: Node, name: bytes) -> Node | None:
        node = parent.children.pop(name, None)
        if node is not None:
            node.names.pop((parent, name), None)
        return node

    def forget(self, node: Node) -> None:
        """Nobody knows it any more."""
        if node is self.root:
            return
        for fid in node.fids.values():
            self.core.clunk(*fid)
        node.fids.clear()
        for parent, name in node.names:
            if parent.children.get(name) is node:
                del parent.children[name]
        node.names.clear()
        if self.nodes.get(node.key) is node:
            del self.nodes[node.key]

    # Names

    @steady
    def lookup(self, parent: Node, name: bytes, uid: int) -> Work:
        """`(Node, Attributes)` of a name."""
        who = self.who(uid)
        start = yield from self._fid(parent, who)
        try:
            fid, _ = yield from self._walk(start, (name,))
        except P9Error as error:
            if error.errno == errno.ENOENT:
                self._unname(parent, name)
            raise
        attr = yield from self._attributes(fid)
        return self._adopt(attr, who, fid, parent, name), attr

    def _attributes(self, fid: Fid) -> Work:
        """The attributes by a new fid, which is given up when there are none."""
        try:
            return Attributes._make((yield self.core.call(p9.TGETATTR, fid.number, ATTRIBUTES)))
        except P9Error:
            self.core.clunk(*fid)
            raise

    @steady
    def look_all(self, parent: Node, names: Sequence[bytes], uid: int) -> Work:
        """What `lookup` says of several names, None for those that are not there, in two rounds of messages."""
        core, who = self.core, self.who(uid)
        start = yield from self._fid(parent, who)
        fids = [Fid(core.new_fid(), core.epoch) for _ in names]
        walked = yield All(
            [core.call(p9.TWALK, start, fid.number, [name]) for fid, name in zip(fids, names, strict=True)]
        )
        _first_lost(walked)
        good = [not isinstance(one, BaseException) and len(one[0]) == 1 for one in walked]
        for fid, there in zip(fids, good, strict=True):
            if not there:
                core.free_fid(*fid)
        asked = yield All(
            [core.call(p9.TGETATTR, fid.number, ATTRIBUTES) for fid, there in zip(fids, good, strict=True) if there]
        )
        _first_lost(asked)
        answers = iter(asked)
        found: list[tuple[Node, Attributes] | None] = []
        for fid, there, name in zip(fids, good, names, strict=True):
            answer = next(answers) if there else None
            if answer is None or isinstance(answer, BaseException):
                if there:
                    core.clunk(*fid)
                found.append(None)
                continue
            attr = Attributes._make(answer)
            found.append((self._adopt(attr, who, fid, parent, name), attr))
        return found

    @steady
    def getattr(self, node: Node, uid: int, file: OpenFile | None = None) -> Work:
        """The `Attributes` of a node; by an open file they are there also when its names are gone."""
        if file is not None:
            number = yield from self._file(file)
        else:
            number = yield from self.any_fid(node, uid)
        attr = Attributes._make((yield self.core.call(p9.TGETATTR, number, ATTRIBUTES)))
        node.mode = attr.mode
        node.version = attr.qid[1]
        return attr

    @steady
    def setattr(
        self,
        node: Node,
        uid: int,
        valid: int,
        *,
        mode: int = 0,
        owner: int = 0,
        group: int = 0,
        size: int = 0,
        atime: tuple[int, int] = (0, 0),
        mtime: tuple[int, int] = (0, 0),
        file: OpenFile | None = None,
    ) -> Work:
        """Change what `valid` (SET_) says; a size by an open file if one is given."""
        if file is not None:
            number = yield from self._file(file)
        else:
            number = yield from self._fid(node, self.who(uid))
        times = (*atime, *mtime)
        yield self.core.call(
            p9.TSETATTR, number, valid, mode, owner, group, size, *(value & 0xFFFF_FFFF_FFFF_FFFF for value in times)
        )

    @steady
    def readlink(self, node: Node, uid: int) -> Work:
        """What a symbolic link says."""
        number = yield from self.any_fid(node, uid)
        (target,) = yield self.core.call(p9.TREADLINK, number)
        return target

    @steady
    def statfs(self, node: Node, uid: int) -> Work:
        """type, bsize, blocks, bfree, bavail, files, ffree, fsid, namelen of statfs(2)."""
        number = yield from self.any_fid(node, uid)
        return (yield self.core.call(p9.TSTATFS, number))

    @steady
    def mkdir(self, parent: Node, name: bytes, mode: int, uid: int, gid: int) -> Work:
        """Make a directory; see `lookup` for the result."""
        number = yield from self._fid(parent, self.who(uid))
        yield self.core.call(p9.TMKDIR, number, name, mode, gid)
        return (yield from self.lookup(parent, name, uid))

    @steady
    def mknod(self, parent: Node, name: bytes, mode: int, major: int, minor: int, uid: int, gid: int) -> Work:
        """Make a file of any type; see `lookup` for the result."""
        number = yield from self._fid(parent, self.who(uid))
        yield self.core.call(p9.TMKNOD, number, name, mode, major, minor, gid)
        return (yield from self.lookup(parent, name, uid))

    @steady
    def symlink(self, parent: Node, name: bytes, target: bytes, uid: int, gid: int) -> Work:
        """Make a symbolic link; see `lookup` for the result."""
        number = yield from self._fid(parent, self.who(uid))
        yield self.core.call(p9.TSYMLINK, number, name, target, gid)
        return (yield from self.lookup(parent, name, uid))

    @steady
    def link(self, node: Node, parent: Node, name: bytes, uid: int) -> Work:
        """Give a file one more name; see `lookup` for the result."""
        number, source = yield from self._both(parent, node, self.who(uid))
        yield self.core.call(p9.TLINK, number, source, name)
        return (yield from self.lookup(parent, name, uid))

    @steady
    def unlink(self, parent: Node, name: bytes, uid: int, *, directory: bool) -> Work:
        """Take a name away; with `directory` that of an empty directory."""
        number = yield from self._fid(parent, self.who(uid))
        if self._has_at:
            try:
                yield self.core.call(p9.TUNLINKAT, number, name, 0x200 if directory else 0)
            except P9Error as error:
                self._without_at(error)
        if not self._has_at:
            yield from self._remove(number, name, directory)
        self._unname(parent, name)

    def _without_at(self, error: P9Error) -> None:
        """Older servers have neither Tunlinkat nor Trenameat, but Tremove and Trename by a fid of the file itself."""
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise error
        self._has_at = False

    def _remove(self, start: int, name: bytes, directory: bool) -> Work:
        fid, qid = yield from self._walk(start, (name,))
        if bool(qid[0] & 0x80) is not directory:
            self.core.clunk(*fid)
            code = errno.ENOTDIR if directory else errno.EISDIR
            raise OSError(code, os.strerror(code))
        try:
            yield self.core.call(p9.TREMOVE, fid.number)
        finally:
            self.core.free_fid(*fid)

    @steady
    def rename(self, parent: Node, name: bytes, new_parent: Node, new_name: bytes, uid: int) -> Work:
        """Give what has one name another one, which replaces what is there."""
        number, new_number = yield from self._both(parent, new_parent, self.who(uid))
        if self._has_at:
            try:
                yield self.core.call(p9.TRENAMEAT, number, name, new_number, new_name)
            except P9Error as error:
                self._without_at(error)
        if not self._has_at:
            fid, _ = yield from self._walk(number, (name,))
            try:
                yield self.core.call(p9.TRENAME, fid.number, new_number, new_name)
            finally:
                self.core.clunk(*fid)
        moved = parent.children.get(name)
        target = new_parent.children.get(new_name)
        if moved is not None and moved is target:
            return  # two names of one file: both stay (rename(2))
        self._unname(parent, name)
        self._unname(new_parent, new_name)
        if moved is not None:
            self._name(moved, new_parent, new_name)
            if not self._has_at:
                self._drop_fids(moved)

    def _drop_fids(self, node: Node) -> None:
        """Fids that are names, of a node that was moved and of what is below it, are not true any more."""
        below = [node]
        while below:
            one = below.pop()
            for fid in one.fids.values():
                self.core.retire(*fid)
            one.fids.clear()
            below += one.children.values()

    # Open files

    @steady
    def open(self, node: Node, flags: int, uid: int) -> Work:
        """An `OpenFile`; its node's `version` is that of now. Flags are open(2)'s."""
        return (yield from self._open(node, open_flags(flags), self.who(uid)))

    def _open(self, node: Node, flags: int, who: int) -> Work:
        start = yield from self._fid(node, who)
        fid, _ = yield from self._walk(start, ())
        try:
            qid, _ = yield self.core.call(p9.TLOPEN, fid.number, flags)
        except P9Error:
            self.core.clunk(*fid)
            raise
        node.version = qid[1]
        return OpenFile(node, fid, flags & ~0o1000, who)

    @steady
    def create(self, parent: Node, name: bytes, flags: int, mode: int, uid: int, gid: int) -> Work:
        """`(Node, Attributes, OpenFile)` of a file that is made if there is none, and opened."""
        who = self.who(uid)
        wanted = open_flags(flags) | (_EXCLUSIVE if flags & os.O_EXCL else 0)
        start = yield from self._fid(parent, who)
        fid, _ = yield from self._walk(start, ())
        try:
            qid, _ = yield self.core.call(p9.TLCREATE, fid.number, name, wanted | 0o100, mode, gid)
        except P9Error:
            self.core.clunk(*fid)
            raise
        walked = Fid(self.core.new_fid(), self.core.epoch)
        found, asked = yield All(
            (
                self.core.call(p9.TWALK, start, walked.number, [name]),
                self.core.call(p9.TGETATTR, fid.number, ATTRIBUTES),
            )
        )
        if isinstance(asked, P9Lost) or isinstance(found, P9Lost):
            return (yield from self._created(parent, name, flags, uid, qid))
        if isinstance(asked, BaseException):
            self.core.clunk(*fid)
            if not isinstance(found, BaseException):
                self.core.clunk(*walked)
            raise asked
        attr = Attributes._make(asked)
        if isinstance(found, BaseException) or len(found[0]) != 1:
            self.core.free_fid(*walked)
            node = self._adopt(attr, who, None, parent, name)
        elif found[0][0][2] != qid[2]:  # another file has the name by now
            self.core.clunk(*walked)
            node = self._adopt(attr, who, None, None, name)
        else:
            node = self._adopt(attr, who, walked, parent, name)
        return node, attr, OpenFile(node, fid, wanted & ~0o1200, who)

    def _created(self, parent: Node, name: bytes, flags: int, uid: int, qid: tuple[int, int, int]) -> Work:
        """What `create` returns, when the connection was lost right after the file was made."""
        yield Connected(self.core)
        node, attr = yield from self.lookup(parent, name, uid)
        if attr.qid[2] != qid[2]:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        file = yield from self.open(node, flags & ~(os.O_EXCL | os.O_CREAT | os.O_TRUNC), uid)
        return node, attr, file

    def _file(self, file: OpenFile) -> Work:
        """The number of an open file's fid; it is opened again in a new connection."""
        if file.fid.epoch == self.core.epoch:
            return file.fid.number
        if file.stale:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        try:
            again = yield from self._open(file.node, file.flags, file.who)
            if file.fid.epoch == self.core.epoch:  # somebody was faster
                self.core.clunk(*again.fid)
                return file.fid.number
            for owner, ranges in file.locks.items():
                for kind, start, end in ranges:
                    status = yield from self._lock(again.fid.number, kind, 0, start, end, owner)
                    if status != LOCK_SUCCESS:
                        self.core.clunk(*again.fid)
                        raise P9Error(errno.ESTALE, os.strerror(errno.ESTALE))
        except P9Lost:
            raise
        except OSError as error:
            file.stale = True  # also when it may not be opened any more: what it was cannot be had back
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from error
        file.fid = again.fid
        return file.fid.number

    def close(self, file: OpenFile) -> None:
        """Done with an open file; nobody waits for that."""
        self.core.clunk(*file.fid)
        if file.append is not None:
            self.core.clunk(*file.append.fid)

    @steady
    def read(self, file: OpenFile, offset: int, count: int) -> Work:
        """Up to `count` bytes: a view that is good until this generator has returned. Fewer are there at the end."""
        number = yield from self._file(file)
        most = self.core.msize - HEADROOM
        if count <= most:
            (data,) = yield self.core.call(p9.TREAD, number, offset, count)
            if len(data) > count:
                raise OSError(errno.EIO, "the server gave more than was asked for")
            return data
        whole = bytearray()
        while len(whole) < count:
            part = min(most, count - len(whole))
            (data,) = yield self.core.call(p9.TREAD, number, offset + len(whole), part)
            whole += data[:part]
            if len(data) < part:
                break
        return memoryview(whole)

    @steady
    def write(self, file: OpenFile, offset: int, data: memoryview) -> Work:
        """Write all of `data`; how many bytes that were. Fewer only when an error came after some had been written."""
        done = 0
        while done < len(data):
            number = yield from self._file(file)
            part = data[done : done + self.core.msize - HEADROOM]
            try:
                (count,) = yield self.core.call(p9.TWRITE, number, offset + done, payload=part)
            except P9Lost as lost:
                if file.flags & _APPEND and lost.sent:
                    raise OSError(errno.EIO, "the connection was lost; it may have been appended or not") from lost
                raise
            except P9Error:
                if done:
                    break
                raise
            if not 0 < count <= len(part):
                if done:
                    break
                raise OSError(errno.EIO, f"the server wrote {count} of {len(part)} bytes")
            done += count
        return done

    def plain(self, file: OpenFile) -> Work:
        """The file for writes at their place, whatever it was opened for."""
        if not file.flags & _APPEND:
            return file
        if file.append is None:
            made = yield from self.open(file.node, os.O_WRONLY, file.who)
            return self._keep_plain(file, made)
        return file.append

    def _keep_plain(self, file: OpenFile, made: OpenFile) -> OpenFile:
        if file.append is not None:  # somebody was faster
            self.close(made)
            return file.append
        file.append = made
        return made

    @steady
    def readdir(self, file: OpenFile, offset: int, count: int) -> Work:
        """A list of `Entry` behind `offset` (0 at first), in at most `count` bytes of message; empty at the end."""
        number = yield from self._file(file)
        (data,) = yield self.core.call(p9.TREADDIR, number, offset, min(count, self.core.msize - HEADROOM))
        return [Entry._make(entry) for entry in p9.entries(data)]

    @steady
    def fsync(self, file: OpenFile, *, data_only: bool) -> Work:
        """Make what was written stable."""
        number = yield from self._file(file)
        yield self.core.call(p9.TFSYNC, number, 1 if data_only else 0)

    # Byte-range locks

    def _lock(self, number: int, kind: int, flags: int, start: int, end: int, owner: int) -> Work:
        length = 0 if end >= LAST_BYTE else end - start + 1
        (status,) = yield self.core.call(p9.TLOCK, number, kind, flags, start, length, owner, self.client)
        return status

    @steady
    def lock(self, file: OpenFile, kind: int, start: int, end: int, owner: int, *, block: bool = False) -> Work:
        """LOCK_SUCCESS or LOCK_BLOCKED; also how a lock is given back. `end` is the last byte."""
        number = yield from self._file(file)
        status = yield from self._lock(number, kind, LOCK_BLOCK if block else 0, start, end, owner)
        if status == LOCK_SUCCESS:
            _note_lock(file.locks, kind, start, end, owner)
        elif status != LOCK_BLOCKED:
            raise OSError(errno.ENOLCK if status == LOCK_ERROR else errno.EAGAIN, "the server gives no lock")
        return status

    @steady
    def getlock(self, file: OpenFile, kind: int, start: int, end: int, owner: int) -> Work:
        """`(kind, first byte, last byte, owner)` of a lock that is in the way; LOCK_NONE if none is."""
        number = yield from self._file(file)
        length = 0 if end >= LAST_BYTE else end - start + 1
        found = yield self.core.call(p9.TGETLOCK, number, kind, start, length, owner, self.client)
        kind, start, length, proc, _ = found
        return kind, start, start + length - 1 if length else LAST_BYTE, proc

    # Extended attributes

    @steady
    def getxattr(self, node: Node, name: bytes, uid: int) -> Work:
        """The value of an attribute; with an empty name the list of all names, each ended by a zero byte."""
        core = self.core
        number = yield from self._fid(node, self.who(uid))
        fid = Fid(core.new_fid(), core.epoch)
        try:
            (size,) = yield core.call(p9.TXATTRWALK, number, fid.number, name)
        except P9Error:
            core.free_fid(*fid)
            raise
        try:
            if size > 0x10000 + 0x100:  # XATTR_SIZE_MAX, XATTR_LIST_MAX
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            value = bytearray()
            while len(value) < size:
                count = min(size - len(value), core.msize - HEADROOM)
                (data,) = yield core.call(p9.TREAD, fid.number, len(value), count)
                if not len(data) or len(data) > count:
                    raise OSError(errno.EIO, "the server gave another length of an attribute than it said")
                value += data
            return bytes(value)
        finally:
            core.clunk(*fid)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> Work:
        """Set an attribute; flags are setxattr(2)'s."""
        if not value and flags & os.XATTR_REPLACE:
            yield from self.getxattr(node, name, uid)  # it has to be there, and the message would take it away
            flags &= ~os.XATTR_REPLACE
        return (yield from self._setxattr(node, name, value, flags, uid))

    @steady
    def _setxattr(self, node: Node, name: bytes, value: bytes, flags: int, uid: int) -> Work:
        core = self.core
        number = yield from self._fid(node, self.who(uid))
        fid, _ = yield from self._walk(number, ())
        try:
            yield core.call(p9.TXATTRCREATE, fid.number, name, len(value), flags)
            at = 0
            while at < len(value):
                part = value[at : at + core.msize - HEADROOM]
                (count,) = yield core.call(p9.TWRITE, fid.number, at, payload=part)
                if not 0 < count <= len(part):
                    raise OSError(errno.EIO, "the server took no more of an attribute")
                at += count
        except OSError:
            core.clunk(*fid)
            raise
        # what becomes of it is known when the fid is given up
        try:
            yield core.call(p9.TCLUNK, fid.number)
        finally:
            core.free_fid(*fid)

    def removexattr(self, node: Node, name: bytes, uid: int) -> Work:
        """Take an attribute away: it is replaced by one of size 0, which is 9P2000.L's way to say that."""
        return (yield from self._setxattr(node, name, b"", os.XATTR_REPLACE, uid))


def _first_lost(results: Sequence[Any]) -> None:
    for result in results:
        if isinstance(result, P9Lost):
            raise result


def _note_lock(locks: dict[int, list[tuple[int, int, int]]], kind: int, start: int, end: int, owner: int) -> None:
    """What an owner has after it got or gave back a range."""
    kept = []
    for old, first, last in locks.get(owner, ()):
        if first < start:
            kept.append((old, first, min(last, start - 1)))
        if last > end:
            kept.append((old, max(first, end + 1), last))
    if kind != LOCK_NONE:
        kept.append((kind, start, end))
    if kept:
        locks[owner] = kept
    else:
        locks.pop(owner, None)
