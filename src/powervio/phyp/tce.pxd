cimport cython
from powervio.phyp.redirect cimport CopySet

@cython.final
cdef class TceTable:
    cdef unsigned char *entries
    cdef unsigned char *memory
    cdef readonly unsigned long long count
    cdef readonly unsigned long long memory_pages
    cdef readonly CopySet copies
    cdef object _map
    cdef object _view
    cdef object _owner
    cpdef unsigned long long get(self, unsigned long long ioba) noexcept
    cpdef int put(self, unsigned long long ioba, unsigned long long tce) noexcept
    cdef void drop(self, unsigned long long index) noexcept
    cpdef int stuff(self, unsigned long long ioba, unsigned long long tce, unsigned long long count) except? -1
    cpdef int put_list(self, unsigned long long ioba, unsigned long long address, unsigned long long count) noexcept
    cdef void _wipe(self, unsigned long long index, unsigned long long count)
    cdef void _zero(self, unsigned long long start, unsigned long long end) noexcept nogil
    cpdef long long translate(self, unsigned long long ioba, unsigned long long need) noexcept nogil
    cpdef bint allows(self, unsigned long long ioba, unsigned long long length, unsigned long long need) noexcept nogil
