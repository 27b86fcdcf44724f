# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A file or directory that is open for reading or writing.

It is one open file of the kernel's, and so goes on after the file was renamed or has lost its last name. Errors are
`OSError` with the errno of the call. One thread at a time uses one of these.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import cython

from powervio.files.calls import (
    allocate,
    close_file,
    cut_open,
    read_at,
    read_directory,
    seek_to,
    sync_file,
    write_at,
)
from powervio.files.identity import Caller
from powervio.files.locks import READ, WRITE, FileKey, Lock, LockOwner
from powervio.files.tree_stat import Stat
from powervio.memory.abstract import Backing, Payload
from powervio.memory.hw import Pointer, get16, get64, ld8, pointer, pointer_to_read

if TYPE_CHECKING:
    from powervio.files.tree import Node, Tree

_ENTRY = cython.declare(cython.int, 19)
"""Bytes of a linux_dirent64 before its name."""
DIRECTORY_BYTES = 32768
LARGEST_POSITION = (1 << 63) - 1
_ZEROES = bytes(65536)


class DirEntry(NamedTuple):
    """One entry. `path` is that of `Stat`, `kind` the DT_ type (mode >> 12), `next_offset` where to go on."""

    name: bytes
    path: int
    kind: int
    next_offset: int


class FileBacking(Backing):
    """An open file as what payloads move data from and to: a transfer that ends early is told by `moved`, not raised.

    The bytes of a buffer that a file did not have are zeroes: a buffer of this process holds what was there before.
    """

    read_only = False
    block_size = 512
    can_discard = False
    vectored = True
    size = LARGEST_POSITION

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.moved = 0
        """Bytes that were there, of the transfers since `begin`; nothing is moved after a short one."""
        self.short = False

    def begin(self) -> None:
        """A request begins."""
        self.moved, self.short = 0, False

    def read_into(self, position: int, buffer: memoryview) -> None:
        """See `Backing`."""
        self.read_vector(position, [buffer])

    def write_from(self, position: int, buffer: memoryview) -> None:
        """See `Backing`."""
        self.write_vector(position, [buffer])

    def read_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`."""
        length = sum(map(len, buffers))
        done = 0
        if not self.short:
            for first in range(0, len(buffers), 1024):
                some = buffers[first : first + 1024]
                count = os.preadv(self._fd, some, position + done)
                done += count
                if count < sum(map(len, some)):
                    break
        self._count(done, length)
        if done < length:
            _clear(buffers, done)

    def write_vector(self, position: int, buffers: Sequence[memoryview]) -> None:
        """See `Backing`."""
        length = sum(map(len, buffers))
        done = 0
        if not self.short:
            try:
                for first in range(0, len(buffers), 1024):
                    some = buffers[first : first + 1024]
                    count = os.pwritev(self._fd, some, position + done)
                    done += count
                    if count < sum(map(len, some)):
                        break
            except OSError:
                if not done and not self.moved:
                    raise
        self._count(done, length)

    def _count(self, done: int, length: int) -> None:
        self.moved += done
        self.short = self.short or done < length

    def flush(self) -> None:
        """See `Backing`."""
        os.fdatasync(self._fd)

    def discard(self, position: int, length: int) -> None:
        """See `Backing`: nothing asks for it."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def write_zeroes(self, position: int, length: int, *, unmap: bool) -> None:
        """See `Backing`: nothing asks for it."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

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
    """See the module's text. `flags` are those it was opened with."""

    fd: cython.int
    flags: cython.int
    is_directory: cython.bint
    number: cython.ulonglong
    _tree: Any
    _node: Any
    _caller: Caller
    _pins: cython.int
    _closing: cython.bint
    _at: cython.longlong
    _backing: Any

    def __init__(self, tree: Tree, node: Node, fd: int, flags: int, caller: Caller) -> None:
        self.fd = fd
        self.flags = flags
        self._tree = tree
        self._node = node
        """Kept for what needs the file and not its contents (attributes by name); one reference is this one's."""
        self._caller = caller
        self.is_directory = node.is_directory
        self._pins = 0
        self._closing = False
        self._at = -1
        self._backing = None

    @property
    def node(self) -> Node:
        """The file."""
        return self._node  # type: ignore[no-any-return]

    def fileno(self) -> int:
        """The descriptor, for loops that move data themselves."""
        return self.fd

    # -- data

    def pread(self, buffer: Pointer | bytearray, position: int) -> int:
        """Read to `buffer` from `position` of the file; how many bytes, fewer only at its end."""
        size = len(buffer)
        code: cython.longlong
        self._enter(position, size)
        try:
            code = read_at(self.fd, pointer(buffer), 0, size, position)
        finally:
            self._leave()
        return _good(code)

    def pwrite(self, buffer: Pointer | bytes | bytearray, position: int) -> int:
        """Write `buffer` at `position`; how many bytes, fewer only where there is no room for more."""
        size = len(buffer)
        code: cython.longlong
        self._tree.writable()
        self._enter(position, size)
        try:
            code = write_at(self.fd, pointer_to_read(buffer), 0, size, position)
        finally:
            self._leave()
        return _good(code)

    def fill(self, payload: Payload, offset: int, length: int, position: int) -> int:
        """Move up to `length` bytes from `position` of the file to a payload at `offset`; how many there were.

        Nothing is copied on the way where the payload's memory is mapped here. Bytes behind those may be zeroes then.
        """
        self._enter(position, length)
        try:
            backing = self._file()
            payload.fill_from(backing, position, offset, length)
            return int(backing.moved)
        finally:
            self._leave()

    def drain(self, payload: Payload, offset: int, length: int, position: int) -> int:
        """Move `length` bytes from a payload at `offset` to `position` of the file; how many there was room for."""
        self._tree.writable()
        self._enter(position, length)
        try:
            backing = self._file()
            payload.drain_to(backing, position, offset, length)
            return int(backing.moved)
        finally:
            self._leave()

    def _file(self) -> FileBacking:
        backing = self._backing
        if backing is None:
            backing = self._backing = FileBacking(self.fd)
        backing.begin()
        return backing  # type: ignore[no-any-return]

    def _enter(self, position: int, length: int) -> None:
        """What is done with the contents is the caller's doing: a write takes set-user-ID away from a file, or not."""
        if self.fd < 0 or self._closing:
            raise _error(errno.EBADF)
        if position < 0 or length < 0 or position > LARGEST_POSITION - length:
            raise _error(errno.EINVAL)
        self._pins += 1
        code: cython.int = self._tree.identity.enter(self._caller)
        if code < 0:
            self._leave()
            raise _error(-code)

    def _leave(self) -> None:
        self._tree.identity.leave()
        self._pins -= 1
        if self._closing and self._pins == 0:
            self._end()

    def fsync(self, datasync: bool = False) -> None:
        """Make what was written stable."""
        self._enter(0, 0)
        try:
            code = sync_file(self.fd, datasync)
        finally:
            self._leave()
        _good(code)

    def truncate(self, size: int) -> None:
        """Make the file `size` bytes long; it has to be open for writing."""
        self._tree.writable()
        self._enter(size, 0)
        try:
            code = cut_open(self.fd, size)
        finally:
            self._leave()
        _good(code)

    def fallocate(self, mode: int, position: int, length: int) -> None:
        """See fallocate(2)."""
        self._tree.writable()
        self._enter(position, length)
        try:
            code = allocate(self.fd, mode, position, length)
        finally:
            self._leave()
        _good(code)

    def seek_data(self, position: int) -> int:
        """Where there are data from `position` on; ENXIO when there are none."""
        return self._seek(position, os.SEEK_DATA)

    def seek_hole(self, position: int) -> int:
        """Where the next hole is, or the end of the file."""
        return self._seek(position, os.SEEK_HOLE)

    def _seek(self, position: int, whence: int) -> int:
        self._enter(position, 0)
        try:
            code = seek_to(self.fd, position, whence)
        finally:
            self._leave()
        return _good(code)

    # -- locks

    def lock(self, kind: int, start: int, length: int, owner: LockOwner) -> bool:
        """Take or give up a lock on bytes (`locks`); False when another's is in the way. Length 0: to the end.

        It is `owner`'s until that gives it up or the client goes (`Tree.locks.release`), however many open files of
        this file there are. EBADF: a lock for writing wants a file that is open for writing, one for reading one that
        is open for reading.
        """
        mode = self.flags & os.O_ACCMODE
        if self.fd < 0 or (kind == WRITE and mode == os.O_RDONLY) or (kind == READ and mode == os.O_WRONLY):
            raise _error(errno.EBADF)
        return bool(self._tree.locks.lock(self.lock_key, self._lock_description, kind, start, length, owner))

    def getlock(self, kind: int, start: int, length: int, owner: LockOwner) -> Lock | None:
        """A lock that is in the way of this one, or None."""
        if self.fd < 0:
            raise _error(errno.EBADF)
        return self._tree.locks.conflict(self.lock_key, self.fd, kind, start, length, owner)  # type: ignore[no-any-return]

    @property
    def lock_key(self) -> FileKey:
        """The file, for `LockTable`."""
        return self._node.dev, self._node.ino

    def _lock_description(self) -> int:
        """The file, opened once more: by itself where the server may, else this open file."""
        return self._tree.open_for_locks(self._node, self.fd)  # type: ignore[no-any-return]

    # -- directories

    def read_entries(self, offset: int, buffer: bytearray) -> int:
        """Entries from `offset` on as linux_dirent64 records, as many as `buffer` has room for; bytes of them.

        0 is the end. EINVAL: not even one fits, or `offset` is none that a file system gives.
        """
        self._enter(offset, 0)
        try:
            start = -1 if offset == self._at else offset
            code = read_directory(self.fd, start, pointer(buffer), len(buffer))
            if code > 0:
                self._at = _last_offset(buffer, code)
            elif code < 0:
                self._at = -1
        finally:
            self._leave()
        return _good(code)

    def readdir(self, offset: int = 0, limit: int = 256) -> list[DirEntry]:
        """Up to `limit` entries from `offset` on, which is 0 or an entry's `next_offset`; none is the end.

        Offsets are the file system's own, good for as long as the directory is open, whatever happens in it.
        """
        entries: list[DirEntry] = []
        buffer = bytearray(DIRECTORY_BYTES)
        while len(entries) < limit:
            size = self.read_entries(offset, buffer)
            if not size:
                break
            at = 0
            while at < size and len(entries) < limit:
                base = pointer(buffer)
                length = get16(base, at + 16)
                offset = get64(base, at + 8)
                name = bytes(buffer[at + _ENTRY : at + length]).split(b"\0", 1)[0]
                path = self._tree.entry_path(self._node, get64(base, at), name == b"..")
                entries.append(DirEntry(name, path, ld8(base, at + 18), offset))
                at += length
        return entries

    # -- the file

    def stat(self) -> Stat:
        """As `Node.stat`; it goes on after the file has lost its last name."""
        return self._node.stat_by(self.fd)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Let go; a second call does nothing. Locks that were taken through this one stay (`Tree.locks`)."""
        if self.fd < 0 or self._closing:
            return
        self._closing = True
        if self._pins == 0:
            self._end()

    def _end(self) -> None:
        close_file(self.fd)
        self.fd = -1
        self._tree.closed(self)
        self._node.close()


def _last_offset(buffer: bytearray, size: int) -> int:
    base = pointer(buffer)
    at = 0
    offset = -1
    while at < size:
        offset = get64(base, at + 8)
        at += get16(base, at + 16)
    return offset


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))


def _good(code: int) -> int:
    if code < 0:
        raise _error(-code)
    return code
