cimport cython

@cython.final
cdef class Annex:
    cdef readonly unsigned long long low
    cdef readonly unsigned long long high
    cdef unsigned char *base
    cdef unsigned long long _at
    cdef unsigned long long _length
    cdef bytearray _book
    cdef bint _forbidden
    cpdef long long find(self, unsigned long long address, unsigned long long length) noexcept
