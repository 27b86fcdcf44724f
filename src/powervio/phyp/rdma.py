# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Logical remote DMA: copies between two window panes, page by page through their TCE tables (papr-vio 4).

All pages of both sides are checked before the first byte moves, so a refused call has written nothing. The caller
holds the hypervisor's lock, therefore no entry changes between the check and the copy; of a shared table, what was
checked is what is used. Large copies let go of the interpreter lock.
"""

from __future__ import annotations

import cython
from cython.cimports.powervio.memory.hw import copy, get64, ld64, pointer, pointer_to_read, st64
from cython.cimports.powervio.phyp.tce import TceTable

H_PERMISSION = cython.declare(cython.int, -11)
READ = cython.declare(cython.ulonglong, 1)
WRITE = cython.declare(cython.ulonglong, 2)

PAGE = cython.declare(cython.ulonglong, 4096)
SHIFT = cython.declare(cython.int, 12)
LARGE = cython.declare(cython.ulonglong, 65536)


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _place(table: TceTable, ioba: cython.ulonglong) -> cython.ulonglong:
    """The logical address behind `ioba` in a range that `allows` has just found good, under the same lock.

    The entry is not loaded from a shared table again: its owner may have changed it meanwhile.
    """
    return ((ld64(table.entries, (ioba >> SHIFT) * 8) >> SHIFT) << SHIFT) + (ioba & (PAGE - 1))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _move(
    source: TceTable,
    s_ioba: cython.ulonglong,
    target: TceTable,
    d_ioba: cython.ulonglong,
    length: cython.ulonglong,
) -> cython.void:
    """Copy a range that both tables allow. Each page's part is one memmove: an aligned word is never torn."""
    part: cython.ulonglong
    room: cython.ulonglong
    while length > 0:
        part = PAGE - (s_ioba & (PAGE - 1))
        room = PAGE - (d_ioba & (PAGE - 1))
        if room < part:
            part = room
        if length < part:
            part = length
        copy(target.memory, _place(target, d_ioba), source.memory, _place(source, s_ioba), part)
        s_ioba += part
        d_ioba += part
        length -= part


@cython.cfunc
@cython.exceptval(check=False)
def _still_allows(
    table: TceTable, s_ioba: cython.ulonglong, d_ioba: cython.ulonglong, length: cython.ulonglong
) -> cython.bint:
    """Whether a table that is source and target allows both still: of a shared one, entries that the ranges have in
    common were loaded again for the second."""
    if not table.shared or length == 0:
        return True
    return table.keeps(s_ioba, length, READ) and table.keeps(d_ioba, length, WRITE)


@cython.ccall
@cython.exceptval(check=False)
def copy_pages(
    source: TceTable,
    s_ioba: cython.ulonglong,
    target: TceTable,
    d_ioba: cython.ulonglong,
    length: cython.ulonglong,
) -> cython.int:
    """Copy `length` bytes from one pane to another; H_PERMISSION if a page of either is not mapped for that."""
    code: cython.int = 0
    if not source.allows(s_ioba, length, READ) or not target.allows(d_ioba, length, WRITE):
        code = H_PERMISSION
    elif source is target and not _still_allows(source, s_ioba, d_ioba, length):
        code = H_PERMISSION
    elif length >= LARGE:
        with cython.nogil:
            _move(source, s_ioba, target, d_ioba, length)
    else:
        _move(source, s_ioba, target, d_ioba, length)
    if source.shared or target.shared:
        source.end_use()
        target.end_use()
    return code


def read_small(source: TceTable, ioba: cython.ulonglong, length: cython.ulonglong) -> bytes | None:
    """Up to 72 bytes from a pane as `bytes`, or None if a page is not mapped for reading."""
    if not source.allows(ioba, length, READ):
        source.end_use()
        return None
    data = bytearray(length)
    to: cython.p_uchar = pointer(data)
    done: cython.ulonglong = 0
    part: cython.ulonglong
    while done < length:
        part = PAGE - ((ioba + done) & (PAGE - 1))
        if length - done < part:
            part = length - done
        copy(to, done, source.memory, _place(source, ioba + done), part)
        done += part
    source.end_use()
    return bytes(data)


@cython.ccall
@cython.exceptval(-1)
def write_small(target: TceTable, ioba: cython.ulonglong, data: bytes) -> cython.int:
    """Put a few bytes into a pane; H_PERMISSION if a page is not mapped for writing."""
    length: cython.ulonglong = len(data)
    if not target.allows(ioba, length, WRITE):
        target.end_use()
        return H_PERMISSION
    source: cython.p_uchar = pointer_to_read(data)
    done: cython.ulonglong = 0
    part: cython.ulonglong
    if length == 8 and ioba & 7 == 0:
        # one register, stored whole and once: who watches it sees all or nothing of it
        st64(target.memory, _place(target, ioba), get64(source, 0))
        if target.shared:
            target.end_use()
        return 0
    while done < length:
        part = PAGE - ((ioba + done) & (PAGE - 1))
        if length - done < part:
            part = length - done
        copy(target.memory, _place(target, ioba + done), source, done, part)
        done += part
    if target.shared:
        target.end_use()
    return 0
