cimport cython
from powervio.transport.crq.service cimport QueueService

@cython.final
cdef class KickReceiver:
    cdef public unsigned long long refused
    cdef public object configuration
    cdef QueueService _service
    cdef object _other

@cython.final
cdef class UsedReceiver:
    cdef public bint live
    cdef public unsigned long long rejected
    cdef readonly set used
    cdef public object handshake
    cdef object _completed
    cdef object _other
    cdef object _on_failure
