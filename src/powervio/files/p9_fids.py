# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The fids of one conversation of 9P2000.L: what a client has of a share, and how much that may be.

A fid is bounded by what a `Node` costs, and there are never more than `most_fids` of them, nor more than the session's
server has left (ENFILE). What they are used for is in `p9_session`.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from typing import Any

import cython
from cython.cimports.powervio.files.identity import Caller
from cython.cimports.powervio.files.tree import Node
from cython.cimports.powervio.files.tree_open import OpenFile
from cython.cimports.powervio.files.tree_share import failure

from powervio.files.sizes import MOST_FIDS
from powervio.files.tree import Tree

MOST_ATTRIBUTE_BYTES = 8 << 20
"""Bytes of extended attributes that the fids of one session hold together."""
MOST_BYTES_OF_SERVER = 64 << 20
"""The same of all sessions of a server."""

_NO_FID = cython.declare(cython.uint, 0xFFFF_FFFF)


@cython.final
@cython.cclass
class Fid:
    """A client's name for a file. It is open (`opened`), or an extended attribute that is read or written, or neither.

    Its number means nothing outside of its session. `parent` and `name` say where the file was made, if it was made
    through this fid: a hint, which has to be looked at before it is believed.
    """

    number: cython.uint
    node: Node
    caller: Caller
    opened: OpenFile | None
    attribute: Any
    lock_owners: Any
    parent: Node | None
    name: bytes | None

    def __repr__(self) -> str:
        return f"<Fid {self.number} {self.node}>"


@cython.final
@cython.cclass
class FidBudget:
    """Fids that all sessions of a server may have together; each takes some 450 bytes and, open, a descriptor.

    And bytes of the extended attributes that these fids hold.
    """

    left: cython.longlong
    attributes: cython.longlong

    def __init__(self, most: int, attributes: int = MOST_BYTES_OF_SERVER) -> None:
        self.left = most
        self.attributes = attributes


@cython.cclass
class Fids:
    """What a `Session` has of its client's."""

    tree: Tree
    fids: dict[int, Fid]
    lock_clients: set[Any]
    lock_owners: cython.longlong
    attribute_bytes: cython.longlong
    most_fids: cython.uint
    _budget: FidBudget

    def __init__(self, tree: Tree, most_fids: int = MOST_FIDS, budget: FidBudget | None = None) -> None:
        self.tree = tree
        self.most_fids = most_fids
        self.fids = {}
        self.lock_clients = set()
        self.lock_owners = 0
        self.attribute_bytes = 0
        self._budget = FidBudget(most_fids) if budget is None else budget

    @cython.ccall
    def fid(self, number: cython.uint) -> Fid:
        """The fid of that number; EBADF if there is none."""
        found = self.fids.get(number)
        if found is None:
            raise failure(errno.EBADF)
        return found

    @cython.ccall
    def add(self, number: cython.uint, node: Node, caller: Caller) -> Fid:
        """Make a fid, whose node is its own from now on; `check_free` was asked before."""
        fid: Fid = Fid.__new__(Fid)
        fid.number = number
        fid.node = node
        fid.caller = caller
        fid.opened = None
        fid.attribute = None
        fid.lock_owners = None
        fid.parent = None
        fid.name = None
        self.fids[number] = fid
        self._budget.left -= 1
        return fid

    @cython.ccall
    @cython.exceptval(-1)
    def check_free(self, number: cython.uint) -> cython.int:
        """EINVAL for a number that is in use or is NOFID, ENFILE when there are as many fids as may be; else 0."""
        if number in self.fids or number == _NO_FID:
            raise failure(errno.EINVAL)
        if len(self.fids) >= self.most_fids or self._budget.left <= 0:
            raise failure(errno.ENFILE)
        return 0

    def remove(self, number: cython.uint) -> Fid:
        """A fid is none any more: its files are let go of."""
        fid: Fid = self.fid(number)
        self.end(fid)
        return fid

    @cython.cfunc
    @cython.exceptval(-1)
    def end(self, fid: Fid) -> cython.int:
        """As `remove`, of one that is there."""
        del self.fids[fid.number]
        self._budget.left += 1
        if fid.attribute is not None:
            self.attribute_bytes -= fid.attribute.size
            self._budget.attributes += fid.attribute.size
        if fid.lock_owners is not None and fid.opened is not None:
            self.lock_owners -= len(fid.lock_owners)
            for client, process in fid.lock_owners:
                self.tree.locks.release(client, process, fid.opened.lock_key)
        if fid.opened is not None:
            fid.opened.close()
        if fid.parent is not None:
            fid.parent.close()
        fid.node.close()
        return 0

    def reserve(self, size: int) -> None:
        """A fid is going to hold so many bytes of an attribute; ENOMEM for too many."""
        if self.attribute_bytes + size > MOST_ATTRIBUTE_BYTES or size > self._budget.attributes:
            raise failure(errno.ENOMEM)
        self.attribute_bytes += size
        self._budget.attributes -= size

    def let_go(self) -> None:
        """All fids are none any more, and locks are given up."""
        for fid in list(self.fids.values()):
            self.end(fid)
        if self.lock_clients:
            self.tree.locks.release_all(self.lock_clients)
            self.lock_clients.clear()
