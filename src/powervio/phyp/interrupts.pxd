cimport cython

@cython.final
cdef class InterruptPresentation:
    cdef readonly int fd
    cdef dict _states
    cdef object _waiting
    cdef unsigned int _cppr
    cdef bint _asserted
    cdef bint _held
    cpdef bint pulse(self, object source)
    cpdef unsigned int accept(self)
    cpdef bint end(self, unsigned long long xirr)
    cpdef void set_priority(self, unsigned int priority)
    cdef int _assert(self) except? -1
