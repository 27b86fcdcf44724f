cimport cython
from powervio.virtio.device_queue cimport DeviceQueue

@cython.final
cdef class QueueService:
    cdef public bint paused
    cdef public bint frozen
    cdef public bint touched
    cdef public object on_idle
    cdef public object on_frozen
    cdef public unsigned long long rejected
    cdef public object device
    cdef object _kernel
    cdef dict _notifiers
    cdef object _dma
    cdef object _window
    cdef object _on_broken
    cdef readonly object _redirector
    cdef object _staging
    cdef dict _rings
    cdef dict _queues
    cdef dict _kicked
    cdef dict _builders
    cdef void _give_turn(self, DeviceQueue queue, bint kicked, object known) except *
    cdef void _turn(self, DeviceQueue queue) except *
    cdef void _serve(self, DeviceQueue queue, object known) except *
    cpdef void kick(self, object index, object known) except *
