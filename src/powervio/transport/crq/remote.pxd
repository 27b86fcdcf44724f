cimport cython

@cython.final
cdef class RemoteWindow:
    cdef readonly object bounce
    cdef unsigned char *base
    cdef object _port
    cdef object _local
    cdef object _remote
    cdef unsigned long long _limit
    cdef object _dma
    cpdef int copy_in(self, unsigned long long address, unsigned long long length, unsigned long long local) except? -1
    cpdef int copy_out(self, unsigned long long address, unsigned long long length, unsigned long long local) except? -1
    cpdef int put(self, unsigned long long address, bytes data) except? -1
    cpdef int copy_across(self, unsigned long long address, unsigned long long length, RemoteWindow other, unsigned long long to) except? -1
