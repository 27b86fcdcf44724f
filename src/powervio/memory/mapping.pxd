cimport cython

@cython.final
cdef class Guard:
    cdef unsigned int _number
    cdef object _memory
    cdef bint is_broken(self) noexcept nogil

cdef unsigned char *breaks() noexcept nogil

@cython.final
cdef class FileMapping:
    cdef object _memory
    cdef Guard _guard
    cdef unsigned char *_base
    cdef unsigned long long _length
    cdef bint _has_marks
    cdef object _pages
    cdef unsigned char *_marks
    cdef bint has(self, unsigned long long position, unsigned long long length) noexcept nogil
    cdef bint move(self, bint writes, unsigned char *pieces, unsigned int count, unsigned long long position) noexcept nogil
    cdef void expect(self, unsigned long long position) noexcept nogil
    cdef void learn(self, bint writes, int fd, unsigned char *pieces, unsigned int count, unsigned long long position, unsigned long long length) noexcept nogil
