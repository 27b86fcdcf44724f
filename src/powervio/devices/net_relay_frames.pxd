from powervio.virtio.device_queue cimport DeviceQueue
from powervio.virtio.staging cimport Staging

cimport cython

@cython.final
cdef class RelayFrames:
    cdef readonly unsigned int count
    cdef unsigned char *base
    cdef unsigned char *_rows
    cdef unsigned char *_segments
    cdef unsigned int _segment_count
    cdef dict _requests
    cdef DeviceQueue _queue
    cdef Staging _staging
    cdef bint _open
    cdef unsigned long long _from
    cdef unsigned long long _until
    cdef unsigned long long _to
    cdef unsigned long long _place
    cdef bint _failed
    cdef unsigned int _source
    cdef unsigned long long _offset
    cdef object _books
    cdef int collect(self, DeviceQueue queue, unsigned long long header_bytes, bint link_up) except? -1
    cdef unsigned long long _part_of(self, unsigned long long total) noexcept
    cdef object request(self, unsigned int row)
    cdef unsigned int state(self, unsigned int row) noexcept
    cdef void set_apart(self, unsigned int row) noexcept
    cdef unsigned int head(self, unsigned int row) noexcept
    cdef unsigned long long total(self, unsigned int row) noexcept
    cdef unsigned long long place(self, unsigned int row) noexcept
    cdef unsigned long long staged(self, unsigned int row) noexcept
    cdef object whole(self, unsigned int row, unsigned long long begins, unsigned long long have)
    cdef int bring(self, unsigned int first) except? -1
    cdef int _bring_row(self, unsigned int row) except? -1
    cdef int _close(self) except? -1
    cdef int _bring_alone(self, unsigned int row) except? -1
    cdef int _bring_bytes(self, unsigned int row, unsigned long long offset, unsigned long long length, unsigned long long place) except? -1
    cdef void begin_rest(self, unsigned int row) noexcept
    cdef int pass_rest(self, Staging there, unsigned long long address, unsigned long long length) except? -1
