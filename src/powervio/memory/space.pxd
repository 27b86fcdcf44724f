cdef unsigned int READ
cdef unsigned int WRITE

cdef class AddressSpace:
    cdef int gather(self, unsigned long long address, unsigned long long length, unsigned int access, unsigned char *table, int count, int limit) noexcept nogil
    cdef int check(self) except? -1 nogil
