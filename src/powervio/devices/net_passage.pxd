from powervio.devices.net_in_hand cimport FrameInHand
from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_ring cimport DeviceRing

cimport cython

@cython.final
cdef class Passage:
    cdef public unsigned int current
    cdef public bint open
    cdef readonly unsigned int open_head
    cdef readonly unsigned int opened_by
    cdef readonly FrameInHand hand
    cdef unsigned char *frame
    cdef unsigned char *out
    cdef readonly unsigned long long out_bytes
    cdef readonly unsigned long long rest_bytes
    cdef unsigned char *_private
    cdef unsigned char *_changed
    cdef unsigned char *_base
    cdef bint _looked
    cdef unsigned char *_sources
    cdef int _source_count
    cdef int _rest_source
    cdef unsigned long long _rest_offset
    cdef int _reading
    cdef unsigned long long _offset
    cdef int _shift
    cdef unsigned long long _place
    cdef object _books
    cdef bint find(self, DeviceRing ring, AddressSpace space, unsigned long long header_bytes, unsigned long long features, unsigned long long mtu) noexcept nogil
    cdef void _fetch(self, unsigned char *to, unsigned long long length) noexcept nogil
    cdef void change(self, int change, unsigned int tci) noexcept nogil
    cdef void look(self) noexcept nogil
    cdef void begin_reading(self, unsigned long long header_bytes, unsigned int buffers) noexcept nogil
    cdef void read_to(self, unsigned long long address, unsigned long long length) noexcept nogil
    cdef object whole(self)
