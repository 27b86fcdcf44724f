from powervio.bench.load cimport LoadPort
from powervio.transport.crq.driver_queue cimport CrqDriverQueue

cdef class CrqPort(LoadPort):
    cdef CrqDriverQueue _queue
    cdef object _turn
    cdef tuple _views
    cdef unsigned char *_number_of
    cdef unsigned char *_collected
    cdef unsigned char *_spare
    cdef unsigned int _spares
    cdef unsigned int _ready
    cdef unsigned int _next
