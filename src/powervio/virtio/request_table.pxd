cimport cython
from powervio.virtio.device_queue cimport DeviceQueue, Request
from powervio.virtio.device_ring cimport DeviceRing

cdef unsigned int TOO_SHORT
cdef unsigned int PRESENT
cdef unsigned int UNREACHABLE
cdef unsigned int OTHER
cdef unsigned int FILL
cdef unsigned int DRAIN
cdef unsigned int NO_MEMORY

@cython.final
cdef class RequestTable:
    cdef readonly unsigned int count
    cdef public DeviceQueue queue
    cdef unsigned char *heads
    cdef unsigned char *first_segments
    cdef unsigned char *readable_counts
    cdef unsigned char *segment_counts
    cdef unsigned char *readable_bytes
    cdef unsigned char *writable_bytes
    cdef unsigned char *headers
    cdef unsigned char *presence
    cdef unsigned char *kinds
    cdef unsigned char *positions
    cdef unsigned char *offsets
    cdef unsigned char *lengths
    cdef unsigned char *results
    cdef unsigned char *statuses
    cdef unsigned char *stored
    cdef unsigned char *moves
    cdef unsigned char *order
    cdef unsigned char *segments
    cdef unsigned char *pieces
    cdef list _books
    cdef unsigned int _segment_count
    cdef unsigned int _segment_room
    cpdef int fill(self, DeviceQueue queue) except? -1
    cdef int _append(self, DeviceRing ring) except? -1
    cdef int give(self, unsigned long long row, unsigned int written) except? -1
    cdef unsigned int cut(self, unsigned long long row) noexcept
    cdef unsigned long long status_address(self, unsigned long long row) noexcept
    cpdef Request request(self, unsigned long long row)
    cpdef object header(self, unsigned long long row)
    cpdef object payload(self, unsigned long long row, bint writable)
    cdef list _segments_of(self, unsigned long long row, bint writable)
