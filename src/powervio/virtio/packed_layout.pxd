cimport cython

cpdef unsigned int position_of(unsigned int slot, unsigned int turn) noexcept nogil
cpdef unsigned int round_of(unsigned int position) noexcept nogil
cpdef unsigned int place_after(unsigned int position, unsigned int count, unsigned int size) noexcept nogil
cpdef unsigned int descriptors_between(unsigned int position, unsigned int start, unsigned int size) noexcept nogil
cpdef bint event_is_due(unsigned int event, bint event_idx, unsigned int size, unsigned int slot, unsigned int turn, unsigned int count) noexcept nogil
