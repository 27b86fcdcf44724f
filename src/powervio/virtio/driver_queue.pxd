cimport cython

@cython.final
cdef class Buffer:
    cdef readonly object view
    cdef readonly unsigned long long address
    cdef readonly unsigned long long length
    cdef readonly bint is_mapped
    cdef readonly unsigned long long mapped_at

cdef class DriverQueue:
    cdef public unsigned int index
    cdef public unsigned int size
    cpdef bint add(self, object readable, object writable, object token) except? -1
    cpdef void kick(self)
    cpdef object reap(self)
