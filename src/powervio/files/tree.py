# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A share: a directory of the host, and all that is below it, for a client that may not leave it.

A file is a `Node`, held by a descriptor, and every step goes from one descriptor to the next by one name: no path of
several names is ever resolved, no symbolic link followed, and `..` ends at the root, so that nothing which somebody
renames meanwhile leads out. What a client names that way is opened (`OpenFile`) only if it is a file or a directory;
devices, FIFOs and sockets are the client's own affair. The kernel decides who may do what (`identity`).

The layer knows no protocol. Names are bytes, one component each. Every method raises `OSError` with the errno that the
call on the host gave, or would give: EINVAL for a name with NUL or '/', ENAMETOOLONG for one above 255 bytes, EROFS
for a change of a read-only share, ESTALE for a file that cannot be found again.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
import stat
from enum import IntFlag
from typing import Any

import cython
from cython.cimports.powervio.files.calls import (
    close_file,
    hold_at,
    make_directory,
    make_link,
    make_node,
    make_symlink,
    name_kind,
    open_at,
    open_parent,
    remove_name,
    rename_at,
    reopen,
    stat_at,
    stat_of,
)
from cython.cimports.powervio.files.identity import Caller
from cython.cimports.powervio.files.tree_file import HeldFile
from cython.cimports.powervio.files.tree_open import OpenFile, open_file
from cython.cimports.powervio.files.tree_share import Share, failure, good
from cython.cimports.powervio.files.tree_stat import device_of, version_of
from cython.cimports.powervio.memory.hw import get16, get64, pointer, pointer_to_read

from powervio.files import mapped
from powervio.files.sizes import PATH_BYTES
from powervio.files.tree_file import FileSystem, Set
from powervio.files.tree_share import TreeOptions

__all__ = ["FileSystem", "Node", "Rename", "Set", "Tree", "TreeOptions"]

