cimport cython

cdef class InflightQueue:
    cdef readonly unsigned int size
    cdef object _view
    cdef object _books
    cdef unsigned char *_record
    cdef unsigned char *_completed
    cdef unsigned int _count
    cdef unsigned long long _counter
    cdef int begin(self, unsigned int head) except? -1 nogil
    cdef int complete(self, unsigned int head) except? -1 nogil
    cdef int published(self, unsigned int used_index) except? -1 nogil
    cdef object _unknown(self, unsigned int head)

@cython.final
cdef class SplitInflight(InflightQueue):
    cdef unsigned int _batch
