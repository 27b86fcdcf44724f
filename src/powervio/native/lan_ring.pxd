cimport cython
from powervio.native.lan_frame cimport TcpView
from powervio.network.frame cimport Frame

@cython.final
cdef class LanRing:
    cdef readonly unsigned int spare
    cdef readonly unsigned int count
    cdef unsigned char *_memory
    cdef unsigned long long _queue
    cdef unsigned long long _entries
    cdef unsigned long long _next
    cdef unsigned int _control
    cdef unsigned char *_buffers
    cdef unsigned char *_spares
    cdef unsigned char *_lent
    cdef unsigned long long _transmit
    cdef unsigned long long _transmit_ioba
    cdef unsigned long long _room
    cdef unsigned int _attributes
    cdef TcpView _tcp
    cdef object _views
    cdef void _put_back(self, unsigned int number) noexcept
    cdef bint _waits(self) noexcept nogil
    cdef object _frame(self, unsigned int control, unsigned long long buffer, unsigned long long address, unsigned long long length)
