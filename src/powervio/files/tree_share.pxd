from powervio.files.handles cimport DescriptorCache, Held
from powervio.files.identity cimport Identity
from powervio.files.tree_stat cimport Numbers, Stat

cdef class Share:
    cdef readonly object options
    cdef readonly Identity identity
    cdef readonly DescriptorCache cache
    cdef readonly Numbers numbers
    cdef readonly object locks
    cdef readonly bint readonly
    cdef readonly int proc
    cdef readonly unsigned long long root_dev
    cdef readonly unsigned long long root_ino
    cdef public int open_count
    cdef readonly int max_open
    cdef readonly int directory
    cdef list _scratch
    cdef int writable(self) except? -1
    cdef int check_room(self) except? -1
    cdef bint relieved(self, int code) noexcept
    cdef bytearray take_scratch(self)
    cdef void give_scratch(self, bytearray book) noexcept
    cdef Stat client_stat(self, unsigned char *base, int fd)
    cdef int _map(self, Stat facts, int fd) except? -1

cdef class File(Held):
    cdef readonly Share share
    cdef readonly unsigned int kind
    cdef readonly unsigned int version
    cdef readonly unsigned long long path
    cdef readonly unsigned long long dev
    cdef readonly unsigned long long ino
    cdef Stat stat_by(self, int fd)
    cdef int refer(self) except? -1
    cdef void let_go(self) noexcept
    cdef int open_for_locks(self, int fd) except? -1

cdef object failure(int code)
cdef long long good(long long code) except? -1
