cimport cython

@cython.final
cdef class Decision:
    cdef readonly int kind
    cdef readonly int reason
    cdef readonly int egress
    cdef readonly bint tagged
    cdef readonly int vlan
    cdef readonly unsigned int tci
    cdef readonly int came
    cdef readonly int todo
    cdef unsigned int words
    cdef unsigned int place
    cdef unsigned long long rest
    cdef unsigned char *receivers
    cdef unsigned char *tags
    cdef object _books
    cpdef int next(self) noexcept
    cdef int next_receiver(self) noexcept nogil
    cpdef bint takes_tagged(self, int port) noexcept
    cdef bint gets_tagged(self, int port) noexcept nogil
    cpdef int change(self, bint tagged) noexcept
    cdef int tag_change(self, bint tagged) noexcept nogil
