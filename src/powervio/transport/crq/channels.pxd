from powervio.vio.subcrq cimport ElementReceiver, SubCrqEnd

cimport cython

cdef class HintReceiver:
    cpdef void hint(self, unsigned int queue, unsigned int index)
    cpdef void hinted(self)

@cython.final
cdef class Channels(ElementReceiver):
    cdef readonly unsigned long long rejected
    cdef object _kernel
    cdef object _node
    cdef object _dma
    cdef object _crq
    cdef unsigned int _kind
    cdef HintReceiver _receiver
    cdef unsigned int _session
    cdef list _ends
    cdef dict _carried
    cdef dict _generations
