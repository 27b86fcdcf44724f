cimport cython

cdef class DriverRing:
    cdef readonly unsigned int size
    cdef readonly unsigned int free_descriptors
    cdef readonly bint broken
    cdef readonly unsigned int written
    cdef tuple _views
    cdef list _tokens
    cdef str _why
    cdef bint _event_idx
    cdef bint _indirect
    cdef bint _in_order
    cdef unsigned long long _lent
    cdef unsigned long long _shown
    cdef unsigned long long _taken
    cdef unsigned int _batch
    cdef unsigned int _batch_written
    cdef unsigned char *_descriptors
    cdef unsigned char *_available
    cdef unsigned char *_used
    cdef unsigned char *_entries
    cdef unsigned char *_table
    cdef unsigned char *_counts
    cdef unsigned char *_rooms
    cdef unsigned char *_ages
    cdef unsigned char *_order
    cdef int _write(self, unsigned char *segments, unsigned int count, unsigned int readers, unsigned char *table, unsigned long long table_address) except? -2 nogil
    cdef int _look(self) except? -2 nogil
    cdef int show(self) except? -1 nogil
    cdef int arm(self) except? -1 nogil
    cdef int disarm(self) except? -1 nogil
    cdef void _free_descriptors(self, unsigned int head) noexcept nogil
    cdef int lend(self, unsigned char *segments, unsigned int count, unsigned int readers, unsigned char *table, unsigned long long table_address) except? -2 nogil
    cdef int take_back(self) except? -2 nogil
    cdef void name(self, unsigned int head, object token)
    cdef object token(self, unsigned int head)
    cdef long long _check(self, unsigned char *segments, unsigned int count, unsigned int readers, bint indirect) except? -1 nogil
    cdef bint _is_published(self, unsigned int head) noexcept nogil
    cdef unsigned int _covered(self, unsigned int head) noexcept nogil
    cdef void _release(self, unsigned int head) noexcept nogil
