cimport cython

@cython.final
cdef class PageRange:
    cdef readonly long long free_pages
    cdef object _what
    cdef long long _total
    cdef list _starts
    cdef dict _lengths
    cdef dict _kept
    cpdef long long allocate(self, long long pages) except? -1
    cpdef void free(self, long long start, long long pages) except *
