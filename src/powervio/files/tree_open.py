# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A file or directory that is open for reading or writing.

It is one open file of the kernel's, and so goes on after the file was renamed or has lost its last name. Errors are
`OSError` with the errno of the call. One thread at a time uses one of these, and another may meanwhile sync what it
holds (`OpenFile.hold`).
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import cython
from cython.cimports.powervio.files.calls import (
    allocate,
    close_file,
    cut_open,
    read_at,
    read_at_once,
    read_directory,
    seek_to,
    sync_file,
    write_at,
)
from cython.cimports.powervio.files.identity import Caller
from cython.cimports.powervio.files.tree_share import File, Share, failure, good
from cython.cimports.powervio.files.tree_stat import Stat
from cython.cimports.powervio.memory.hw import get16, get64, ld8, pointer, pointer_to_read, preadv, pwritev
from cython.cimports.powervio.memory.target import Target

from powervio.files.locks import READ, WRITE, FileKey, Lock, LockOwner
from powervio.memory.abstract import Backing, Payload

_AT_ONCE = cython.declare(cython.longlong, 16 * 1024)
"""Bytes that are read without a thought for other threads if the page cache has them."""
_ENTRY = cython.declare(cython.int, 19)
"""Bytes of a linux_dirent64 before its name."""
_PIECES = cython.declare(cython.uint, 1024)
_LARGEST = cython.declare(cython.longlong, (1 << 63) - 1)
_CLOSED = cython.declare(cython.int, -errno.EBADF)
_INVALID = cython.declare(cython.int, -errno.EINVAL)
_REGULAR = cython.declare(cython.int, 8)
_MAPPED_KIND = cython.declare(cython.int, 0)
DIRECTORY_BYTES = 32768
_ZEROES = bytes(65536)


class DirEntry(NamedTuple):
    """One entry. `path` is that of `Stat`, `kind` the DT_ type (mode >> 12, or 0), `next_offset` where to go on."""

    name: bytes
    path: int
    kind: int
    next_offset: int


@cython.final
@cython.cclass
class OpenTarget(Target):
    """An open file as what compiled payloads move to and from: what was moved, and what failed, is told afterwards."""

    fd: cython.int
    moved: cython.ulonglong
    ended: cython.bint
    failed: cython.int

    @cython.cfunc
    @cython.exceptval(check=False)
    def begin(self) -> cython.void:
        """A request begins, whose pieces follow each other."""
        self.moved = 0
        self.ended = False
        self.failed = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`: done, however much there was."""
        if count > _PIECES:
            return False
        if not self.ended:
            self.note(preadv(self.fd, pieces, count, position), length)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write(
        self, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong, length: cython.ulonglong
    ) -> cython.bint:
        """See `Target`: done, however much there was room for."""
        if count > _PIECES:
            return False
        if not self.ended:
            self.note(pwritev(self.fd, pieces, count, position), length)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def note(self, done: cython.longlong, length: cython.ulonglong) -> cython.void:
        """One piece was moved so far, or failed; an error after other bytes is the next request's."""
        if done < 0:
            self.ended = True
            if self.moved == 0:
                self.failed = cython.cast(cython.int, -done)
            return
        self.moved += cython.cast(cython.ulonglong, done)
        if cython.cast(cython.ulonglong, done) < length:
            self.ended = True


class FileBacking(Backing):
    """An open file for payloads: a transfer that ends early is noted in `target`, not raised.

    The bytes of a buffer that a file did not have are zeroes: a buffer of this process holds what was there before.
    """

    read_only = False
    block_size = 512
    can_discard = False
    vectored = True
    size = (1 << 63) - 1

    def __init__(self, fd: int, target: OpenTarget) -> None:
        self._fd = fd
        self._target = target

    @property
    def target(self) -> OpenTarget:
        """See `Backing`."""
        return self._target

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `Backing`."""
        self.read_vector(position, [buffer])

    def write_from(self, position: int, buffer: memoryview) -> None:
        """See `Backing`."""
        self.write_vector(position, [buffer])

    def read_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`."""
        self._move(position, buffers, True)

    def write_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`."""
        self._move(position, buffers, False)

    def _move(self, position: int, buffers: Sequence[memoryview], reads: bool) -> None:
        target: OpenTarget = self._target
        for first in range(0, len(buffers), 1024):
            some = buffers[first : first + 1024]
            length = sum(map(len, some))
            done = 0
            if not target.ended:
                try:
                    done = os.preadv(self._fd, some, position) if reads else os.pwritev(self._fd, some, position)
                    target.note(done, length)
                except OSError as error:
                    target.note(-(error.errno or errno.EIO), length)
            if reads and done < length:
                _clear(some, done)
            position += length

    def flush(self) -> None:
        """See `Backing`."""
        os.fdatasync(self._fd)

    def discard(self, position: int, length: int) -> None:
        """See `Backing`: nothing asks for it."""
        raise failure(errno.EOPNOTSUPP)

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        """See `Backing`: nothing asks for it."""
        raise failure(errno.EOPNOTSUPP)

    def extents(self, position: int, length: int) -> list[tuple[int, bool]]:
        """See `Backing`."""
        return [(length, True)]

    def close(self) -> None:
        """See `Backing`: the descriptor is the open file's."""


