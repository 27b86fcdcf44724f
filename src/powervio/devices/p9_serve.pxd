from powervio.files.identity cimport Identity
from powervio.files.p9_session cimport Session
from powervio.virtio.device_queue cimport DeviceQueue, Request
from powervio.virtio.device_ring cimport DeviceRing
from powervio.virtio.staging cimport Staging

cimport cython

@cython.final
cdef class P9Server:
    cdef readonly unsigned long long messages
    cdef readonly unsigned long long bytes_read
    cdef readonly unsigned long long bytes_written
    cdef readonly unsigned long long errors
    cdef readonly unsigned long long refused
    cdef object _session
    cdef Session _direct
    cdef Identity _identity
    cdef object _syncs
    cdef bint _later
    cdef bytearray _book
    cdef unsigned char *_out
    cdef long long _room
    cdef long long _data
    cdef int _serve(self, Request request) except? -1
    cdef int _serve_begun(self, bytes head, Request request) except? -1
    cdef int _serve_staged(self, DeviceQueue queue) except? -1
    cdef int _move(self, DeviceRing ring, Staging staging, unsigned int begin, unsigned int end, long long length, unsigned long long place, bint out) except? -1
    cdef object _answer(self, bytes head, Request request)
    cdef bint _is_about_syncs(self, int kind) noexcept
    cdef int _is_aside(self, int kind, unsigned char *base, long long size, Request request) except? -1
    cdef bint _is_apart(self, int kind, unsigned char *base, long long there, long long size, long long room) noexcept
    cdef long long _need(self, int kind, unsigned char *base, long long there) noexcept
    cdef object _said(self, object answer, long long done, unsigned char *base, int kind, unsigned int tag, long long room)
    cdef bytes _error(self, unsigned int tag, int code)
    cdef long long _count(self, long long done, unsigned char *base, int kind, unsigned int tag, long long room) noexcept
    cdef long long _put_error(self, unsigned char *out, unsigned int tag, int code) noexcept
