cimport cython

@cython.final
cdef class BlockRules:
    cdef public unsigned long long capacity
    cdef readonly unsigned long long largest
    cdef readonly bint read_only
    cdef public bint big_endian
    cdef readonly unsigned int kind
    cdef readonly unsigned long long position
    cdef readonly unsigned long long length
    cdef bint check(self, unsigned char *header, unsigned long long at, unsigned long long readable, unsigned long long writable) noexcept nogil
