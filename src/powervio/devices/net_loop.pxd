from powervio.devices.net_forwarded cimport ForwardedQueue
from powervio.devices.net_passage cimport Passage
from powervio.network.switch_core cimport SwitchCore
from powervio.network.switch_decision cimport Decision

cimport cython

@cython.final
cdef class Forwarder:
    cdef readonly SwitchCore core
    cdef readonly Decision decision
    cdef readonly Passage passage
    cdef readonly unsigned long long sleeps
    cdef unsigned char *_stopping
    cdef ForwardedQueue _first
    cdef ForwardedQueue _first_receiver
    cdef unsigned long long _spin
    cdef object _books
    cdef object _switch
    cdef object _queues
    cdef object _thread
    cdef object _lock
    cdef object _gate
    cdef object _resumed
    cdef object _poller
    cdef int _poll_fd
    cdef int _wake_fd
    cdef unsigned int _numbers
    cdef void _link(self)
    cdef int _run(self) except? -1 nogil
    cdef int _sleep(self) except? -1 nogil
    cdef int _no_waiting(self, int code) except? -1 nogil
    cdef int _turn(self, ForwardedQueue queue, unsigned long long now) except? -1 nogil
    cdef int _forward(self, ForwardedQueue queue, unsigned long long now) except? -1 nogil
    cdef int _flood(self) except? -1 nogil
    cdef int _deliver(self, int number, int change) except? -1 nogil
    cdef int _deliver_apart(self, int number) except? -1