def _clear(buffers: Sequence[memoryview], done: int) -> None:
    for buffer in buffers:
        if done >= len(buffer):
            done -= len(buffer)
            continue
        rest = buffer[done:]
        done = 0
        for at in range(0, len(rest), len(_ZEROES)):
            piece = rest[at : at + len(_ZEROES)]
            piece[:] = _ZEROES[: len(piece)]


@cython.final
@cython.cclass
class OpenFile:
    """See the module's text. `flags` are those it was opened with, `node` is the file."""

    fd: cython.int
    flags: cython.int
    file: File
    _share: Share
    _caller: Caller
    _pins: cython.int
    _closing: cython.bint
    _at: cython.longlong
    _target: OpenTarget
    _backing: Any

    @property
    def node(self) -> Any:
        """The file, a `Node`, which is this one's: whoever wants it for longer duplicates it."""
        return self.file

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return (self.file.kind & 0xF000) == 0x4000

    def fileno(self) -> int:
        """The descriptor, for loops that move data themselves."""
        return self.fd

    # -- an operation

    @cython.cfunc
    @cython.exceptval(-1000)
    def begin(self, position: cython.longlong, length: cython.longlong) -> cython.int:
        """The thread acts as who opened the file, until `end`: whether a write takes away set-user-ID is its doing.

        0, or the negative errno; then there is no `end`.
        """
        code: cython.int
        if self.fd < 0 or self._closing:
            return _CLOSED
        if position < 0 or length < 0 or position > _LARGEST - length:
            return _INVALID
        code = self._share.identity.enter(self._caller)
        if code < 0:
            self._share.identity.leave()
            return code
        self._pins += 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def end(self) -> cython.void:
        """It is over."""
        self._share.identity.leave()
        self._pins -= 1
        if self._closing and self._pins == 0:
            self._end()

    # -- data

    @cython.cfunc
    @cython.exceptval(-1000)
    def read_to(
        self, out: cython.p_uchar, offset: cython.ulonglong, size: cython.longlong, position: cython.longlong
    ) -> cython.longlong:
        """As `pread`, to memory that is there until this returns; a negative errno in place of an exception."""
        code: cython.longlong = self.begin(position, size)
        fd: cython.int = self.fd
        if code < 0:
            return code
        if size <= _AT_ONCE:  # giving the interpreter lock away for that may cost more than all else
            code = read_at_once(fd, out, offset, size, position)
            if code == size:
                self.end()
                return code
        with cython.nogil:
            code = read_at(fd, out, offset, size, position)
        self.end()
        return code

    @cython.cfunc
    @cython.exceptval(-1000)
    def write_of(
        self, data: cython.p_uchar, offset: cython.ulonglong, size: cython.longlong, position: cython.longlong
    ) -> cython.longlong:
        """As `pwrite`, from such memory."""
        code: cython.longlong
        fd: cython.int = self.fd
        self._share.writable()
        code = self.begin(position, size)
        if code < 0:
            return code
        with cython.nogil:
            code = write_at(fd, data, offset, size, position)
        self.end()
        return code

    def pread(self, buffer: memoryview | bytearray, position: cython.longlong) -> int:
        """Read to `buffer` from `position` of the file; how many bytes, fewer only at its end."""
        return good(self.read_to(pointer(buffer), 0, len(buffer), position))

    def pwrite(self, buffer: memoryview | bytearray | bytes, position: cython.longlong) -> int:
        """Write `buffer` at `position`; how many bytes, fewer only where there is no room for more."""
        return good(self.write_of(pointer_to_read(buffer), 0, len(buffer), position))

    def fill(self, payload: Payload, offset: int, length: cython.longlong, position: cython.longlong) -> int:
        """Move up to `length` bytes from `position` of the file to a payload at `offset`; how many there were.

        Nothing is copied on the way where the payload's memory is mapped here. Bytes behind those may be zeroes then.
        """
        good(self.begin(position, length))
        try:
            payload.fill_from(self._file(), position, offset, length)
        finally:
            self.end()
        return self._moved()

    def drain(self, payload: Payload, offset: int, length: cython.longlong, position: cython.longlong) -> int:
        """Move `length` bytes from a payload at `offset` to `position` of the file; how many there was room for."""
        self._share.writable()
        good(self.begin(position, length))
        try:
            payload.drain_to(self._file(), position, offset, length)
        finally:
            self.end()
        return self._moved()

    @cython.cfunc
    def _file(self) -> Any:
        if self._backing is None:
            self._target = OpenTarget.__new__(OpenTarget)
            self._target.fd = self.fd
            self._backing = FileBacking(self.fd, self._target)
        self._target.begin()
        return self._backing

    @cython.cfunc
    @cython.exceptval(-1)
    def _moved(self) -> cython.longlong:
        if self._target.failed:
            raise failure(self._target.failed)
        return self._target.moved

    def fsync(self, datasync: cython.bint = False) -> None:
        """Make what was written stable."""
        code: cython.int = self.begin(0, 0)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = sync_file(fd, datasync)
            self.end()
        good(code)

    def hold(self) -> bool:
        """It stays open until `let_go`, although it may be closed meanwhile; False: it is closed."""
        if self.fd < 0 or self._closing:
            return False
        self._pins += 1
        return True

    def sync_held(self, datasync: cython.bint) -> int:
        """As `fsync`, of one that is held, in any thread and as whoever that is; 0 or the negative errno."""
        code: cython.int
        fd: cython.int = self.fd
        with cython.nogil:
            code = sync_file(fd, datasync)
        return code

    def let_go(self) -> None:
        """It is held no more."""
        self._pins -= 1
        if self._closing and self._pins == 0:
            self._end()

    def truncate(self, size: cython.longlong) -> None:
        """Make the file `size` bytes long; it has to be open for writing."""
        self._share.writable()
        code: cython.int = self.begin(size, 0)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = cut_open(fd, size)
            self.end()
        good(code)

    def fallocate(self, mode: cython.int, position: cython.longlong, length: cython.longlong) -> None:
        """See fallocate(2)."""
        self._share.writable()
        code: cython.int = self.begin(position, length)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = allocate(fd, mode, position, length)
            self.end()
        good(code)

    def seek_data(self, position: cython.longlong) -> int:
        """Where there are data from `position` on; ENXIO when there are none."""
        return self._seek(position, os.SEEK_DATA)

    def seek_hole(self, position: cython.longlong) -> int:
        """Where the next hole is, or the end of the file."""
        return self._seek(position, os.SEEK_HOLE)

    @cython.cfunc
    @cython.exceptval(-1)
    def _seek(self, position: cython.longlong, whence: cython.int) -> cython.longlong:
        code: cython.longlong = self.begin(position, 0)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = seek_to(fd, position, whence)
            self.end()
        return good(code)

    # -- locks

    def lock(self, kind: int, start: int, length: int, owner: LockOwner) -> bool:
        """Take or give up a lock on bytes (`locks`); False when another's is in the way. Length 0: to the end.

        It is `owner`'s until that gives it up or the client goes (`Tree.locks.release`), however many open files of
        this file there are. EBADF: a lock for writing wants a file that is open for writing, one for reading one that
        is open for reading.
        """
        mode = self.flags & os.O_ACCMODE
        if self.fd < 0 or (kind == WRITE and mode == os.O_RDONLY) or (kind == READ and mode == os.O_WRONLY):
            raise failure(errno.EBADF)
        return bool(self._share.locks.lock(self.lock_key, self._lock_description, kind, start, length, owner))

    def getlock(self, kind: int, start: int, length: int, owner: LockOwner) -> Lock | None:
        """A lock that is in the way of this one, or None."""
        if self.fd < 0:
            raise failure(errno.EBADF)
        return self._share.locks.conflict(self.lock_key, self.fd, kind, start, length, owner)

    @property
    def lock_key(self) -> FileKey:
        """The file, for `LockTable`."""
        return self.file.dev, self.file.ino

    def _lock_description(self) -> int:
        return self.file.open_for_locks(self.fd)

    # -- directories

    @cython.cfunc
    @cython.exceptval(-1000)
    def entries_to(self, out: cython.p_uchar, size: cython.int, offset: cython.longlong) -> cython.int:
        """As `read_entries`, to memory that is there until this returns; a negative errno in place of an exception."""
        code: cython.int = self.begin(offset, 0)
        start: cython.longlong = -1 if offset == self._at else offset
        fd: cython.int = self.fd
        if code < 0:
            return code
        with cython.nogil:
            code = read_directory(fd, start, out, size)
        self._at = last_offset(out, code) if code > 0 else -1
        self.end()
        return code

    def read_entries(self, offset: cython.longlong, buffer: bytearray) -> int:
        """Entries from `offset` on as linux_dirent64 records, as many as `buffer` has room for; bytes of them.

        0 is the end. EINVAL: not even one fits, or `offset` is none that the file system gives.
        """
        return good(self.entries_to(pointer(buffer), len(buffer), offset))

    @cython.cfunc
    @cython.exceptval(0, check=True)
    def entry_path(self, inode: cython.ulonglong, is_parent: cython.bint) -> cython.ulonglong:
        """The `Stat.path` of an entry; ".." of the root is the root, whatever is above it."""
        share: Share = self._share
        if is_parent and self.file.dev == share.root_dev and self.file.ino == share.root_ino:
            inode = share.root_ino
        return share.numbers.path_of(self.file.dev, inode)

    @cython.cfunc
    @cython.exceptval(check=False)
    def entry_kind(self, kind: cython.int) -> cython.int:
        """The DT_ type of an entry; 0 is unknown: what is mapped says only by itself what it is."""
        return _MAPPED_KIND if self._share.identity.mapped and kind == _REGULAR else kind

    def readdir(self, offset: int = 0, limit: int = 256) -> list[DirEntry]:
        """Up to `limit` entries from `offset` on, which is 0 or an entry's `next_offset`; none is the end.

        Offsets are the file system's own, good for as long as the directory is open, whatever happens in it.
        """
        entries: list[DirEntry] = []
        buffer = bytearray(DIRECTORY_BYTES)
        base: cython.p_uchar = pointer(buffer)
        at: cython.int
        size: cython.int
        length: cython.int
        while len(entries) < limit:
            size = self.read_entries(offset, buffer)
            if size == 0:
                break
            at = 0
            while at < size and len(entries) < limit:
                length = get16(base, at + 16)
                offset = get64(base, at + 8)
                name = bytes(buffer[at + _ENTRY : at + length]).split(b"\0", 1)[0]
                path = self.entry_path(get64(base, at), name == b"..")
                entries.append(DirEntry(name, path, self.entry_kind(ld8(base, at + 18)), offset))
                at += length
        return entries

    # -- the file

    @cython.ccall
    def stat(self) -> Stat:
        """As `Node.stat`; it goes on after the file has lost its last name."""
        if self.fd < 0:
            raise failure(errno.EBADF)
        return self.file.stat_by(self.fd)

    def close(self) -> None:
        """Let go; a second call does nothing. Locks that were taken through this one stay (`Tree.locks`)."""
        if self.fd < 0 or self._closing:
            return
        self._closing = True
        if self._pins == 0:
            self._end()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _end(self) -> cython.void:
        fd: cython.int = self.fd
        self.fd = -1
        self._share.open_count -= 1
        with cython.nogil:
            close_file(fd)
        self.file.let_go()


@cython.cfunc
def open_file(file: File, fd: cython.int, flags: cython.int, caller: Caller) -> OpenFile:
    """An open file, whose descriptor and reference to the file are its own from now on."""
    opened: OpenFile = OpenFile.__new__(OpenFile)
    opened.fd = fd
    opened.flags = flags
    opened.file = file
    opened._share = file.share
    opened._caller = caller
    opened._pins = 0
    opened._closing = False
    opened._at = -1
    opened._backing = None
    file.share.open_count += 1
    return opened


@cython.cfunc
@cython.exceptval(check=False)
def last_offset(base: cython.p_uchar, size: cython.int) -> cython.longlong:
    """Where the last of these entries says to go on."""
    at: cython.int = 0
    offset: cython.longlong = -1
    while at < size:
        offset = cython.cast(cython.longlong, get64(base, at + 8))
        at += get16(base, at + 16)
    return offset
