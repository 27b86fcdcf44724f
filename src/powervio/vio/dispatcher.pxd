cimport cython

@cython.final
cdef class Dispatcher:
    cdef readonly dict handlers
    cdef readonly object soon
    cdef readonly int fd
    cdef readonly list timers
    cdef object _order
    cdef object _port
    cdef object _clock
    cpdef int take_interrupts(self) except? -1
    cpdef void guard(self, object call)
