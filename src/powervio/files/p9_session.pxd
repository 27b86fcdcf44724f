cimport cython

from powervio.files.identity cimport Caller
from powervio.files.tree cimport Node, Tree
from powervio.files.tree_open cimport OpenFile

@cython.final
cdef class Fid:
    cdef Node node
    cdef Node parent
    cdef bytes name
    cdef Caller caller
    cdef OpenFile opened
    cdef object attribute
    cdef object locked

@cython.final
cdef class Session:
    cdef readonly object options
    cdef readonly unsigned int msize
    cdef readonly unsigned long long messages
    cdef readonly unsigned long long errors
    cdef readonly object key
    cdef Tree _tree
    cdef dict _fids
    cdef dict _callers
    cdef set _clients
    cdef bytearray _book
    cdef unsigned char *_fields
    cdef bytearray _entries
    cdef bytearray _answer
    cdef unsigned char *_message
    cdef unsigned char *_out
    cdef long long _room
    cdef object _source
    cdef object _target
    cdef bint _apart
    cdef unsigned int _most_msize
    cdef int _most_fids
    cdef long long _held
    cdef long long carry_out(self, unsigned char *message, long long size, unsigned char *out, long long room) except? -1000
    cdef long long _dispatch(self, int kind, unsigned long long declared) except? -1000
    cdef long long _error(self, unsigned int tag, int code) noexcept
    cdef unsigned long long _field(self, int index) noexcept
    cdef bytes _text(self, int index)
    cdef Fid _fid(self, int index)
    cdef int _free(self, unsigned long long number) except -1
    cdef void _qid(self, unsigned long long at, Node node) noexcept
    cdef long long _walk(self) except? -1000
    cdef long long _getattr(self) except? -1000
    cdef long long _setattr(self) except? -1000
    cdef long long _read(self) except? -1000
    cdef long long _write(self, unsigned long long declared) except? -1000
    cdef long long _readdir(self) except? -1000
    cdef long long _open(self) except? -1000
    cdef long long _create(self) except? -1000
    cdef long long _say_open(self, Fid fid) except? -1000
    cdef long long _append(self, Fid fid, unsigned long long position, bytes data) except? -1000
    cdef long long _rare(self, int kind) except? -1000
    cdef int _clunk(self, Fid fid, bint finish) except -1
