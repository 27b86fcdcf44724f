cimport cython
from powervio.memory.target cimport Target
from powervio.phyp.redirect cimport CopySet, Link, Places
from powervio.phyp.tce cimport TceTable

cpdef unsigned long long first_beyond(bytearray addresses, unsigned long long count, unsigned long long size) except? -1

@cython.final
cdef class DmaTable:
    cdef readonly TceTable own
    cdef readonly Places places
    cdef readonly object partition
    cdef readonly unsigned long long count
    cdef public unsigned long long done
    cpdef int redirect(self, unsigned long long index, Link link, TceTable table, bytearray addresses, unsigned long long first, unsigned long long count, int limit) except? -1
    cpdef int forget(self, unsigned long long index, unsigned long long count) except? -1
    cpdef unsigned long long redirected(self, unsigned long long index) noexcept

@cython.final
cdef class DmaOperation:
    cdef readonly list links
    cdef readonly list partitions
    cdef readonly unsigned long long length
    cdef object _owner
    cdef list _books
    cdef unsigned char *_pins
    cdef unsigned int _pin_count
    cdef unsigned int _pin_room
    cdef unsigned char *_runs
    cdef unsigned char *_origins
    cdef unsigned int _run_count
    cdef unsigned int _run_room
    cdef bint _joins
    cdef unsigned int _known
    cdef unsigned int _mine
    cdef CopySet _copies
    cdef unsigned char *_base
    cdef unsigned char *_moves
    cdef unsigned int _move_room
    cdef unsigned char *_moved
    cdef unsigned int _moved_room
    cpdef int clear(self) except? -1
    cdef bytearray _grow(self, int book, unsigned long long room)
    cpdef bint take(self, DmaTable table, unsigned long long ioba, unsigned long long length, unsigned long long need) except? -1
    cdef bint _take(self, DmaTable table, unsigned long long ioba, unsigned long long length, unsigned long long need) except? -1
    cdef int _use_link(self, Link link, unsigned int number) except? -1
    cdef unsigned int _number_of(self, object link) except? 0
    cdef int _add_partition(self, object partition) except? -1
    cdef int _note_pin(self, unsigned int link, unsigned int number) except? -1
    cdef int _extend(self, unsigned int link, unsigned char *base, unsigned long long start, unsigned long long length) except? -1
    cdef list _runs_of(self, unsigned int first, unsigned int last)
    cpdef int release(self) except? -1
    cpdef bint take_all(self, DmaTable table, object moves, unsigned long long count) except? -1
    cpdef bint carry_out_whole(self, Target target, unsigned long long position, bint to_memory) except? -1
    cpdef int carry_out(self, object backing, object moves, unsigned long long count) except? -1
    cdef unsigned long long _after(self, unsigned long long number, unsigned long long count) noexcept nogil
    cdef unsigned int _begin(self, unsigned long long number) noexcept nogil
    cdef unsigned int _end(self, unsigned long long after, unsigned long long count) noexcept nogil
    cdef unsigned long long _carry_out(self, Target target, unsigned char *results, unsigned long long count) noexcept nogil
    cdef int _ask(self, object backing, unsigned long long number, unsigned int end) except? -1
    cdef int _make_accounts(self) except? -1
    cdef void _account(self, unsigned int begin, unsigned int end) noexcept nogil
    cpdef int count_all(self) except? -1
    cpdef int settle(self) except? -1
