# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""Block requests as rows of a `RequestTable`: which are usual reads and writes, and how they end (virtio 1.4, 5.2.6).

A usual request reads or writes whole sectors inside the disk, is not larger than it may be, and has a byte for its
status. `BlockDevice` handles everything else one by one, and says what is wrong with it.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import be32, be64, get32, get64, ld8, ld32, ld64, le32, le64, st8, st32, st64
from cython.cimports.powervio.virtio.request_table import DRAIN, FILL, NO_MEMORY, OTHER, PRESENT, RequestTable

from powervio.devices.block_options import BlockCounters

_SECTOR_SHIFT = cython.declare(cython.int, 9)
_SECTOR_OFFSET = cython.declare(cython.ulonglong, 511)
_HEADER = cython.declare(cython.ulonglong, 16)
_IN = cython.declare(cython.uint, 0)
_OUT = cython.declare(cython.uint, 1)
_OK = cython.declare(cython.uint, 0)
_IOERR = cython.declare(cython.uint, 1)


@cython.final
@cython.cclass
class BlockRules:
    """What a usual request is, for a disk as it is now. Sizes are bytes."""

    capacity: cython.ulonglong
    largest: cython.ulonglong
    read_only: cython.bint
    big_endian: cython.bint
    kind: cython.uint
    position: cython.ulonglong
    length: cython.ulonglong

    def __init__(self, largest: int, *, read_only: bool) -> None:
        """`largest` is what one request may have of data."""
        self.capacity = 0
        self.largest = largest
        self.read_only = read_only
        self.big_endian = False
        self.kind = OTHER
        self.position = 0
        self.length = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def check(
        self, header: cython.p_uchar, at: cython.ulonglong, readable: cython.ulonglong, writable: cython.ulonglong
    ) -> cython.bint:
        """Whether a request is usual: `header` at `at` is 16 private bytes of it, `readable` and `writable` its sizes.

        Then `kind` is FILL or DRAIN, `position` and `length` are those of its data.
        """
        kind: cython.uint = get32(header, at)
        sector: cython.ulonglong = get64(header, at + 8)
        room: cython.ulonglong
        if self.big_endian:
            kind = be32(kind)
            sector = be64(sector)
        else:
            kind = le32(kind)
            sector = le64(sector)
        if writable == 0 or readable < _HEADER:
            return False
        room = writable - 1
        readable -= _HEADER
        if kind == _IN:
            self.kind = FILL
            self.length = room
        elif kind == _OUT and not self.read_only:
            self.kind = DRAIN
            self.length = readable
        else:
            return False
        if room > self.largest or readable > self.largest or self.length == 0 or self.length & _SECTOR_OFFSET:
            return False
        if sector > self.capacity >> _SECTOR_SHIFT:
            return False
        self.position = sector << _SECTOR_SHIFT
        return self.length <= self.capacity - self.position


def serve(
    table: RequestTable,
    batch: Any,
    backing: Any,
    rules: BlockRules,
    counters: BlockCounters,
    flush: Callable[[RequestTable, int, int], None] | None,
    other: Callable[[RequestTable, int], bool],
) -> int:
    """Serve the rows of a table, as `batch` (a `Batch`) reaches them; returns how many usual ones there were.

    Reads and writes have no order among each other, all else has its place between them: `other` gets each row that is
    not usual, and says whether to go on with those behind it. `flush`, if any, makes the writes of a group of rows
    stable before they complete.
    """
    row: cython.ulonglong = 0
    end: cython.ulonglong
    usual: cython.ulonglong = 0
    batch.fetch(table)
    _mark(table, rules)
    while row < table.count:
        end = row
        while end < table.count and ld8(table.kinds, end) != OTHER:
            end += 1
        if end == row:
            row += 1
            if not other(table, row - 1):
                break
            continue
        batch.move(table, row, end, backing)
        if flush is not None and _has_written(table, row, end):
            flush(table, row, end)
        _judge(table, row, end, counters)
        batch.store(table, row, end)
        _complete(table, row, end, counters)
        usual += end - row
        row = end
    return int(usual)


@cython.cfunc
def _mark(table: RequestTable, rules: BlockRules) -> cython.void:
    """Say for each row of a table whose headers were fetched what there is to do."""
    row: cython.ulonglong
    for row in range(table.count):
        if ld8(table.presence, row) != PRESENT:
            continue
        if rules.check(
            table.headers, _HEADER * row, ld64(table.readable_bytes, 8 * row), ld64(table.writable_bytes, 8 * row)
        ):
            st8(table.kinds, row, rules.kind)
            st64(table.positions, 8 * row, rules.position)
            st64(table.lengths, 8 * row, rules.length)
            st32(table.offsets, 4 * row, 0 if rules.kind == FILL else 16)


@cython.cfunc
@cython.exceptval(check=False)
def _has_written(table: RequestTable, first: cython.ulonglong, end: cython.ulonglong) -> cython.bint:
    """Whether any of these usual rows has written to the backing."""
    row: cython.ulonglong
    for row in range(first, end):
        if ld8(table.kinds, row) == DRAIN and ld32(table.results, 4 * row) == 0:
            return True
    return False


def fail_written(table: RequestTable, first: cython.ulonglong, end: cython.ulonglong, code: cython.uint) -> None:
    """What was written is not stable: those rows fail with this errno."""
    row: cython.ulonglong
    for row in range(first, end):
        if ld8(table.kinds, row) == DRAIN and ld32(table.results, 4 * row) == 0:
            st32(table.results, 4 * row, code)


@cython.cfunc
def _judge(table: RequestTable, first: cython.ulonglong, end: cython.ulonglong, counters: BlockCounters) -> cython.void:
    """Make statuses of results, and count both."""
    row: cython.ulonglong
    result: cython.uint
    reads: cython.ulonglong = 0
    writes: cython.ulonglong = 0
    bytes_read: cython.ulonglong = 0
    bytes_written: cython.ulonglong = 0
    no_memory: cython.ulonglong = 0
    failed: cython.ulonglong = 0
    for row in range(first, end):
        result = ld32(table.results, 4 * row)
        st8(table.statuses, row, _OK if result == 0 else _IOERR)
        if result == NO_MEMORY:
            no_memory += 1
        elif result != 0:
            failed += 1
        elif ld8(table.kinds, row) == FILL:
            reads += 1
            bytes_read += ld64(table.lengths, 8 * row)
        else:
            writes += 1
            bytes_written += ld64(table.lengths, 8 * row)
    if reads:
        counters.reads += reads
        counters.bytes_read += bytes_read
    if writes:
        counters.writes += writes
        counters.bytes_written += bytes_written
    if failed:
        counters.count("backing", failed)
    if no_memory:
        counters.count("memory", no_memory)


@cython.cfunc
def _complete(
    table: RequestTable, first: cython.ulonglong, end: cython.ulonglong, counters: BlockCounters
) -> cython.void:
    """Give these usual rows back, after their statuses were stored."""
    row: cython.ulonglong
    written: cython.ulonglong
    lost: cython.ulonglong = 0
    for row in range(first, end):
        written = 0
        if not ld8(table.stored, row):
            lost += 1
        else:
            if ld8(table.kinds, row) == FILL and ld32(table.results, 4 * row) == 0:
                written = ld64(table.lengths, 8 * row)
            # the status counts only if nothing before it is left out (2.7.8.2: a driver may rely on all of it)
            if written + 1 == ld64(table.writable_bytes, 8 * row):
                written += 1
        table.give(row, written)
    if lost:
        counters.count("no status", lost)
