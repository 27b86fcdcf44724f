# cython: language_level=3, annotation_typing=False
"""How a client reaches the files of a 9P2000.L share: their fids, and the names by which they are found again.

**When the server was lost and is there again**, fids are gone. A node is found again by the names under which it was
seen last, if it is the same file (its qid.path and type); else it is ESTALE. An operation that was in flight and
changes names or makes files may have been carried out or not; it ends with EIO. Others are asked again (`steady`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec

from powervio.drivers.p9_core import All, Connected, P9Core, P9Error, P9Lost, Work
from powervio.drivers.p9_nodes import ATTRIBUTES, HAS_GEN, Attributes, Fid, Node
from powervio.files import p9_codec as p9

P = ParamSpec("P")

GROUPS = b"groups="
"""Begins the name of a user (uname) that says which groups it has: numbers with commas, its own group first."""
MOST_CALLERS = 4096
"""Users with their groups that are told apart; beyond, the server says which groups a user has."""
MOST_DEPTH = 4096
"""Directories between a node and the root; more are a loop that the server made up."""
_CHANGES = frozenset(
    (p9.TLCREATE, p9.TSYMLINK, p9.TMKNOD, p9.TLINK, p9.TMKDIR, p9.TRENAME, p9.TRENAMEAT, p9.TUNLINKAT, p9.TREMOVE)
)
"""Messages that have another result when they come twice."""


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
                assert isinstance(tree, P9Fids)
                yield Connected(tree.core)

    return again


class P9Fids:
    """The nodes of a share, and the fids that they have.

    `uid` below is the user on whose behalf something is done, or a number of `caller`.
    """

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

    def _drop_fids(self, node: Node) -> None:
        """Fids that are names, of a node that was moved and of what is below it, are not true any more."""
        below = [node]
        while below:
            one = below.pop()
            for fid in one.fids.values():
                self.core.retire(*fid)
            one.fids.clear()
            below += one.children.values()

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


def _first_lost(results: Sequence[Any]) -> None:
    for result in results:
        if isinstance(result, P9Lost):
            raise result
