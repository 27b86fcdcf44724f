cimport cython

cdef class Target:
    cdef bint read(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint write(self, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil

@cython.final
cdef class FileTarget(Target):
    cdef public int fd
    cdef public unsigned long long size
    cdef public unsigned long long length
