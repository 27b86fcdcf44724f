from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_ring cimport DeviceRing

cdef class GuestPayload:
    cdef readonly unsigned long long length
    cdef object _memory
    cdef AddressSpace _space
    cdef unsigned int _access
    cdef unsigned int _count
    cdef bytearray _segments
    cdef int _gather(self, unsigned long long offset, unsigned long long length, unsigned char *table, int limit) except? -1
    cdef int _move(self, object backing, unsigned long long position, unsigned long long offset, unsigned long long length, bint to_memory) except? -1

cdef GuestPayload payload_of(object memory, object space, DeviceRing ring, bint writable)
