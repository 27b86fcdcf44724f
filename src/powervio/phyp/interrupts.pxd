cimport cython
from powervio.phyp.ledger cimport CostLedger

@cython.final
cdef class Source:
    cdef readonly unsigned int number
    cdef int state
    cdef int fd
    cdef CostLedger ledger
    cdef Source later

@cython.final
cdef class InterruptPresentation:
    cdef readonly int fd
    cdef dict _sources
    cdef Source _first
    cdef Source _last
    cdef Source _recent
    cdef unsigned int _cppr
    cdef bint _asserted
    cdef bint _held
    cdef int _forget(self, Source source) except? -1
    cdef void _append(self, Source source) noexcept
    cdef void _drop(self, Source source) noexcept
    cpdef bint pulse(self, object number) except? -1
    cpdef unsigned int accept(self, int counter, CostLedger other) except? -1
    cpdef bint end(self, unsigned long long xirr, int counter, CostLedger other) except? -1
    cpdef int set_priority(self, unsigned int priority) except? -1
    cdef int _assert(self) except? -1
    cdef int _tell(self, Source source) except? -1
