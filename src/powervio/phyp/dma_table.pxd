cimport cython
from powervio.phyp.tce cimport TceTable
from powervio.phyp.redirect cimport CopySet, Link, RedirectedCopy

@cython.final
cdef class DmaTable:
    cdef readonly TceTable own
    cdef readonly object partition
    cdef list places
    cdef readonly unsigned long long count
    cpdef void store(self, unsigned long long index, unsigned long long tce)
    cpdef void forget(self, unsigned long long index, unsigned long long count)
    cpdef unsigned long long redirected(self, unsigned long long index)

@cython.final
cdef class DmaOperation:
    cdef list pinned
    cdef readonly list runs
    cdef readonly list partitions
    cdef readonly dict moved
    cdef readonly unsigned long long length
    cdef object _memory
    cdef unsigned long long _start
    cdef unsigned long long _end
    cpdef bint take(self, DmaTable table, unsigned long long ioba, unsigned long long length, unsigned long long need)
    cdef void _add_partition(self, object partition)
    cdef void _extend(self, object memory, unsigned long long start, unsigned long long length)
    cpdef void finish(self)
    cpdef void release(self)
