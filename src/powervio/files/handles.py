# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Descriptors that files are held by, of which there are never more than so many.

What is held longest without use lets go of its descriptor; it keeps the file system's handle, and is opened again by
that. A file stays open where this cannot be: the process may not open by handle (CAP_DAC_READ_SEARCH), the file system
has none, the file is on another mount than the root or has lost its last name.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import cython
from cython.cimports.powervio.files.calls import close_file, handle_of, open_handle, stat_of
from cython.cimports.powervio.memory.hw import get32, pointer

from powervio.files.sizes import HANDLE_BYTES, STATX_BYTES

_PATH_FLAGS = cython.declare(cython.int, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
_STALE = cython.declare(cython.int, -errno.ESTALE)
_EBADF = cython.declare(cython.int, -errno.EBADF)


@cython.cclass
class Held:
    """Something that is held by a descriptor; `DescriptorCache.take` gives it, for the time of one operation."""

    fd: cython.int
    pins: cython.int
    references: cython.int
    used: cython.bint
    slot: cython.int
    handle: bytearray | None


@cython.final
@cython.cclass
class DescriptorCache:
    """The descriptors (O_PATH) of a share. Those of files that are open for reading or writing do not count here."""

    limit: cython.int
    reopened: cython.ulonglong
    evicted: cython.ulonglong
    stuck: cython.int
    by_handle: cython.bint
    _ring: list[Held]
    _hand: cython.int
    _mount: cython.int
    _mount_id: cython.uint

    def __init__(self, mount: int, limit: int) -> None:
        """`mount` is a descriptor, open for reading, of the directory on whose mount files are opened by handle."""
        self.limit = limit
        self.reopened = self.evicted = 0
        self.stuck = 0
        """How many are held that cannot let go."""
        self._ring = []
        self._hand = 0
        self._mount = mount
        self._mount_id = 0
        self.by_handle = self._probe()

    @cython.cfunc
    @cython.exceptval(check=False)
    def _probe(self) -> cython.bint:
        """Whether handles work here."""
        book = bytearray(HANDLE_BYTES)
        if handle_of(self._mount, pointer(book)) < 0:
            return False
        self._mount_id = get32(pointer(book), 136)
        fd: cython.int = open_handle(self._mount, pointer(book), _PATH_FLAGS)
        if fd < 0:
            return False
        close_file(fd)
        return True

    def __len__(self) -> int:
        return len(self._ring) + self.stuck

    @cython.cfunc
    @cython.exceptval(check=False)
    def adopt(self, held: Held, fd: cython.int) -> cython.void:
        """A descriptor is this one's from now on."""
        held.fd = fd
        held.used = True
        held.slot = len(self._ring)
        self._ring.append(held)
        if len(self._ring) + self.stuck > self.limit and self.by_handle:
            self._evict()

    @cython.cfunc
    @cython.exceptval(check=False)
    def take(self, held: Held) -> cython.int:
        """The descriptor, until `give`; the negative errno if it cannot be had (ESTALE: the file is gone)."""
        if held.references < 1:
            return _EBADF
        if held.fd < 0:
            code: cython.int = self._reopen(held)
            if code < 0:
                return code
        held.pins += 1
        held.used = True
        return held.fd

    @cython.cfunc
    @cython.exceptval(check=False)
    def give(self, held: Held) -> cython.void:
        """The operation is over."""
        held.pins -= 1
        if held.references < 1 and held.pins == 0:
            self._close(held)

    @cython.cfunc
    @cython.exceptval(check=False)
    def drop(self, held: Held) -> cython.void:
        """One of those that refer to it does so no more."""
        if held.references < 1:
            return
        held.references -= 1
        if held.references == 0 and held.pins == 0:
            self._close(held)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _close(self, held: Held) -> cython.void:
        fd: cython.int = held.fd
        if fd < 0:
            return
        if held.slot < 0:
            self.stuck -= 1
        else:
            self._unlink(held)
        held.fd = -1
        with cython.nogil:  # what has lost its last name is freed by this, which takes as long as it is large
            close_file(fd)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _unlink(self, held: Held) -> cython.void:
        last: Held = self._ring.pop()
        if last is not held:
            self._ring[held.slot] = last
            last.slot = held.slot
        held.slot = -1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _reopen(self, held: Held) -> cython.int:
        if held.handle is None or self._mount < 0:
            return _EBADF
        mount: cython.int = self._mount
        handle: cython.p_uchar = pointer(held.handle)
        fd: cython.int
        with cython.nogil:  # the file system may have to read it
            fd = open_handle(mount, handle, _PATH_FLAGS)
        if fd < 0:
            return fd
        if held.fd >= 0:  # another thread was faster
            close_file(fd)
            return 0
        self.reopened += 1
        held.pins += 1  # whoever makes room does not take this one
        self.adopt(held, fd)
        held.pins -= 1
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _evict(self) -> cython.void:
        """Have one that was not used lately let go."""
        steps: cython.int = 2 * len(self._ring) + 1
        while steps > 0 and self._ring:
            steps -= 1
            if self._hand >= len(self._ring):
                self._hand = 0
            held: Held = self._ring[self._hand]
            if held.pins > 0:
                self._hand += 1
            elif held.used:
                held.used = False
                self._hand += 1
            elif self._let_go(held):
                return
            else:
                self._unlink(held)
                self.stuck += 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def _let_go(self, held: Held) -> cython.bint:
        facts = bytearray(STATX_BYTES)
        if stat_of(held.fd, pointer(facts)) < 0 or get32(pointer(facts), 16) == 0:
            return False
        if held.handle is None:
            book = bytearray(HANDLE_BYTES)
            if handle_of(held.fd, pointer(book)) < 0 or get32(pointer(book), 136) != self._mount_id:
                return False
            held.handle = book
        self._unlink(held)
        close_file(held.fd)
        held.fd = -1
        self.evicted += 1
        return True

    @cython.cfunc
    @cython.exceptval(check=False)
    def end(self) -> cython.void:
        """Close what is held and not in use at this moment; what is, is closed by whoever has it. Nothing is opened by
        handle any more: the mount's descriptor is about to be closed, and its number may be another's then."""
        held: Held
        self._mount = -1
        self.by_handle = False
        for held in list(self._ring):
            held.references = 0
            if held.pins == 0:
                self._close(held)

    @cython.ccall
    @cython.exceptval(check=False)
    def make_room(self, count: cython.int) -> cython.int:
        """Have some let go although there is room: the process has no descriptors left. How many did."""
        before: cython.ulonglong = self.evicted
        if self.by_handle:
            for _ in range(count):
                self._evict()
        return cython.cast(cython.int, self.evicted - before)


if not cython.compiled:  # then the interpreter lock sees to it: nothing but what may take long gives it away
    _LOCK = threading.RLock()

    def _one_at_a_time(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def alone(*arguments: Any) -> Any:
            with _LOCK:
                return method(*arguments)

        return alone

    for _name in ("adopt", "take", "give", "drop", "end", "make_room"):
        setattr(DescriptorCache, _name, _one_at_a_time(getattr(DescriptorCache, _name)))
