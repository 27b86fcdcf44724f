from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_ring cimport DeviceRing

cdef class GuestPayload:
    cdef readonly unsigned long long length
    cdef object _memory
    cdef AddressSpace _space
    cdef unsigned int _access
    cdef unsigned int _count
    cdef unsigned long long _first
    cdef unsigned long long _first_size
    cdef bytearray _rest
    cdef void _begin(self, unsigned int count)
    cdef void _set(self, unsigned int number, unsigned long long address, unsigned long long length)
    cdef unsigned long long _address(self, unsigned int number)
    cdef unsigned long long _size(self, unsigned int number)
    cdef int _check(self, long long offset, long long length) except? -1
    cdef int _gather(self, unsigned long long offset, unsigned long long length, unsigned char *table, int limit) except? -1
    cdef int _move(self, object backing, unsigned long long position, unsigned long long offset, unsigned long long length, bint to_memory) except? -1

cdef GuestPayload payload_of(object memory, object space, DeviceRing ring, bint writable)
