cimport cython
from powervio.phyp.tce cimport TceTable

@cython.final
cdef class ReceiveQueue:
    cdef TceTable table
    cdef readonly unsigned long long ioba
    cdef readonly unsigned long long length
    cdef readonly unsigned long long enqueue
    cpdef bint mapped(self, unsigned long long ioba, unsigned long long length)
    cpdef void register(self, unsigned long long ioba, unsigned long long length)
    cpdef void release(self)
    cpdef int put(self, unsigned long long high, unsigned long long low)
    cpdef int overlay(self, unsigned long long high)
