cimport cython
from powervio.phyp.tce cimport TceTable

@cython.final
cdef class ReceiveQueue:
    cdef TceTable table
    cdef readonly unsigned long long slot
    cdef readonly unsigned long long ioba
    cdef readonly unsigned long long length
    cdef readonly unsigned long long enqueue
    cpdef bint mapped(self, unsigned long long ioba, unsigned long long length) noexcept
    cpdef void register(self, unsigned long long ioba, unsigned long long length) noexcept
    cpdef void go_on_at(self, unsigned long long offset) noexcept
    cpdef void release(self) noexcept
    cpdef int put(self, unsigned long long high, unsigned long long low) noexcept
    cpdef void clear(self) noexcept
    cpdef int room(self, unsigned long long count) noexcept
    cpdef void store(self, unsigned long long dw0, unsigned long long dw1, unsigned long long dw2, unsigned long long dw3) noexcept
    cpdef int overlay(self, unsigned long long high) noexcept
