from powervio.memory.space cimport AddressSpace
from powervio.virtio.device_ring cimport DeviceRing
from powervio.virtio.driver_ring cimport DriverRing

cdef class AreaSpace(AddressSpace):
    cdef object _view
    cdef unsigned char *_base

cdef class Side:
    cdef readonly unsigned int size
    cdef readonly unsigned long long sleeps
    cdef readonly unsigned long long notifications
    cdef object _view
    cdef unsigned char *_area
    cdef unsigned char *_expected
    cdef bytearray _expected_bytes
    cdef unsigned long long _random
    cdef unsigned int _looks
    cdef int _wake_fd
    cdef int _tell_fd
    cdef unsigned int _count
    cdef unsigned int _readers
    cdef unsigned long long _room
    cdef unsigned int _choose(self, unsigned int limit) noexcept nogil
    cdef void _expect(self, unsigned long long number) noexcept nogil
    cdef unsigned int _written(self, unsigned long long number) noexcept nogil
    cdef bint _polls(self) noexcept nogil
    cdef void _forget(self) noexcept nogil
    cdef int _tell(self) except? -1 nogil
    cdef int _sleep(self) except? -1 nogil

cdef class Driver(Side):
    cdef readonly unsigned long long lent
    cdef readonly unsigned long long taken
    cdef DriverRing _ring
    cdef bint _indirect
    cdef unsigned long long _sum
    cdef unsigned int _free_tables
    cdef unsigned char *_tables
    cdef unsigned char *_table_of
    cdef unsigned char *_numbers
    cdef tuple _books
    cdef int _run(self, unsigned long long limit) except? -1 nogil
    cdef int _lend(self) except? -1 nogil
    cdef int _take_back(self) except? -1 nogil

cdef class Device(Side):
    cdef readonly unsigned long long served
    cdef readonly unsigned long long given
    cdef DeviceRing _ring
    cdef unsigned int _held
    cdef unsigned char *_heads
    cdef unsigned char *_lengths
    cdef tuple _books
    cdef int _run(self) except? -1 nogil
    cdef int _serve(self) except? -1 nogil
    cdef int _give(self) except? -1 nogil
