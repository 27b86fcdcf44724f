# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""One conversation in 9P2000.L about a share: T-messages in, R-messages out, and what its fids stand for.

Theory of operation. A message is carried out when it comes and answered at once, so that none is outstanding when the
next one is looked at: Tflush has nothing left to withdraw, and answers come in the order of the messages. What would
have to wait for somebody else, a byte-range lock, is answered "blocked" and asked for again by the client. Whoever has
several sessions runs each in one thread at a time.

Rules for editors:
1. The session does no I/O but the share's. It is given a whole message and a place for the answer (`carry_out`), or a
   message without its data and payloads that the data go to and come from (`handle`): devices and sockets are callers.
2. A message is checked by `p9_codec.fields_of` before a field is used, and a field is read once.
3. What the share refuses is an Rlerror with its errno. Whatever a message holds, there is an answer, or the partner has
   broken the protocol so that nothing more can be said: an answer of no bytes, and the connection ends.
4. A client's fids, their attributes' bytes and its open files are bounded. A fid's number means nothing but to its own
   session.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cython
from cython.cimports.powervio.files.identity import Caller
from cython.cimports.powervio.files.p9_codec import MOST_FIELDS, fields_of
from cython.cimports.powervio.files.tree import Node, Tree
from cython.cimports.powervio.files.tree_open import OpenFile
from cython.cimports.powervio.files.tree_stat import Stat
from cython.cimports.powervio.files.wire import put8, put16, put32, put64, take8, take16, take32, take64
from cython.cimports.powervio.memory.hw import at, copy, get16, get64, ld8, pointer, pointer_to_read, zero

from powervio.errors import RemoteError
from powervio.files import p9_codec as p9
from powervio.files.identity import NOBODY
from powervio.files.locks import LockOwner
from powervio.files.sizes import ATTRIBUTE_BYTES
from powervio.memory.abstract import Payload

MOST_MSIZE = 1 << 20
"""Bytes of the longest message that is agreed on."""
LEAST_MSIZE = 4096
"""Of the shortest: Linux's clients refuse less, and every answer but data fits."""
MOST_FIDS = 1 << 18
MOST_HELD = 8 << 20
"""Bytes of extended attributes that fids of one session hold at a time."""
MOST_CLIENTS = 4096
"""Names of lock owners of one session (`client_id`)."""
MOST_CALLERS = 1024

_HEADER = cython.declare(cython.longlong, 7)
_DATA = cython.declare(cython.longlong, 11)
"""Where data begin in an Rread and an Rreaddir."""
_WRITE = cython.declare(cython.ulonglong, 23)
_NO_FID = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_LOW = cython.declare(cython.ulonglong, 0xFFFF_FFFF)
_KIND = cython.declare(cython.uint, 0xF000)
_DIRECTORY = cython.declare(cython.uint, stat.S_IFDIR)
_LINK = cython.declare(cython.uint, stat.S_IFLNK)
_BASIC = cython.declare(cython.ulonglong, 0x7FF)
_BTIME = cython.declare(cython.ulonglong, 0x800)
_DATA_VERSION = cython.declare(cython.ulonglong, 0x2000)
_ATTRIBUTES_BYTES = cython.declare(cython.longlong, 160)
_ENTRY = cython.declare(cython.longlong, 24)
_DIRENT_NAME = cython.declare(cython.longlong, 19)
_ENTRIES = cython.declare(cython.longlong, 128 * 1024)
_LARGEST_ENTRY = cython.declare(cython.longlong, 280)
_LARGEST_POSITION = cython.declare(cython.ulonglong, (1 << 63) - 1)

_TVERSION = cython.declare(cython.int, p9.TVERSION)
_TWALK = cython.declare(cython.int, p9.TWALK)
_TGETATTR = cython.declare(cython.int, p9.TGETATTR)
_TREAD = cython.declare(cython.int, p9.TREAD)
_TWRITE = cython.declare(cython.int, p9.TWRITE)
_TCLUNK = cython.declare(cython.int, p9.TCLUNK)
_TLOPEN = cython.declare(cython.int, p9.TLOPEN)
_TLCREATE = cython.declare(cython.int, p9.TLCREATE)
_TREADDIR = cython.declare(cython.int, p9.TREADDIR)
_TSETATTR = cython.declare(cython.int, p9.TSETATTR)

