cimport cython
from powervio.vio.outbox cimport Notification, Notifier
from powervio.virtio.device_queue cimport DeviceQueue
from powervio.virtio.device_ring cimport DeviceRing

@cython.final
cdef class UsedNotification(Notification):
    cdef readonly Notifier notifier
    cdef DeviceRing _ring
    cdef unsigned long long _without_index

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
    cdef object _dma
    cdef object _window
    cdef object _on_broken
    cdef readonly object _redirector
    cdef object _staging
    cdef dict _rings
    cdef dict _queues
    cdef dict _kicked
    cdef dict _told
    cdef void _give_turn(self, DeviceQueue queue, bint kicked, object known) except *
    cdef void _turn(self, DeviceQueue queue) except *
    cdef void _serve(self, DeviceQueue queue, object known) except *
    cpdef void kick(self, object index, object known) except *
    cpdef void serve(self)
