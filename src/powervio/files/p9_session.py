# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""One conversation of 9P2000.L: T-messages in, R-messages out, over a share.

A session knows nothing of what carries its messages: a socket's buffers, or a device whose payloads are in a driver's
memory. Messages are carried out one after the other, so that an answer to Tflush is never early and a tag that is used
twice does no harm; nothing waits for a lock (Rlock says BLOCKED). Whoever has a Tfsync done beside them (`p9_syncs`)
sees to that himself. What is seldom asked for is in `p9_operations`.

Any bytes have an answer: what is no message gets Rlerror(EPROTO), a type that 9P2000.L has not EOPNOTSUPP, anything
before Tversion EPROTO. Other errors are those of the share. A fid is bounded by what a `Node` costs, and there are
never more than `most_fids` of them, nor more than its server has left (ENFILE).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
from typing import Any

import cython
from cython.cimports.powervio.files.p9_codec import fields_of, is_question
from cython.cimports.powervio.files.p9_facts import instant, open_flags, put_entries, put_facts, put_qid
from cython.cimports.powervio.files.p9_fids import Fid, FidBudget, Fids
from cython.cimports.powervio.files.tree import Node
from cython.cimports.powervio.files.tree_open import OpenFile
from cython.cimports.powervio.files.tree_share import failure
from cython.cimports.powervio.files.tree_stat import Stat
from cython.cimports.powervio.files.wire import put8, put16, put32, take8, take16, take32, take64
from cython.cimports.powervio.memory.hw import copy, pointer, pointer_to_read

from powervio.files.p9_codec import HEADER_BYTES, pack
from powervio.files.p9_operations import OPERATIONS
from powervio.files.sizes import MOST_FIDS
from powervio.files.tree import Tree
from powervio.memory.abstract import Payload

MSIZE = 1 << 20
LEAST_MSIZE = 512
"""Bytes: all answers without strings and data fit, and the longest entry of a directory."""
_ENTRY_ROOM = 65536
_ANSWER_ROOM = 65536 + 512

_TWALK = cython.declare(cython.int, 110)
_TGETATTR = cython.declare(cython.int, 24)
_TREAD = cython.declare(cython.int, 116)
_TWRITE = cython.declare(cython.int, 118)
_TCLUNK = cython.declare(cython.int, 120)
_TLOPEN = cython.declare(cython.int, 12)
_TREMOVE = cython.declare(cython.int, 122)
_TLCREATE = cython.declare(cython.int, 14)
_TREADDIR = cython.declare(cython.int, 40)
_TSETATTR = cython.declare(cython.int, 26)
_TUNLINKAT = cython.declare(cython.int, 76)
_TMKDIR = cython.declare(cython.int, 72)
_TFLUSH = cython.declare(cython.int, 108)
_TVERSION = cython.declare(cython.int, 100)
_RLERROR = cython.declare(cython.int, 7)

_DIRECTORY = cython.declare(cython.uint, 0x4000)
_LOW = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_SETTABLE = cython.declare(cython.uint, 0x1FF)
_ATIME_SET = cython.declare(cython.uint, 0x80)
_MTIME_SET = cython.declare(cython.uint, 0x100)
_AT_REMOVEDIR = cython.declare(cython.uint, 0x200)
_NO_GID = cython.declare(cython.uint, 0xFFFF_FFFF)
_LARGEST = cython.declare(cython.ulonglong, (1 << 63) - 1)


