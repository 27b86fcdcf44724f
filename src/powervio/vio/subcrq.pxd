from powervio.vio.outbox cimport Outbox
from powervio.vio.slots cimport CrqSlots

cimport cython

@cython.final
cdef class SubCrqEnd:
    cdef public object cookie
    cdef public object partner
    cdef public bint registered
    cdef readonly unsigned long long strays
    cdef readonly unsigned long long undeliverable
    cdef public object on_element
    cdef object _kernel
    cdef object _port
    cdef object _unit_address
    cdef object _crq
    cdef Outbox _outbox
    cdef object _on_drained
    cdef object _dma
    cdef object _memory
    cdef CrqSlots _slots
    cdef object _interrupt
    cdef dict _signals
    cdef object _retry
    cdef double _retry_delay
    cdef int _send(self, object key, object build) except? -1
    cdef void _retry_later(self) except *
