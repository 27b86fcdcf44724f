from powervio.phyp.crq cimport ReceiveQueue
from powervio.phyp.records cimport AdapterRecord

cimport cython

@cython.final
cdef class SubCrq:
    cdef readonly object cookie
    cdef readonly object source
    cdef readonly ReceiveQueue queue
    cdef public bint interrupt_enabled

@cython.final
cdef class SubCrqs:
    cdef readonly tuple sources
    cdef AdapterRecord _adapter
    cdef readonly list unused
    cdef dict _by_cookie
    cdef int signal(self, SubCrq sub) except? -1
