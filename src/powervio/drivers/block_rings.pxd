cimport cython
from powervio.drivers.block_limits cimport BlockLimits
from powervio.drivers.block_request cimport BlockRequest, Slot
from powervio.virtio.driver_queue cimport DriverQueue

@cython.final
cdef class Ring:
    cdef readonly DriverQueue queue
    cdef readonly unsigned int load
    cdef bint kick_is_due

cdef class BlockRings(BlockLimits):
    cdef public long long requests
    cdef public long long failed
    cdef public long long resubmitted
    cdef public object _transport
    cdef public list _rings
    cdef public bint _unkicked
    cdef public bint _big_endian
    cdef unsigned int _in_flight
    cdef public object _pending
    cdef object _numbers
    cdef public list _slots
    cdef public object _unmade_slots
    cdef Slot _first_free
    cdef Slot _last_free
    cpdef void _take(self, BlockRequest request)
    cdef void _leave(self, BlockRequest request, Ring ring)
    cdef bint _place(self, BlockRequest request) except? -1
    cdef Ring _add(self, object readable, object writable, BlockRequest request)
    cdef void _finish(self, BlockRequest request, int status)
    cdef void _add_free(self, Slot slot)
    cdef bint _make_slot(self) except? -1
