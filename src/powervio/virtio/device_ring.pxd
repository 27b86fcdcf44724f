cimport cython

cdef class Chain:
    cdef readonly unsigned int head
    cdef readonly list readable
    cdef readonly list writable

cdef class DeviceRing:
    cdef readonly unsigned int size
    cdef readonly unsigned int in_hand
    cdef readonly bint broken
    cdef readonly unsigned long long rejected
    cdef object _memory
    cdef tuple _views
    cdef str _why
    cdef bint _remote
    cdef bint _event_idx
    cdef bint _indirect
    cdef bint _in_order
    cdef bint _joins
    cdef unsigned int _unpublished
    cdef unsigned int _oldest
    cdef unsigned int _ordered
    cdef unsigned char *_descriptors
    cdef unsigned char *_available
    cdef unsigned char *_used
    cdef unsigned char *_table
    cdef unsigned char *_states
    cdef unsigned char *_order
    cdef unsigned char *_lengths
    cdef unsigned char *_rooms
    cdef list _readable
    cdef list _writable
    cdef bint _writing
    cdef unsigned long long _total
    cdef unsigned long long _run
    cdef unsigned long long _run_length
    cdef unsigned long long _room
    cdef void _claim(self, unsigned int head)
    cdef void _begin(self)
    cdef int _segment(self, unsigned int head, unsigned long long address, unsigned long long length, bint writes) except? -1
    cdef Chain _end(self, unsigned int head)
    cdef int _fetch_table(self, unsigned int head, unsigned long long address, unsigned int length) except? -1
    cdef int _use(self, unsigned int head, unsigned int written, bint joins) except? -1
    cdef void _published(self)
