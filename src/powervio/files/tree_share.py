# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What the files of one share have in common: its descriptors, its callers, its numbers and locks.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cython
from cython.cimports.powervio.files.calls import open_parent, path_of, reopen, stat_of
from cython.cimports.powervio.files.handles import DescriptorCache, Held
from cython.cimports.powervio.files.identity import Identity
from cython.cimports.powervio.files.tree_stat import Numbers, Stat, stat_from
from cython.cimports.powervio.memory.hw import get64, pointer

from powervio.errors import LocalError
from powervio.files import mapped
from powervio.files.identity import IdRange
from powervio.files.locks import LockTable
from powervio.files.sizes import PATH_BYTES, STATX_BYTES

_PATH = cython.declare(cython.int, PATH_BYTES)
_EMFILE = cython.declare(cython.int, -errno.EMFILE)
_SPARE = 256
"""Descriptors that are left to the rest of the process."""
_HELD = 16384
_RELIEF = 16
_KIND = cython.declare(cython.uint, 0xF000)
_SCRATCH = cython.declare(cython.int, STATX_BYTES)


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
    """Users of the client as those of the host; what is in no row is nobody. Empty: they are the same."""
    translate_gid: Sequence[IdRange] = ()
    max_held: int | None = None
    """Files that are held by descriptors at a time; the default is by the process's limit."""
    max_open: int | None = None
    """Files that are open for reading or writing at a time, beyond which there is EMFILE; the default likewise."""


