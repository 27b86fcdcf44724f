from powervio.devices.net_passage cimport Passage
from powervio.devices.net_rules cimport ReceiveFilter, Steering
from powervio.memory.space cimport AddressSpace
from powervio.network.switch_core cimport SwitchCore
from powervio.virtio.device_queue cimport MappedQueue
from powervio.virtio.device_ring cimport DeviceRing

cimport cython

@cython.final
cdef class ForwardedQueue:
    cdef public unsigned int identity
    cdef public int number
    cdef readonly unsigned int handle
    cdef readonly unsigned int pair
    cdef readonly bint receives
    cdef public unsigned int taken
    cdef public bint link_up
    cdef readonly unsigned long long frames
    cdef readonly unsigned long long bytes
    cdef readonly unsigned long long unheard
    cdef readonly unsigned long long full
    cdef readonly unsigned long long filtered
    cdef readonly unsigned long long too_long
    cdef readonly unsigned long long no_room
    cdef readonly unsigned long long no_memory
    cdef readonly unsigned long long bad_buffers
    cdef readonly unsigned long long handed_over
    cdef readonly ForwardedQueue following
    cdef public object error
    cdef public object device
    cdef public object on_end
    cdef object _forwarder
    cdef SwitchCore _core
    cdef Passage _passage
    cdef MappedQueue _queue
    cdef DeviceRing _ring
    cdef AddressSpace _space
    cdef ReceiveFilter _filter
    cdef Steering _steering
    cdef unsigned long long _header_bytes
    cdef bint _mergeable
    cdef unsigned long long _mtu
    cdef unsigned long long _features
    cdef unsigned char *_waiting
    cdef unsigned char *_heads
    cdef unsigned char *_places
    cdef int _place_count
    cdef unsigned int _held
    cdef unsigned long long _room
    cdef bint _given
    cdef unsigned long long _told_frames
    cdef unsigned long long _told_bytes
    cdef object _books
    cdef void bring_first(self) noexcept nogil
    cdef void bring_next(self) noexcept nogil
    cdef void _bring(self, unsigned int distance) noexcept nogil
    cdef int arm(self) except? -1 nogil
    cdef void disarm(self) noexcept nogil
    cdef int show(self) except? -1 nogil
    cdef int _give(self) except? -1
    cdef int put(self, int number, unsigned int pair) except? -3 nogil
    cdef int choose(self, int number) noexcept nogil
    cdef int _put(self) except? -3 nogil
    cdef void _tell(self) noexcept nogil
    cdef int _refuse(self) except? -1 nogil
    cdef int _hold(self) noexcept nogil
    cdef int _fill(self, unsigned long long needed) except? -1 nogil
