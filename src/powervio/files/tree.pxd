cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree_file cimport HeldFile
from powervio.files.tree_share cimport Share

@cython.final
cdef class Node(HeldFile):
    cpdef Node lookup(self, bytes name, Caller caller)
    cpdef bint has(self, bytes name, Node node, Caller caller) except? -1
    cdef Node _parent(self, Caller caller)
    cpdef Node duplicate(self)
    cpdef void close(self) noexcept
    cdef object _made(self, int fd, int flags, Caller maker)
    cdef int _check_new(self, bytes name) except? -1
    cdef int _make_mapped(self, bytes name, Caller maker, unsigned int mode, object device, bytes target, int flags) except? -1000
    cdef Node _make(self, bytes name, Caller caller, object gid, unsigned int mode, unsigned long long device, bytes target)

@cython.final
cdef class Tree(Share):
    cdef Node _root

cdef Node node_of(Share share, int fd)
cdef Node node_from(Share share, int fd, bytearray book)
