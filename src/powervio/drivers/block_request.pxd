cimport cython

@cython.final
cdef class Slot:
    cdef BlockRequest request
    cdef Slot following
    cdef object view
    cdef readonly tuple header
    cdef readonly tuple status
    cdef readonly tuple ranges
    cdef readonly tuple answer
    cdef unsigned char *bytes_
    cdef unsigned long long base
    cdef unsigned long long status_at
    cdef unsigned long long segment_at
    cdef unsigned long long id_at
    cdef void write_header(self, unsigned int kind, unsigned long long sector, bint big)
    cdef void write_range(self, unsigned long long sector, unsigned int sectors, unsigned int flags, bint big)
    cdef bytes read_id(self)

cdef class BlockRequest:
    cdef public long long kind
    cdef public long long position
    cdef public long long length
    cdef public object slices
    cdef public unsigned int flags
    cdef public object callback
    cdef public object context
    cdef public bint done
    cdef public int status
    cdef public object error
    cdef public bytes answer
    cdef public long long order
    cdef public Slot slot
    cdef public bint withdrawn
