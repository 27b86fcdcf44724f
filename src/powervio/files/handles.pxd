cimport cython

cdef class Held:
    cdef readonly int fd
    cdef int pins
    cdef int references
    cdef bint used
    cdef int slot
    cdef bytearray handle

@cython.final
cdef class DescriptorCache:
    cdef readonly int limit
    cdef readonly unsigned long long reopened
    cdef readonly unsigned long long evicted
    cdef readonly int stuck
    cdef readonly bint by_handle
    cdef list _ring
    cdef int _hand
    cdef int _mount
    cdef unsigned int _mount_id
    cdef void end(self) noexcept
    cpdef int make_room(self, int count) noexcept
    cdef bint _probe(self) noexcept
    cdef void adopt(self, Held held, int fd) noexcept
    cdef int take(self, Held held) noexcept
    cdef void give(self, Held held) noexcept
    cdef void drop(self, Held held) noexcept
    cdef void _close(self, Held held) noexcept
    cdef void _unlink(self, Held held) noexcept
    cdef int _reopen(self, Held held) noexcept
    cdef void _evict(self) noexcept
    cdef bint _let_go(self, Held held) noexcept
