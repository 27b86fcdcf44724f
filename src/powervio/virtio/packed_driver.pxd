cimport cython
from powervio.virtio.driver_ring cimport DriverRing

cdef class PackedDriverRing(DriverRing):
    cdef unsigned int _slot
    cdef unsigned int _round
    cdef unsigned int _used_slot
    cdef unsigned int _used_round
    cdef unsigned int _published
    cdef unsigned int _first_slot
    cdef unsigned int _first_flags
    cdef unsigned int _unpublished
    cdef unsigned int _free
    cdef unsigned char *_ids
    cdef tuple _more_views
    cdef void _describe(self, unsigned int head, unsigned long long address, unsigned int length, unsigned int flags) noexcept nogil
    cdef unsigned int _flags(self) noexcept nogil
