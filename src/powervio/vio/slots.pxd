cimport cython

@cython.final
cdef class CrqSlots:
    cdef unsigned char *base
    cdef readonly unsigned long long length
    cdef readonly unsigned long long slot
    cdef unsigned long long place
    cdef unsigned long long high
    cdef unsigned long long low
    cdef unsigned long long third
    cdef unsigned long long fourth
    cdef object _view
    cpdef void reset(self)
    cpdef bint waiting(self) noexcept
    cdef bint take(self) noexcept
    cdef bint take_wide(self) noexcept