_ACCESS_MODE = os.O_ACCMODE
_FLAGS = (
    (0o1000, os.O_TRUNC),
    (0o2000, os.O_APPEND),
    (0o200, os.O_EXCL),
    (0o10000, os.O_DSYNC),
    (0o200000, os.O_DIRECTORY),
    (0o1000000, os.O_NOATIME),
    (0o4000000, os.O_SYNC),
)
"""Flags of Tlopen and Tlcreate are numbered as on x86; those that are left out mean nothing to a server."""
_SET = 0x7F
_ATIME_SET, _MTIME_SET = 0x80, 0x100
_REMOVE_DIRECTORY = 0x200
_UNLOCK = 2
_LOCK_SUCCESS, _LOCK_BLOCKED = 0, 1


def host_groups(uid: int) -> tuple[int, tuple[int, ...]]:
    """Group and other groups that the host has for a user; one that it does not know has a group of its own number."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        return uid, ()
    return user.pw_gid, tuple(os.getgrouplist(user.pw_name, user.pw_gid))


@dataclass(frozen=True)
class SessionOptions:
    """What a session agrees to."""

    names: tuple[bytes, ...] | None = None
    """Names that the share may be attached by (aname), beside none and "/"; None: any."""
    groups: Callable[[int], tuple[int, tuple[int, ...]]] = host_groups
    """Group and other groups of a user, for 9P tells the user alone."""
    most_msize: int = MOST_MSIZE
    """Bytes of the longest message, 4096 to 1 MiB."""
    most_fids: int = MOST_FIDS

    def __post_init__(self) -> None:
        if not LEAST_MSIZE <= self.most_msize <= MOST_MSIZE or self.most_fids < 1:
            raise ValueError(f"messages of {self.most_msize} bytes and {self.most_fids} fids")


@cython.final
@cython.cclass
class Fid:
    """What a client's number stands for. `parent` and `name` are where it was found, for Tremove and Trename."""

    node: Node
    parent: Node
    name: bytes
    caller: Caller
    opened: OpenFile
    attribute: Any
    locked: Any


