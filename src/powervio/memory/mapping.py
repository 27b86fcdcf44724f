# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Mapped files that may be cut off while they are used, and images that are read and written through a mapping.

This file is compiled (Cython pure mode). Interpreted there are no guards (`guard.py`), and so no file is mapped.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from typing import Any

import cython
from cython.cimports.powervio.memory.guard import guard_add, guard_breaks_at, guard_is_broken, guard_remove
from cython.cimports.powervio.memory.hw import (
    all_set,
    fetch,
    fill,
    holds_data,
    is_in_huge_pages,
    is_in_memory,
    ld8,
    ld64,
    next_data,
    pointer,
    pointer_to_read,
    prefetch,
    st8,
    store,
)

_PAGE = cython.declare(cython.ulonglong, 4096)
"""Bytes for which there is a mark; the kernel's pages are as large or larger."""
_AHEAD = cython.declare(cython.ulonglong, 256)


@cython.final
@cython.cclass
class Guard:
    """Keeps an access to a mapping alive that meets what its file does not have any more; made by `guard`.

    It lives as long as the mapping, which it keeps unless the mapping has it (`GuardedMap`). After a copy `is_broken`
    says whether the copy is good. Once it says so it stays so: the mapping is private memory then.
    """

    _number: cython.uint
    _memory: Any

    def __init__(self, memory: mmap.mmap, grain: int, *, keep: bool) -> None:
        """`grain` is the bytes of a page of the mapping."""
        self._memory = memory if keep else None
        self._number = guard_add(pointer_to_read(memory), len(memory), grain)

    def __dealloc__(self) -> None:
        guard_remove(self._number)

    @property
    def holds(self) -> bool:
        """Whether it guards: there was room for it."""
        return self._number != 0

    @property
    def broken(self) -> bool:
        """Whether something of the file was missing."""
        return bool(self.is_broken())

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def is_broken(self) -> cython.bint:
        """Whether what this thread copied last may be void."""
        return guard_is_broken(self._number) != 0


def guard(memory: mmap.mmap, fd: int, *, keep: bool = True) -> Guard | None:
    """Guard a shared mapping of a file, which is open as `fd`; None where that cannot be done."""
    made = Guard(memory, os.fstat(fd).st_blksize if is_in_huge_pages(fd) else mmap.PAGESIZE, keep=keep)
    return made if made.holds else None


class GuardedMap(mmap.mmap):
    """A shared mapping of a file that is guarded, where that can be done, until its last view is gone. No `close`."""

    guard: Guard | None = None

    @classmethod
    def of(cls, fd: int, length: int, offset: int) -> GuardedMap:
        """Map bytes of a file from an offset on. Raises `OSError`, `ValueError`, `OverflowError`."""
        made = cls(fd, length, mmap.MAP_SHARED, offset=offset)
        made.guard = guard(made, fd, keep=False)  # its attributes go before its memory does
        return made

    @property
    def broken(self) -> bool:
        """Whether something of the file was missing."""
        return self.guard is not None and self.guard.broken


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def breaks() -> cython.p_uchar:
    """Where there is a u64 that grows whenever some guard of this process is broken, together with that."""
    return guard_breaks_at()


