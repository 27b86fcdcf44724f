cimport cython

@cython.final
cdef class Caller:
    cdef readonly unsigned int uid
    cdef readonly unsigned int gid
    cdef readonly tuple groups
    cdef object _of
    cdef unsigned int _uid
    cdef unsigned int _gid
    cdef unsigned int _count
    cdef bytearray _book
    cdef unsigned char *_table
    cdef int _set(self, object groups) except? -1
    cpdef Caller with_group(self, unsigned int gid)

@cython.final
cdef class Identity:
    cdef readonly str kind
    cdef readonly bint switches
    cdef readonly bint mapped
    cdef readonly bint squashes
    cdef readonly bint translates
    cdef Caller _squashed
    cdef tuple _users
    cdef tuple _groups
    cdef Caller _own
    cdef int enter(self, Caller caller) except? -1000
    cdef int enter_own(self) noexcept
    cdef void leave(self) noexcept
    cpdef void keep(self) noexcept
    cpdef void rest(self) noexcept
    cdef int _resolve(self, Caller caller) except? -1
