cimport cython

cdef class Target:
    cdef bint read(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint write(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil

@cython.final
cdef class FileTarget(Target):
    cdef public int fd
    cdef public unsigned long long size
    cdef public unsigned long long length
    cdef public int lost
    cdef readonly bint read_only
    cdef readonly unsigned long long alignment
    cdef readonly bint in_memory
    cdef int _reading
    cdef int _writing
    cdef object _mapping
    cdef unsigned char *_mapped
    cdef unsigned long long _mapped_bytes
    cdef bint allows(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint is_whole(self) noexcept nogil
    cdef long long start(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef long long _copy(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
