# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False, nonecheck=False
"""The TCE table of one window pane: which pages of its owner's memory the hypervisor and the partner may touch.

An entry holds a logical page and two access bits (papr-vio 2.1), in host byte order here: nobody but the hypervisor
reads the table. The table is a private anonymous mapping, so a window of any size costs only the entries that were
ever used. Every use of an entry checks the page against the owner's memory again; nothing is cached.

A table may be *shared* with its owner (docs/gateway.md, G9), who then makes entries by stores of its own. Whatever uses
entries of it meets them first: each is loaded once, checked as H_PUT_TCE would, and kept here, and only what is kept
here is used. `private_count` is 0 then, so that what runs for every request looks at its one bound and goes on as ever
in a table that is not shared.

An entry that was copied into a physical adapter's table (`redirect`) is not changed behind the copy's back: while there
are copies, each change asks them first, and may be answered with H_RESOURCE, or with `BUSY`: to be tried again when the
operations on the page have ended.

The caller holds the hypervisor's lock; methods take any 64-bit values and answer with a return code.
"""

from __future__ import annotations

import mmap
from typing import Any

import cython
from cython.cimports.powervio.memory.hw import be64, fence, ld64, le64, pointer, st64, st64_release
from cython.cimports.powervio.phyp.ledger import CostLedger
from cython.cimports.powervio.phyp.redirect import CopySet

from powervio.phyp.redirect import sparse_area

H_PARAMETER = cython.declare(cython.int, -4)

PAGE_SHIFT = cython.declare(cython.int, 12)
PAGE_OFFSET = cython.declare(cython.ulonglong, 4095)
ACCESS = cython.declare(cython.ulonglong, 3)

_HOST_PAGE = cython.declare(cython.ulonglong, mmap.PAGESIZE)


