cimport cython

@cython.final
cdef class AddressTable:
    cdef unsigned char *group_sets
    cdef unsigned long long _age
    cdef unsigned long long _seed
    cdef unsigned int _buckets
    cdef unsigned long long _swept
    cdef unsigned char *_macs
    cdef unsigned char *_limits
    cdef unsigned char *_fixed
    cdef unsigned int _fixed_mask
    cdef unsigned char *_groups
    cdef unsigned int _groups_mask
    cdef object _books
    cdef object _fixed_book
    cdef object _group_books
    cdef void begin(self, unsigned int port, unsigned int may_learn) noexcept
    cdef void forget(self, unsigned int port, long long vlan) noexcept
    cdef void copy_learnt(self, unsigned char *to) noexcept
    cdef int find_fixed(self, unsigned long long key) noexcept nogil
    cdef int find_group(self, unsigned long long mac) noexcept nogil
    cdef int find_learnt(self, unsigned long long key, unsigned long long now) noexcept nogil
    cdef void learn(self, unsigned int port, unsigned long long key, unsigned long long now) noexcept nogil
    cdef bint _is_old(self, unsigned long long place, unsigned long long now) noexcept nogil
    cdef void _forget(self, unsigned long long place) noexcept nogil
    cdef void _sweep(self, unsigned long long now) noexcept nogil

cdef unsigned int _hash(unsigned long long key, unsigned long long seed, unsigned int mask) noexcept nogil
