from powervio.files.identity cimport Caller
from powervio.files.tree_open cimport OpenFile
from powervio.files.tree_share cimport File
from powervio.files.tree_stat cimport Stat

cdef class HeldFile(File):
    cdef int begin(self, Caller caller) except? -1000
    cdef int begin_own(self) noexcept
    cdef void end(self) noexcept
    cpdef Stat stat(self)
    cpdef OpenFile open(self, int flags, Caller caller)
    cdef int _change_mapped(self, int valid, object mode, object uid, object gid) except? -1
    cdef bytes _mapped_link(self)
