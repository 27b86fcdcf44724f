cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree cimport Node
from powervio.files.tree_open cimport OpenFile

@cython.final
cdef class Fid:
    cdef readonly unsigned int number
    cdef public Node node
    cdef readonly Caller caller
    cdef public OpenFile opened
    cdef public object attribute
    cdef public object lock_owners
    cdef public Node parent
    cdef public bytes name

@cython.final
cdef class FidBudget:
    cdef public long long left
    cdef public long long attributes

cdef class Fids:
    cdef readonly object tree
    cdef readonly dict fids
    cdef readonly set lock_clients
    cdef public long long lock_owners
    cdef readonly long long attribute_bytes
    cdef readonly unsigned int most_fids
    cdef FidBudget _budget
    cdef int end(self, Fid fid) except? -1
    cpdef Fid fid(self, unsigned int number)
    cpdef Fid add(self, unsigned int number, Node node, Caller caller)
    cpdef int check_free(self, unsigned int number) except? -1
