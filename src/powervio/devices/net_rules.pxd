from powervio.devices.net_frame cimport FrameView

cimport cython

@cython.final
cdef class ReceiveFilter:
    cdef public bint promiscuous
    cdef public bint all_multicast
    cdef public bint all_unicast
    cdef public bint no_multicast
    cdef public bint no_unicast
    cdef public bint no_broadcast
    cdef unsigned char *_counts
    cdef unsigned char *_tables
    cdef unsigned char *_vlans
    cdef unsigned char *_mac
    cdef list _books
    cdef bint passes(self, unsigned char *data, FrameView view) noexcept nogil
    cdef bint _lists(self, unsigned int kind, unsigned char *data) noexcept nogil

@cython.final
cdef class Steering:
    cdef readonly unsigned int pairs
    cdef readonly unsigned int hash_types
    cdef readonly bint rss
    cdef readonly unsigned int unclassified
    cdef unsigned int _mask
    cdef unsigned char *_flows
    cdef unsigned char *_table
    cdef unsigned char *_key
    cdef list _books
    cdef void learn(self, FrameView view, unsigned int pair) noexcept nogil
    cdef unsigned int choose(self, FrameView view) noexcept nogil

@cython.final
cdef class FrameRules:
    cdef readonly ReceiveFilter filter
    cdef readonly Steering steering
    cdef readonly FrameView view
    cpdef int place(self, object data)
    cpdef void learn(self, object data, unsigned int pair)
    cpdef long long hashed(self, object data)
