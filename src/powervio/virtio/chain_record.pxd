cdef class ChainRecord:
    cdef int begin(self, unsigned int head) except? -1 nogil
    cdef int begin_chain(self, unsigned int head, unsigned char *table, unsigned int slot, unsigned int count) except? -1 nogil
    cdef int recall(self, unsigned int head, unsigned int note, unsigned char *table) except? -1 nogil
    cdef int complete(self, unsigned int head) except? -1 nogil
    cdef int publishing(self, unsigned int used_index) except? -1 nogil
    cdef int published(self, unsigned int used_index) except? -1 nogil
