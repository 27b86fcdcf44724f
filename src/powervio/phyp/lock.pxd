cimport cython

@cython.final
cdef class HypervisorLock:
    cdef unsigned char *_word
    cdef bytearray _book
    cpdef bint acquire(self, bint blocking=*) except? -1
    cpdef void release(self) noexcept
    cdef bint _wait(self) except? -1