@cython.cclass
@cython.final
class Session:
    """See the module's text. `messages` and `errors` count T-messages and the Rlerror among the answers."""

    options: SessionOptions
    msize: cython.uint
    messages: cython.ulonglong
    errors: cython.ulonglong
    key: Any
    _tree: Tree
    _fids: dict[int, Any]
    _callers: dict[int, Caller]
    _clients: set[bytes]
    _book: bytearray
    _fields: cython.p_uchar
    _entries: bytearray
    _answer: bytearray
    _message: cython.p_uchar
    _out: cython.p_uchar
    _room: cython.longlong
    _source: Any
    _target: Any
    _apart: cython.bint
    _most_msize: cython.uint
    _most_fids: cython.int
    _held: cython.longlong

    def __init__(self, tree: Tree, options: SessionOptions | None = None) -> None:
        options = options or SessionOptions()
        self.options = options
        self.msize = 0
        self.messages = self.errors = 0
        self.key = object()
        """Whose its locks are, with a client's name (`LockOwner`)."""
        self._tree = tree
        self._fids = {}
        self._callers = {}
        self._clients = set()
        self._book = bytearray(8 * MOST_FIELDS)
        self._fields = pointer(self._book)
        self._entries = bytearray()
        self._answer = bytearray(LEAST_MSIZE)
        self._source = self._target = None
        self._apart = False
        self._most_msize = options.most_msize
        self._most_fids = options.most_fids
        self._held = 0

    @property
    def fids(self) -> int:
        """How many there are."""
        return len(self._fids)

    # -- messages

    def handle(self, message: bytes, source: Payload, target: Payload) -> bytes:
        """Carry out a T-message and give the R-message, without the data of an Rread.

        `message` is the whole of it, but for the data of a Twrite, which stand in `source` from 23 on. The data of an
        Rread are put into `target` from 11 on; `target.length` is the room for the R-message. Nothing is answered to
        what is no message. Raises `RemoteError` from payloads, and nothing else.
        """
        size: cython.longlong = len(message)
        room: cython.longlong = target.length
        self._source = source
        self._target = target
        self._apart = True
        if room > self._most_msize:
            room = self._most_msize
        if len(self._answer) < room and size > 4 and message[4] == _TREADDIR:
            self._answer = bytearray(room)
        try:
            done: cython.longlong = self.carry_out(pointer_to_read(message), size, pointer(self._answer), room)
        finally:
            self._apart = False
            self._source = self._target = None
        return bytes(memoryview(self._answer)[:done])

    def exchange(self, message: bytes) -> bytes:
        """The same with all of both in one piece."""
        room = max(self.msize, LEAST_MSIZE)
        if len(self._answer) < room:
            self._answer = bytearray(room)
        done: cython.longlong = self.carry_out(pointer_to_read(message), len(message), pointer(self._answer), room)
        return bytes(memoryview(self._answer)[:done])

    @cython.cfunc
    @cython.exceptval(-1000)
    def carry_out(
        self, message: cython.p_uchar, size: cython.longlong, out: cython.p_uchar, room: cython.longlong
    ) -> cython.longlong:
        """The answer to a message of `size` bytes is put at `out`, where there are `room` bytes; its length.

        0: nothing can be said to this, and the connection is to end.
        """
        kind: cython.int
        tag: cython.uint
        declared: cython.ulonglong
        done: cython.longlong
        if size < _HEADER or room < _DATA:
            return 0
        declared = take32(message, 0)
        kind = take8(message, 4)
        tag = take16(message, 5)
        self.messages += 1
        self._message = message
        self._out = out
        self._room = room if self.msize == 0 or room < self.msize else self.msize
        if declared != size and not (kind == _TWRITE and self._apart and declared > size):
            return 0
        if self.msize > 0 and declared > self.msize:
            return self._error(tag, errno.EMSGSIZE)
        if fields_of(kind, message, size, self._fields) < 0:
            return self._error(tag, errno.EPROTO if kind in p9.MESSAGES else errno.EOPNOTSUPP)
        if self.msize == 0 and kind != _TVERSION:
            return self._error(tag, errno.EPROTO)
        try:
            done = self._dispatch(kind, declared)
        except OSError as error:
            return self._error(tag, error.errno or errno.EIO)
        except RemoteError:
            raise
        except MemoryError:
            return self._error(tag, errno.ENOMEM)
        put32(out, 0, cython.cast(cython.uint, done))
        put8(out, 4, kind + 1)
        put16(out, 5, tag)
        if self._apart and kind == _TREAD:
            return _DATA
        return done

    @cython.cfunc
    @cython.exceptval(check=False)
    def _error(self, tag: cython.uint, code: cython.int) -> cython.longlong:
        self.errors += 1
        put32(self._out, 0, 11)
        put8(self._out, 4, 7)
        put16(self._out, 5, tag)
        put32(self._out, 7, code)
        return 11

    @cython.cfunc
    @cython.exceptval(-1000)
    def _dispatch(self, kind: cython.int, declared: cython.ulonglong) -> cython.longlong:
        """The R-message of this one is put behind the place of its header; its length with that."""
        if kind == _TWALK:
            return self._walk()
        if kind == _TGETATTR:
            return self._getattr()
        if kind == _TCLUNK:
            fid: Fid = self._fid(0)
            del self._fids[self._field(0)]
            self._clunk(fid, True)
            return _HEADER
        if kind == _TREAD:
            return self._read()
        if kind == _TWRITE:
            return self._write(declared)
        if kind == _TLOPEN:
            return self._open()
        if kind == _TREADDIR:
            return self._readdir()
        if kind == _TLCREATE:
            return self._create()
        if kind == _TSETATTR:
            return self._setattr()
        return self._rare(kind)

    @cython.cfunc
    @cython.inline
    @cython.exceptval(check=False)
    def _field(self, index: cython.int) -> cython.ulonglong:
        return take64(self._fields, 8 * index)

    @cython.cfunc
    def _text(self, index: cython.int) -> bytes:
        place: cython.ulonglong = take64(self._fields, 8 * index)
        first: cython.longlong = place & _LOW
        size: cython.longlong = place >> 32
        return bytes(self._message[first : first + size])

    # -- fids

    @cython.cfunc
    def _fid(self, index: cython.int) -> Fid:
        fid = self._fids.get(take64(self._fields, 8 * index))
        if fid is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return fid

    @cython.cfunc
    @cython.exceptval(-1)
    def _free(self, number: cython.ulonglong) -> cython.int:
        """That a number can be given to a new fid."""
        if number == _NO_FID or number in self._fids:
            raise _failure(errno.EBADF)
        if len(self._fids) >= self._most_fids:
            raise _failure(errno.EMFILE)
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _qid(self, offset: cython.ulonglong, node: Node) -> cython.void:
        kind: cython.uint = node.kind
        put8(self._out, offset, 0x80 if kind == _DIRECTORY else 0x02 if kind == _LINK else 0)
        put32(self._out, offset + 1, node.version)
        put64(self._out, offset + 5, node.path)

    @cython.cfunc
    @cython.exceptval(-1)
    def _clunk(self, fid: Fid, finish: cython.bint) -> cython.int:
        """A fid ends; `finish`: what it was to set is set, and its locks are given up one by one."""
        opened: OpenFile = fid.opened
        if fid.attribute is not None:
            attribute: _Attribute = fid.attribute
            fid.attribute = None
            self._held -= len(attribute.value)
            try:
                if finish and attribute.name is not None:
                    attribute.store(fid.node, fid.caller)
            finally:
                _let_go(fid)
            return 0
        try:
            if opened is not None:
                if finish and fid.locked is not None:
                    for owner in fid.locked:
                        self._tree.locks.release(owner.client, owner.process, opened.lock_key)
                opened.close()
        finally:
            _let_go(fid)
        return 0

    def close(self) -> None:
        """It is over: all fids are clunked, and locks are given up."""
        fids = list(self._fids.values())
        self._fids.clear()
        for client in self._clients:
            self._tree.locks.release((self.key, client))
        self._clients.clear()
        for fid in fids:
            self._clunk(fid, False)
        self.msize = 0

    # -- messages that come often

    @cython.cfunc
    @cython.exceptval(-1000)
    def _walk(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        number: cython.ulonglong = self._field(1)
        place: cython.ulonglong = self._field(2)
        count: cython.int = place >> 32
        offset: cython.longlong = place & _LOW
        size: cython.longlong
        index: cython.int = 0
        node: Node = fid.node
        parent: Node = fid.parent
        name: bytes = fid.name
        step: Node
        same: cython.bint = number == self._field(0)
        if count > 16:
            raise _failure(errno.EINVAL)
        if _DATA + 13 * count > self._room:
            raise _failure(errno.EMSGSIZE)
        if fid.attribute is not None or (same and fid.opened is not None):
            raise _failure(errno.EBADF)
        if not same:
            self._free(number)
        node.duplicate()
        if parent is not None:
            parent.duplicate()
        try:
            while index < count:
                size = take16(self._message, offset)
                name = bytes(self._message[offset + 2 : offset + 2 + size])
                offset += 2 + size
                step = node.lookup(name, fid.caller)
                if parent is not None:
                    parent.close()
                if name == b"." or name == b"..":
                    node.close()
                    parent = None
                else:
                    parent = node
                node = step
                self._qid(9 + 13 * index, node)
                index += 1
        except OSError:
            node.close()
            if parent is not None:
                parent.close()
            if index == 0:
                raise
            put16(self._out, 7, index)
            return 9 + 13 * index
        if same:
            _let_go(fid)
        else:
            origin: Fid = fid
            fid = Fid.__new__(Fid)
            fid.opened = None
            fid.attribute = None
            fid.locked = None
            fid.caller = origin.caller
            self._fids[number] = fid
        fid.node = node
        fid.parent = parent
        fid.name = name
        put16(self._out, 7, count)
        return 9 + 13 * count

    @cython.cfunc
    @cython.exceptval(-1000)
    def _getattr(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        out: cython.p_uchar = self._out
        facts: Stat = fid.node.stat() if fid.opened is None else fid.opened.stat()
        kind: cython.uint = facts.mode & _KIND
        if self._room < _ATTRIBUTES_BYTES:
            raise _failure(errno.EMSGSIZE)
        put64(out, 7, (_BASIC if facts.btime_sec == 0 else _BASIC | _BTIME) | self._field(1) & _DATA_VERSION)
        put8(out, 15, 0x80 if kind == _DIRECTORY else 0x02 if kind == _LINK else 0)
        put32(out, 16, facts.version)
        put64(out, 20, facts.path)
        put32(out, 28, facts.mode)
        put32(out, 32, facts.uid)
        put32(out, 36, facts.gid)
        put64(out, 40, facts.nlink)
        put64(out, 48, facts.rdev)
        put64(out, 56, facts.size)
        put64(out, 64, facts.blksize)
        put64(out, 72, facts.blocks)
        put64(out, 80, facts.atime_sec)
        put64(out, 88, facts.atime_nsec)
        put64(out, 96, facts.mtime_sec)
        put64(out, 104, facts.mtime_nsec)
        put64(out, 112, facts.ctime_sec)
        put64(out, 120, facts.ctime_nsec)
        put64(out, 128, facts.btime_sec)
        put64(out, 136, facts.btime_nsec)
        put64(out, 144, 0)
        put64(out, 152, facts.version)
        return _ATTRIBUTES_BYTES

    @cython.cfunc
    @cython.exceptval(-1000)
    def _setattr(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        valid: cython.uint = self._field(1)
        fid.node.setattr(
            valid & _SET,
            fid.caller,
            mode=self._field(2),
            uid=self._field(3),
            gid=self._field(4),
            size=self._field(5),
            atime=(_signed(self._field(6)), self._field(7)) if valid & _ATIME_SET else None,
            mtime=(_signed(self._field(8)), self._field(9)) if valid & _MTIME_SET else None,
            opened=fid.opened,
        )
        return _HEADER

    @cython.cfunc
    @cython.exceptval(-1000)
    def _open(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        if fid.opened is not None or fid.attribute is not None:
            raise _failure(errno.EBADF)
        fid.opened = fid.node.open(_flags_of(self._field(1)) & ~os.O_EXCL, fid.caller)
        return self._say_open(fid)

    @cython.cfunc
    @cython.exceptval(-1000)
    def _create(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        gid: cython.ulonglong = self._field(4)
        node: Node
        opened: OpenFile
        name: bytes = self._text(1)
        if fid.opened is not None or fid.attribute is not None:
            raise _failure(errno.EBADF)
        node, opened = fid.node.create(
            name, _flags_of(self._field(2)), self._field(3), fid.caller, None if gid == _NO_FID else gid
        )
        if fid.parent is not None:
            fid.parent.close()
        fid.parent = fid.node
        fid.name = name
        fid.node = node
        fid.opened = opened
        return self._say_open(fid)

    @cython.cfunc
    @cython.exceptval(-1000)
    def _say_open(self, fid: Fid) -> cython.longlong:
        """The qid is the present one: a client may believe what it has in memory of this version."""
        out: cython.p_uchar = self._out
        facts: Stat = fid.opened.stat()
        put8(out, 7, 0x80 if fid.node.kind == _DIRECTORY else 0)
        put32(out, 8, facts.version)
        put64(out, 12, facts.path)
        put32(out, 20, self.msize - 24)
        return 24

    @cython.cfunc
    @cython.exceptval(-1000)
    def _read(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        position: cython.ulonglong = self._field(1)
        count: cython.longlong = self._field(2)
        done: cython.longlong
        opened: OpenFile = fid.opened
        if count > self._room - _DATA:
            count = self._room - _DATA
        if fid.attribute is not None:
            value = bytes(fid.attribute.value[position : position + count])
            done = len(value)
            if self._apart:
                self._target.write(_DATA, value)
            else:
                copy(self._out, _DATA, pointer_to_read(value), 0, done)
        elif opened is None:
            raise _failure(errno.EBADF)
        elif fid.node.kind == _DIRECTORY:
            raise _failure(errno.EISDIR)
        elif position > _LARGEST_POSITION:
            raise _failure(errno.EINVAL)
        elif self._apart:
            done = opened.fill(self._target, _DATA, count, position)
        else:
            done = opened.read_to(self._out, _DATA, count, position)
            if done < 0:
                raise _failure(-done)
        put32(self._out, 7, done)
        return _DATA + done

    @cython.cfunc
    @cython.exceptval(-1000)
    def _write(self, declared: cython.ulonglong) -> cython.longlong:
        fid: Fid = self._fid(0)
        position: cython.ulonglong = self._field(1)
        place: cython.ulonglong = self._field(2)
        count: cython.ulonglong = place >> 32
        done: cython.longlong
        opened: OpenFile = fid.opened
        if declared != _WRITE + count:
            raise _failure(errno.EPROTO)
        if fid.attribute is not None:
            if self._apart:
                done = self._append(fid, position, self._source.read(_WRITE, min(count, ATTRIBUTE_BYTES + 1)))
            else:
                done = self._append(fid, position, bytes(self._message[_WRITE : _WRITE + count]))
        elif opened is None:
            raise _failure(errno.EBADF)
        elif position > _LARGEST_POSITION:
            raise _failure(errno.EFBIG)
        elif self._apart:
            done = opened.drain(self._source, _WRITE, count, position)
        else:
            done = opened.write_of(self._message, _WRITE, count, position)
            if done < 0:
                raise _failure(-done)
        put32(self._out, 7, done)
        return _DATA

    @cython.cfunc
    @cython.exceptval(-1000)
    def _append(self, fid: Fid, position: cython.ulonglong, data: bytes) -> cython.longlong:
        """Bytes of an extended attribute come."""
        attribute: _Attribute = fid.attribute
        size = len(data)
        if attribute.name is None or position != len(attribute.value) or position + size > attribute.size:
            raise _failure(errno.EINVAL)
        if self._held + size > MOST_HELD:
            raise _failure(errno.ENOMEM)
        attribute.value += data
        self._held += size
        return size

    @cython.cfunc
    @cython.exceptval(-1000)
    def _readdir(self) -> cython.longlong:
        fid: Fid = self._fid(0)
        position: cython.ulonglong = self._field(1)
        count: cython.longlong = self._field(2)
        opened: OpenFile = fid.opened
        out: cython.p_uchar = self._out
        size: cython.longlong
        first: cython.longlong = 0
        length: cython.longlong
        done: cython.longlong = _DATA
        kind: cython.int
        name: cython.longlong
        if opened is None:
            raise _failure(errno.EBADF)
        if fid.node.kind != _DIRECTORY:
            raise _failure(errno.ENOTDIR)
        if position > _LARGEST_POSITION:
            raise _failure(errno.EINVAL)
        if count > self._room - _DATA:
            count = self._room - _DATA
        size = count * 6 // 7  # an entry is up to a seventh longer here than it is in the kernel's words
        if size > _ENTRIES:
            size = _ENTRIES
        if size < _LARGEST_ENTRY:
            size = _LARGEST_ENTRY
        if len(self._entries) < size:
            self._entries = bytearray(size)
        base: cython.p_uchar = pointer(self._entries)
        size = opened.entries_to(base, size, position)
        if size < 0:
            raise _failure(-size)
        while first < size:
            length = get16(base, first + 16)
            name = first + _DIRENT_NAME
            while ld8(base, name) != 0:
                name += 1
            name -= first + _DIRENT_NAME
            if done + _ENTRY + name > _DATA + count:
                break
            kind = opened.entry_kind(ld8(base, first + 18))
            put8(out, done, 0x80 if kind == 4 else 0x02 if kind == 10 else 0)
            put32(out, done + 1, 0)
            put64(
                out,
                done + 5,
                opened.entry_path(
                    get64(base, first),
                    name == 2 and ld8(base, first + _DIRENT_NAME) == 46 and ld8(base, first + _DIRENT_NAME + 1) == 46,
                ),
            )
            put64(out, done + 13, get64(base, first + 8))
            put8(out, done + 21, kind)
            put16(out, done + 22, name)
            copy(out, done + _ENTRY, base, first + _DIRENT_NAME, name)
            done += _ENTRY + name
            first += length
        if done == _DATA and size > 0:
            raise _failure(errno.EINVAL)  # not even one has room
        put32(out, 7, done - _DATA)
        return done

    # -- messages that come seldom

    @cython.cfunc
    @cython.exceptval(-1000)
    def _rare(self, kind: cython.int) -> cython.longlong:
        action = _ACTIONS.get(kind)
        if action is None:
            raise _failure(errno.EOPNOTSUPP)
        fields = action(self)
        if fields is None:
            return _HEADER
        answer = p9.pack(kind + 1, 0, *fields)
        if len(answer) > self._room:
            raise _failure(errno.EMSGSIZE)
        copy(self._out, 0, pointer_to_read(answer), 0, len(answer))
        return len(answer)

    def _version(self) -> tuple[Any, ...]:
        self.close()
        version = self._text(1)
        msize = min(self._field(0), self._most_msize)
        if msize < LEAST_MSIZE:
            raise _failure(errno.EMSGSIZE)
        if version != p9.VERSION:
            return msize, b"unknown"
        self.msize = msize
        return msize, version

    def _auth(self) -> tuple[Any, ...]:
        raise _failure(errno.EOPNOTSUPP)

    def _attach(self) -> tuple[Any, ...]:
        number = self._field(0)
        name = self._text(3)
        if self._field(1) != p9.NO_FID:
            raise _failure(errno.EBADF)
        self._free(number)
        names = self.options.names
        if names is not None and name not in (b"", b"/") and name not in names:
            raise _failure(errno.ENOENT)
        fid: Fid = Fid.__new__(Fid)
        fid.caller = self._caller(self._field(4), self._text(2))
        fid.node = self._tree.root()
        fid.parent = None
        fid.name = b""
        fid.opened = None
        fid.attribute = None
        fid.locked = None
        self._fids[number] = fid
        return (_qid_of(fid.node),)

    def _caller(self, uid: int, name: bytes) -> Caller:
        if uid == p9.NO_UID:
            try:
                uid = pwd.getpwnam(name.decode()).pw_uid
            except (KeyError, ValueError):
                uid = NOBODY
        caller: Caller | None = self._callers.get(uid)
        if caller is None:
            if len(self._callers) >= MOST_CALLERS:
                self._callers.clear()
            gid, groups = self.options.groups(uid)
            caller = self._callers[uid] = Caller(uid, gid, groups)
        return caller

    def _flush(self) -> None:
        """What it is to withdraw has been answered."""

    def _statfs(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        return tuple(fid.node.statfs())[:9]

    def _readlink(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        return (fid.node.readlink(),)

    def _mkdir(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        return _said(fid.node.mkdir(self._text(1), self._field(2), fid.caller, _group(self._field(3))))

    def _symlink(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        return _said(fid.node.symlink(self._text(1), self._text(2), fid.caller, _group(self._field(3))))

    def _mknod(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        device = os.makedev(self._field(3) & 0xFFF, self._field(4) & 0xFFFFF)
        return _said(
            fid.node.mknod(self._text(1), self._field(2), device, fid.caller, _group(self._field(5)))
        )  # fmt: skip

    def _link(self) -> None:
        directory: Fid = self._fid(0)
        fid: Fid = self._fid(1)
        directory.node.link(fid.node, self._text(2), directory.caller)

    def _renameat(self) -> None:
        fid: Fid = self._fid(0)
        to: Fid = self._fid(2)
        fid.node.rename(self._text(1), to.node, self._text(3), fid.caller)

    def _unlinkat(self) -> None:
        fid: Fid = self._fid(0)
        flags = self._field(2)
        if flags & ~_REMOVE_DIRECTORY:
            raise _failure(errno.EINVAL)
        fid.node.unlink(self._text(1), flags != 0, fid.caller)

    def _rename(self) -> None:
        fid: Fid = self._fid(0)
        to: Fid = self._fid(1)
        name = self._text(2)
        _check_place(fid)
        fid.parent.rename(fid.name, to.node, name, fid.caller)
        before: Node = fid.parent
        fid.parent = to.node.duplicate()
        fid.name = name
        before.close()

    def _remove(self) -> None:
        fid: Fid = self._fid(0)
        del self._fids[self._field(0)]
        try:
            _check_place(fid)
            fid.parent.unlink(fid.name, fid.node.kind == _DIRECTORY, fid.caller)
        finally:
            self._clunk(fid, True)

    def _fsync(self) -> None:
        fid: Fid = self._fid(0)
        if fid.opened is None:
            raise _failure(errno.EBADF)
        fid.opened.fsync(self._field(1) != 0)

    def _lock(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        kind = self._field(1)
        owner = self._owner(fid, 5)
        if kind != _UNLOCK and owner.client[1] not in self._clients:
            if len(self._clients) >= MOST_CLIENTS:
                raise _failure(errno.ENOLCK)
            self._clients.add(owner.client[1])
        if not fid.opened.lock(kind, self._field(3), self._field(4), owner):
            return (_LOCK_BLOCKED,)
        if kind != _UNLOCK:
            if fid.locked is None:
                fid.locked = set()
            fid.locked.add(owner)
        return (_LOCK_SUCCESS,)

    def _getlock(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        owner = self._owner(fid, 4)
        lock = fid.opened.getlock(self._field(1), self._field(2), self._field(3), owner)
        if lock is None:
            return _UNLOCK, self._field(2), self._field(3), self._field(4), self._text(5)
        name = b""
        if lock.owner is not None and isinstance(lock.owner.client, tuple):
            name = lock.owner.client[1]
        return lock.kind, lock.start, lock.length, max(lock.process, 0), name

    def _owner(self, fid: Fid, index: int) -> LockOwner:
        if fid.opened is None:
            raise _failure(errno.EBADF)
        return LockOwner((self.key, self._text(index + 1)), self._field(index))

    def _xattrwalk(self) -> tuple[Any, ...]:
        fid: Fid = self._fid(0)
        number = self._field(1)
        name = self._text(2)
        self._free(number)
        if name:
            value = fid.node.getxattr(name, fid.caller)
        else:
            value = b"".join(one + b"\0" for one in fid.node.listxattr(fid.caller))
        if self._held + len(value) > MOST_HELD:
            raise _failure(errno.ENOMEM)
        self._held += len(value)
        new: Fid = Fid.__new__(Fid)
        new.node = fid.node.duplicate()
        new.parent = None
        new.name = b""
        new.caller = fid.caller
        new.opened = None
        new.locked = None
        new.attribute = _Attribute(None, len(value), 0, bytearray(value))
        self._fids[number] = new
        return (len(value),)

    def _xattrcreate(self) -> None:
        fid: Fid = self._fid(0)
        size = self._field(2)
        if fid.opened is not None or fid.attribute is not None:
            raise _failure(errno.EBADF)
        if size > ATTRIBUTE_BYTES:
            raise _failure(errno.E2BIG)
        fid.attribute = _Attribute(self._text(1), size, self._field(3), bytearray())


class _Attribute:
    """An extended attribute that a fid is: what is read, or (with a name) what will be set when the fid ends."""

    __slots__ = ("flags", "name", "size", "value")

    def __init__(self, name: bytes | None, size: int, flags: int, value: bytearray) -> None:
        self.name = name
        self.size = size
        self.flags = flags
        self.value = value

    def store(self, node: Node, caller: Caller) -> None:
        """Set it, or remove it: 9P has no other word for that than an empty value that replaces one."""
        assert self.name is not None
        if len(self.value) != self.size:
            raise _failure(errno.EINVAL)
        if not self.size and self.flags & os.XATTR_REPLACE:
            node.removexattr(self.name, caller)
        else:
            node.setxattr(self.name, bytes(self.value), self.flags, caller)


_ACTIONS: dict[int, Callable[[Any], tuple[Any, ...] | None]] = {
    p9.TVERSION: Session._version,
    p9.TAUTH: Session._auth,
    p9.TATTACH: Session._attach,
    p9.TFLUSH: Session._flush,
    p9.TSTATFS: Session._statfs,
    p9.TREADLINK: Session._readlink,
    p9.TMKDIR: Session._mkdir,
    p9.TSYMLINK: Session._symlink,
    p9.TMKNOD: Session._mknod,
    p9.TLINK: Session._link,
    p9.TRENAME: Session._rename,
    p9.TRENAMEAT: Session._renameat,
    p9.TUNLINKAT: Session._unlinkat,
    p9.TREMOVE: Session._remove,
    p9.TFSYNC: Session._fsync,
    p9.TLOCK: Session._lock,
    p9.TGETLOCK: Session._getlock,
    p9.TXATTRWALK: Session._xattrwalk,
    p9.TXATTRCREATE: Session._xattrcreate,
}


@cython.cfunc
@cython.exceptval(-1)
def _let_go(fid: Fid) -> cython.int:
    fid.node.close()
    if fid.parent is not None:
        fid.parent.close()
    return 0


@cython.cfunc
@cython.exceptval(-1)
def _check_place(fid: Fid) -> cython.int:
    """That a fid's file has the name still that it was found by. Tremove and Trename know no other name."""
    if fid.parent is None:
        raise _failure(errno.EBUSY)
    now: Node = fid.parent.lookup(fid.name, fid.caller)
    same: cython.bint = now.ino == fid.node.ino and now.dev == fid.node.dev
    now.close()
    if not same:
        raise _failure(errno.ESTALE)
    return 0


def _said(node: Node) -> tuple[Any, ...]:
    qid = _qid_of(node)
    node.close()
    return (qid,)


def _qid_of(node: Node) -> p9.Qid:
    kind = node.kind
    return (0x80 if kind == _DIRECTORY else 0x02 if kind == _LINK else 0, node.version, node.path)


def _group(gid: int) -> int | None:
    return None if gid == p9.NO_UID else gid


@cython.cfunc
def _flags_of(flags: cython.ulonglong) -> cython.int:
    """open(2)'s flags on this machine."""
    here: cython.int = flags & 3
    for theirs, ours in _FLAGS:
        if flags & theirs == theirs:
            here |= ours
    return here


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def _signed(value: cython.ulonglong) -> cython.longlong:
    if cython.compiled:
        return cython.cast(cython.longlong, value)
    return value - (1 << 64) if value >> 63 else value


@cython.cfunc
def _failure(code: cython.int) -> Any:
    return OSError(code, os.strerror(code))
