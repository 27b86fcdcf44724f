# cython: language_level=3, annotation_typing=False
"""The files of a 9P2000.L share as a client knows them: nodes with fids, open files, and what can be done with them.

Each operation is a generator of what it waits for (`p9_core.Work`), so that it runs in any loop or in none. All raise
`OSError`; names are bytes, one component each; offsets and sizes are bytes.

What becomes of them when the server is lost is said in `p9_fids` and `p9_files`. Here are names and attributes.
"""

from __future__ import annotations

import errno
import os

from powervio.drivers.p9_core import P9Error, Work
from powervio.drivers.p9_fids import steady
from powervio.drivers.p9_files import HEADROOM, P9Files
from powervio.drivers.p9_nodes import ATTRIBUTES, Attributes, Fid, Node, OpenFile
from powervio.files import p9_codec as p9


class P9Tree(P9Files):
    """A share: attributes, names and extended attributes of its files.

    `uid` below is the user on whose behalf something is done, or a number of `caller`.
    """

    # Attributes

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

    # Names

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
