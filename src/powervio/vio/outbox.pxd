cimport cython

@cython.final
cdef class Outbox:
    cdef object _kernel
    cdef object _port
    cdef object _unit_address
    cdef object _is_gone
    cdef object _on_overflow
    cdef dict _kept
    cdef int _kept_messages
    cdef long long _posts
    cdef object _retry
    cdef double _delay
    cdef bint is_backlogged(self) noexcept
    cdef int _sent(self, object high, object low) except? -1
    cdef void _retry_later(self) except *
