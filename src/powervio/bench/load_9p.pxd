cimport cython

@cython.final
cdef class Load9P:
    cdef readonly unsigned long long answers
    cdef readonly unsigned long long moved
    cdef readonly unsigned long long nanoseconds
    cdef readonly int failed
    cdef readonly int failed_errno
    cdef int _fd
    cdef int _depth
    cdef list _kept
    cdef bytearray _table
    cdef bytearray _slots
    cdef bytearray _in
    cdef bytearray _out
    cdef unsigned char *_rows
    cdef unsigned char *_places
    cdef unsigned char *_script
    cdef unsigned char *_from
    cdef unsigned char *_to
    cdef bytearray _bytes
    cdef long long _filled
    cdef unsigned long long _position
    cdef unsigned long long _step
    cdef unsigned long long _end
    cdef void _next(self, int slot) noexcept nogil
    cdef int _rest(self, long long skip, long long there) noexcept nogil
    cdef int _run(self, unsigned long long nanoseconds) noexcept nogil
