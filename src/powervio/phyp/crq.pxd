cimport cython
from powervio.phyp.tce cimport TceTable

@cython.final
cdef class ReceiveQueue:
    cdef TceTable table
    cdef readonly unsigned long long slot
    cdef readonly unsigned long long ioba
    cdef readonly unsigned long long length
    cdef readonly unsigned long long enqueue
    cpdef bint mapped(self, unsigned long long ioba, unsigned long long length)
    cpdef void register(self, unsigned long long ioba, unsigned long long length)
    cpdef void go_on_at(self, unsigned long long offset)
    cpdef void release(self)
    cpdef int put(self, unsigned long long high, unsigned long long low)
    cpdef void clear(self)
    cpdef int room(self, unsigned long long count)
    cpdef void store(self, unsigned long long dw0, unsigned long long dw1, unsigned long long dw2, unsigned long long dw3)
    cpdef int overlay(self, unsigned long long high)
