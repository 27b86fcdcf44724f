cimport cython
from powervio.vio.ranges cimport PageRange

@cython.final
cdef class EngineWindow:
    cdef readonly object engine
    cdef readonly object liobn
    cdef readonly PageRange _range
    cpdef long long allocate(self, long long pages) except? -1
    cpdef void free(self, long long ioba, long long pages) except *
