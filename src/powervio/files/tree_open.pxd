cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree_share cimport File, Share
from powervio.files.tree_stat cimport Stat
from powervio.memory.target cimport Target

@cython.final
cdef class OpenTarget(Target):
    cdef readonly int fd
    cdef readonly unsigned long long moved
    cdef readonly bint ended
    cdef readonly int failed
    cdef void begin(self) noexcept
    cdef void note(self, long long done, unsigned long long length) noexcept nogil

@cython.final
cdef class OpenFile:
    cdef readonly int fd
    cdef readonly int flags
    cdef readonly File file
    cdef Share _share
    cdef Caller _caller
    cdef int _pins
    cdef bint _closing
    cdef long long _at
    cdef OpenTarget _target
    cdef object _backing
    cdef int begin(self, long long position, long long length) except? -1000
    cdef void end(self) noexcept
    cdef long long read_to(self, unsigned char *out, unsigned long long offset, long long size, long long position) except? -1000
    cdef long long write_of(self, unsigned char *data, unsigned long long offset, long long size, long long position) except? -1000
    cdef object _file(self)
    cdef long long _moved(self) except? -1
    cdef long long _seek(self, long long position, int whence) except? -1
    cdef int entries_to(self, unsigned char *out, int size, long long offset) except? -1000
    cdef unsigned long long entry_path(self, unsigned long long inode, bint is_parent) except? 0
    cdef int entry_kind(self, int kind) noexcept
    cpdef Stat stat(self)
    cdef void _end(self) noexcept

cdef OpenFile open_file(File file, int fd, int flags, Caller caller)
cdef long long last_offset(unsigned char *base, int size) noexcept
