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
import fcntl
import os
import resource
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

import cython

from powervio.errors import LocalError
from powervio.files.calls import (
    FILE_SYSTEM_WORDS,
    STATX_BYTES,
    access_of,
    change_mode,
    change_owner,
    change_times,
    close_file,
    cut_held,
    file_system_of,
    get_attribute,
    list_attributes,
    make_directory,
    make_link,
    make_node,
    make_symlink,
    open_at,
    path_of,
    read_link,
    remove_attribute,
    remove_name,
    rename_at,
    reopen,
    set_attribute,
    stat_of,
)
from powervio.files.handles import DescriptorCache, Held
from powervio.files.identity import Caller, Identity, IdRange
from powervio.files.locks import LockTable
from powervio.files.tree_open import OpenFile
from powervio.files.tree_stat import Numbers, Stat, stat_from
from powervio.memory.hw import pointer, pointer_to_read

NAME_BYTES = 255
PATH_BYTES = 4096
ATTRIBUTE_BYTES = 65536
"""The largest value of an extended attribute, and the largest list of them (Linux: XATTR_SIZE_MAX, XATTR_LIST_MAX)."""
_HOLD = cython.declare(cython.int, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
_KIND = cython.declare(cython.uint, 0xF000)
_DIRECTORY = cython.declare(cython.uint, stat.S_IFDIR)
_REGULAR = cython.declare(cython.uint, stat.S_IFREG)
_LINK = cython.declare(cython.uint, stat.S_IFLNK)
_OPEN_FLAGS = (
    os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_DIRECTORY | os.O_NOATIME | os.O_DSYNC | os.O_SYNC | os.O_NOFOLLOW
)
_ALWAYS = os.O_CLOEXEC | os.O_NOCTTY
_TRIES = 8
"""How often a name is looked at again that somebody makes and removes all the time."""
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_UNCHANGED = 0xFFFF_FFFF
_TIMES = struct.Struct("=qqqq")
_SPARE = 256
"""Descriptors that are left to the rest of the process."""


class Set(IntFlag):
    """What `Node.setattr` is to change."""

    MODE = 0x01
    UID = 0x02
    GID = 0x04
    SIZE = 0x08
    ATIME = 0x10
    MTIME = 0x20
    CTIME = 0x40
    """Nothing but that the file was changed just now."""


class Rename(IntFlag):
    """How `Node.rename` is done."""

    NOREPLACE = 1
    EXCHANGE = 2


class FileSystem(NamedTuple):
    """statfs(2) of a file: blocks are of `bsize` bytes."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int
    frsize: int
    flags: int


@dataclass(frozen=True)
class TreeOptions:
    """What a share is like."""

    readonly: bool = False
    identity: str = "passthrough"
    """See `powervio.files.identity`."""
    squash_uid: int | None = None
    """The user that all act as, with identity "squash"; the default is nobody for root, else the server's own."""
    squash_gid: int | None = None
    translate_uid: Sequence[IdRange] = ()
    """Rows (first of the client, first of the host, count); what is in none is nobody. Empty: ids are the same."""
    translate_gid: Sequence[IdRange] = ()
    max_held: int | None = None
    """Files that are held by descriptors at a time; the default is by the process's limit."""
    max_open: int | None = None
    """Files that are open for reading or writing at a time, beyond which there is EMFILE; the default likewise."""


@cython.final
@cython.cclass
class Node(Held):
    """One file. It ends with `close`; what `duplicate` gave is the same object and ends by a `close` of its own.

    `kind`, `path` and `version` are what `Stat` has, as they were when it was found.
    """

    tree: Tree
    kind: cython.uint
    version: cython.uint
    path: cython.ulonglong
    dev: cython.ulonglong
    ino: cython.ulonglong

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return self.kind == _DIRECTORY

    def __repr__(self) -> str:
        return f"<Node {self.kind:#o} {self.path}>"

    # -- finding

    def lookup(self, name: bytes, caller: Caller) -> Node:
        """The file of that name in this directory; "." is this one, ".." the one it is in; the root is in itself."""
        if name == b".":
            self._need_directory()
            return self.duplicate()
        if name == b"..":
            return self._parent(caller)
        check_name(name)
        tree = self.tree
        code: cython.int = self._begin(caller)
        try:
            if code >= 0:
                code = open_at(self.fd, pointer_to_read(name), _HOLD, 0)
                if code == -errno.EMFILE and tree.relieve():
                    code = open_at(self.fd, pointer_to_read(name), _HOLD, 0)
        finally:
            self._end()
        return tree.node_of(_good(code))

    def _need_directory(self) -> None:
        if self.kind != _DIRECTORY:
            raise _error(errno.ENOTDIR)

    def _parent(self, caller: Caller) -> Node:
        self._need_directory()
        tree = self.tree
        if self.dev == tree.root_dev and self.ino == tree.root_ino:
            return tree.root()
        code = self._begin(caller)
        try:
            if code >= 0:
                code = open_at(self.fd, pointer_to_read(b".."), _HOLD, 0)
        finally:
            self._end()
        fd = _good(code)
        try:
            tree.check_inside(fd)
        except BaseException:
            close_file(fd)
            raise
        return tree.node_of(fd)

    def duplicate(self) -> Node:
        """The same file for somebody else, who closes it, too."""
        if self.references < 1:
            raise _error(errno.EBADF)
        self.references += 1
        return self

    def close(self) -> None:
        """Let go of it."""
        self.tree.cache.drop(self)

    # -- the file itself

    def stat(self) -> Stat:
        """What it is now."""
        code = self._begin_own()
        try:
            if code >= 0:
                raw = bytearray(STATX_BYTES)
                code = stat_of(self.fd, pointer(raw))
        finally:
            self._end()
        _good(code)
        return self.tree.client_stat(raw)

    def stat_by(self, fd: int) -> Stat:
        """The same by a descriptor of it."""
        raw = bytearray(STATX_BYTES)
        _good(stat_of(fd, pointer(raw)))
        return self.tree.client_stat(raw)

    def open(self, flags: int, caller: Caller) -> OpenFile:
        """Open the file or directory; flags of open(2), of which those that mean nothing here are left out.

        ENXIO for a device, FIFO or socket, ELOOP for a symbolic link, EMFILE when the share has too many open.
        """
        wanted: cython.int = flags & _OPEN_FLAGS & ~os.O_NOFOLLOW | _ALWAYS
        if self.kind == _LINK:
            raise _error(errno.ELOOP)
        if self.kind != _DIRECTORY and flags & os.O_DIRECTORY:
            raise _error(errno.ENOTDIR)
        if self.kind != _DIRECTORY and self.kind != _REGULAR:
            raise _error(errno.ENXIO)
        writes = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writes and self.kind == _DIRECTORY:
            raise _error(errno.EISDIR)
        if writes:
            self.tree.writable()
        self.tree.check_room()
        code = self._begin(caller)
        try:
            if code >= 0:
                code = reopen(self.tree.proc, self.fd, wanted)
                if code == -errno.EMFILE and self.tree.relieve():
                    code = reopen(self.tree.proc, self.fd, wanted)
        finally:
            self._end()
        return self.tree.opened(self.duplicate(), _good(code), flags, caller)

    def readlink(self) -> bytes:
        """Where a symbolic link points to; EINVAL for anything else."""
        if self.kind != _LINK:
            raise _error(errno.EINVAL)
        code = self._begin_own()
        try:
            if code >= 0:
                out = bytearray(PATH_BYTES)
                code = read_link(self.fd, pointer(out), PATH_BYTES)
        finally:
            self._end()
        return bytes(out[: _good(code)])

    def setattr(
        self,
        valid: int,
        caller: Caller,
        *,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        size: int = 0,
        atime: tuple[int, int] | None = None,
        mtime: tuple[int, int] | None = None,
        opened: OpenFile | None = None,
    ) -> None:
        """Change what `valid` (`Set`) names, in the order size, owner, mode, times.

        A time that is None is now. The size is changed by `opened` if that is given and open for writing, which asks
        for no right that was not checked when it was opened.
        """
        tree = self.tree
        tree.writable()
        owner = tree.identity.host_uid(uid) if valid & Set.UID else _UNCHANGED
        group = tree.identity.host_gid(gid) if valid & Set.GID else _UNCHANGED
        if valid & Set.SIZE and not 0 <= size < 1 << 63:
            raise _error(errno.EINVAL)
        by_open = valid & Set.SIZE and opened is not None and opened.flags & os.O_ACCMODE != os.O_RDONLY
        if by_open and opened is not None:
            opened.truncate(size)
        code = self._begin(caller)
        try:
            if code >= 0 and valid & Set.SIZE and not by_open:
                code = self._cut(size)
            if code >= 0 and valid & (Set.UID | Set.GID):
                code = change_owner(self.fd, owner, group)
            if code >= 0 and valid & Set.MODE:
                code = change_mode(tree.proc, self.fd, mode & 0o7777)
            if code >= 0 and valid & (Set.ATIME | Set.MTIME):
                times = _times(valid, atime, mtime)
                code = change_times(self.fd, pointer(times))
            elif code >= 0 and valid & Set.CTIME and not valid & ~Set.CTIME:
                code = change_owner(self.fd, _UNCHANGED, _UNCHANGED)
        finally:
            self._end()
        _good(code)

    def _cut(self, size: int) -> int:
        if self.kind == _DIRECTORY:
            return -errno.EISDIR
        if self.kind != _REGULAR:
            return -errno.EINVAL
        return cut_held(self.fd, size)

    def access(self, mode: int, caller: Caller) -> None:
        """Whether the caller may: R_OK, W_OK, X_OK; raises EACCES if not."""
        if mode & ~7:
            raise _error(errno.EINVAL)
        code = self._begin(caller)
        try:
            if code >= 0:
                code = access_of(self.fd, mode)
        finally:
            self._end()
        _good(code)
        if mode & os.W_OK and self.kind in (_DIRECTORY, _REGULAR, _LINK):
            self.tree.writable()

    def statfs(self) -> FileSystem:
        """The file system it is on."""
        code = self._begin_own()
        try:
            if code >= 0:
                words = bytearray(8 * FILE_SYSTEM_WORDS)
                code = file_system_of(self.fd, pointer(words))
        finally:
            self._end()
        _good(code)
        return FileSystem(*struct.unpack(f"={FILE_SYSTEM_WORDS}Q", words))

    # -- extended attributes

    def getxattr(self, name: bytes, caller: Caller) -> bytes:
        """The value of an attribute; ENODATA if there is none."""
        check_attribute(name)
        out = bytearray(ATTRIBUTE_BYTES)
        code = self._begin(caller)
        try:
            if code >= 0:
                code = get_attribute(self.fd, pointer_to_read(name), pointer(out), ATTRIBUTE_BYTES)
        finally:
            self._end()
        return bytes(out[: _good(code)])

    def setxattr(self, name: bytes, value: bytes, flags: int, caller: Caller) -> None:
        """Set an attribute; flags are XATTR_CREATE and XATTR_REPLACE."""
        check_attribute(name)
        self.tree.writable()
        code = self._begin(caller)
        try:
            if code >= 0:
                code = set_attribute(self.fd, pointer_to_read(name), pointer_to_read(value), len(value), flags)
        finally:
            self._end()
        _good(code)

    def listxattr(self, caller: Caller) -> list[bytes]:
        """The names of its attributes."""
        out = bytearray(ATTRIBUTE_BYTES)
        code = self._begin(caller)
        try:
            if code >= 0:
                code = list_attributes(self.fd, pointer(out), ATTRIBUTE_BYTES)
        finally:
            self._end()
        return bytes(out[: _good(code)]).split(b"\0")[:-1]

    def removexattr(self, name: bytes, caller: Caller) -> None:
        """Remove an attribute."""
        check_attribute(name)
        self.tree.writable()
        code = self._begin(caller)
        try:
            if code >= 0:
                code = remove_attribute(self.fd, pointer_to_read(name))
        finally:
            self._end()
        _good(code)

    # -- names in this directory

    def create(
        self, name: bytes, flags: int, mode: int, caller: Caller, gid: int | None = None
    ) -> tuple[Node, OpenFile]:
        """Make a file and open it; without O_EXCL one that is there is opened. `gid` is the new file's group."""
        check_new_name(name)
        self._need_directory()
        tree = self.tree
        tree.check_room()
        maker = caller if gid is None else caller.with_group(gid)
        kept = flags & _OPEN_FLAGS & ~(os.O_TRUNC | os.O_DIRECTORY) | _ALWAYS
        for _ in range(_TRIES):
            code = self._begin(maker)
            try:
                if code >= 0 and tree.readonly:
                    code = self._readonly_create(name)
                elif code >= 0:
                    code = open_at(self.fd, pointer_to_read(name), kept | os.O_CREAT | os.O_EXCL, mode & 0o7777)
                    if code == -errno.EMFILE and tree.relieve():
                        code = open_at(self.fd, pointer_to_read(name), kept | os.O_CREAT | os.O_EXCL, mode & 0o7777)
            finally:
                self._end()
            if code >= 0:
                return tree.made(code, flags, maker)
            if code != -errno.EEXIST or flags & os.O_EXCL:
                raise _error(-code)
            try:
                node = self.lookup(name, caller)
            except FileNotFoundError:
                continue
            try:
                return node, node.open(flags, caller)
            except BaseException:
                node.close()
                raise
        raise _error(errno.ESTALE)

    def _readonly_create(self, name: bytes) -> int:
        """EEXIST if there is such a name, EROFS if not."""
        code = open_at(self.fd, pointer_to_read(name), _HOLD, 0)
        if code >= 0:
            close_file(code)
            return -errno.EEXIST
        return -errno.EROFS if code == -errno.ENOENT else code

    def mkdir(self, name: bytes, mode: int, caller: Caller, gid: int | None = None) -> Node:
        """Make a directory."""
        return self._make(name, caller, gid, _DIRECTORY | mode & 0o7777, 0, b"")

    def mknod(self, name: bytes, mode: int, device: int, caller: Caller, gid: int | None = None) -> Node:
        """Make a file, device, FIFO or socket; `mode` has its type, `device` is a number as `Stat.rdev`."""
        if mode & _KIND == _DIRECTORY:
            raise _error(errno.EPERM)
        if mode & _KIND == _LINK:
            raise _error(errno.EINVAL)
        return self._make(name, caller, gid, mode & 0o177777, device, b"")

    def symlink(self, name: bytes, target: bytes, caller: Caller, gid: int | None = None) -> Node:
        """Make a symbolic link; its target is anything but empty, and nothing here follows it."""
        if not target:
            raise _error(errno.ENOENT)
        if b"\0" in target:
            raise _error(errno.EINVAL)
        if len(target) >= PATH_BYTES:
            raise _error(errno.ENAMETOOLONG)
        return self._make(name, caller, gid, _LINK | 0o777, 0, target)

    def _make(self, name: bytes, caller: Caller, gid: int | None, mode: int, device: int, target: bytes) -> Node:
        check_new_name(name)
        self._need_directory()
        tree = self.tree
        text = pointer_to_read(name)
        kind = mode & _KIND
        code = self._begin(caller if gid is None else caller.with_group(gid))
        fd = -1
        try:
            if code >= 0 and tree.readonly:
                code = self._readonly_create(name)
            elif code >= 0 and kind == _DIRECTORY:
                code = make_directory(self.fd, text, mode & 0o7777)
            elif code >= 0 and kind == _LINK:
                code = make_symlink(self.fd, text, pointer_to_read(target))
            elif code >= 0:
                code = make_node(self.fd, text, mode, device)
            if code >= 0:
                code = fd = open_at(self.fd, text, _HOLD, 0)
        finally:
            self._end()
        _good(code)
        return tree.node_of(fd)

    def link(self, node: Node, name: bytes, caller: Caller) -> None:
        """One more name, in this directory, for a file of the same share."""
        check_new_name(name)
        self._need_directory()
        tree = self.tree
        if node.tree is not tree:
            raise _error(errno.EXDEV)
        code = self._begin(caller)
        begun = code >= 0
        other = node._begin(caller) if begun else code
        try:
            if code >= 0 and tree.readonly:
                code = self._readonly_create(name)
            elif code >= 0 and other >= 0:
                code = make_link(tree.proc, node.fd, self.fd, pointer_to_read(name))
        finally:
            if begun:
                node._end()
            self._end()
        _good(min(code, other))

    def unlink(self, name: bytes, directory: bool, caller: Caller) -> None:
        """Remove a name; `directory`: that of an empty directory, else of anything else."""
        if name == b".":
            raise _error(errno.EINVAL if directory else errno.EISDIR)
        if name == b"..":
            raise _error(errno.ENOTEMPTY if directory else errno.EISDIR)
        check_name(name)
        self.tree.writable()
        code = self._begin(caller)
        try:
            if code >= 0:
                code = remove_name(self.fd, pointer_to_read(name), directory)
        finally:
            self._end()
        _good(code)

    def rename(self, name: bytes, new_parent: Node, new_name: bytes, caller: Caller, flags: int = 0) -> None:
        """Give a file of this directory another name, there or in another directory; flags are `Rename`."""
        for one in (name, new_name):
            if one in (b".", b".."):
                raise _error(errno.EBUSY)
            check_name(one)
        if flags & ~int(Rename.NOREPLACE | Rename.EXCHANGE):
            raise _error(errno.EINVAL)
        tree = self.tree
        tree.writable()
        if new_parent.tree is not tree:
            raise _error(errno.EXDEV)
        code = self._begin(caller)
        begun = code >= 0
        other = new_parent._begin(caller) if begun else code
        try:
            if code >= 0 and other >= 0:
                code = rename_at(self.fd, pointer_to_read(name), new_parent.fd, pointer_to_read(new_name), flags)
        finally:
            if begun:
                new_parent._end()
            self._end()
        _good(min(code, other))

    # -- an operation

    def _begin(self, caller: Caller) -> int:
        """The descriptor is there and the thread acts as the caller, until `_end`; 0 or the negative errno."""
        tree = self.tree
        if self.fd < 0:
            tree.identity.enter_own()  # who opens by handle has to be root
        self.pins += 1
        code = tree.cache.take(self)
        if code < 0:
            return code
        self.pins -= 1
        return tree.identity.enter(caller)

    def _begin_own(self) -> int:
        """The same for what everybody may."""
        tree = self.tree
        if self.fd < 0:
            tree.identity.enter_own()
        self.pins += 1
        code = tree.cache.take(self)
        if code < 0:
            return code
        self.pins -= 1
        return 0

    def _end(self) -> None:
        self.tree.identity.leave()
        self.tree.cache.give(self)


@cython.final
@cython.cclass
class Tree:
    """One share. Not thread-safe by itself beyond what the interpreter lock gives; nodes may be used by any thread."""

    options: TreeOptions
    identity: Identity
    cache: DescriptorCache
    numbers: Numbers
    locks: LockTable
    readonly: cython.bint
    proc: cython.int
    root_dev: cython.ulonglong
    root_ino: cython.ulonglong
    open_count: cython.int
    max_open: cython.int
    _directory: cython.int
    _root: Node | None
    _root_path: bytes

    def __init__(self, path: str | os.PathLike[str], options: TreeOptions | None = None) -> None:
        """Share the directory at `path`. Raises `LocalError` when it cannot be."""
        options = options or TreeOptions()
        self.options = options
        self.readonly = options.readonly
        self.identity = Identity(
            options.identity,
            options.squash_uid,
            options.squash_gid,
            options.translate_uid,
            options.translate_gid,
        )
        self.locks = LockTable()
        self.proc = self._directory = -1
        self._root = None
        try:
            self._directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self._close_own()
            raise LocalError(f"{os.fspath(path)} cannot be shared: {error.strerror}") from error
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = max(64, limit - _SPARE)
        self.max_open = options.max_open or spare // 2
        self.open_count = 0
        self.cache = DescriptorCache(self._directory, options.max_held or min(16384, spare // 4))
        raw = bytearray(STATX_BYTES)
        stat_of(self._directory, pointer(raw))
        self.numbers = Numbers(os.fstat(self._directory).st_dev)
        facts = stat_from(raw, self.numbers)
        self.root_dev, self.root_ino = facts.dev, facts.ino
        self._root = self.node_of(_good(open_at(self._directory, pointer_to_read(b"."), _HOLD, 0)))
        self._root.pins += 1  # never let go of

    def root(self) -> Node:
        """The share's own directory, to be closed like any other."""
        if self._root is None:
            raise _error(errno.EBADF)
        return self._root.duplicate()

    def close(self) -> None:
        """End it: what nodes are left fail from now on. A second call does nothing."""
        if self._root is None:
            return
        self.locks.close()
        root, self._root = self._root, None
        root.references = 0
        self.cache.give(root)
        self._close_own()

    def _close_own(self) -> None:
        for fd in (self._directory, self.proc):
            if fd >= 0:
                os.close(fd)
        self._directory = self.proc = -1

    def __enter__(self) -> Tree:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for nodes and open files

    def writable(self) -> None:
        """Raises EROFS if the share is read-only."""
        if self.readonly:
            raise _error(errno.EROFS)

    def check_room(self) -> None:
        """Raises EMFILE when as many files are open as may be."""
        if self.open_count >= self.max_open:
            raise _error(errno.EMFILE)

    def relieve(self) -> bool:
        """The process has no descriptors left: have nodes let go of some."""
        held = len(self.cache)
        self.cache.make_room(8)
        return len(self.cache) < held

    def node_of(self, fd: int) -> Node:
        """The file of a descriptor, which is the node's from now on."""
        raw = bytearray(STATX_BYTES)
        code = stat_of(fd, pointer(raw))
        if code < 0:
            close_file(fd)
            raise _error(-code)
        facts = self.client_stat(raw)
        node = Node()
        node.fd = -1
        node.pins = 0
        node.references = 1
        node.used = True
        node.slot = -1
        node.handle = None
        node.tree = self
        node.kind = facts.mode & _KIND
        node.version = facts.version
        node.path = facts.path
        node.dev = facts.dev
        node.ino = facts.ino
        self.cache.adopt(node, fd)
        return node

    def client_stat(self, raw: bytearray) -> Stat:
        """What statx gave, with the client's owners."""
        facts = stat_from(raw, self.numbers)
        if self.identity.translates:
            facts.uid = self.identity.client_uid(facts.uid)
            facts.gid = self.identity.client_gid(facts.gid)
        return facts

    def opened(self, node: Node, fd: int, flags: int, caller: Caller) -> OpenFile:
        """An open file, by a descriptor and a node that are its own from now on."""
        self.open_count += 1
        return OpenFile(self, node, fd, flags, caller)

    def closed(self, _: OpenFile) -> None:
        """An open file has ended."""
        self.open_count -= 1

    def made(self, fd: int, flags: int, caller: Caller) -> tuple[Node, OpenFile]:
        """A file that was made just now, by its open descriptor."""
        code = reopen(self.proc, fd, os.O_PATH | os.O_CLOEXEC)
        if code < 0:
            close_file(fd)
            raise _error(-code)
        try:
            node = self.node_of(code)
        except BaseException:
            close_file(fd)
            raise
        return node, self.opened(node.duplicate(), fd, flags, caller)

    def open_for_locks(self, node: Node, fd: int) -> int:
        """A descriptor for the host's locks on a file, of which `fd` is an open one."""
        self.identity.enter_own()
        try:
            for flags in (os.O_RDWR, os.O_RDONLY):
                code = reopen(self.proc, node.fd if node.fd >= 0 else fd, flags | _ALWAYS)
                if code >= 0:
                    return code
        finally:
            self.identity.leave()
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)

    def entry_path(self, directory: Node, inode: int, is_parent: bool) -> int:
        """The `Stat.path` of an entry; ".." of the root is the root, whatever is above it."""
        if is_parent and directory.dev == self.root_dev and directory.ino == self.root_ino:
            inode = self.root_ino
        return self.numbers.path_of(directory.dev, inode)

    def check_inside(self, fd: int) -> None:
        """Raises ESTALE when a directory is not in the share any more: somebody moved it, or what it is in, out.

        The kernel's own idea of its path is asked for, which is one answer at one moment. So is the root's, which may
        have been moved, too.
        """
        for _ in range(_TRIES):
            before = self._path(self._directory)
            inside = self._path(fd)
            if before == self._path(self._directory):
                if inside == before or inside.startswith(before if before.endswith(b"/") else before + b"/"):
                    return
                break
        raise _error(errno.ESTALE)

    def _path(self, fd: int) -> bytes:
        out = bytearray(PATH_BYTES)
        return bytes(out[: _good(path_of(self.proc, fd, pointer(out), PATH_BYTES))])


def check_name(name: bytes) -> None:
    """One component: raises as the module's text says."""
    if not name:
        raise _error(errno.ENOENT)
    if b"\0" in name or b"/" in name:
        raise _error(errno.EINVAL)
    if len(name) > NAME_BYTES:
        raise _error(errno.ENAMETOOLONG)


def check_new_name(name: bytes) -> None:
    """The same for one that is made: "." and ".." are there already."""
    if name in (b".", b".."):
        raise _error(errno.EEXIST)
    check_name(name)


def check_attribute(name: bytes) -> None:
    """The name of an extended attribute."""
    if not name or len(name) > NAME_BYTES:
        raise _error(errno.ERANGE)
    if b"\0" in name:
        raise _error(errno.EINVAL)


def _times(valid: int, atime: tuple[int, int] | None, mtime: tuple[int, int] | None) -> bytearray:
    result: list[int] = []
    for wanted, when in ((valid & Set.ATIME, atime), (valid & Set.MTIME, mtime)):
        if not wanted:
            result += (0, _UTIME_OMIT)
        elif when is None:
            result += (0, _UTIME_NOW)
        elif not 0 <= when[1] < 1_000_000_000:
            raise _error(errno.EINVAL)
        else:
            result += when
    return bytearray(_TIMES.pack(*result))


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _good(code: int) -> int:
    if code < 0:
        raise _error(-code)
    return code
