cimport cython
from powervio.transport.crq.page_list cimport MoveList
from powervio.vio.engine cimport EngineWindow

@cython.final
cdef class Redirector:
    cdef readonly unsigned long long least
    cdef public unsigned long long copied
    cdef object _port
    cdef object _remote
    cdef EngineWindow _engine
    cdef object _pages
    cpdef bint carry_out(self, MoveList group, object backing) except? -1
    cdef bint _copy(self) except? -1
    cdef bint _move(self, long long first, bytearray pages, long long count, list places, object backing, object position, bint to_memory) except? -1
    cdef long long _map(self, long long first, bytearray pages, long long count, long long start) except? -1
    cdef bint _unmap(self, long long start, long long count) except? -1
