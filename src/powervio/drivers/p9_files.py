# cython: language_level=3, annotation_typing=False
"""The open files of a 9P2000.L share at a client: how they are made, read and written, and byte-range locks.

When the server was lost and is there again, an open file is opened again and its locks are taken again, if it is the
same file. Else it is ESTALE for good: never another file under the same name.
"""

from __future__ import annotations

import errno
import os

from powervio.drivers.p9_core import All, Connected, P9Error, P9Lost, Work
from powervio.drivers.p9_fids import P9Fids, steady
from powervio.drivers.p9_nodes import APPEND, ATTRIBUTES, EXCLUSIVE, Attributes, Entry, Fid, Node, OpenFile, open_flags
from powervio.files import p9_codec as p9

HEADROOM = p9.IO_HEADER
"""Bytes of a message beside its data. A Twrite has 23, an Rread 11; some servers refuse more than Linux asks for."""
LAST_BYTE = 0x7FFF_FFFF_FFFF_FFFF
"""Of a file of any size; a lock that ends there goes to the end of the file."""
LOCK_READ, LOCK_WRITE, LOCK_NONE = range(3)
LOCK_SUCCESS, LOCK_BLOCKED, LOCK_ERROR, LOCK_GRACE = range(4)
LOCK_BLOCK = 1


class P9Files(P9Fids):
    """What can be done with files that are open, and how they come to be."""

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
        wanted = open_flags(flags) | (EXCLUSIVE if flags & os.O_EXCL else 0)
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
                if file.flags & APPEND and lost.sent:
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
        if not file.flags & APPEND:
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
