cimport cython

@cython.final
cdef class InterruptLine:
    cdef readonly dict handlers
    cdef readonly int fd
    cdef object _port
    cdef void _call(self, object handler)
