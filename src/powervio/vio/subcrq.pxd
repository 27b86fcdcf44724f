from powervio.vio.outbox cimport Notification, Notifier, Outbox
from powervio.vio.slots cimport CrqSlots

cimport cython

cdef class SubCrqEnd

cdef class ElementReceiver:
    cpdef void take(self, SubCrqEnd end, unsigned long long high, unsigned long long low)
    cpdef void drained(self)

@cython.final
cdef class SubCrqEnd(Notifier):
    cdef public object cookie
    cdef public object partner
    cdef public bint registered
    cdef readonly unsigned long long strays
    cdef readonly unsigned long long undeliverable
    cdef object _kernel
    cdef object _port
    cdef object _unit_address
    cdef object _crq
    cdef Outbox _outbox
    cdef ElementReceiver _receiver
    cdef object _dma
    cdef object _memory
    cdef CrqSlots _slots
    cdef object _interrupt
    cdef dict _signals
    cdef object _retry
    cdef double _retry_delay
    cdef int _send(self, Notification notification) except? -1
    cdef void _retry_later(self) except *