@cython.final
@cython.cclass
class TceTable:
    """Entries of one pane, and the memory that they map.

    `size` is the pane in bytes, a multiple of 4096; `memory` is the owner's whole memory, a multiple of 4096 bytes.
    Addresses are I/O bus addresses (offsets in the pane) and logical addresses (offsets in the memory), in bytes.
    """

    entries: cython.p_uchar
    memory: cython.p_uchar
    count: cython.ulonglong
    private_count: cython.ulonglong
    memory_pages: cython.ulonglong
    copies: CopySet
    shared: cython.bint
    _store: cython.p_uchar
    _use: cython.p_uchar
    _ledger: CostLedger
    _map: Any
    _view: Any
    _owner: Any
    _area: Any

    def __init__(self, size: cython.ulonglong, memory: memoryview) -> None:
        self.count = size >> PAGE_SHIFT
        self.private_count = self.count
        """Entries that only the hypervisor changes: all, or none of a shared table."""
        self.shared = False
        self._ledger = CostLedger()
        self._area = (memoryview(bytearray(8)),)
        self._store = self._use = pointer(self._area[0])
        self._map = sparse_area(self.count * 8)
        self._view = memoryview(self._map)
        self.entries = pointer(self._map)
        self._owner = memoryview(memory)
        self.memory = pointer(memory)
        self.memory_pages = len(self._owner) >> PAGE_SHIFT
        self.copies = CopySet(self.count)

    def retire(self) -> None:
        """Let go of the memory: the owner is gone, and no entry translates any more."""
        self.unshare()
        self.clear()
        self.memory_pages = 0
        self._owner = bytearray(8)
        self.memory = pointer(self._owner)

    # -- sharing

    def share(self, store: memoryview, use: memoryview, ledger: CostLedger) -> None:
        """Share the table with its owner: entries move to `store`, 8 zeroed bytes for each, little-endian.

        `use` is the table's use word (G9.8). What the owner changes and the hypervisor meets is put on `ledger`.
        """
        index: cython.ulonglong
        self._area = (store, use)  # keeps the memory there for as long as it is used
        self._store = pointer(store)
        self._use = pointer(use)
        self._ledger = ledger
        for index in range(self.count):
            if ld64(self.entries, 8 * index) != 0:
                st64(self._store, 8 * index, le64(ld64(self.entries, 8 * index)))
        self.shared = True
        self.private_count = 0
        self.end_use()

    def unshare(self) -> None:
        """From here on the table is as its owner left it, and only the hypervisor changes it."""
        if not self.shared:
            return
        self._meet(0, self.count)
        self.shared = False
        self.private_count = self.count
        self._ledger = CostLedger()
        self._area = (memoryview(bytearray(8)),)
        self._store = self._use = pointer(self._area[0])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _meet(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.void:
        """Load entries of a shared table, in bounds, once each, and keep them; one that H_PUT_TCE would refuse is 0."""
        i: cython.ulonglong
        entry: cython.ulonglong
        changed: cython.ulonglong = 0
        for i in range(index, index + count):
            entry = le64(ld64(self._store, 8 * i))
            if (entry & ACCESS) != 0 and (entry >> PAGE_SHIFT) >= self.memory_pages:
                entry = 0
            if entry != ld64(self.entries, 8 * i):
                st64(self.entries, 8 * i, entry)
                changed += 1
        if changed != 0:
            self._ledger.tce_updates += changed
            self._ledger.shared_tce_updates += changed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _begin_use(self) -> cython.void:
        """Ahead of the loads of entries whose pages are used after them: whoever clears one now sees that it is used,
        or its clearing is seen here (G9.8)."""
        st64(self._use, 0, le64(1))
        fence()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def end_use(self) -> cython.void:
        """A copy has ended, or a redirection may have: if nothing of a shared table is redirected it is not in use."""
        if self.shared:
            st64_release(self._use, 0, le64(1) if self.copies.tracked != 0 else 0)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _set(self, index: cython.ulonglong, tce: cython.ulonglong) -> cython.void:
        """Store an entry of a shared table at both places."""
        st64(self._store, 8 * index, le64(tce))
        st64(self.entries, 8 * index, tce)

    # -- entries

    @cython.ccall
    @cython.exceptval(check=False)
    def get(self, ioba: cython.ulonglong) -> cython.ulonglong:
        """The entry that maps `ioba`; 0 beyond the table, which callers check first.

        It may be used from then on, in a shared table until `end_use`.
        """
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        if index >= self.private_count:
            return self._get_shared(index)
        return ld64(self.entries, index * 8)

    @cython.cfunc
    @cython.exceptval(check=False)
    def _get_shared(self, index: cython.ulonglong) -> cython.ulonglong:
        if not self.shared or index >= self.count:
            return 0
        self._begin_use()
        self._meet(index, 1)
        return ld64(self.entries, index * 8)

    @cython.ccall
    @cython.exceptval(check=False)
    def put(self, ioba: cython.ulonglong, tce: cython.ulonglong) -> cython.int:
        """Store one entry. Without access bits its page is neither checked nor dropped (papr-vio 1.4)."""
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        if index >= self.private_count:
            return self._stuff_shared(index, tce, 1)
        if (tce & ACCESS) != 0 and (tce >> PAGE_SHIFT) >= self.memory_pages:
            return H_PARAMETER
        if self.copies.tracked != 0:
            code: cython.int = self.copies.change(index, 1)
            if code != 0:
                return code
        st64(self.entries, index * 8, tce)
        return 0

    @cython.cfunc
    @cython.exceptval(check=False)
    def _stuff_shared(self, index: cython.ulonglong, tce: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """As `put` and `stuff`, of a shared table; H_PARAMETER for one that is not."""
        i: cython.ulonglong
        code: cython.int
        if not self.shared or index >= self.count or count > self.count - index:
            return H_PARAMETER
        if (tce & ACCESS) != 0 and (tce >> PAGE_SHIFT) >= self.memory_pages:
            return H_PARAMETER
        code = self.copies.change(index, count) if self.copies.tracked != 0 else 0
        if code == 0:
            for i in range(index, index + count):
                self._set(i, tce)
        self.end_use()
        return code

    @cython.cfunc
    @cython.exceptval(check=False)
    def drop(self, index: cython.ulonglong) -> cython.void:
        """Zero one entry in bounds, of a table that nobody copies from."""
        st64(self.entries, index * 8, 0)

    @cython.ccall
    @cython.exceptval(-1)
    def stuff(self, ioba: cython.ulonglong, tce: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """Store the same entry `count` times, or none."""
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        if index >= self.private_count or count > self.private_count - index:
            return self._stuff_shared(index, tce, count)
        if (tce & ACCESS) != 0 and (tce >> PAGE_SHIFT) >= self.memory_pages:
            return H_PARAMETER
        if self.copies.tracked != 0:
            code: cython.int = self.copies.change(index, count)
            if code != 0:
                return code
        if tce == 0:
            self._wipe(index, count)
            return 0
        i: cython.ulonglong
        for i in range(index, index + count):
            st64(self.entries, i * 8, tce)
        return 0

    @cython.ccall
    @cython.exceptval(check=False)
    def put_list(self, ioba: cython.ulonglong, address: cython.ulonglong, count: cython.ulonglong) -> cython.int:
        """Store `count` big-endian entries from the page at logical `address`: all of them, or none.

        The list is copied before it is looked at, because its owner can write to it at any moment.
        """
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        i: cython.ulonglong
        tce: cython.ulonglong
        words: cython.ulonglong[512]
        if (address & PAGE_OFFSET) != 0 or (address >> PAGE_SHIFT) >= self.memory_pages:
            return H_PARAMETER
        if count > 512 or index >= self.count or count > self.count - index:
            return H_PARAMETER
        if not cython.compiled:
            words = [0] * 512
        for i in range(count):
            tce = be64(ld64(self.memory, address + i * 8))
            words[i] = tce
            if (tce & ACCESS) != 0 and (tce >> PAGE_SHIFT) >= self.memory_pages:
                return H_PARAMETER
        if self.copies.tracked != 0:
            code: cython.int = self.copies.change(index, count)
            if code != 0:
                self.end_use()
                return code
        if self.shared:
            for i in range(count):
                self._set(index + i, words[i])
            self.end_use()
            return 0
        for i in range(count):
            st64(self.entries, (index + i) * 8, words[i])
        return 0

    def used(self) -> dict[int, int]:
        """The entries that are not 0, by the number of their I/O page."""
        if self.shared:
            self._meet(0, self.count)
        return {page: tce for page, tce in enumerate(self._view.cast("Q")) if tce}

    def clear(self) -> None:
        """Forget every entry, and end every copy of one."""
        index: cython.ulonglong
        self.copies.invalidate_all()
        self._map.madvise(mmap.MADV_DONTNEED)
        if self.shared:
            for index in range(self.count):
                st64(self._store, 8 * index, 0)
            self.end_use()

    @cython.cfunc
    def _wipe(self, index: cython.ulonglong, count: cython.ulonglong) -> cython.void:
        """Zero entries without touching pages that were never used: a booting guest clears its whole window."""
        start: cython.ulonglong = index * 8
        end: cython.ulonglong = (index + count) * 8
        first: cython.ulonglong = (start + _HOST_PAGE - 1) // _HOST_PAGE * _HOST_PAGE
        last: cython.ulonglong = end // _HOST_PAGE * _HOST_PAGE
        if first + _HOST_PAGE <= last:
            self._map.madvise(mmap.MADV_DONTNEED, first, last - first)
            self._zero(start, first)
            self._zero(last, end)
        else:
            self._zero(start, end)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _zero(self, start: cython.ulonglong, end: cython.ulonglong) -> cython.void:
        offset: cython.ulonglong = start
        while offset < end:
            if ld64(self.entries, offset) != 0:
                st64(self.entries, offset, 0)
            offset += 8

    # -- uses

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def translate(self, ioba: cython.ulonglong, need: cython.ulonglong) -> cython.longlong:
        """The logical address behind `ioba` if its entry has all access bits of `need`, else -1."""
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        if index >= self.private_count:
            return self._translate_shared(ioba, need)
        entry: cython.ulonglong = ld64(self.entries, index * 8)
        if (entry & need) != need or (entry >> PAGE_SHIFT) >= self.memory_pages:
            return -1
        return cython.cast(cython.longlong, ((entry >> PAGE_SHIFT) << PAGE_SHIFT) + (ioba & PAGE_OFFSET))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _translate_shared(self, ioba: cython.ulonglong, need: cython.ulonglong) -> cython.longlong:
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        entry: cython.ulonglong
        if not self.shared or index >= self.count:
            return -1
        self._meet(index, 1)
        entry = ld64(self.entries, index * 8)
        if (entry & need) != need or (entry >> PAGE_SHIFT) >= self.memory_pages:
            return -1
        return cython.cast(cython.longlong, ((entry >> PAGE_SHIFT) << PAGE_SHIFT) + (ioba & PAGE_OFFSET))

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def allows(self, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong) -> cython.bint:
        """Whether every page of `length` bytes from `ioba` has all access bits of `need`; true for no bytes.

        If so, `entries` says where they are, and what it says does not change under the same lock. A shared table is in
        use from then on, until `end_use`.
        """
        if length == 0:
            return True
        size: cython.ulonglong = self.private_count << PAGE_SHIFT
        if ioba >= size or length > size - ioba:
            return self._allows_shared(ioba, length, need)
        index: cython.ulonglong = ioba >> PAGE_SHIFT
        last: cython.ulonglong = (ioba + length - 1) >> PAGE_SHIFT
        entry: cython.ulonglong
        while index <= last:
            entry = ld64(self.entries, index * 8)
            if (entry & need) != need or (entry >> PAGE_SHIFT) >= self.memory_pages:
                return False
            index += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def _allows_shared(self, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong) -> cython.bint:
        """As `allows`, of one byte or more, beginning to use a shared table; false for one that is not."""
        size: cython.ulonglong = self.count << PAGE_SHIFT
        if not self.shared or ioba >= size or length > size - ioba:
            return False
        self._begin_use()
        self._meet(ioba >> PAGE_SHIFT, ((ioba + length - 1) >> PAGE_SHIFT) - (ioba >> PAGE_SHIFT) + 1)
        return self.keeps(ioba, length, need)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def keeps(self, ioba: cython.ulonglong, length: cython.ulonglong, need: cython.ulonglong) -> cython.bint:
        """As `allows`, of one byte or more in bounds: by the entries that are kept here, without loading any again."""
        index: cython.ulonglong
        entry: cython.ulonglong
        for index in range(ioba >> PAGE_SHIFT, ((ioba + length - 1) >> PAGE_SHIFT) + 1):
            entry = ld64(self.entries, index * 8)
            if (entry & need) != need or (entry >> PAGE_SHIFT) >= self.memory_pages:
                return False
        return True
