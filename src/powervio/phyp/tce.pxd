cimport cython
from powervio.phyp.ledger cimport CostLedger
from powervio.phyp.redirect cimport CopySet

@cython.final
cdef class TceTable:
    cdef unsigned char *entries
    cdef unsigned char *memory
    cdef readonly unsigned long long count
    cdef readonly unsigned long long private_count
    cdef readonly unsigned long long memory_pages
    cdef readonly CopySet copies
    cdef readonly bint shared
    cdef unsigned char *_store
    cdef unsigned char *_use
    cdef CostLedger _ledger
    cdef object _map
    cdef object _view
    cdef object _owner
    cdef object _area
    cdef void _meet(self, unsigned long long index, unsigned long long count) noexcept nogil
    cdef void _begin_use(self) noexcept nogil
    cpdef void end_use(self) noexcept nogil
    cdef void _set(self, unsigned long long index, unsigned long long tce) noexcept
    cdef unsigned long long _get_shared(self, unsigned long long index) noexcept
    cdef int _stuff_shared(self, unsigned long long index, unsigned long long tce, unsigned long long count) noexcept
    cpdef unsigned long long get(self, unsigned long long ioba) noexcept
    cpdef int put(self, unsigned long long ioba, unsigned long long tce) noexcept
    cdef void drop(self, unsigned long long index) noexcept
    cpdef int stuff(self, unsigned long long ioba, unsigned long long tce, unsigned long long count) except? -1
    cpdef int put_list(self, unsigned long long ioba, unsigned long long address, unsigned long long count) noexcept
    cdef void _wipe(self, unsigned long long index, unsigned long long count)
    cdef void _zero(self, unsigned long long start, unsigned long long end) noexcept nogil
    cpdef long long translate(self, unsigned long long ioba, unsigned long long need) noexcept nogil
    cdef long long _translate_shared(self, unsigned long long ioba, unsigned long long need) noexcept nogil
    cpdef bint allows(self, unsigned long long ioba, unsigned long long length, unsigned long long need) noexcept nogil
    cdef bint _allows_shared(self, unsigned long long ioba, unsigned long long length, unsigned long long need) noexcept nogil
    cdef bint keeps(self, unsigned long long ioba, unsigned long long length, unsigned long long need) noexcept nogil
