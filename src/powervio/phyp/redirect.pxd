cimport cython

@cython.final
cdef class Link:
    cdef readonly CopySet copies
    cdef readonly object memory
    cdef readonly object partition
    cdef readonly object ledger
    cdef readonly object peer_ledger
    cdef public bint closing

@cython.final
@cython.freelist(256)
@cython.no_gc
cdef class RedirectedCopy:
    cdef readonly Link link
    cdef readonly unsigned long long entry
    cdef readonly unsigned long long tce
    cdef list places
    cdef readonly unsigned long long target
    cdef readonly unsigned long long pins
    cdef readonly bint live
    cdef RedirectedCopy following

@cython.final
cdef class CopySet:
    cdef list chunks
    cdef readonly unsigned long long tracked
    cdef readonly unsigned long long live
    cdef readonly unsigned long long pinned
    cdef public bint bit_bucket
    cpdef int check(self, unsigned long long entry, list places, unsigned long long target, int limit)
    cpdef void add(self, Link link, unsigned long long entry, unsigned long long tce, list places, unsigned long long target)
    cpdef void invalidate(self, RedirectedCopy copy)
    cpdef void pin(self, RedirectedCopy copy)
    cpdef void unpin(self, RedirectedCopy copy)
    cdef RedirectedCopy _first(self, unsigned long long entry)
    cdef void _set_first(self, unsigned long long entry, RedirectedCopy copy)
    cdef list _chains(self, unsigned long long index, unsigned long long count)
    cdef void _forget(self, RedirectedCopy copy)
    cpdef int change(self, unsigned long long index, unsigned long long count)
    cpdef void invalidate_all(self)
    cdef void _invalidate_chains(self, list chains)
    cpdef int close(self)
