cimport cython
from powervio.virtio.chain_record cimport ChainRecord

cdef class InflightQueue(ChainRecord):
    cdef readonly unsigned int size
    cdef object _view
    cdef object _books
    cdef unsigned char *_record
    cdef unsigned char *_completed
    cdef unsigned int _count
    cdef unsigned long long _counter
    cdef object _unknown(self, unsigned int head)

@cython.final
cdef class SplitInflight(InflightQueue):
    cdef unsigned int _batch

@cython.final
cdef class PackedInflight(InflightQueue):
    cdef unsigned int _period
    cdef unsigned int _old_free
    cdef unsigned int _used
    cdef unsigned int _old_used
    cdef unsigned char *_next
    cdef unsigned char *_lasts
    cdef unsigned char *_counts
    cdef unsigned char *_entries
    cdef unsigned int _free
    cdef unsigned int _room
    cdef unsigned int _taken
    cdef object _more_books
    cdef int _check(self, unsigned int slot) except? -1
    cdef void _settle(self) noexcept nogil
    cdef void _store_free(self) noexcept nogil
    cdef void _store_used(self) noexcept nogil
