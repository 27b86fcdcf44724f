from powervio.phyp.tce cimport TceTable

cdef unsigned long long _place(TceTable table, unsigned long long ioba) noexcept nogil
cdef void _move(TceTable source, unsigned long long s_ioba, TceTable target, unsigned long long d_ioba, unsigned long long length) noexcept nogil
cdef bint _still_allows(TceTable table, unsigned long long s_ioba, unsigned long long d_ioba, unsigned long long length) noexcept
cpdef int copy_pages(TceTable source, unsigned long long s_ioba, TceTable target, unsigned long long d_ioba, unsigned long long length) noexcept
cpdef int write_small(TceTable target, unsigned long long ioba, bytes data) except? -1
