cimport cython
from powervio.virtio.driver_ring cimport DriverRing

cdef class SplitDriverRing(DriverRing):
    cdef readonly unsigned int available_index
    cdef readonly unsigned int last_used
    cdef unsigned int _published
    cdef bint _big
    cdef unsigned int _free
    cdef unsigned char *_links
    cdef tuple _more_views
    cdef void _describe(self, unsigned char *table, unsigned int index, unsigned long long address, unsigned int length, unsigned int flags, unsigned int following) noexcept nogil
