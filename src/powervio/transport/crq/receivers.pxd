cimport cython
from powervio.transport.crq.channels cimport HintReceiver
from powervio.transport.crq.service cimport QueueService
from powervio.vio.inbox cimport Inbox

@cython.final
cdef class KickReceiver(HintReceiver):
    cdef public unsigned long long refused
    cdef public object configuration
    cdef public Inbox inbox
    cdef object _kernel
    cdef QueueService _service
    cdef object _other

@cython.final
cdef class UsedReceiver(HintReceiver):
    cdef public bint live
    cdef public unsigned long long rejected
    cdef readonly set used
    cdef public object handshake
    cdef object _completed
    cdef object _other
    cdef object _on_failure
    cpdef void drained(self)
