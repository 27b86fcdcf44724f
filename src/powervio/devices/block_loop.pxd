from powervio.devices.block_table cimport BlockRules
from powervio.memory.space cimport AddressSpace
from powervio.memory.target cimport FileTarget
from powervio.virtio.device_queue cimport MappedQueue
from powervio.virtio.device_ring cimport DeviceRing

cimport cython

@cython.final
cdef class BlockLoop:
    cdef readonly BlockRules rules
    cdef readonly unsigned long long reads
    cdef readonly unsigned long long writes
    cdef readonly unsigned long long flushes
    cdef readonly unsigned long long bytes_read
    cdef readonly unsigned long long bytes_written
    cdef readonly unsigned long long failed
    cdef readonly unsigned long long sleeps
    cdef readonly unsigned long long handed_over
    cdef readonly unsigned long long deferred
    cdef public bint writeback
    cdef MappedQueue _queue
    cdef DeviceRing _ring
    cdef AddressSpace _space
    cdef FileTarget _target
    cdef object _apart
    cdef object _books
    cdef unsigned char *_rows
    cdef unsigned char *_moves
    cdef unsigned char *_small
    cdef unsigned char *_header
    cdef unsigned char *_stopping
    cdef unsigned char *_uring
    cdef bint _has_uring
    cdef bint _watches
    cdef unsigned int _flying
    cdef unsigned int _launched
    cdef bint _given_up
    cdef bint _looked
    cdef bint _whole
    cdef unsigned long long _spin
    cdef int _stop_fd
    cdef int _run(self) except? -1 nogil
    cdef int _idle(self) except? -1 nogil
    cdef int _serve_one(self) except? -1 nogil
    cdef int _begin(self) except? -1 nogil
    cdef int _begin_move(self, unsigned long long status) except? -1 nogil
    cdef bint _is_whole(self) noexcept nogil
    cdef int _begin_flush(self, unsigned long long status) except? -1 nogil
    cdef int _gather(self, unsigned char *table, bint writes) noexcept nogil
    cdef void _note(self, unsigned int head, unsigned long long status, unsigned long long position, unsigned long long length, unsigned int count, unsigned int what) noexcept nogil
    cdef void _advance(self, unsigned int head, unsigned long long done) noexcept nogil
    cdef void _launch(self, unsigned int head) noexcept nogil
    cdef int _watch_again(self, unsigned long long token, long long outcome) except? -1 nogil
    cdef int _rest(self) noexcept nogil
    cdef int _submit(self) noexcept nogil
    cdef int _reap(self) except? -1 nogil
    cdef int _result(self, unsigned int head, long long outcome) except? -1 nogil
    cdef int _moved(self, unsigned int head, unsigned long long status, bint writes, unsigned long long length) except? -1 nogil
    cdef int _complete(self, unsigned int head, unsigned long long status, unsigned int code, unsigned int written) except? -1 nogil
    cdef int _finish_flying(self) except? -1 nogil
