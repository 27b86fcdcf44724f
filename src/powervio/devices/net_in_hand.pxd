from powervio.devices.net_frame cimport FrameView

cimport cython

@cython.final
cdef class FrameInHand:
    cdef readonly FrameView view
    cdef unsigned char *data
    cdef readonly unsigned long long have
    cdef readonly unsigned long long length
    cdef readonly unsigned int needs
    cdef readonly unsigned int gso
    cdef readonly unsigned long long link_bytes
    cdef unsigned char *_header
    cdef object _book
    cdef bint take_up(self, unsigned char *header, unsigned char *data, unsigned long long have, unsigned long long length, unsigned long long features, unsigned long long mtu) noexcept nogil
    cdef bint _is_true(self, unsigned long long features, unsigned long long mtu) noexcept nogil
    cdef unsigned int checksum_begins(self) noexcept nogil
    cdef void write_header(self, unsigned char *to, unsigned long long place, unsigned long long header_bytes, int shift, unsigned int buffers) noexcept nogil
    cdef void _move(self, unsigned char *base, unsigned long long place, int shift) noexcept nogil
    cdef object as_frame(self, object data, int shift)

cdef int shift_of(int change) noexcept nogil
cdef unsigned long long write_tagged(unsigned char *to, unsigned long long place, unsigned char *source, unsigned long long have, int change, unsigned int tci) noexcept nogil
