cimport cython
from powervio.native.lan_frame cimport TcpView
from powervio.network.frame cimport Frame
from powervio.phyp.ledger cimport CostLedger
from powervio.phyp.tce cimport TceTable

@cython.final
cdef class Pool:
    cdef readonly unsigned long long size
    cdef readonly unsigned int count
    cdef unsigned int _room
    cdef unsigned char *_places
    cdef object _book
    cdef void push(self, unsigned int ioba)
    cdef unsigned long long pop(self) noexcept

@cython.final
cdef class LanCore:
    cdef readonly bint registered
    cdef public unsigned int attributes
    cdef public unsigned long long address
    cdef readonly bint trunk
    cdef readonly unsigned long long drops
    cdef readonly unsigned long long buffers
    cdef readonly unsigned long long queue_entries
    cdef readonly unsigned long long moved
    cdef TceTable _table
    cdef CostLedger _ledger
    cdef unsigned long long _window
    cdef unsigned long long _limit
    cdef unsigned long long _list
    cdef unsigned long long _queue
    cdef unsigned long long _next
    cdef unsigned int _toggle
    cdef list _pools
    cdef object _vlans
    cdef TcpView _tcp
    cdef Pool _pool(self, unsigned long long size)
    cdef Pool _choose(self, unsigned long long length)
    cdef object _frame(self, bytearray book, unsigned char *data, unsigned long long length, unsigned int flags, unsigned long long mss)
    cdef bint _offloads(self, unsigned int version) noexcept
    cdef int _miss(self) except? -1
    cdef bint _has_entry(self) noexcept
    cdef void _enqueue(self, unsigned int control, unsigned long long offset, unsigned long long length, unsigned long long handle) noexcept
    cdef bint _may(self, unsigned long long ioba, unsigned long long length) noexcept
    cdef unsigned long long _place(self, unsigned long long ioba) noexcept
    cdef bint _read(self, unsigned long long ioba, unsigned char *data, unsigned long long done, unsigned long long length) noexcept
    cdef void _write(self, unsigned long long ioba, unsigned char *data, unsigned long long length) noexcept
    cdef unsigned long long _handle(self, unsigned long long ioba) noexcept
    cdef unsigned long long _load(self, unsigned long long ioba) noexcept
    cdef void _store(self, unsigned long long ioba, unsigned long long value) noexcept
    cdef void _clear(self, unsigned long long ioba) noexcept
    cdef void _show(self, unsigned long long offset, unsigned long long value) noexcept
