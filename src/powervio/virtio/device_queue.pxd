from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_ring cimport DeviceRing
from powervio.virtio.staging cimport Staging

cdef class Request:
    cdef readonly unsigned int head
    cdef readonly object readable
    cdef readonly object writable
    cdef readonly DeviceQueue queue

cdef class DeviceQueue:
    cdef readonly unsigned int index
    cdef readonly DeviceRing ring
    cdef public bint live
    cdef public bint enabled
    cdef public object batch
    cdef public Staging staging
    cdef long long _allowance
    cdef object _payload
    cdef object _notify
    cdef object _broken
    cdef public object _wake
    cdef bint _wake_is_due
    cdef int take(self) except? -1 nogil
    cdef int take_allowed(self) except? -1
    cpdef Request request(self)
    cpdef Request request_of(self, unsigned int head, list readable, list writable)
    cpdef object payload_of(self, list segments)
    cpdef object complete(self, long long head, long long written)

cdef class MappedQueue(DeviceQueue):
    cdef public int kick
    cdef public int call
    cdef readonly AddressSpace space
    cdef readonly unsigned long long notifications
    cdef unsigned int _held_back
    cdef bint _wanted
    cdef int finish(self, unsigned int head, unsigned int written) except? -1 nogil
    cdef void shown(self, int wanted) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef int rest(self, int stop, int other, int milliseconds) noexcept nogil
