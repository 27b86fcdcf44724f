cimport cython

cdef class DriverRing:
    cdef readonly unsigned int size
    cdef readonly unsigned int free_descriptors
    cdef readonly bint broken
    cdef tuple _views
    cdef dict _tokens
    cdef list _rooms
    cdef str _why
    cdef bint _event_idx
    cdef bint _indirect
    cdef bint _in_order
    cdef unsigned int _oldest
    cdef unsigned int _ordered
    cdef unsigned int _batch
    cdef unsigned int _batch_written
    cdef unsigned char *_descriptors
    cdef unsigned char *_available
    cdef unsigned char *_used
    cdef unsigned char *_table
    cdef unsigned char *_counts
    cdef unsigned char *_states
    cdef unsigned char *_order
    cdef unsigned long long _check(self, object segments, object readable_count, object table)
    cdef void _lend(self, unsigned int head, unsigned int count, unsigned long long room, object token)
    cdef unsigned int _covered(self, unsigned int head)
    cdef tuple _take_back(self, unsigned int head, unsigned int written)
    cdef tuple _next_of_batch(self)
    cdef void _free_descriptors(self, unsigned int head)
    cdef void _release(self, unsigned int head)
