cimport cython

@cython.final
cdef class FrameView:
    cdef readonly unsigned int link_bytes
    cdef readonly bint tagged
    cdef readonly unsigned int vlan
    cdef readonly unsigned int network
    cdef readonly unsigned int protocol
    cdef readonly unsigned int transport
    cdef unsigned char *_data
    cdef unsigned long long _have
    cdef void look(self, unsigned char *data, unsigned long long have) noexcept nogil
    cdef void _look_at_ipv4(self) noexcept nogil
    cdef void _look_at_ipv6(self) noexcept nogil
    cdef unsigned int headers_of(self, unsigned int gso, unsigned int begin, unsigned int offset, unsigned long long length) noexcept nogil
    cdef bint has_ports(self) noexcept nogil
    cdef unsigned int flow(self) noexcept nogil
    cdef long long hashed(self, unsigned int types, unsigned char *key) noexcept nogil
    cdef unsigned long long _toeplitz(self, unsigned char *key, unsigned int place, unsigned int at, unsigned int length) noexcept nogil
    cpdef void look_at(self, object data, unsigned long long start)
    cpdef unsigned int segmented_headers(self, unsigned int gso, unsigned int begin, unsigned int offset, unsigned long long length)
