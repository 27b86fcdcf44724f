# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""From device addresses to memory of this process, for loops that run without the interpreter lock.

A piece of memory is `{u64 host address, u64 length}` in host order: what Linux calls a struct iovec on machines of 64
bits, so a table of pieces can be given to readv and its like as it is.
This file is compiled (Cython pure mode) and also runs interpreted.
"""

from __future__ import annotations

import cython

READ = cython.declare(cython.uint, 1)
WRITE = cython.declare(cython.uint, 2)

PIECE = 16
"""Bytes of a piece in a table."""


@cython.cclass
class AddressSpace:
    """What the addresses in descriptors mean, where that memory is mapped here."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def gather(
        self,
        address: cython.ulonglong,
        length: cython.ulonglong,
        access: cython.uint,
        table: cython.p_uchar,
        count: cython.int,
        limit: cython.int,
    ) -> cython.int:
        """Append the pieces of a range to a table that has `count` of at most `limit`; returns how many it has then.

        `access`: 1 for the device to read, 2 to write. -1: the range is not the driver's to give; -2: the table is
        full. What the table holds behind `count` is of no meaning after either.
        """
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(-1)
    def check(self) -> cython.int:
        """Raise `RemoteError` when some of this memory is gone, and what was read of it before may be void."""
        return 0
