cimport cython

@cython.final
cdef class Frame:
    cdef readonly object data
    cdef readonly object partial
    cdef readonly bint valid
    cdef readonly int gso
    cdef readonly int gso_size
    cdef readonly int header_bytes
    cdef readonly int needs
    cpdef tuple _key(self)

cdef int _needs(int gso, object data) except? -1
