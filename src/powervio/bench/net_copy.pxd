cimport cython

@cython.final
cdef class CopyLoop:
    cdef readonly unsigned long long frames
    cdef readonly unsigned long long lost
    cdef readonly int stop_fd
    cdef int _first
    cdef int _second
    cdef unsigned char *_data
    cdef unsigned char *_table
    cdef tuple _views
    cdef bint _pass_on(self, int source, int target) noexcept nogil