@cython.final
@cython.cclass
class Session(Fids):
    """The server's end of one connection, or of one life of a device. One thread at a time uses it."""

    msize: cython.uint
    versioned: cython.bint
    operations: dict[int, Any]
    most_msize: cython.uint
    _source: Payload | None
    _target: Payload | None
    _apart: cython.longlong
    _book: bytearray
    _fields: cython.p_uchar
    _entries: bytearray | None
    _records: cython.p_uchar
    _answer: bytearray | None
    _base: cython.p_uchar

    def __init__(
        self, tree: Tree, *, msize: int = MSIZE, most_fids: int = MOST_FIDS, budget: FidBudget | None = None
    ) -> None:
        """`msize` is the longest message that is agreed to, in bytes; `budget` is that of the session's server."""
        Fids.__init__(self, tree, most_fids, budget)
        self.most_msize = self.msize = max(LEAST_MSIZE, msize)
        self.versioned = False
        self.operations = OPERATIONS
        self._source = self._target = None
        self._apart = 0
        self._book = bytearray(8 * 24)
        self._fields = pointer(self._book)
        self._entries = self._answer = None

    # -- messages

    def handle(self, message: bytes, source: Payload | None, target: Payload | None) -> bytes:
        """Carry out a T-message and give the R-message, without the data of an Rread.

        `message` is the whole of it, but for the data of a Twrite, which stand in `source` from byte 23 on. The data of
        an Rread are put into `target` from byte 11 on, unless they are an attribute's: then they are in the answer,
        whose size says which. `target.length` is the room for the R-message. Without `source` the message has its data,
        without `target` the answer.

        No bytes at all: that was no message, and there is no answer. Raises `RemoteError` from payloads alone.
        """
        if len(message) < HEADER_BYTES:
            return b""
        if self._answer is None:
            self._answer = bytearray(_ANSWER_ROOM)
            self._base = pointer(self._answer)
        room: cython.longlong = len(self._answer)
        size: cython.longlong = len(message)
        if target is not None and target.length < room:
            room = target.length
        if target is None and self.msize > room:
            self._answer = bytearray(self.msize)
            self._base = pointer(self._answer)
            room = self.msize
        self._source = source
        self._target = target
        try:
            size = self.serve(pointer_to_read(message), size, self._base, room)
        finally:
            self._source = self._target = None
        return bytes(self._base[:size])

    @cython.cfunc
    @cython.exceptval(-1000)
    def serve(
        self, message: cython.p_uchar, size: cython.longlong, out: cython.p_uchar, room: cython.longlong
    ) -> cython.longlong:
        """Carry out a message of `size` bytes, seven at least; put the answer to `out`, and say how long it is.

        `room` is what `out` has, 512 bytes at least where the client has not less.
        """
        kind: cython.int = take8(message, 4)
        done: cython.longlong
        self._apart = 0
        try:
            done = self._call(kind, message, size, out, room)
            put8(out, 4, kind + 1)
        except OSError as error:
            done = self._error(out, error.errno or errno.EIO)
        except MemoryError:
            done = self._error(out, errno.ENOMEM)
        put32(out, 0, done + self._apart)
        put16(out, 5, take16(message, 5))
        return done

    @cython.cfunc
    def to_sync(self, message: cython.p_uchar, size: cython.longlong) -> OpenFile | None:
        """The open file that a Tfsync is about; None: it is to be served like any other message."""
        if size != 15 or not self.versioned:
            return None
        found = self.fids.get(take32(message, 7))
        if found is None:
            return None
        fid: Fid = found
        return fid.opened

    @cython.cfunc
    @cython.exceptval(check=False)
    def _error(self, out: cython.p_uchar, code: cython.int) -> cython.longlong:
        self._apart = 0
        put8(out, 4, _RLERROR)
        put32(out, 7, code)
        return 11

    @cython.cfunc
    @cython.exceptval(-1000)
    def _call(
        self,
        kind: cython.int,
        message: cython.p_uchar,
        size: cython.longlong,
        out: cython.p_uchar,
        room: cython.longlong,
    ) -> cython.longlong:
        count: cython.int = fields_of(kind, message, size, self._fields)
        fid: Fid
        if count < 0:
            raise failure(errno.EPROTO if is_question(kind) else errno.EOPNOTSUPP)
        if not is_question(kind):
            raise failure(errno.EOPNOTSUPP)
        if not self.versioned and kind != _TVERSION:
            raise failure(errno.EPROTO)
        if kind != _TWRITE and take32(message, 0) != size:
            raise failure(errno.EPROTO)
        if kind == _TWALK:
            return self._walk(message, out)
        if kind == _TGETATTR:
            return self._getattr(out)
        if kind == _TREAD:
            return self._read(out, room)
        if kind == _TWRITE:
            return self._write(message, size, out)
        if kind == _TCLUNK:
            return self._clunk()
        if kind == _TLOPEN:
            return self._lopen(out)
        if kind == _TLCREATE:
            return self._lcreate(message, out)
        if kind == _TREADDIR:
            return self._readdir(out, room)
        if kind == _TREMOVE and self._remove_made():
            return 7
        if kind == _TSETATTR:
            return self._setattr()
        if kind == _TUNLINKAT:
            if self._word(2) & ~_AT_REMOVEDIR:
                raise failure(errno.EINVAL)
            fid = self.fid(self._word(0))
            fid.node.unlink(self._text(1, message), self._word(2) != 0, fid.caller)
            return 7
        if kind == _TMKDIR:
            fid = self.fid(self._word(0))
            made: Node = fid.node.mkdir(self._text(1, message), self._word(2), fid.caller, self.group(self._word(3)))
            put_qid(out, 7, made.kind, made.version, made.path)
            made.close()
            return 20
        if kind == _TFLUSH:
            return 7
        return self._other(kind, message, size, out, room)

    @cython.cfunc
    @cython.exceptval(-1000)
    def _other(
        self,
        kind: cython.int,
        message: cython.p_uchar,
        size: cython.longlong,
        out: cython.p_uchar,
        room: cython.longlong,
    ) -> cython.longlong:
        whole = bytes(message[:size])
        answer: bytes = pack(kind + 1, 0, *self.operations[kind](self, whole))
        length: cython.longlong = len(answer)
        if length > room or length > self.msize:
            raise failure(errno.EMSGSIZE)
        copy(out, 0, pointer_to_read(answer), 0, length)
        return length

    # -- fields

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _word(self, index: cython.int) -> cython.uint:
        return cython.cast(cython.uint, take64(self._fields, 8 * index) & _LOW)

    @cython.cfunc
    def _text(self, index: cython.int, message: cython.p_uchar) -> bytes:
        field: cython.ulonglong = take64(self._fields, 8 * index)
        start: cython.longlong = cython.cast(cython.longlong, field & _LOW)
        return bytes(message[start : start + cython.cast(cython.longlong, field >> 32)])

    def restart(self, msize: int) -> None:
        """A new conversation with messages of up to `msize` bytes; 0: there is none."""
        self.close()
        self.versioned = msize > 0
        self.msize = msize if msize else self.most_msize

    def close(self) -> None:
        """It is over: all fids are let go of, and locks given up. A second call does nothing."""
        self.versioned = False
        self.let_go()

    def group(self, gid: int) -> int | None:
        """The group of what is made; None: that of who makes it."""
        return None if gid == _NO_GID else gid

    # -- operations

    @cython.cfunc
    @cython.exceptval(-1000)
    def _walk(self, message: cython.p_uchar, out: cython.p_uchar) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        number: cython.uint = self._word(1)
        field: cython.ulonglong = take64(self._fields, 16)
        at: cython.longlong = cython.cast(cython.longlong, field & _LOW)
        names: cython.int = cython.cast(cython.int, field >> 32)
        done: cython.int = 0
        length: cython.longlong
        node: Node
        found: Node
        if names > 16:
            raise failure(errno.EINVAL)
        if number != fid.number:
            self.check_free(number)
        elif fid.opened is not None or fid.attribute is not None:
            raise failure(errno.EINVAL)
        node = fid.node.duplicate()
        try:
            while done < names:
                length = take16(message, at)
                found = node.lookup(bytes(message[at + 2 : at + 2 + length]), fid.caller)
                node.close()
                node = found
                put_qid(out, 9 + 13 * done, node.kind, node.version, node.path)
                at += 2 + length
                done += 1
        except OSError:
            if done == 0:
                node.close()
                raise
        put16(out, 7, done)
        if done < names:
            node.close()
        elif number == fid.number:
            fid.node.close()
            fid.node = node
        else:
            self.add(number, node, fid.caller)
        return 9 + 13 * done

    @cython.cfunc
    @cython.exceptval(-1000)
    def _clunk(self) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        if fid.attribute is None:
            self.end(fid)
            return 7
        try:
            fid.attribute.finish(fid)
        finally:
            self.end(fid)
        return 7

    @cython.cfunc
    @cython.exceptval(-1000)
    def _getattr(self, out: cython.p_uchar) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        facts: Stat = fid.node.stat() if fid.opened is None else fid.opened.stat()
        put_facts(out, facts)
        return 160

    @cython.cfunc
    @cython.exceptval(-1000)
    def _setattr(self) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        valid: cython.uint = self._word(1)
        fields: cython.p_uchar = self._fields
        atime = mtime = None
        if valid & ~_SETTABLE:
            raise failure(errno.EINVAL)
        if valid & _ATIME_SET:
            atime = instant(take64(fields, 48), take64(fields, 56))
        if valid & _MTIME_SET:
            mtime = instant(take64(fields, 64), take64(fields, 72))
        fid.node.setattr(
            cython.cast(cython.int, valid & 0x7F),
            fid.caller,
            mode=self._word(2),
            uid=self._word(3),
            gid=self._word(4),
            size=take64(fields, 40),
            atime=atime,
            mtime=mtime,
            opened=fid.opened,
        )
        return 7

    @cython.cfunc
    @cython.exceptval(-1000)
    def _lopen(self, out: cython.p_uchar) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        if fid.opened is not None or fid.attribute is not None:
            raise failure(errno.EINVAL)
        opened: OpenFile = fid.node.open(open_flags(self._word(1)), fid.caller)
        return self._opened(fid, opened, out)

    @cython.cfunc
    @cython.exceptval(-1000)
    def _lcreate(self, message: cython.p_uchar, out: cython.p_uchar) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        if fid.opened is not None or fid.attribute is not None:
            raise failure(errno.EINVAL)
        node: Node
        opened: OpenFile
        name: bytes = self._text(1, message)
        node, opened = fid.node.create(
            name, open_flags(self._word(2)), self._word(3), fid.caller, self.group(self._word(4))
        )
        fid.parent = fid.node
        fid.name = name
        fid.node = node
        return self._opened(fid, opened, out)

    @cython.cfunc
    @cython.exceptval(-1)
    def _remove_made(self) -> cython.int:
        """Remove a file that was made through its fid, if it is where it was made; else 0, and nothing was done."""
        fid: Fid = self.fid(self._word(0))
        parent: Node | None = fid.parent
        name: bytes | None = fid.name
        if parent is None or name is None:
            return 0
        try:
            if not parent.has(name, fid.node, fid.caller):
                return 0
        except OSError:
            return 0
        try:
            parent.unlink(name, False, fid.caller)
        finally:
            self.end(fid)
        return 1

    @cython.cfunc
    @cython.exceptval(-1000)
    def _opened(self, fid: Fid, opened: OpenFile, out: cython.p_uchar) -> cython.longlong:
        try:
            facts: Stat = opened.stat()
        except OSError:
            opened.close()
            raise
        fid.opened = opened
        put_qid(out, 7, facts.mode, facts.version, facts.path)
        put32(out, 20, self.msize - 24)
        return 24

    @cython.cfunc
    @cython.exceptval(-1000)
    def _read(self, out: cython.p_uchar, room: cython.longlong) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        position: cython.ulonglong = take64(self._fields, 8)
        count: cython.longlong = self._word(2)
        most: cython.longlong = self.msize - 11
        opened: OpenFile | None = fid.opened
        if fid.attribute is not None:
            return self._read_attribute(fid, out, position, min(count, room - 11, most))
        if opened is None:
            raise failure(errno.EBADF)
        if position > _LARGEST:
            raise failure(errno.EINVAL)
        if self._target is not None:
            most = min(most, self._target.length - 11)
        else:
            most = min(most, room - 11)
        count = min(count, most)
        if self._target is not None:
            count = opened.fill(self._target, 11, count, position)
            self._apart = count
            put32(out, 7, count)
            return 11
        count = opened.read_to(out, 11, count, position)
        if count < 0:
            raise failure(cython.cast(cython.int, -count))
        put32(out, 7, count)
        return 11 + count

    @cython.cfunc
    @cython.exceptval(-1000)
    def _read_attribute(
        self, fid: Fid, out: cython.p_uchar, position: cython.ulonglong, count: cython.longlong
    ) -> cython.longlong:
        data: bytes = fid.attribute.read(position, count)
        count = len(data)
        put32(out, 7, count)
        copy(out, 11, pointer_to_read(data), 0, count)
        return 11 + count

    @cython.cfunc
    @cython.exceptval(-1000)
    def _write(self, message: cython.p_uchar, size: cython.longlong, out: cython.p_uchar) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        position: cython.ulonglong = take64(self._fields, 8)
        count: cython.longlong = cython.cast(cython.longlong, take64(self._fields, 16) >> 32)
        opened: OpenFile | None = fid.opened
        if take32(message, 0) != 23 + count:
            raise failure(errno.EPROTO)
        if self._source is None and size != 23 + count:
            raise failure(errno.EPROTO)
        if self._source is not None and self._source.length < 23 + count:
            raise failure(errno.EPROTO)
        if 23 + count > self.msize:
            raise failure(errno.EMSGSIZE)
        if fid.attribute is not None:
            fid.attribute.check(position, count)  # before anything is copied
            data: bytes = bytes(message[23 : 23 + count]) if self._source is None else self._source.read(23, count)
            fid.attribute.write(position, data)
        elif opened is None:
            raise failure(errno.EBADF)
        elif position > _LARGEST:
            raise failure(errno.EINVAL)
        elif self._source is None:
            count = opened.write_of(message, 23, count, position)
            if count < 0:
                raise failure(cython.cast(cython.int, -count))
        else:
            count = opened.drain(self._source, 23, count, position)
        put32(out, 7, count)
        return 11

    @cython.cfunc
    @cython.exceptval(-1000)
    def _readdir(self, out: cython.p_uchar, room: cython.longlong) -> cython.longlong:
        fid: Fid = self.fid(self._word(0))
        position: cython.ulonglong = take64(self._fields, 8)
        most: cython.longlong = min(cython.cast(cython.longlong, self._word(2)), room - 11, self.msize - 11)
        opened: OpenFile | None = fid.opened
        at: cython.longlong
        size: cython.longlong
        records: cython.p_uchar
        if opened is None:
            raise failure(errno.EBADF)
        if fid.node.kind != _DIRECTORY:
            raise failure(errno.ENOTDIR)
        if position > _LARGEST:
            raise failure(errno.EINVAL)
        if self._entries is None:
            self._entries = bytearray(_ENTRY_ROOM)
            self._records = pointer(self._entries)
        records = self._records
        # an entry here is at most one sixth longer than the kernel's
        size = max(min(most * 6 // 7, _ENTRY_ROOM), 1024)
        size = opened.entries_to(records, cython.cast(cython.int, size), position)
        if size < 0:
            raise failure(cython.cast(cython.int, -size))
        at = put_entries(out, most, records, size, opened)
        put32(out, 7, at - 11)
        return at
