from powervio.devices.net_in_hand cimport FrameInHand
from powervio.devices.net_rules cimport ReceiveFilter, Steering
from powervio.memory.space cimport AddressSpace
from powervio.network.switch_core cimport Decision, SwitchCore
from powervio.virtio.device_queue cimport MappedQueue
from powervio.virtio.device_ring cimport DeviceRing

cimport cython

cdef class Forwarder

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
    cdef Forwarder _forwarder
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
    cdef int turn(self, unsigned long long now) except? -1 nogil
    cdef void bring(self, unsigned int distance) noexcept nogil
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

@cython.final
cdef class Forwarder:
    cdef readonly SwitchCore core
    cdef readonly Decision decision
    cdef readonly FrameInHand hand
    cdef readonly unsigned int current
    cdef readonly bint open
    cdef readonly unsigned int open_head
    cdef readonly unsigned int opened_by
    cdef unsigned char *out
    cdef readonly unsigned long long out_bytes
    cdef readonly unsigned long long rest_bytes
    cdef readonly unsigned long long sleeps
    cdef unsigned char *_private
    cdef unsigned char *_changed
    cdef unsigned char *_base
    cdef unsigned char *_frame
    cdef bint _looked
    cdef unsigned char *_sources
    cdef int _source_count
    cdef int _rest_source
    cdef unsigned long long _rest_offset
    cdef int _reading
    cdef unsigned long long _offset
    cdef int _shift
    cdef unsigned long long _place
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
    cdef int forward(self, ForwardedQueue queue, unsigned long long now) except? -1 nogil
    cdef int _flood(self) except? -1 nogil
    cdef bint _is_usual(self, ForwardedQueue queue) noexcept nogil
    cdef void _fetch(self, unsigned char *to, unsigned long long length) noexcept nogil
    cdef void look(self) noexcept nogil
    cdef int _deliver(self, int number, int change) except? -1 nogil
    cdef void _change(self, int change) noexcept nogil
    cdef void begin_reading(self, unsigned long long header_bytes, unsigned int buffers) noexcept nogil
    cdef void read_to(self, unsigned long long address, unsigned long long length) noexcept nogil
    cdef int _deliver_apart(self, int number) except? -1
