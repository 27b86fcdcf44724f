cimport cython

@cython.final
cdef class Numbers:
    cdef readonly unsigned long long device
    cdef readonly unsigned long long changes
    cdef dict _others
    cdef bytes _secret
    cpdef unsigned long long path_of(self, unsigned long long device, unsigned long long inode) except? 0
    cdef unsigned long long _elsewhere(self, unsigned long long device, unsigned long long inode) except? 0

@cython.final
cdef class Stat:
    cdef public unsigned int mode
    cdef public unsigned int nlink
    cdef public unsigned int uid
    cdef public unsigned int gid
    cdef public unsigned int blksize
    cdef public unsigned int version
    cdef public unsigned long long ino
    cdef public unsigned long long dev
    cdef public unsigned long long rdev
    cdef public unsigned long long size
    cdef public unsigned long long blocks
    cdef public unsigned long long path
    cdef public long long atime_sec
    cdef public long long mtime_sec
    cdef public long long ctime_sec
    cdef public long long btime_sec
    cdef public unsigned int atime_nsec
    cdef public unsigned int mtime_nsec
    cdef public unsigned int ctime_nsec
    cdef public unsigned int btime_nsec

cdef Stat stat_from(unsigned char *base, Numbers numbers)
cdef unsigned long long device_of(unsigned char *base) noexcept
cdef unsigned int version_of(unsigned char *base, Numbers numbers) noexcept
