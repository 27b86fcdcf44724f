cimport cython
from powervio.drivers.block_request cimport BlockRequest

cdef class BlockLimits:
    cdef public object features
    cdef public bint started
    cdef public long long block_size
    cdef public long long physical_block_size
    cdef public long long size_max
    cdef public long long seg_max
    cdef public long long max_discard
    cdef public long long discard_alignment
    cdef public long long max_write_zeroes
    cdef public long long max_secure_erase
    cdef public object on_resize
    cdef public object _closed
    cdef object _capacity
    cdef long long _end
    cdef bint is_usual(self, BlockRequest request) except? -1
