cimport cython

cpdef long long consecutive_from(bytearray pages, unsigned long long count) except? -2
cpdef void write_list(object memory, unsigned long long address, bytearray pages, unsigned long long count) except *

@cython.final
cdef class MoveList:
    cdef readonly bytearray pages
    cdef readonly bytearray moves
    cdef readonly unsigned int count
    cdef readonly unsigned int move_count
    cdef unsigned char *_pages
    cdef unsigned char *_moves
    cdef unsigned int _room
    cdef unsigned char *_set
    cdef bytearray _slots
    cpdef void clear(self)
    cdef int add(self, unsigned char *pieces, unsigned int count, unsigned long long position, bint to_memory) except? -2
    cdef unsigned long long _slot_of(self, unsigned long long page) noexcept
    cdef bint _note(self, unsigned long long page) noexcept
    cdef void _make_room(self, unsigned int count)
    cpdef void shift(self, unsigned long long start)
    cdef unsigned int result(self, unsigned long long number) noexcept
