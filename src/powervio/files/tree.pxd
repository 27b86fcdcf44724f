cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree_open cimport OpenFile
from powervio.files.tree_share cimport File, Share
from powervio.files.tree_stat cimport Stat

@cython.final
cdef class Node(File):
    cdef int begin(self, Caller caller) except? -1000
    cdef int begin_own(self) noexcept
    cdef void end(self) noexcept
    cpdef Node lookup(self, bytes name, Caller caller)
    cpdef bint has(self, bytes name, Node node, Caller caller) except? -1
    cdef Node _parent(self, Caller caller)
    cpdef Node duplicate(self)
    cpdef void close(self) noexcept
    cpdef Stat stat(self)
    cpdef OpenFile open(self, int flags, Caller caller)
    cdef object _made(self, int fd, int flags, Caller maker)
    cdef int _check_new(self, bytes name) except? -1
    cdef int _make_mapped(self, bytes name, Caller maker, unsigned int mode, object device, bytes target, int flags) except? -1000
    cdef int _change_mapped(self, int valid, object mode, object uid, object gid) except? -1
    cdef bytes _mapped_link(self)
    cdef Node _make(self, bytes name, Caller caller, object gid, unsigned int mode, unsigned long long device, bytes target)

@cython.final
cdef class Tree(Share):
    cdef Node _root

cdef Node node_of(Share share, int fd)
cdef Node node_from(Share share, int fd, bytearray book)
