cimport cython
from powervio.vio.slots cimport CrqSlots

@cython.final
cdef class Inbox:
    cdef public object on_message
    cdef public bint is_open
    cdef public bint is_closed
    cdef public unsigned long long strays
    cdef readonly CrqSlots slots
    cdef str _name
    cdef object _on_other
    cdef object _on_rest
    cdef object _on_drained
    cdef bint _draining
    cpdef void drain(self)
    cdef bint has_more(self) noexcept
    cdef void _drain(self) except *
    cdef void _hand_up(self, unsigned long long high, unsigned long long low) except *
