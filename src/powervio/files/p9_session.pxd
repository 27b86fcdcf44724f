cimport cython

from powervio.files.p9_fids cimport Fid, Fids
from powervio.files.tree_open cimport OpenFile

@cython.final
cdef class Session(Fids):
    cdef readonly unsigned int msize
    cdef readonly bint versioned
    cdef readonly object operations
    cdef readonly unsigned int most_msize
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
    cdef long long _other(self, int kind, unsigned char *message, long long size, unsigned char *out, long long room) except? -1000
    cdef long long _read_attribute(self, Fid fid, unsigned char *out, unsigned long long position, long long count) except? -1000
    cdef unsigned int _word(self, int index) noexcept
    cdef bytes _text(self, int index, unsigned char *message)
