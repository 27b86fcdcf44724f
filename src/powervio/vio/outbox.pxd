cimport cython

cdef class Notification:
    cdef readonly long long key
    cdef public unsigned long long high
    cdef public unsigned long long low
    cpdef void build(self)

cdef class Notifier:
    cpdef void signal(self, Notification notification)
    cpdef void forget_signal(self, long long key)

@cython.final
cdef class Outbox(Notifier):
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
    cdef int _sent(self, unsigned long long high, unsigned long long low) except? -1
    cdef void _retry_later(self) except *
