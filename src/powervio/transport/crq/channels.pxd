cimport cython

@cython.final
cdef class Channels:
    cdef readonly unsigned long long rejected
    cdef object _kernel
    cdef object _node
    cdef object _dma
    cdef object _crq
    cdef unsigned int _kind
    cdef object _on_hint
    cdef object _on_drained
    cdef unsigned int _session
    cdef list _ends
    cdef dict _carried
    cdef dict _generations