@cython.cclass
class Share:
    """What `Tree` is for those below it."""

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
    directory: cython.int
    _scratch: list[bytearray]

    def __init__(self, path: str | os.PathLike[str], options: TreeOptions | None = None) -> None:
        """Share the directory at `path`. Raises `LocalError` when it cannot be."""
        options = options or TreeOptions()
        self.options = options
        self.readonly = options.readonly
        self.identity = Identity(
            options.identity, options.squash_uid, options.squash_gid, options.translate_uid, options.translate_gid
        )
        self.locks = LockTable()
        self._scratch = []
        self.proc = self.directory = -1
        try:
            self.directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.proc = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            self.close_own()
            raise LocalError(f"{os.fspath(path)} cannot be shared: {error.strerror}") from error
        facts = os.fstat(self.directory)
        self.root_dev, self.root_ino = facts.st_dev, facts.st_ino
        self.numbers = Numbers(facts.st_dev)
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = max(64, limit - _SPARE)
        self.max_open = options.max_open or min(1 << 30, spare // 2)
        self.open_count = 0
        self.cache = DescriptorCache(self.directory, options.max_held or min(_HELD, spare // 4))

    def close_own(self) -> None:
        """Close the share's own descriptors."""
        for fd in (self.directory, self.proc):
            if fd >= 0:
                os.close(fd)
        self.directory = self.proc = -1

    @cython.cfunc
    @cython.exceptval(-1)
    def writable(self) -> cython.int:
        """Raises EROFS if the share is read-only."""
        if self.readonly:
            raise failure(errno.EROFS)
        return 0

    @cython.cfunc
    @cython.exceptval(-1)
    def check_room(self) -> cython.int:
        """Raises EMFILE when as many files are open as may be."""
        if self.open_count >= self.max_open:
            raise failure(errno.EMFILE)
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def relieved(self, code: cython.int) -> cython.bint:
        """Whether a call may do better now than it did: no descriptors were left, and files let go of some."""
        if code != _EMFILE:
            return False
        return self.cache.make_room(_RELIEF) > 0

    @cython.cfunc
    def take_scratch(self) -> bytearray:
        """A buffer for `calls.stat_of`, to be given back."""
        return self._scratch.pop() if self._scratch else bytearray(_SCRATCH)

    @cython.cfunc
    @cython.exceptval(check=False)
    def give_scratch(self, book: bytearray) -> cython.void:
        """Give one back."""
        self._scratch.append(book)

    @cython.cfunc
    def client_stat(self, base: cython.p_uchar, fd: cython.int) -> Stat:
        """What statx gave of the file of a descriptor, with the client's owners."""
        facts: Stat = stat_from(base, self.numbers)
        if self.identity.mapped:
            self._map(facts, fd)
        if self.identity.translates:
            facts.uid = self.identity.client_uid(facts.uid)
            facts.gid = self.identity.client_gid(facts.gid)
        return facts

    @cython.cfunc
    @cython.exceptval(-1)
    def _map(self, facts: Stat, fd: cython.int) -> cython.int:
        owner = mapped.owner_of(fd, facts.mode & _KIND)
        if owner is not None:
            facts.uid, facts.gid = owner.uid, owner.gid
            facts.mode, facts.rdev = owner.mode, owner.device
        return 0

    def check_inside(self, fd: int) -> None:
        """Raises ESTALE when a directory is not in the share any more: somebody moved it, or what it is in, out.

        The kernel's own idea of its path is asked for, which is one answer at one moment; the root may be on its way
        elsewhere, too. What is too deep for that is looked up step by step.
        """
        before = self._path(self.directory)
        inside = self._path(fd)
        if before is None or inside is None:
            self._climb(fd)
        elif before != self._path(self.directory) or not is_below(before, inside):
            raise failure(errno.ESTALE)

    def path(self) -> bytes:
        """Where the share is on this machine at this moment; empty if that is not known."""
        return self._path(self.directory) or b""

    def names_below(self, fd: int) -> list[bytes]:
        """The names from the root to the file of a descriptor, as the kernel knows them; ESTALE when it knows none."""
        root = self._path(self.directory)
        path = self._path(fd)
        if root is None or path is None:
            raise failure(errno.ENAMETOOLONG)
        if not is_below(root, path):
            raise failure(errno.ESTALE)
        return [name for name in path[len(root) :].split(b"/") if name]

    def _path(self, fd: int) -> bytes | None:
        out = bytearray(PATH_BYTES)
        size = path_of(self.proc, fd, pointer(out), _PATH)
        if size == -errno.ENAMETOOLONG or size == PATH_BYTES:
            return None
        return bytes(out[: good(size)])

    def _climb(self, fd: int) -> None:
        """Step up until the root is met; nothing that is moved at this moment is taken for inside."""
        raw = bytearray(STATX_BYTES)
        at = os.dup(fd)
        seen: set[tuple[bytes, int]] = set()
        try:
            while True:
                good(stat_of(at, pointer(raw)))
                here = bytes(raw[136:144]), get64(pointer(raw), 32)
                if here[1] == self.root_ino and os.path.samestat(os.fstat(at), os.fstat(self.directory)):
                    return
                if here in seen:  # the root of all, whose parent is itself
                    raise failure(errno.ESTALE)
                seen.add(here)
                above = good(open_parent(at))
                os.close(at)
                at = above
        finally:
            os.close(at)


@cython.cclass
class File(Held):
    """A file, as `Node` shows it. `kind`, `path` and `version` are what `Stat` has, as they were when it was found."""

    share: Share
    kind: cython.uint
    version: cython.uint
    path: cython.ulonglong
    dev: cython.ulonglong
    ino: cython.ulonglong

    @cython.cfunc
    def stat_by(self, fd: cython.int) -> Stat:
        """What it is now, by a descriptor of it."""
        code: cython.int
        share: Share = self.share
        book: bytearray = share.take_scratch()
        base: cython.p_uchar = pointer(book)
        with cython.nogil:
            code = stat_of(fd, base)
        good(code)
        facts: Stat = share.client_stat(base, fd)
        share.give_scratch(book)
        return facts

    @cython.cfunc
    @cython.exceptval(-1)
    def refer(self) -> cython.int:
        """One more refers to it; EBADF when nobody did any more."""
        if self.references < 1:
            raise failure(errno.EBADF)
        self.references += 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def let_go(self) -> cython.void:
        """One of those that refer to it does so no more."""
        self.share.cache.drop(self)

    @cython.cfunc
    @cython.exceptval(-1)
    def open_for_locks(self, fd: cython.int) -> cython.int:
        """A descriptor for the host's locks on it, with an open file description that is nobody else's if that can be.

        `fd` is an open file of it.
        """
        share: Share = self.share
        code: cython.int = share.identity.enter_own()
        if code >= 0:
            code = reopen(share.proc, fd, os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
        if code < 0:
            code = reopen(share.proc, fd, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        share.identity.leave()
        return code if code >= 0 else fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)


def is_below(root: bytes, path: bytes) -> bool:
    """Whether a path is that of a directory or of something in it."""
    return path == root or path.startswith(root if root.endswith(b"/") else root + b"/")


@cython.cfunc
def failure(code: cython.int) -> Any:
    """An error with its usual words."""
    return OSError(code, os.strerror(code))


@cython.cfunc
@cython.exceptval(-1)
def good(code: cython.longlong) -> cython.longlong:
    """A result that is one; raises what a negative errno says."""
    if code < 0:
        raise failure(cython.cast(cython.int, -code))
    return code
