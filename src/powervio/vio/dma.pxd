cimport cython

cdef class DmaSpace:
    cdef readonly unsigned long long liobn
    cdef readonly unsigned int left
    cdef public object _port
    cdef object _pages
    cdef object _iobas
    cdef bint _multi
    cdef bint _ready
    cdef unsigned long long _window_pages
    cdef long long _memory_pages
    cdef long long _first
    cdef long long _size
    cdef long long _unused
    cdef long long _next
    cdef unsigned char *_states
    cdef unsigned char *_plan
    cdef unsigned long long _planned
    cdef unsigned long long _plan_room
    cdef unsigned char *_marks
    cdef unsigned long long _begin
    cdef unsigned char *_list
    cdef dict _views
    cpdef long long plan(self, long long address, long long length, unsigned int access) except? -1
    cdef long long plan_now(self, long long address, long long length, unsigned int access) noexcept nogil
    cdef long long _note(self, long long start, long long pages, long long first, unsigned int access) noexcept nogil
    cpdef void commit(self)
    cdef void unmap_runs(self, unsigned char *runs, unsigned int count)
    cdef void _prepare(self)
    cdef long long _take(self, long long pages, unsigned int state) noexcept nogil
    cdef long long _search(self, long long place, long long pages) noexcept nogil
    cdef void _set(self, long long start, long long pages, unsigned int state) noexcept nogil
    cdef void _free(self, long long start, long long pages)
    cdef void _make_room(self, unsigned long long pages)
    cdef bint _unplan(self, long long start, unsigned long long pages) noexcept
    cdef void _mark(self, unsigned long long start, unsigned long long pages, bint on) noexcept
    cdef void _clear_marked(self, unsigned long long low, unsigned long long high)
    cdef void _settle(self, unsigned char *runs, unsigned int count, unsigned long long below)
    cdef void _put(self, unsigned long long ioba, unsigned char *plan, unsigned long long begin, unsigned long long count)
    cdef long long _put_many(self, unsigned long long ioba, unsigned char *plan, unsigned long long begin, unsigned long long count) except? -1
    cdef void _clear(self, unsigned long long ioba, unsigned long long pages)
