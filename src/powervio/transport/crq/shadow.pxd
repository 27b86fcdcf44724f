cimport cython
from powervio.transport.crq.remote cimport RemoteWindow

@cython.final
cdef class RingShadow:
    cdef unsigned char *base
    cdef RemoteWindow _window
    cdef object _memory
    cdef object _view
    cdef unsigned long long _ioba
    cdef unsigned char *_shadow
    cdef unsigned long long _low
    cdef unsigned long long _high
    cdef bint _forbidden
    cdef bytearray _book
    cdef unsigned long long _at
    cdef unsigned long long _length
    cpdef int fetch(self, unsigned long long address, unsigned long long length, unsigned long long offset) except? -1
    cpdef int store(self, unsigned long long address, unsigned long long length, unsigned long long offset) except? -1
    cpdef int write(self, unsigned long long address, unsigned long long length, unsigned long long offset) except? -1
    cpdef int fetch_along(self, unsigned long long address, unsigned long long length, unsigned long long offset) except? -1
    cdef int _keep(self, unsigned long long low, unsigned long long start, unsigned long long length) except? -1
    cpdef long long find(self, unsigned long long address, unsigned long long length) noexcept
