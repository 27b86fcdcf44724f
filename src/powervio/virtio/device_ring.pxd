from powervio.memory.space cimport AddressSpace
from powervio.virtio.chain_record cimport ChainRecord

cdef class Chain:
    cdef readonly unsigned int head
    cdef readonly list readable
    cdef readonly list writable

cdef class DeviceRing:
    cdef readonly unsigned int size
    cdef readonly unsigned int in_hand
    cdef readonly bint broken
    cdef readonly unsigned long long rejected
    cdef readonly unsigned int head
    cdef readonly unsigned int readable_count
    cdef readonly unsigned int segment_count
    cdef readonly unsigned long long readable_bytes
    cdef readonly unsigned long long writable_bytes
    cdef unsigned char *chain
    cdef object _memory
    cdef AddressSpace _space
    cdef ChainRecord _record
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
    cdef unsigned char *_pieces
    cdef unsigned char *_states
    cdef unsigned char *_order
    cdef unsigned char *_lengths
    cdef unsigned char *_rooms
    cdef bint _writing
    cdef unsigned int _begins
    cdef int look(self) except? -1 nogil
    cdef int take(self) except? -1 nogil
    cdef unsigned long long peek(self, unsigned int distance) noexcept nogil
    cdef int take_again(self, unsigned int note) except? -1 nogil
    cdef int give(self, unsigned int head, unsigned int written) except? -1 nogil
    cdef void part(self) noexcept nogil
    cdef int show(self) except? -1 nogil
    cdef int arm(self) except? -1 nogil
    cdef void disarm(self) noexcept nogil
    cdef unsigned int used_position(self) noexcept nogil
    cdef void _claim(self, unsigned int head) noexcept nogil
    cdef void _begin(self) noexcept nogil
    cdef int _segment(self, unsigned int head, unsigned long long address, unsigned long long length, bint writes) except? -1 nogil
    cdef void _end(self, unsigned int head) noexcept nogil
    cdef Chain _as_chain(self)
    cdef int _fetch_table(self, unsigned int head, unsigned long long address, unsigned int length) except? -1 nogil
    cdef int _ask_for_table(self, unsigned int head, unsigned long long address, unsigned int length) except? -1
    cdef void _use(self, unsigned int head, unsigned int written, bint joins) noexcept nogil
    cdef void _published(self) noexcept nogil
