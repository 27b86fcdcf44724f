from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_queue cimport MappedQueue

cdef class VhostQueue(MappedQueue):
    cdef public object vring
    cdef public unsigned int left
    cdef object _memory
    cdef AddressSpace _map
    cdef object _features
    cdef object _ring_failed
    cdef bytearray _heads
    cdef unsigned char *_head_table
    cdef unsigned int _again
    cdef unsigned int _again_end
    cdef int _take_again(self) except? -1 nogil
