cimport cython

from powervio.memory.mapping cimport FileMapping

cdef class Target:
    cdef bint read(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint write(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint is_whole(self) noexcept nogil
    cdef bint move(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef void expect(self, unsigned long long position) noexcept nogil

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
    cdef readonly FileMapping mapping
    cdef readonly bint mapped
    cdef bint allows(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef long long start(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length, bint whole) noexcept nogil
    cdef bint _copy(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position) noexcept nogil
    cdef bint _call(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
