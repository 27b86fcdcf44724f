cimport cython
from powervio.phyp.ledger cimport CostLedger

@cython.final
cdef class Numbers:
    cdef readonly list objects
    cdef unsigned char *_holds
    cdef bytearray _book
    cpdef unsigned int take(self, object wanted)
    cdef void hold(self, unsigned int number) noexcept
    cdef void drop(self, unsigned int number) noexcept

@cython.final
cdef class Link:
    cdef readonly CopySet copies
    cdef readonly object memory
    cdef readonly object partition
    cdef readonly CostLedger ledger
    cdef readonly CostLedger peer_ledger
    cdef public bint closing
    cdef unsigned char *base

@cython.final
cdef class Places:
    cdef readonly Numbers links
    cdef unsigned char *entries
    cdef object _area
    cdef void put(self, unsigned long long place, unsigned int link, unsigned int number, unsigned long long tce) noexcept
    cdef void clear(self, unsigned long long place) noexcept

@cython.final
cdef class CopySet:
    cdef readonly unsigned long long tracked
    cdef readonly unsigned long long live
    cdef readonly unsigned long long pinned
    cdef public bint bit_bucket
    cdef readonly Numbers owners
    cdef unsigned long long _count
    cdef unsigned char *_newest
    cdef object _area
    cdef unsigned char *_records
    cdef bytearray _book
    cdef unsigned int _room
    cdef unsigned int _free
    cdef void _make_room(self)
    cdef int check(self, unsigned long long entry, unsigned int owner, unsigned long long place, int limit) noexcept
    cdef unsigned int add(self, unsigned long long entry, unsigned int owner, unsigned long long place) except? 0
    cdef void invalidate(self, unsigned int number) noexcept
    cdef void invalidate_in(self, Places places, unsigned int number) noexcept
    cdef void pin(self, unsigned int number) noexcept
    cdef void unpin(self, unsigned int number) noexcept
    cdef void _forget(self, unsigned int number) noexcept
    cdef int _visit(self, unsigned long long index, unsigned long long count, bint ends) noexcept
    cdef int _visit_entry(self, unsigned long long entry, bint ends) noexcept
    cpdef int change(self, unsigned long long index, unsigned long long count) noexcept
    cpdef void invalidate_all(self)
    cpdef int close(self)
