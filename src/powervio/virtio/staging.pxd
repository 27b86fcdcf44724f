cdef class Staging:
    cdef unsigned char *base
    cdef readonly unsigned long long size
    cdef int bring(self, unsigned long long address, unsigned long long length, unsigned long long place) except? -1
    cdef int put(self, unsigned long long address, unsigned long long length, unsigned long long place) except? -1
    cdef int pass_on(self, unsigned long long address, unsigned long long length, Staging other, unsigned long long to) except? -1
