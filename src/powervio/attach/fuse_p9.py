# cython: language_level=3, annotation_typing=False
"""A 9P share as a file system of FUSE: each request of the kernel, in terms of `drivers/p9_tree`.

**What the kernel may keep.** Names and attributes for `timeout` seconds; they may be as old when somebody else changes
the share, and with 0 they are asked for every time. The pages of a file are good for as long as its qid.version is the
one under which they were read: an open by a program, which always goes to the server, throws away what is older
(FOPEN_KEEP_CACHE is not set), and attributes with it. So who opens a file sees what was closed before, wherever that
was. A qid.version of 0 says that the server has none, and then no open keeps pages.

Writes go to the server before write(2) returns; the kernel's write-back cache is not used. With it size and times would
be the kernel's and not the server's, two clients' appends would overwrite each other, and a full disk would be heard of
at close(2) or never.

**Who may do what** is checked twice: by the kernel here (default_permissions, POSIX ACLs), which knows the caller's
groups, and by the server for the caller's user (`P9Tree.user`) and, if it understands that, the groups.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Generator
from typing import Any

from powervio.attach.fuse import FuseSession, Handler, Parts, Pause, Waiting
from powervio.drivers import p9_files, p9_nodes
from powervio.drivers.p9_core import P9Error
from powervio.drivers.p9_nodes import Attributes, Entry, Node, OpenFile
from powervio.drivers.p9_tree import P9Tree
from powervio.files import fuse_messages as fuse
from powervio.files.fuse_codec import FuseCodec, Request, dirent_size
from powervio.files.fuse_messages import Attr, AttrHead, EntryHead, InitOut, Opcode, OpenOut, WriteOut

TIMEOUT = 1.0
"""Seconds for which the kernel keeps names and attributes, if nothing else is said."""
MOST_BACKGROUND = 64
"""Requests that nobody waits for (read-ahead, write-back) at a time."""
FLAGS = (
    fuse.ASYNC_READ
    | fuse.POSIX_LOCKS
    | fuse.ATOMIC_O_TRUNC
    | fuse.BIG_WRITES
    | fuse.DONT_MASK
    | fuse.AUTO_INVAL_DATA
    | fuse.DO_READDIRPLUS
    | fuse.READDIRPLUS_AUTO
    | fuse.ASYNC_DIO
    | fuse.PARALLEL_DIROPS
    | fuse.HANDLE_KILLPRIV_V2
    | fuse.POSIX_ACL
    | fuse.MAX_PAGES
    | fuse.INIT_EXT
)
DEFAULT_ACL = b"system.posix_acl_default"
_GROUPS_GOOD = 1.0
"""Seconds for which a process is taken to have the groups that it had."""
_MOST_PROCESSES = 4096
_LOCK_PAUSE, _LOCK_LONGEST = 0.005, 0.25
_BYTES_OF_ENTRY = 24
"""Of Rreaddir, beside the name."""
_LARGEST_ENTRY = 512
_NO_ATTR = Attr(*[0] * 16)
_NO_ENTRY = EntryHead(0, 0, 0, 0, 0, 0)
Operation = Generator[Waiting, Any, Parts]


class P9FileSystem:
    """The handlers of one mount; `session` is set before the first request."""

    session: FuseSession

    def __init__(self, tree: P9Tree, *, max_write: int, timeout: float = TIMEOUT) -> None:
        """`max_write` bytes at most in one READ or WRITE; `timeout` seconds: see above."""
        self.tree = tree
        self.max_write = max_write
        self._codec = FuseCodec()
        self._valid = (int(timeout), int(timeout % 1 * 1e9))
        self._timeout = timeout
        self._nodes: dict[int, Node] = {fuse.ROOT_ID: tree.root}
        tree.root.handle = fuse.ROOT_ID
        tree.root.lookups = 1
        self._next_node = fuse.ROOT_ID
        self._files: dict[int, OpenFile] = {}
        self._next_file = 0
        self._entries: dict[int, tuple[int, list[Entry]]] = {}
        self._processes: dict[tuple[int, int, int], tuple[int, float]] = {}

    def handlers(self) -> dict[int, Handler]:
        """The table for a `FuseSession`."""
        table: dict[int, Callable[[Request], Any]] = {
            Opcode.INIT: self._init,
            Opcode.DESTROY: lambda request: (),
            Opcode.FORGET: self._forget,
            Opcode.BATCH_FORGET: self._forget,
            Opcode.LOOKUP: self._lookup,
            Opcode.GETATTR: self._getattr,
            Opcode.STATX: self._statx,
            Opcode.SETATTR: self._setattr,
            Opcode.READLINK: self._readlink,
            Opcode.SYMLINK: self._symlink,
            Opcode.MKNOD: self._mknod,
            Opcode.MKDIR: self._mkdir,
            Opcode.UNLINK: self._unlink,
            Opcode.RMDIR: self._unlink,
            Opcode.RENAME: self._rename,
            Opcode.LINK: self._link,
            Opcode.OPEN: self._open,
            Opcode.OPENDIR: self._open,
            Opcode.CREATE: self._create,
            Opcode.READ: self._read,
            Opcode.WRITE: self._write,
            Opcode.READDIR: self._readdir,
            Opcode.READDIRPLUS: self._readdirplus,
            Opcode.STATFS: self._statfs,
            Opcode.RELEASE: self._release,
            Opcode.RELEASEDIR: self._release,
            Opcode.FLUSH: self._flush,
            Opcode.FSYNC: self._fsync,
            Opcode.FSYNCDIR: self._fsync,
            Opcode.GETXATTR: self._getxattr,
            Opcode.LISTXATTR: self._getxattr,
            Opcode.SETXATTR: self._setxattr,
            Opcode.REMOVEXATTR: self._removexattr,
            Opcode.GETLK: self._getlk,
            Opcode.SETLK: self._setlk,
            Opcode.SETLKW: self._setlk,
        }
        return table

    # The session

    def _init(self, request: Request) -> Parts:
        body = request.body
        if body.major != fuse.MAJOR:
            raise OSError(errno.EPROTO, f"FUSE {body.major}")
        offered = body.flags | body.flags2 << 32
        flags = FLAGS & offered
        pages = self.max_write // 4096 if flags & fuse.MAX_PAGES else 32
        return (
            self._codec.pack(
                InitOut(
                    major=fuse.MAJOR,
                    minor=min(fuse.MINOR, body.minor),
                    max_readahead=self.max_write,
                    flags=flags & 0xFFFF_FFFF,
                    max_background=MOST_BACKGROUND,
                    congestion_threshold=MOST_BACKGROUND * 3 // 4,
                    max_write=min(self.max_write, pages * 4096),
                    time_gran=1,
                    max_pages=pages,
                    map_alignment=0,
                    flags2=flags >> 32,
                )
            ),
        )

    def _user(self, request: Request) -> int:
        """Who asks, with the groups that the process has: the kernel tells the first of them only."""
        header = request.header
        if not header.uid or self.tree.user is not None:
            return header.uid
        now = time.monotonic()
        process = (header.pid, header.uid, header.gid)
        known = self._processes.get(process)
        if known is not None and now < known[1]:
            return known[0]
        if len(self._processes) >= _MOST_PROCESSES:
            self._processes.clear()
        user = self.tree.caller(header.uid, header.gid, _groups_of(header.pid))
        self._processes[process] = (user, now + _GROUPS_GOOD)
        return user

    def _node(self, nodeid: int) -> Node:
        node = self._nodes.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def _file(self, handle: int) -> OpenFile:
        file = self._files.get(handle)
        if file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file

    def _forget(self, request: Request) -> None:
        for nodeid, count in self._codec.forgotten(request):
            node = self._nodes.get(nodeid)
            if node is None or nodeid == fuse.ROOT_ID:
                continue
            node.lookups -= count
            if node.lookups <= 0:
                del self._nodes[nodeid]
                node.handle = 0
                self.tree.forget(node)

    # Nodes

    def _entry(self, node: Node, attr: Attributes) -> bytes:
        """What the kernel is told of a name, which counts as one lookup."""
        if not node.handle:
            self._next_node += 1
            node.handle = self._next_node
            self._nodes[node.handle] = node
        node.lookups += 1
        seconds, nanoseconds = self._valid
        head = EntryHead(node.handle, node.key[2] & 0xFFFF_FFFF, seconds, seconds, nanoseconds, nanoseconds)
        return self._codec.entry(head, _attr(attr))

    def _lookup(self, request: Request) -> Operation:
        parent = self._node(request.header.nodeid)
        node, attr = yield from self.tree.lookup(parent, request.names[0], self._user(request))
        return (self._entry(node, attr),)

    def _getattr(self, request: Request) -> Operation:
        node = self._node(request.header.nodeid)
        file = self._files.get(request.body.fh) if request.body.flags & fuse.GETATTR_FH else None
        attr = yield from self.tree.getattr(node, self._user(request), file)
        return (self._attributes(attr),)

    def _attributes(self, attr: Attributes) -> bytes:
        return self._codec.attributes(AttrHead(*self._valid), _attr(attr))

    def _statx(self, request: Request) -> Operation:
        """GETATTR with the birth time."""
        node = self._node(request.header.nodeid)
        file = self._files.get(request.body.fh) if request.body.getattr_flags & fuse.GETATTR_FH else None
        attr = yield from self.tree.getattr(node, self._user(request), file)
        has_btime = attr.valid & p9_nodes.HAS_BTIME
        plain = _attr(attr)
        return (
            self._codec.pack(
                fuse.StatxOut(
                    *self._valid,
                    flags=0,
                    mask=fuse.STATX_BASIC_STATS | (fuse.STATX_BTIME if has_btime else 0),
                    blksize=plain.blksize,
                    attributes=0,
                    nlink=plain.nlink,
                    uid=plain.uid,
                    gid=plain.gid,
                    mode=plain.mode & 0xFFFF,
                    ino=plain.ino,
                    size=plain.size,
                    blocks=plain.blocks,
                    attributes_mask=0,
                    atime=plain.atime,
                    atimensec=plain.atimensec,
                    btime=_signed(attr.btime),
                    btimensec=attr.btime_nsec % 1_000_000_000,
                    ctime=plain.ctime,
                    ctimensec=plain.ctimensec,
                    mtime=plain.mtime,
                    mtimensec=plain.mtimensec,
                    rdev_major=os.major(attr.rdev),
                    rdev_minor=os.minor(attr.rdev),
                )
            ),
        )

    def _setattr(self, request: Request) -> Operation:
        node = self._node(request.header.nodeid)
        body = request.body
        uid = self._user(request)
        given = body.valid
        file = self._files.get(body.fh) if given & fuse.FATTR_FH else None
        valid = 0
        for theirs, ours in _SETATTR:
            if given & theirs:
                valid |= ours
        if given & fuse.FATTR_ATIME_NOW:
            valid &= ~p9_nodes.SET_ATIME_GIVEN
        if given & fuse.FATTR_MTIME_NOW:
            valid &= ~p9_nodes.SET_MTIME_GIVEN
        # the size is the open file's right, the rest the caller's
        first = valid if file is None else valid & ~p9_nodes.SET_SIZE
        if first:
            yield from self.tree.setattr(
                node,
                uid,
                first,
                mode=body.mode & 0o7777,
                owner=body.uid,
                group=body.gid,
                size=body.size,
                atime=(body.atime, body.atimensec),
                mtime=(body.mtime, body.mtimensec),
            )
        if valid & ~first:
            yield from self.tree.setattr(node, uid, p9_nodes.SET_SIZE, size=body.size, file=file)
        if given & fuse.FATTR_SIZE:
            node.cached = None
        attr = yield from self.tree.getattr(node, uid, file)
        if given & fuse.FATTR_KILL_SUIDGID and not given & fuse.FATTR_MODE:
            attr = yield from self._kill_privileges(node, attr, file)
        return (self._attributes(attr),)

    def _readlink(self, request: Request) -> Operation:
        target = yield from self.tree.readlink(self._node(request.header.nodeid), self._user(request))
        return (target,)

    def _mode(self, parent: Node, mode: int, umask: int, uid: int) -> Generator[Waiting, Any, int]:
        """The mode without the caller's umask, which does not count in a directory with a default ACL (acl(5))."""
        if umask & mode & 0o777:
            now = time.monotonic()
            if now >= parent.acl_seen + self._timeout:
                try:
                    yield from self.tree.getxattr(parent, DEFAULT_ACL, uid)
                except P9Error:
                    parent.acl_seen = now
                else:
                    return mode
        return mode & ~umask

    def _mkdir(self, request: Request) -> Operation:
        header, body = request.header, request.body
        parent = self._node(header.nodeid)
        mode = yield from self._mode(parent, body.mode & 0o7777, body.umask, self._user(request))
        node, attr = yield from self.tree.mkdir(parent, request.names[0], mode, self._user(request), header.gid)
        return (self._entry(node, attr),)

    def _mknod(self, request: Request) -> Operation:
        header, body = request.header, request.body
        parent = self._node(header.nodeid)
        user = self._user(request)
        mode = yield from self._mode(parent, body.mode, body.umask, user)
        major, minor = body.rdev >> 8 & 0xFFF, body.rdev & 0xFF | body.rdev >> 12 & 0xFFF00
        node, attr = yield from self.tree.mknod(parent, request.names[0], mode, major, minor, user, header.gid)
        return (self._entry(node, attr),)

    def _symlink(self, request: Request) -> Operation:
        header = request.header
        name, target = request.names
        parent = self._node(header.nodeid)
        node, attr = yield from self.tree.symlink(parent, name, target, self._user(request), header.gid)
        return (self._entry(node, attr),)

    def _link(self, request: Request) -> Operation:
        parent = self._node(request.header.nodeid)
        node = self._node(request.body.oldnodeid)
        made, attr = yield from self.tree.link(node, parent, request.names[0], self._user(request))
        return (self._entry(made, attr),)

    def _unlink(self, request: Request) -> Operation:
        parent = self._node(request.header.nodeid)
        directory = request.header.opcode == Opcode.RMDIR
        yield from self.tree.unlink(parent, request.names[0], self._user(request), directory=directory)
        return ()

    def _rename(self, request: Request) -> Operation:
        parent = self._node(request.header.nodeid)
        target = self._node(request.body.newdir)
        yield from self.tree.rename(parent, request.names[0], target, request.names[1], self._user(request))
        return ()

    def _statfs(self, request: Request) -> Operation:
        found = yield from self.tree.statfs(self._node(request.header.nodeid), self._user(request))
        _, bsize, blocks, bfree, bavail, files, ffree, _, namelen = found
        return (self._codec.pack(fuse.StatfsOut(blocks, bfree, bavail, files, ffree, bsize, namelen, bsize)),)

    # Open files

    def _open(self, request: Request) -> Operation:
        header, body = request.header, request.body
        node = self._node(header.nodeid)
        directory = header.opcode == Opcode.OPENDIR
        flags = body.flags | (os.O_DIRECTORY if directory else 0)
        before = node.version
        file = yield from self.tree.open(node, flags, self._user(request))
        if body.open_flags & fuse.OPEN_KILL_SUIDGID and body.flags & os.O_TRUNC:
            attr = yield from self.tree.getattr(node, file.who, file)
            yield from self._kill_privileges(node, attr, file)
        version = node.version
        opened = 0
        if not directory:
            if body.flags & os.O_TRUNC:
                node.cached = None
            elif version and node.cached == version:
                opened = fuse.FOPEN_KEEP_CACHE
            else:
                node.cached = version
            if version != before:
                self.session.notify(self._codec.invalidate_inode(node.handle))
        return (self._codec.pack(OpenOut(self._keep(file), opened)),)

    def _keep(self, file: OpenFile) -> int:
        self._next_file += 1
        self._files[self._next_file] = file
        file.node.openers[self._next_file] = file
        return self._next_file

    def _create(self, request: Request) -> Operation:
        header, body = request.header, request.body
        parent = self._node(header.nodeid)
        mode = yield from self._mode(parent, body.mode & 0o7777, body.umask, self._user(request))
        node, attr, file = yield from self.tree.create(
            parent, request.names[0], body.flags, mode, self._user(request), header.gid
        )
        node.cached = None
        return (self._entry(node, attr), self._codec.pack(OpenOut(self._keep(file), 0)))

    def _read(self, request: Request) -> Operation:
        body = request.body
        return ((yield from self.tree.read(self._file(body.fh), body.offset, body.size)),)

    def _write(self, request: Request) -> Operation:
        body = request.body
        file = self._file(body.fh)
        node = file.node
        if len(request.data) != body.size:
            raise OSError(errno.EIO, "the kernel sent another length than it said")
        if body.write_flags & fuse.WRITE_CACHE:
            # of a mapping: at its place, by whatever file is open
            file = yield from self.tree.plain(file)
        node.cached = None
        count = yield from self.tree.write(file, body.offset, request.data)
        if body.write_flags & fuse.WRITE_KILL_SUIDGID and node.mode & 0o6000:
            attr = yield from self.tree.getattr(node, file.who, file)
            yield from self._kill_privileges(node, attr, file)
        return (self._codec.pack(WriteOut(count)),)

    def _kill_privileges(
        self, node: Node, attr: Attributes, file: OpenFile | None
    ) -> Generator[Waiting, Any, Attributes]:
        """Somebody without CAP_FSETID has changed a file: set-user-ID and set-group-ID go (HANDLE_KILLPRIV_V2).

        Most servers have done that themselves by now; it is done as the owner, who may.
        """
        mode = _without_privileges(attr.mode)
        if mode == attr.mode:
            return attr
        yield from self.tree.setattr(node, attr.uid, p9_nodes.SET_MODE, mode=mode & 0o7777)
        changed: Attributes = yield from self.tree.getattr(node, attr.uid, file)
        return changed

    def _release(self, request: Request) -> Parts:
        file = self._files.pop(request.body.fh, None)
        if file is not None:
            file.node.openers.pop(request.body.fh, None)
            self._entries.pop(request.body.fh, None)
            self.tree.close(file)
        return ()

    def _flush(self, request: Request) -> Operation | Parts:
        file = self._file(request.body.fh)
        if request.body.lock_owner not in file.node.owners:
            return ()
        return self._unlock_all(file, request.body.lock_owner)

    def _unlock_all(self, file: OpenFile, owner: int) -> Operation:
        """A process has closed one of its descriptors of the file: all its locks of it go (fcntl(2))."""
        proc = file.node.owners.pop(owner)
        for other in list(file.node.openers.values()):
            if proc in other.locks:
                yield from self.tree.lock(other, p9_files.LOCK_NONE, 0, p9_files.LAST_BYTE, proc)
        return ()

    def _fsync(self, request: Request) -> Operation:
        data_only = bool(request.body.flags & fuse.FSYNC_FDATASYNC)
        yield from self.tree.fsync(self._file(request.body.fh), data_only=data_only)
        return ()

    # Directories

    def _listing(self, file: OpenFile, handle: int, offset: int, count: int) -> Generator[Waiting, Any, list[Entry]]:
        """Entries behind `offset`: those that did not fit into the last answer, or new ones."""
        kept = self._entries.pop(handle, None)
        if kept is not None and kept[0] == offset and kept[1]:
            return kept[1]
        found: list[Entry] = yield from self.tree.readdir(file, offset, count)
        return found

    def _readdir(self, request: Request) -> Operation:
        body = request.body
        file = self._file(body.fh)
        # an entry takes as many bytes at the server as here, less the padding of its name
        found = yield from self._listing(file, body.fh, body.offset, max(body.size, _LARGEST_ENTRY))
        parts = []
        left = body.size
        for index, entry in enumerate(found):
            left -= dirent_size(len(entry.name))
            if left < 0:
                self._entries[body.fh] = (found[index - 1].offset if index else body.offset, found[index:])
                break
            parts.append(self._codec.dirent(entry.qid[2], entry.offset, entry.kind, entry.name))
        return parts

    def _readdirplus(self, request: Request) -> Operation:
        body = request.body
        uid = self._user(request)
        file = self._file(body.fh)
        count = max(body.size // 152 * _BYTES_OF_ENTRY, _LARGEST_ENTRY)
        found = yield from self._listing(file, body.fh, body.offset, count)
        left = body.size
        fitting = 0
        for entry in found:
            left -= dirent_size(len(entry.name), plus=True)
            if left < 0:
                break
            fitting += 1
        if fitting < len(found):
            self._entries[body.fh] = (found[fitting - 1].offset if fitting else body.offset, found[fitting:])
        told = found[:fitting]
        names = [entry.name for entry in told if entry.name not in (b".", b"..")]
        looked = yield from self.tree.look_all(file.node, names, uid)
        answers = dict(zip(names, looked, strict=True))
        parts = []
        for entry in told:
            answer = answers.get(entry.name)
            head = self._codec.entry(_NO_ENTRY, _NO_ATTR) if answer is None else self._entry(*answer)
            parts.append(self._codec.direntplus(head, entry.qid[2], entry.offset, entry.kind, entry.name))
        return parts

    # Extended attributes

    def _getxattr(self, request: Request) -> Operation:
        name = request.names[0] if request.names else b""
        value = yield from self.tree.getxattr(self._node(request.header.nodeid), name, self._user(request))
        if not request.body.size:
            return (self._codec.pack(fuse.GetxattrOut(len(value))),)
        if len(value) > request.body.size:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return (value,)

    def _setxattr(self, request: Request) -> Operation:
        node = self._node(request.header.nodeid)
        value = bytes(request.data[: request.body.size])
        node.acl_seen = -1.0
        yield from self.tree.setxattr(node, request.names[0], value, request.body.flags, self._user(request))
        return ()

    def _removexattr(self, request: Request) -> Operation:
        node = self._node(request.header.nodeid)
        yield from self.tree.removexattr(node, request.names[0], self._user(request))
        return ()

    # Byte-range locks

    def _getlk(self, request: Request) -> Operation:
        body = request.body
        file = self._file(body.fh)
        proc = file.node.owners.get(body.owner, body.pid)
        kind, start, end, pid = yield from self.tree.getlock(file, body.kind, body.start, body.end, proc)
        return (self._codec.pack(fuse.LkOut(start, end, kind, pid)),)

    def _setlk(self, request: Request) -> Operation:
        body = request.body
        file = self._file(body.fh)
        owners = file.node.owners
        proc = owners.get(body.owner)
        if proc is None:
            if body.kind == p9_files.LOCK_NONE:
                return ()
            proc = body.pid
            while proc in owners.values():  # two tables of descriptors of one process
                proc = (proc + 1) & 0xFFFF_FFFF
        pause = _LOCK_PAUSE
        wait = request.header.opcode == Opcode.SETLKW
        if body.kind == p9_files.LOCK_NONE:
            for other in list(file.node.openers.values()):
                if other is not file and proc in other.locks:
                    yield from self.tree.lock(other, body.kind, body.start, body.end, proc)
        while True:
            status = yield from self.tree.lock(file, body.kind, body.start, body.end, proc, block=wait)
            if status == p9_files.LOCK_SUCCESS:
                owners[body.owner] = proc
                return ()
            if not wait:
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            yield Pause(pause)
            pause = min(2 * pause, _LOCK_LONGEST)


_SETATTR = (
    (fuse.FATTR_MODE, p9_nodes.SET_MODE),
    (fuse.FATTR_UID, p9_nodes.SET_UID),
    (fuse.FATTR_GID, p9_nodes.SET_GID),
    (fuse.FATTR_SIZE, p9_nodes.SET_SIZE),
    (fuse.FATTR_ATIME, p9_nodes.SET_ATIME | p9_nodes.SET_ATIME_GIVEN),
    (fuse.FATTR_MTIME, p9_nodes.SET_MTIME | p9_nodes.SET_MTIME_GIVEN),
)


def _groups_of(thread: int) -> tuple[int, ...]:
    """Supplementary groups of a thread; none of one that is gone, or that this process may not see."""
    try:
        with open(f"/proc/{thread}/status", "rb") as status:
            for line in status:
                if line.startswith(b"Groups:"):
                    return tuple(sorted(map(int, line.split()[1:])))
    except (OSError, ValueError):
        pass
    return ()


def _without_privileges(mode: int) -> int:
    """What write(2) leaves of set-user-ID and set-group-ID."""
    if not stat.S_ISREG(mode):
        return mode
    return mode & ~(0o6000 if mode & stat.S_IXGRP else 0o4000)


def _attr(attr: Attributes) -> Attr:
    rdev = attr.rdev
    return Attr(
        attr.qid[2],
        attr.size,
        attr.blocks,
        _signed(attr.atime),
        _signed(attr.mtime),
        _signed(attr.ctime),
        attr.atime_nsec % 1_000_000_000,
        attr.mtime_nsec % 1_000_000_000,
        attr.ctime_nsec % 1_000_000_000,
        attr.mode,
        attr.nlink & 0xFFFF_FFFF,
        attr.uid,
        attr.gid,
        os.minor(rdev) & 0xFF | (os.major(rdev) & 0xFFF) << 8 | (os.minor(rdev) & 0xFFF00) << 12 if rdev else 0,
        attr.blksize & 0xFFFF_FFFF,
    )


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
