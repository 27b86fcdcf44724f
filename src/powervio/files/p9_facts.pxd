from powervio.files.tree_open cimport OpenFile
from powervio.files.tree_stat cimport Stat

cdef void put_qid(unsigned char *out, long long at, unsigned int mode, unsigned int version, unsigned long long path) noexcept
cdef object instant(unsigned long long seconds, unsigned long long nanoseconds)
cdef int open_flags(unsigned int flags) noexcept
cdef void put_facts(unsigned char *out, Stat facts) noexcept
cdef long long put_entries(unsigned char *out, long long most, unsigned char *records, long long size, OpenFile opened) except? -1
