cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree cimport Node
from powervio.files.tree_open cimport OpenFile
from powervio.files.tree_stat cimport Stat

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

@cython.final
cdef class Session:
    cdef readonly object tree
    cdef readonly unsigned int msize
    cdef readonly bint versioned
    cdef readonly dict fids
    cdef readonly object operations
    cdef readonly set lock_clients
    cdef public long long lock_owners
    cdef readonly long long attribute_bytes
    cdef readonly unsigned int most_msize
    cdef readonly unsigned int most_fids
    cdef FidBudget _budget
    cdef object _source
    cdef object _target
    cdef long long _apart
    cdef bytearray _book
    cdef unsigned char *_fields
    cdef bytearray _entries
    cdef unsigned char *_records
    cdef bytearray _answer
    cdef unsigned char *_base
    cdef long long serve(self, unsigned char *message, long long size, unsigned char *out, long long room) except? -1000
    cdef OpenFile to_sync(self, unsigned char *message, long long size)
    cdef long long _error(self, unsigned char *out, int code) noexcept
    cdef long long _call(self, int kind, unsigned char *message, long long size, unsigned char *out, long long room) except? -1000
    cdef long long _walk(self, unsigned char *message, unsigned char *out) except? -1000
    cdef long long _getattr(self, unsigned char *out) except? -1000
    cdef long long _setattr(self) except? -1000
    cdef long long _lopen(self, unsigned char *out) except? -1000
    cdef long long _opened(self, Fid fid, OpenFile opened, unsigned char *out) except? -1000
    cdef long long _lcreate(self, unsigned char *message, unsigned char *out) except? -1000
    cdef int _remove_made(self) except? -1
    cdef long long _read(self, unsigned char *out, long long room) except? -1000
    cdef long long _write(self, unsigned char *message, long long size, unsigned char *out) except? -1000
    cdef long long _readdir(self, unsigned char *out, long long room) except? -1000
    cdef long long _clunk(self) except? -1000
    cdef int _end(self, Fid fid) except? -1
    cdef long long _other(self, int kind, unsigned char *message, long long size, unsigned char *out, long long room) except? -1000
    cdef long long _read_attribute(self, Fid fid, unsigned char *out, unsigned long long position, long long count) except? -1000
    cdef unsigned int _word(self, int index) noexcept
    cdef bytes _text(self, int index, unsigned char *message)
    cpdef Fid fid(self, unsigned int number)
    cpdef Fid add(self, unsigned int number, Node node, Caller caller)
    cdef object _check_free(self, unsigned int number)

cdef void put_qid(unsigned char *out, long long at, unsigned int mode, unsigned int version, unsigned long long path) noexcept
cdef object instant(unsigned long long seconds, unsigned long long nanoseconds)
cdef int open_flags(unsigned int flags) noexcept
