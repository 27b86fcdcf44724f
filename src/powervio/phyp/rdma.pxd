from powervio.phyp.tce cimport TceTable

cdef void _move(TceTable source, unsigned long long s_ioba, TceTable target, unsigned long long d_ioba, unsigned long long length) noexcept nogil
cpdef int copy_pages(TceTable source, unsigned long long s_ioba, TceTable target, unsigned long long d_ioba, unsigned long long length) noexcept
cpdef int write_small(TceTable target, unsigned long long ioba, bytes data) except? -1