_HOLD = cython.declare(cython.int, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
_KIND = cython.declare(cython.uint, 0xF000)
_DIRECTORY = cython.declare(cython.uint, stat.S_IFDIR)
_REGULAR = cython.declare(cython.uint, stat.S_IFREG)
_LINK = cython.declare(cython.uint, stat.S_IFLNK)
_CREATE_FLAGS = cython.declare(cython.int, os.O_ACCMODE | os.O_APPEND | os.O_NOATIME | os.O_DSYNC | os.O_SYNC)
"""Flags that mean something here, besides O_EXCL; see `tree_file` for those of files that are there."""
_CREATE = cython.declare(cython.int, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOCTTY)
_O_EXCL = cython.declare(cython.int, os.O_EXCL)
_EEXIST = cython.declare(cython.int, -errno.EEXIST)
_ENOENT = cython.declare(cython.int, -errno.ENOENT)
_EROFS = cython.declare(cython.int, -errno.EROFS)
_DOT = cython.declare(cython.int, 1)
_TRIES = 8
"""How often a name is looked at again that somebody makes and removes all the time."""


class Rename(IntFlag):
    """How `Node.rename` is done."""

    NOREPLACE = 1
    EXCHANGE = 2


_RENAMES = cython.declare(cython.uint, 3)


@cython.final
@cython.cclass
class Node(HeldFile):
    """One file. It ends with `close`; what `duplicate` gave is the same object and ends by a `close` of its own.

    `kind` (S_IFMT of the mode), `path` and `version` are what `Stat` has, as they were when it was found.
    """

    @property
    def tree(self) -> Share:
        """The share that it is in."""
        return self.share

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == _DIRECTORY

    def __repr__(self) -> str:
        return f"<Node {self.kind:#o} {self.path}>"

    # -- finding

    @cython.ccall
    def lookup(self, name: bytes, caller: Caller) -> Node:
        """The file of that name in this directory; "." is this one, ".." the one it is in; the root is in itself."""
        share: Share = self.share
        text: cython.p_uchar = pointer_to_read(name)
        kind: cython.int = name_kind(text, len(name))
        code: cython.int
        fd: cython.int
        if kind > 0:
            if self.kind != _DIRECTORY:
                raise failure(errno.ENOTDIR)
            return self.duplicate() if kind == _DOT else self._parent(caller)
        good(kind)
        book: bytearray = share.take_scratch()
        base: cython.p_uchar = pointer(book)
        while True:
            code = self.begin(caller)
            fd = self.fd
            if code >= 0:
                with cython.nogil:
                    code = hold_at(fd, text, base)
            self.end()
            if code >= 0 or not share.relieved(code):
                break
        if code < 0:
            share.give_scratch(book)
            raise failure(-code)
        return node_from(share, code, book)

    @cython.ccall
    @cython.exceptval(-1)
    def has(self, name: bytes, node: Node, caller: Caller) -> cython.bint:
        """Whether a name in this directory is that of a file at this moment. No error for a name that is not there.

        ESTALE when the file is gone: the number of one that was let go of may be another's by now, and so the file is
        held while the numbers are compared.
        """
        share: Share = self.share
        text: cython.p_uchar = pointer_to_read(name)
        good(name_kind(text, len(name)))
        book: bytearray = share.take_scratch()
        base: cython.p_uchar = pointer(book)
        code: cython.int = node.begin_own()
        fd: cython.int
        if code >= 0:
            code = self.begin(caller)
            fd = self.fd
            if code >= 0:
                with cython.nogil:
                    code = stat_at(fd, text, base)
            self.end()
        node.end()
        found: cython.bint = code >= 0 and get64(base, 32) == node.ino and device_of(base) == node.dev
        share.give_scratch(book)
        if code < 0 and code != _ENOENT:
            raise failure(-code)
        return found

    @cython.cfunc
    def _parent(self, caller: Caller) -> Node:
        share: Share = self.share
        code: cython.int
        fd: cython.int
        if self.dev == share.root_dev and self.ino == share.root_ino:
            return self.duplicate()
        code = self.begin(caller)
        fd = self.fd
        if code >= 0:
            with cython.nogil:
                code = open_parent(fd)
        self.end()
        good(code)
        try:
            share.check_inside(code)
        except BaseException:
            close_file(code)
            raise
        return node_of(share, code)

    @cython.ccall
    def duplicate(self) -> Node:
        """The same file for somebody else, who closes it, too."""
        self.refer()
        return self

    @cython.ccall
    @cython.exceptval(check=False)
    def close(self) -> cython.void:
        """Let go of it."""
        self.let_go()

    # -- names in this directory

    def create(
        self, name: bytes, flags: cython.int, mode: cython.uint, caller: Caller, gid: int | None = None
    ) -> tuple[Node, OpenFile]:
        """Make a file and open it; without O_EXCL one that is there is opened. `gid` is the new file's group."""
        share: Share = self.share
        maker: Caller = caller if gid is None else caller.with_group(gid)
        text: cython.p_uchar = pointer_to_read(name)
        wanted: cython.int = flags & _CREATE_FLAGS | _CREATE
        code: cython.int
        fd: cython.int
        self._check_new(name)
        share.check_room()
        for _ in range(_TRIES):
            while True:
                code = self.begin(maker)
                fd = self.fd
                if code >= 0 and share.readonly:
                    code = _refusal(fd, text)
                elif code >= 0 and share.identity.mapped:
                    code = self._make_mapped(name, maker, _REGULAR | mode & 0o7777, 0, b"", wanted)
                elif code >= 0:
                    with cython.nogil:
                        code = open_at(fd, text, wanted, mode & 0o7777)
                self.end()
                if code >= 0 or not share.relieved(code):
                    break
            if code >= 0:
                return self._made(code, flags, maker)  # type: ignore[no-any-return]
            if code != _EEXIST or flags & _O_EXCL:
                raise failure(-code)
            try:
                node: Node = self.lookup(name, caller)
            except FileNotFoundError:
                continue
            try:
                return node, node.open(flags, caller)
            except BaseException:
                node.close()
                raise
        raise failure(errno.ESTALE)

    @cython.cfunc
    def _made(self, fd: cython.int, flags: cython.int, maker: Caller) -> Any:
        """What was made just now, by its open descriptor."""
        share: Share = self.share
        code: cython.int
        while True:
            code = reopen(share.proc, fd, _HOLD & ~os.O_NOFOLLOW)
            if code >= 0 or not share.relieved(code):
                break
        if code < 0:
            close_file(fd)
            raise failure(-code)
        try:
            node: Node = node_of(share, code)
        except BaseException:
            close_file(fd)
            raise
        return node, open_file(node.duplicate(), fd, flags, maker)

    @cython.cfunc
    @cython.exceptval(-1)
    def _check_new(self, name: bytes) -> cython.int:
        """A name that is to be made in this directory: "." and ".." are there already."""
        kind: cython.int = name_kind(pointer_to_read(name), len(name))
        if self.kind != _DIRECTORY:
            raise failure(errno.ENOTDIR)
        if kind > 0:
            raise failure(errno.EEXIST)
        good(kind)
        return 0

    def mkdir(self, name: bytes, mode: cython.uint, caller: Caller, gid: int | None = None) -> Node:
        """Make a directory."""
        return self._make(name, caller, gid, _DIRECTORY | mode & 0o7777, 0, b"")

    def mknod(
        self, name: bytes, mode: cython.uint, device: cython.ulonglong, caller: Caller, gid: int | None = None
    ) -> Node:
        """Make a file, device, FIFO or socket; `mode` has its type, `device` is a number as `Stat.rdev`."""
        if mode & _KIND == _DIRECTORY:
            raise failure(errno.EPERM)
        if mode & _KIND == _LINK:
            raise failure(errno.EINVAL)
        return self._make(name, caller, gid, mode & 0o177777, device, b"")

    def symlink(self, name: bytes, target: bytes, caller: Caller, gid: int | None = None) -> Node:
        """Make a symbolic link; its target is anything but empty, and nothing here follows it."""
        if not target:
            raise failure(errno.ENOENT)
        if b"\0" in target:
            raise failure(errno.EINVAL)
        if len(target) >= PATH_BYTES:
            raise failure(errno.ENAMETOOLONG)
        return self._make(name, caller, gid, _LINK | 0o777, 0, target)

    @cython.cfunc
    def _make(
        self,
        name: bytes,
        caller: Caller,
        gid: Any,
        mode: cython.uint,
        device: cython.ulonglong,
        target: bytes,
    ) -> Node:
        share: Share = self.share
        maker: Caller = caller if gid is None else caller.with_group(gid)
        text: cython.p_uchar = pointer_to_read(name)
        place: cython.p_uchar = pointer_to_read(target)
        kind: cython.uint = mode & _KIND
        code: cython.int
        held: cython.int = -1
        fd: cython.int
        self._check_new(name)
        book: bytearray = share.take_scratch()
        base: cython.p_uchar = pointer(book)
        code = self.begin(maker)
        fd = self.fd
        if code >= 0 and share.readonly:
            code = _refusal(fd, text)
        elif code >= 0 and share.identity.mapped:
            code = self._make_mapped(name, maker, mode, device, target, os.O_RDONLY)
            if code >= 0:
                held = hold_at(fd, text, base)
        elif code >= 0:
            with cython.nogil:
                if kind == _DIRECTORY:
                    code = make_directory(fd, text, mode & 0o7777)
                elif kind == _LINK:
                    code = make_symlink(fd, text, place)
                else:
                    code = make_node(fd, text, mode, device)
                if code >= 0:
                    held = hold_at(fd, text, base)
        self.end()
        if code >= 0 and held < 0 and share.relieved(held):
            share.give_scratch(book)
            return self.lookup(name, caller)
        if code < 0 or held < 0:
            share.give_scratch(book)
            raise failure(-code if code < 0 else -held)
        return node_from(share, held, book)

    # -- what is kept in attributes (`mapped`)

    @cython.cfunc
    @cython.exceptval(-1000)
    def _make_mapped(
        self, name: bytes, maker: Caller, mode: cython.uint, device: Any, target: bytes, flags: cython.int
    ) -> cython.int:
        """Make a file of any kind; an open descriptor if its kind is regular, else 0, or the negative errno."""
        fd: cython.int
        try:
            owner = mapped.born(self.fd, maker, mode, device)
            if mode & _KIND == _DIRECTORY:
                mapped.make_directory(self.fd, name, owner)
                return 0
            fd = mapped.make_file(self.fd, name, owner, target, flags)
        except OSError as error:
            return -(error.errno or errno.EIO)
        if mode & _KIND == _REGULAR and flags & _O_EXCL:
            return fd
        close_file(fd)
        return 0

    def link(self, node: Node, name: bytes, caller: Caller) -> None:
        """One more name, in this directory, for a file of the same share."""
        share: Share = self.share
        text: cython.p_uchar = pointer_to_read(name)
        code: cython.int
        fd: cython.int
        other: cython.int
        self._check_new(name)
        if node.share is not share:
            raise failure(errno.EXDEV)
        code = node.begin_own()
        other = node.fd
        if code >= 0:
            code = self.begin(caller)
            fd = self.fd
            if code >= 0 and share.readonly:
                code = _refusal(fd, text)
            elif code >= 0:
                with cython.nogil:
                    code = make_link(share.proc, other, fd, text)
            self.end()
        node.end()
        good(code)

    def unlink(self, name: bytes, directory: cython.bint, caller: Caller) -> None:
        """Remove a name; `directory`: that of an empty directory, else of anything else."""
        text: cython.p_uchar = pointer_to_read(name)
        kind: cython.int = name_kind(text, len(name))
        code: cython.int
        fd: cython.int
        if kind > 0 and not directory:
            raise failure(errno.EISDIR)
        if kind > 0:
            raise failure(errno.EINVAL if kind == _DOT else errno.ENOTEMPTY)
        good(kind)
        self.share.writable()
        code = self.begin(caller)
        fd = self.fd
        if code >= 0:
            with cython.nogil:
                code = remove_name(fd, text, directory)
        self.end()
        good(code)

    def rename(self, name: bytes, new_parent: Node, new_name: bytes, caller: Caller, flags: cython.uint = 0) -> None:
        """Give a file of this directory another name, there or in another directory; flags are `Rename`."""
        share: Share = self.share
        text: cython.p_uchar = pointer_to_read(name)
        new_text: cython.p_uchar = pointer_to_read(new_name)
        kind: cython.int = name_kind(text, len(name))
        new_kind: cython.int = name_kind(new_text, len(new_name))
        code: cython.int
        fd: cython.int
        other: cython.int
        good(kind)
        good(new_kind)
        if flags & ~_RENAMES:
            raise failure(errno.EINVAL)
        if new_parent.share is not share:
            raise failure(errno.EXDEV)
        share.writable()
        if kind > 0 or new_kind > 0:
            raise failure(errno.EEXIST if kind == 0 and flags & 1 else errno.EBUSY)
        code = new_parent.begin_own()
        other = new_parent.fd
        if code >= 0:
            code = self.begin(caller)
            fd = self.fd
            if code >= 0:
                with cython.nogil:
                    code = rename_at(fd, text, other, new_text, flags)
            self.end()
        new_parent.end()
        good(code)


@cython.final
@cython.cclass
class Tree(Share):
    """One share. Not thread-safe by itself beyond what the interpreter lock gives; nodes may be used by any thread."""

    _root: Node | None

    def __init__(self, path: str | os.PathLike[str], options: TreeOptions | None = None) -> None:
        super().__init__(path, options)
        self._root = None
        fd = os.open(".", _HOLD, dir_fd=self.directory)
        root: Node = node_of(self, fd)
        root.pins += 1  # never let go of
        self._root = root

    def root(self) -> Node:
        """The share's own directory, to be closed like any other."""
        if self._root is None:
            raise failure(errno.EBADF)
        return self._root.duplicate()

    def close(self) -> None:
        """End it: what nodes are left fail from now on. A second call does nothing."""
        if self._root is None:
            return
        root: Node = self._root
        self._root = None
        self.locks.close()
        root.pins -= 1
        self.cache.end()
        self.close_own()

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cython.cfunc
def node_of(share: Share, fd: cython.int) -> Node:
    """The file of a descriptor, which is the node's from now on."""
    book: bytearray = share.take_scratch()
    base: cython.p_uchar = pointer(book)
    code: cython.int
    with cython.nogil:
        code = stat_of(fd, base)
    if code < 0:
        close_file(fd)
        share.give_scratch(book)
        raise failure(-code)
    return node_from(share, fd, book)


@cython.cfunc
def node_from(share: Share, fd: cython.int, book: bytearray) -> Node:
    """The same with what statx gave, in a buffer that goes back to the share."""
    base: cython.p_uchar = pointer(book)
    node: Node = Node.__new__(Node)
    node.fd = -1
    node.pins = 0
    node.references = 1
    node.used = True
    node.slot = -1
    node.handle = None
    node.share = share
    node.kind = get16(base, 28) & _KIND
    node.ino = get64(base, 32)
    node.dev = device_of(base)
    node.version = version_of(base, share.numbers)
    node.path = share.numbers.path_of(node.dev, node.ino)
    if share.identity.mapped and node.kind == _REGULAR:
        owner = mapped.owner_of(fd, _REGULAR)
        if owner is not None:
            node.kind = owner.mode & _KIND
    share.give_scratch(book)
    share.cache.adopt(node, fd)
    return node


@cython.cfunc
@cython.exceptval(check=False)
def _refusal(directory: cython.int, name: cython.p_uchar) -> cython.int:
    """Why a name is not made in a read-only share: it is there already, or the share is read-only."""
    code: cython.int = open_at(directory, name, _HOLD, 0)
    if code >= 0:
        close_file(code)
        return _EEXIST
    return _EROFS if code == _ENOENT else code
