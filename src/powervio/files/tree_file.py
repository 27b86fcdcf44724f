# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""A file of a share by itself: what it is, what it says and what is known of it, whatever names it has.

An operation is done with a descriptor that is held for as long, as the caller, and raises `OSError` with the errno that
the call on the host gave. `powervio.files.tree` has the rest of a file: its names, and what is in a directory.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from enum import IntFlag
from typing import Any, NamedTuple

import cython
from cython.cimports.powervio.files.calls import (
    access_of,
    change_mode,
    change_owner,
    change_times,
    cut_held,
    file_system_of,
    get_attribute,
    list_attributes,
    read_link,
    remove_attribute,
    reopen,
    set_attribute,
    stat_of,
)
from cython.cimports.powervio.files.identity import Caller
from cython.cimports.powervio.files.tree_open import OpenFile, open_file
from cython.cimports.powervio.files.tree_share import File, Share, failure, good
from cython.cimports.powervio.files.tree_stat import Stat
from cython.cimports.powervio.memory.hw import get16, pointer, pointer_to_read

from powervio.files import acl, mapped
from powervio.files.sizes import ATTRIBUTE_BYTES, FILE_SYSTEM_WORDS, NAME_BYTES, PATH_BYTES, STATX_BYTES

_DIRECTORY = cython.declare(cython.uint, stat.S_IFDIR)
_REGULAR = cython.declare(cython.uint, stat.S_IFREG)
_LINK = cython.declare(cython.uint, stat.S_IFLNK)
_PATH = cython.declare(cython.int, PATH_BYTES)
_ATTRIBUTE = cython.declare(cython.int, ATTRIBUTE_BYTES)
_ACCESS_MODE = cython.declare(cython.int, os.O_ACCMODE)
_OPEN_FLAGS = cython.declare(
    cython.int, os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_DIRECTORY | os.O_NOATIME | os.O_DSYNC | os.O_SYNC
)
"""Flags that mean something here. O_NOFOLLOW always holds; O_NONBLOCK and the like are about what is not opened."""
_ALWAYS = cython.declare(cython.int, os.O_CLOEXEC | os.O_NOCTTY)
_O_TRUNC = cython.declare(cython.int, os.O_TRUNC)
_O_DIRECTORY = cython.declare(cython.int, os.O_DIRECTORY)
_EPERM = cython.declare(cython.int, -errno.EPERM)
_EISDIR = cython.declare(cython.int, -errno.EISDIR)
_EINVAL = cython.declare(cython.int, -errno.EINVAL)
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
_UNCHANGED = cython.declare(cython.uint, 0xFFFF_FFFF)
_TIMES = struct.Struct("=qqqq")


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


_SET_MODE = cython.declare(cython.int, 0x01)
_SET_UID = cython.declare(cython.int, 0x02)
_SET_GID = cython.declare(cython.int, 0x04)
_SET_SIZE = cython.declare(cython.int, 0x08)
_SET_ATIME = cython.declare(cython.int, 0x10)
_SET_MTIME = cython.declare(cython.int, 0x20)
_SET_CTIME = cython.declare(cython.int, 0x40)


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


