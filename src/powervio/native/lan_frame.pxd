cimport cython

@cython.final
cdef class TcpView:
    cdef readonly bint tagged
    cdef readonly unsigned int vlan
    cdef readonly unsigned int version
    cdef readonly unsigned long long network
    cdef readonly unsigned long long transport
    cdef readonly unsigned long long payload
    cdef readonly unsigned long long end
    cdef readonly bint congested
    cdef unsigned char *_data
    cdef void _reset(self) noexcept nogil
    cdef bint look(self, unsigned char *data, unsigned long long length) noexcept nogil
    cdef bint _ipv4(self, unsigned long long length) noexcept nogil
    cdef bint _ipv6(self, unsigned long long length) noexcept nogil
    cdef bint _tcp(self, unsigned int version, unsigned long long at) noexcept nogil
    cdef unsigned int pseudo_sum(self) noexcept nogil
    cdef void make_partial(self) noexcept nogil
