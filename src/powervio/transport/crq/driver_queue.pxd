cimport cython
from powervio.vio.dma cimport DmaSpace
from powervio.vio.outbox cimport Notification, Notifier
from powervio.virtio.driver_queue cimport Buffer, DriverQueue
from powervio.virtio.driver_ring cimport DriverRing

cdef class CrqDriverQueue

@cython.final
cdef class KickNotification(Notification):
    cdef CrqDriverQueue _queue
    cdef unsigned long long _without_index
    cdef unsigned long long low_half

cdef class CrqDriverQueue(DriverQueue):
    cdef readonly DriverRing ring
    cdef readonly object memory
    cdef public bint ending
    cdef public bint held
    cdef readonly DmaSpace _dma
    cdef object _features
    cdef bint _big_endian
    cdef public Notifier _notifier
    cdef bint _auto
    cdef bint _always
    cdef KickNotification _kick
    cdef list _tables
    cdef list _table_of
    cdef unsigned int _indirect_count
    cdef unsigned char *_segments
    cdef unsigned int _count
    cdef unsigned char *_mappings
    cdef unsigned char *_first
    cdef unsigned int _spare
    cdef unsigned int _chain
    cdef unsigned int _mappings_room
    cdef unsigned char *_mapped
    cdef unsigned int _mapped_count
    cdef unsigned int _mapped_room
    cdef unsigned int _keep
    cdef unsigned char *_used
    cdef unsigned int _used_count
    cdef unsigned int _used_room
    cdef unsigned int _ready
    cdef unsigned int _next
    cdef list _tokens
    cdef dict _views
    cpdef bint add(self, object readable, object writable, object token) except? -1
    cpdef void kick(self)
    cpdef object reap(self)
    cdef bint _is_indirect(self, unsigned int count) noexcept
    cdef void _plan(self, object slices, unsigned int access)
    cdef int _map(self, unsigned int number, long long address, long long length, unsigned int access) except? -1 nogil
    cdef int lend(self, unsigned char *segments, unsigned int count, unsigned int readers, unsigned int unmapped) except? -2 nogil
    cdef int _lend(self, unsigned int readers, bint indirect) except? -2
    cdef void _forget(self)
    cdef int collect(self) except? -1
    cdef unsigned int head_of(self, unsigned int number) noexcept nogil
    cdef void _gather(self)
    cdef int _take_used(self) except? -1 nogil
    cdef void _make_ready(self)
    cdef void _unmap(self)
    cdef int _move(self, unsigned int mapping) except? -1 nogil
    cdef void _give_up(self, unsigned int mapping)
    cdef void _make_mappings(self)
    cdef void _make_mapped(self)
    cdef void _make_used(self)
    cdef unsigned char *_larger(self, str name, unsigned char *old, unsigned long long used, unsigned long long length)
