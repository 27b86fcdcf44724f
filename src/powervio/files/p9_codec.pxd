cdef int MOST_FIELDS

cdef int fields_of(int kind, unsigned char *base, long long size, unsigned char *fields) noexcept nogil
cdef bint is_question(int kind) noexcept nogil
