# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""What messages of 9P2000.L have of files, as bytes: qids, attributes, entries of directories, times, and flags.

This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import errno
import os
from typing import Any

import cython
from cython.cimports.powervio.files.tree_open import OpenFile
from cython.cimports.powervio.files.tree_share import failure
from cython.cimports.powervio.files.tree_stat import Stat
from cython.cimports.powervio.files.wire import put8, put16, put32, put64
from cython.cimports.powervio.memory.hw import copy, get16, get64, ld8

_KIND = cython.declare(cython.uint, 0xF000)
_DIRECTORY = cython.declare(cython.uint, 0x4000)
_LINK = cython.declare(cython.uint, 0xA000)
_BASIC = cython.declare(cython.ulonglong, 0x7FF)
_BTIME = cython.declare(cython.ulonglong, 0x800)
_DATA_VERSION = cython.declare(cython.ulonglong, 0x2000)
_SECOND = cython.declare(cython.ulonglong, 1_000_000_000)
_LARGEST = cython.declare(cython.ulonglong, (1 << 63) - 1)

_FLAGS = (
    (0o100, os.O_CREAT),
    (0o200, os.O_EXCL),
    (0o1000, os.O_TRUNC),
    (0o2000, os.O_APPEND),
    (0o10000, os.O_DSYNC),
    (0o200000, os.O_DIRECTORY),
    (0o1000000, os.O_NOATIME),
    (0o4000000, os.O_SYNC),
)
"""Flags of 9P2000.L, which are numbers of its own, as this machine's. What is left out means nothing for a share."""
_SAME_FLAGS = cython.declare(
    cython.bint, all(theirs == (ours & ~os.O_DSYNC if ours == os.O_SYNC else ours) for theirs, ours in _FLAGS)
)


@cython.cfunc
@cython.inline
@cython.exceptval(check=False)
def put_qid(
    out: cython.p_uchar, at: cython.longlong, mode: cython.uint, version: cython.uint, path: cython.ulonglong
) -> cython.void:
    """The qid of a file of that mode."""
    kind: cython.uint = mode & _KIND
    put8(out, at, 0x80 if kind == _DIRECTORY else 0x02 if kind == _LINK else 0)
    put32(out, at + 1, version)
    put64(out, at + 5, path)


@cython.cfunc
@cython.exceptval(check=False)
def put_facts(out: cython.p_uchar, facts: Stat) -> cython.void:
    """The Rgetattr of a file, from its byte 7 on."""
    valid: cython.ulonglong = _BASIC | _DATA_VERSION
    if facts.btime_sec != 0 or facts.btime_nsec != 0:
        valid |= _BTIME
    put64(out, 7, valid)
    put_qid(out, 15, facts.mode, facts.version, facts.path)
    put32(out, 28, facts.mode)
    put32(out, 32, facts.uid)
    put32(out, 36, facts.gid)
    put64(out, 40, facts.nlink)
    put64(out, 48, facts.rdev)
    put64(out, 56, facts.size)
    put64(out, 64, facts.blksize)
    put64(out, 72, facts.blocks)
    put64(out, 80, cython.cast(cython.ulonglong, facts.atime_sec))
    put64(out, 88, facts.atime_nsec)
    put64(out, 96, cython.cast(cython.ulonglong, facts.mtime_sec))
    put64(out, 104, facts.mtime_nsec)
    put64(out, 112, cython.cast(cython.ulonglong, facts.ctime_sec))
    put64(out, 120, facts.ctime_nsec)
    put64(out, 128, cython.cast(cython.ulonglong, facts.btime_sec))
    put64(out, 136, facts.btime_nsec)
    put64(out, 144, 0)
    put64(out, 152, facts.version)


@cython.cfunc
@cython.exceptval(-1)
def put_entries(
    out: cython.p_uchar, most: cython.longlong, records: cython.p_uchar, size: cython.longlong, opened: OpenFile
) -> cython.longlong:
    """Up to `most` bytes of an Rreaddir, from its byte 11 on, of `size` bytes of the kernel's records of a directory;
    where they end. EINVAL: not even one fits."""
    at: cython.longlong = 11
    read: cython.longlong = 0
    name: cython.longlong
    length: cython.longlong
    kind: cython.int
    dots: cython.bint
    while read < size:
        name = read + 19
        length = 0
        while ld8(records, name + length) != 0:
            length += 1
        if at + 24 + length > 11 + most:
            if at == 11:
                raise failure(errno.EINVAL)
            break
        dots = length == 2 and ld8(records, name) == 0x2E and ld8(records, name + 1) == 0x2E
        kind = opened.entry_kind(ld8(records, read + 18))
        put_qid(out, at, cython.cast(cython.uint, kind) << 12, 0, opened.entry_path(get64(records, read), dots))
        put64(out, at + 13, get64(records, read + 8))
        put8(out, at + 21, kind)
        put16(out, at + 22, length)
        copy(out, at + 24, records, name, length)
        at += 24 + length
        read += get16(records, read + 16)
    return at


@cython.cfunc
def instant(seconds: cython.ulonglong, nanoseconds: cython.ulonglong) -> Any:
    """A time from the wire, whose seconds may be negative."""
    if nanoseconds >= _SECOND:
        raise failure(errno.EINVAL)
    return (seconds - (1 << 64) if seconds > _LARGEST else seconds), nanoseconds


@cython.cfunc
@cython.exceptval(check=False)
def open_flags(flags: cython.uint) -> cython.int:
    """Flags of a message as this machine's."""
    wanted: cython.int = flags & 3
    if _SAME_FLAGS:
        return cython.cast(cython.int, flags & 0o7777777)
    for theirs, ours in _FLAGS:
        if flags & theirs:
            wanted |= ours
    return wanted
