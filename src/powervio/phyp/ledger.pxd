cimport cython

@cython.final
cdef class CostLedger:
    cdef unsigned long long[128] calls
    cdef public unsigned long long rdma_operations
    cdef public unsigned long long rdma_bytes
    cdef public unsigned long long redirected_pages
    cdef public unsigned long long redirected_bytes
    cdef public unsigned long long crq_messages
    cdef public unsigned long long interrupts
    cdef public unsigned long long tce_updates
    cdef public unsigned long long shared_tce_updates
    cpdef void count(self, int index) noexcept
    cpdef void moved(self, unsigned long long length) noexcept
    cpdef void touched(self, unsigned long long length) noexcept
    cpdef void redirected(self, unsigned long long pages, unsigned long long length) noexcept
    cpdef void sent(self) noexcept
    cpdef void interrupted(self) noexcept
    cpdef void updated(self, unsigned long long entries) noexcept
