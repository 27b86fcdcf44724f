cimport cython
from powervio.virtio.driver_queue cimport Buffer, DriverQueue

@cython.final
cdef class TransmitRing:
    cdef readonly DriverQueue queue
    cdef readonly unsigned long long frames
    cdef readonly unsigned long long bytes_
    cdef readonly unsigned int in_flight
    cdef public bint starved
    cdef Buffer _buffer
    cdef unsigned char *_base
    cdef unsigned long long _capacity
    cdef unsigned long long _room
    cdef unsigned long long _header
    cdef bint _big_endian
    cdef unsigned long long _head
    cdef unsigned long long _tail
    cdef unsigned int _most
    cdef unsigned int _first
    cdef unsigned int _next
    cdef unsigned char *_starts
    cdef unsigned char *_done
    cdef unsigned char *_table
    cdef tuple _views
    cdef long long _place(self) noexcept nogil
    cdef bint _push(self, unsigned long long length) except? -1

@cython.final
cdef class ReceiveSlot:
    cdef readonly Buffer buffer
    cdef unsigned char *base
    cdef unsigned long long written
    cdef tuple slices

@cython.final
cdef class ReceiveRing:
    cdef readonly DriverQueue queue
    cdef readonly unsigned long long frames
    cdef readonly unsigned long long bytes_
    cdef readonly dict dropped
    cdef public unsigned int allowed
    cdef public unsigned long long longest
    cdef public int fd
    cdef public object on_frame
    cdef unsigned long long _header
    cdef bint _merge
    cdef bint _big_endian
    cdef list _slots
    cdef unsigned int _unkicked
    cdef unsigned int _batch
    cdef list _held
    cdef unsigned char *_table
    cdef tuple _views
    cdef int _take(self) except? -1
    cdef int _deliver(self, ReceiveSlot first, unsigned long long length, unsigned int count) except? -1
    cdef bint _is_sound(self, unsigned char *header, unsigned long long length) noexcept nogil
    cdef int _drop(self, str reason) except? -1
    cdef int _give_back(self) except? -1
