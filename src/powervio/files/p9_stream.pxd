cimport cython

from powervio.files.p9_session cimport Session

@cython.final
cdef class P9Stream:
    cdef readonly Session session
    cdef readonly unsigned long long messages
    cdef readonly unsigned long long received
    cdef readonly unsigned long long sent
    cdef object _syncs
    cdef int _fd
    cdef long long _limit
    cdef bytearray _in
    cdef bytearray _out
    cdef unsigned char *_from
    cdef unsigned char *_to
    cdef long long _start
    cdef long long _end
    cdef long long _filled
    cdef int _resize(self, long long limit) except? -1
    cdef long long _flush(self) noexcept
    cdef long long _needs(self, unsigned char *message, long long size) noexcept
    cdef int _carry_out(self) except? -1
    cdef int _is_aside(self, unsigned char *message, long long size) except? -1
    cdef str _serve(self)