@cython.final
@cython.cclass
class FileMapping:
    """A file whose bytes are copied from and to a mapping; made by `map_file`.

    Reading a hole of a file in memory through a mapping fills it with a page of zeroes, which pread does not. So there
    is a mark for each page that is known to have data, and the mapping is for those pages alone. A mark too many, when
    somebody else punches a hole, or at the same moment, costs that memory; what is read is right in any case.
    """

    _memory: Any
    _guard: Guard
    _base: cython.p_uchar
    _length: cython.ulonglong
    _has_marks: cython.bint
    _pages: Any
    _marks: cython.p_uchar

    def __init__(self, memory: mmap.mmap, own: Guard, *, marked: bool) -> None:
        """`marked`: only pages that are known to have data may be accessed."""
        self._memory = memory
        self._guard = own
        self._base = pointer_to_read(memory)
        self._length = len(memory)
        self._has_marks = marked
        if marked:
            # a byte for each page, in memory that is there when it is written to
            count = -(-len(memory) // 4096)
            self._pages = mmap.mmap(-1, count, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._marks = pointer(self._pages)

    @property
    def broken(self) -> bool:
        """Whether something of the file was missing."""
        return self._guard.broken

    @property
    def known(self) -> int:
        """Bytes of the pages that are known to have data."""
        return 4096 * bytes(self._pages).count(1) if self._has_marks else len(self._memory)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def has(self, position: cython.ulonglong, length: cython.ulonglong) -> cython.bint:
        """Whether this may be moved here; `position + length` is within the file's length."""
        first: cython.ulonglong = position // _PAGE
        if position + length > self._length:
            return False
        return not self._has_marks or all_set(self._marks, first, (position + length + _PAGE - 1) // _PAGE - first) != 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def move(
        self, writes: cython.bint, pieces: cython.p_uchar, count: cython.uint, position: cython.ulonglong
    ) -> cython.bint:
        """Copy from or to pieces of what `has` allows. False: something was missing, and it is not done."""
        number: cython.uint
        address: cython.ulonglong
        part: cython.ulonglong
        for number in range(count):
            address = ld64(pieces, 16 * number)
            part = ld64(pieces, 16 * number + 8)
            if writes:
                fetch(self._base, position, address, part)
            else:
                store(address, self._base, position, part)
            position += part
        return not self._guard.is_broken()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def expect(self, position: cython.ulonglong) -> cython.void:
        """Bring the first lines of what is at this position into the cache; the processor sees to the lines behind."""
        line: cython.ulonglong
        if position < self._length and _AHEAD <= self._length - position:
            for line in range(0, _AHEAD, 64):
                prefetch(self._base, position + line)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def learn(
        self,
        writes: cython.bint,
        fd: cython.int,
        pieces: cython.p_uchar,
        count: cython.uint,
        position: cython.ulonglong,
        length: cython.ulonglong,
    ) -> cython.void:
        """Pieces were just moved by descriptor, all of them."""
        number: cython.uint
        address: cython.ulonglong
        left: cython.ulonglong
        part: cython.ulonglong
        page: cython.ulonglong = position // _PAGE
        if not self._has_marks or position + length > self._length:
            return
        if writes:
            fill(self._marks, page, (position + length + _PAGE - 1) // _PAGE - page, 1)
            return
        for number in range(count):
            address = ld64(pieces, 16 * number)
            left = ld64(pieces, 16 * number + 8)
            while left:
                page = position // _PAGE
                part = min(left, _PAGE - position % _PAGE)
                # The kernel is asked about pages that do not look like a hole: its search for data behind a hole may
                # be long. It has the last word, for the pieces may be a partner's, who writes there meanwhile.
                if not ld8(self._marks, page) and holds_data(address, part):
                    if next_data(fd, page * _PAGE) == cython.cast(cython.longlong, page * _PAGE):
                        st8(self._marks, page, 1)
                address += part
                position += part
                left -= part

    def forget(self, position: int, length: int) -> None:
        """There may be holes in this range from now on; called when they have been punched."""
        first = min(position, len(self._memory)) // 4096
        end = -(-min(position + length, len(self._memory)) // 4096)
        if self._has_marks and end > first:
            fill(self._marks, first, end - first, 0)


def map_file(fd: int, length: int, *, writable: bool, always: bool = False) -> FileMapping | None:
    """Map the first `length` bytes of a file that is in memory, or with `always` of any one.

    None where that cannot be done, and for files in huge pages without `always`: a page is a great deal to fill a hole
    with, and there may be none left.
    """
    in_memory = is_in_memory(fd) != 0 and is_in_huge_pages(fd) == 0
    if length <= 0 or not (in_memory or always):
        return None
    try:
        # a private mapping of what may only be read would not see what others write
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(fd, length, mmap.MAP_SHARED, access)
    except (OSError, ValueError, OverflowError):  # sealed, shorter by now, more than there are addresses
        return None
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_DONTDUMP)
    own = guard(memory, fd)
    return None if own is None else FileMapping(memory, own, marked=in_memory)