@cython.cclass
class HeldFile(File):
    """What can be done with a file that is held, but for what has to do with names."""

    # -- an operation

    @cython.cfunc
    @cython.exceptval(-1000)
    def begin(self, caller: Caller) -> cython.int:
        """The descriptor is there and the thread acts as the caller, until `end`, whatever this returns.

        0 or the negative errno.
        """
        share: Share = self.share
        code: cython.int
        if self.fd < 0:
            share.identity.enter_own()  # who opens by handle has to be root
        code = share.cache.take(self)
        if code < 0:
            self.pins += 1
            return code
        return share.identity.enter(caller)

    @cython.cfunc
    @cython.exceptval(check=False)
    def begin_own(self) -> cython.int:
        """The same for what everybody may: as whoever it is."""
        share: Share = self.share
        code: cython.int
        if self.fd < 0:
            share.identity.enter_own()
        code = share.cache.take(self)
        if code < 0:
            self.pins += 1
            return code
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def end(self) -> cython.void:
        """It is over."""
        share: Share = self.share
        share.identity.leave()
        share.cache.give(self)

    # -- the file itself

    @cython.ccall
    def stat(self) -> Stat:
        """What it is now."""
        code: cython.int = self.begin_own()
        try:
            good(code)
            return self.stat_by(self.fd)
        finally:
            self.end()

    @cython.ccall
    def open(self, flags: cython.int, caller: Caller) -> OpenFile:
        """Open the file or directory; flags of open(2), of which those that mean nothing here are left out.

        ENXIO for a device, FIFO or socket, ELOOP for a symbolic link, EMFILE when the share has too many open.
        """
        share: Share = self.share
        wanted: cython.int = flags & _OPEN_FLAGS | _ALWAYS
        writes: cython.bint = (flags & (_ACCESS_MODE | _O_TRUNC)) != 0
        code: cython.int
        fd: cython.int
        if self.kind != _DIRECTORY:
            if flags & _O_DIRECTORY:
                raise failure(errno.ENOTDIR)
            if self.kind != _REGULAR:
                raise failure(errno.ELOOP if self.kind == _LINK else errno.ENXIO)
        elif writes:
            raise failure(errno.EISDIR)
        if writes:
            share.writable()
        share.check_room()
        while True:
            code = self.begin(caller)
            fd = self.fd
            if code >= 0:
                with cython.nogil:
                    code = reopen(share.proc, fd, wanted)
            self.end()
            if code >= 0 or not share.relieved(code):
                break
        good(code)
        self.refer()
        return open_file(self, code, flags, caller)

    def place(self) -> list[bytes]:
        """The names by which the kernel knows it at this moment, from the root on; none is the root itself.

        Only a hint, for a client that has nothing but the file: it is looked up like any other path. ESTALE where it
        has none, or is outside.
        """
        share: Share = self.share
        good(self.begin_own())
        try:
            return share.names_below(self.fd)
        finally:
            self.end()

    def readlink(self) -> bytes:
        """Where a symbolic link points to; EINVAL for anything else."""
        if self.kind != _LINK:
            raise failure(errno.EINVAL)
        if self.share.identity.mapped:
            return self._mapped_link()
        book: bytearray = bytearray(PATH_BYTES)
        base: cython.p_uchar = pointer(book)
        code: cython.int = self.begin_own()
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = read_link(fd, base, _PATH)
        self.end()
        return bytes(book[: good(code)])

    def setattr(
        self,
        valid: cython.int,
        caller: Caller,
        *,
        mode: cython.uint = 0,
        uid: cython.uint = 0,
        gid: cython.uint = 0,
        size: cython.ulonglong = 0,
        atime: tuple[int, int] | None = None,
        mtime: tuple[int, int] | None = None,
        opened: OpenFile | None = None,
    ) -> None:
        """Change what `valid` (`Set`) names, in the order size, owner, mode, times.

        A time that is None is now. The size is changed by `opened` if that is given and open for writing, which asks
        for no right that was not checked when it was opened. Clients' kernels say with a size what becomes of the rest:
        who may cut the file may stamp it, and give it the mode that it has now, without set-user-ID.
        """
        share: Share = self.share
        owner: cython.uint = _UNCHANGED
        group: cython.uint = _UNCHANGED
        code: cython.int
        fd: cython.int
        cuts: cython.bint = (valid & _SET_SIZE) != 0
        stamps: cython.bint = cuts and mtime is None and (valid & (_SET_ATIME | _SET_MTIME)) == _SET_MTIME
        book: bytearray | None = None
        facts: cython.p_uchar = cython.NULL
        times: bytearray | None = None
        when: cython.p_uchar = cython.NULL
        share.writable()
        if valid & _SET_UID:
            owner = share.identity.host_uid(uid)
        if valid & _SET_GID:
            group = share.identity.host_gid(gid)
        if valid & (_SET_ATIME | _SET_MTIME):
            times = _times(valid, atime, mtime)
            when = pointer(times)
        if cuts and valid & _SET_MODE:
            book = bytearray(STATX_BYTES)
            facts = pointer(book)
        if cuts and size >> 63:
            raise failure(errno.EINVAL)
        if cuts and opened is not None and opened.flags & _ACCESS_MODE:
            opened.truncate(size)
            cuts = False
        if share.identity.mapped:
            self._change_mapped(valid, mode, uid, gid)
            valid &= ~(_SET_MODE | _SET_UID | _SET_GID)
        code = self.begin(caller)
        fd = self.fd
        if code >= 0:
            if cuts and self.kind != _REGULAR:
                code = _EISDIR if self.kind == _DIRECTORY else _EINVAL
                cuts = False
            with cython.nogil:
                if cuts:
                    code = cut_held(fd, size)
                if code >= 0 and valid & (_SET_UID | _SET_GID):
                    code = change_owner(fd, owner, group)
                if code >= 0 and valid & _SET_MODE:
                    code = change_mode(share.proc, fd, mode & 0o7777)
                    if code == _EPERM and facts != cython.NULL and stat_of(fd, facts) >= 0:
                        code = 0 if get16(facts, 28) & 0o7777 == mode & 0o7777 else _EPERM
                if code >= 0 and valid & (_SET_ATIME | _SET_MTIME):
                    code = change_times(fd, when)
                    stamps = stamps and code == _EPERM
                elif code >= 0 and valid == _SET_CTIME:
                    code = change_owner(fd, _UNCHANGED, _UNCHANGED)
                else:
                    stamps = False
            if stamps:  # by utimensat(2) only an owner stamps one time alone
                share.identity.enter_own()
                code = change_times(fd, when)
        self.end()
        good(code)

    def access(self, mode: cython.int, caller: Caller) -> None:
        """Whether the caller may: R_OK, W_OK, X_OK; raises EACCES if not."""
        if mode & ~7:
            raise failure(errno.EINVAL)
        if self.share.identity.mapped:
            facts: Stat = self.stat()
            if not mapped.permits(mapped.Owner(facts.uid, facts.gid, facts.mode), caller, mode):
                raise failure(errno.EACCES)
        code: cython.int = self.begin(caller)
        fd: cython.int = self.fd
        if code >= 0 and not self.share.identity.mapped:
            with cython.nogil:
                code = access_of(fd, mode)
        self.end()
        good(code)
        if mode & 2 and self.kind in (_DIRECTORY, _REGULAR, _LINK):
            self.share.writable()

    def statfs(self) -> FileSystem:
        """The file system it is on."""
        words = bytearray(8 * FILE_SYSTEM_WORDS)
        base: cython.p_uchar = pointer(words)
        code: cython.int = self.begin_own()
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = file_system_of(fd, base)
        self.end()
        good(code)
        return FileSystem(*struct.unpack(f"={FILE_SYSTEM_WORDS}Q", words))

    # -- extended attributes

    def getxattr(self, name: bytes, caller: Caller) -> bytes:
        """The value of an attribute; ENODATA if there is none."""
        check_attribute(name)
        if self.share.identity.mapped:
            mapped.check_attribute(name, self.kind, reads=True)
        book = bytearray(ATTRIBUTE_BYTES)
        base: cython.p_uchar = pointer(book)
        text: cython.p_uchar = pointer_to_read(name)
        code: cython.int = self.begin(caller)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = get_attribute(fd, text, base, _ATTRIBUTE)
        self.end()
        result = bytes(book[: good(code)])
        if self.share.identity.translates and name in acl.ATTRIBUTES:
            result = acl.translated(result, self.share.identity.client_uid, self.share.identity.client_gid)
        return result

    def setxattr(self, name: bytes, value: bytes, flags: cython.int, caller: Caller) -> None:
        """Set an attribute; flags are XATTR_CREATE and XATTR_REPLACE."""
        check_attribute(name)
        if len(value) > ATTRIBUTE_BYTES:
            raise failure(errno.E2BIG)
        self.share.writable()
        if self.share.identity.mapped:
            mapped.check_attribute(name, self.kind, reads=False)
        elif self.share.identity.translates and name in acl.ATTRIBUTES and value:
            value = acl.translated(value, self.share.identity.host_uid, self.share.identity.host_gid)
        text: cython.p_uchar = pointer_to_read(name)
        data: cython.p_uchar = pointer_to_read(value)
        size: cython.int = len(value)
        code: cython.int = self.begin(caller)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = set_attribute(fd, text, data, size, flags)
        self.end()
        good(code)

    def listxattr(self, caller: Caller) -> list[bytes]:
        """The names of its attributes."""
        book = bytearray(ATTRIBUTE_BYTES)
        base: cython.p_uchar = pointer(book)
        code: cython.int = self.begin(caller)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = list_attributes(fd, base, _ATTRIBUTE)
        self.end()
        names = [text for text in bytes(book[: good(code)]).split(b"\0") if text]
        if self.share.identity.mapped:
            names = [text for text in names if text.startswith(b"user.") and text != mapped.OWNER_ATTRIBUTE]
        return names

    def removexattr(self, name: bytes, caller: Caller) -> None:
        """Remove an attribute."""
        check_attribute(name)
        self.share.writable()
        if self.share.identity.mapped:
            mapped.check_attribute(name, self.kind, reads=False)
        text: cython.p_uchar = pointer_to_read(name)
        code: cython.int = self.begin(caller)
        fd: cython.int = self.fd
        if code >= 0:
            with cython.nogil:
                code = remove_attribute(fd, text)
        self.end()
        good(code)

    # -- what is kept in attributes (`mapped`)

    @cython.cfunc
    @cython.exceptval(-1)
    def _change_mapped(self, valid: cython.int, mode: Any, uid: Any, gid: Any) -> cython.int:
        if not valid & (_SET_MODE | _SET_UID | _SET_GID):
            return 0
        try:
            good(self.begin_own())
            mapped.change(
                self.fd,
                mode if valid & _SET_MODE else None,
                uid if valid & _SET_UID else None,
                gid if valid & _SET_GID else None,
            )
        finally:
            self.end()
        return 0

    @cython.cfunc
    def _mapped_link(self) -> bytes:
        try:
            good(self.begin_own())
            if stat.S_ISREG(os.fstat(self.fd).st_mode):
                return mapped.read_link(self.fd)
            return os.readlink(b"", dir_fd=self.fd)
        finally:
            self.end()


def check_attribute(name: bytes) -> None:
    """The name of an extended attribute."""
    if not name or len(name) > NAME_BYTES:
        raise failure(errno.ERANGE)
    if b"\0" in name:
        raise failure(errno.EINVAL)


def _times(valid: int, atime: tuple[int, int] | None, mtime: tuple[int, int] | None) -> bytearray:
    result: list[int] = []
    for wanted, when in ((valid & _SET_ATIME, atime), (valid & _SET_MTIME, mtime)):
        if not wanted:
            result += (0, _UTIME_OMIT)
        elif when is None:
            result += (0, _UTIME_NOW)
        elif not 0 <= when[1] < 1_000_000_000 or not -(1 << 63) <= when[0] < 1 << 63:
            raise failure(errno.EINVAL)
        else:
            result += when
    return bytearray(_TIMES.pack(*result))
