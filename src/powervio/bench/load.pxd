from powervio.virtio.driver_ring cimport DriverRing

cdef class LoadPort:
    cdef readonly DriverRing ring
    cdef readonly bint indirect
    cdef public bint together
    cdef readonly unsigned long long kicks
    cdef readonly unsigned long long sleeps
    cdef int lend(self, unsigned char *segments, unsigned int count, unsigned int readers, unsigned char *table, unsigned long long table_address) except? -2 nogil
    cdef int show(self) except? -1 nogil
    cdef int take_back(self) except? -2 nogil
    cdef int kick(self) except? -1 nogil
    cdef int wait(self, int milliseconds) except? -1 nogil

cdef class EventPort(LoadPort):
    cdef public bint polling
    cdef bint _event_idx
    cdef int _kick_fd
    cdef int _call_fd

cdef class Load:
    cdef readonly unsigned int depth
    cdef readonly bint writes
    cdef readonly unsigned long long requests
    cdef readonly unsigned long long nanoseconds
    cdef readonly bytearray touched
    cdef LoadPort _port
    cdef tuple _views
    cdef unsigned long long _blocks
    cdef unsigned long long _first
    cdef unsigned long long _patience
    cdef unsigned long long _random
    cdef bint _failed
    cdef unsigned int _in_flight
    cdef unsigned long long _control_address
    cdef unsigned int _step
    cdef unsigned int _status
    cdef unsigned int _status_step
    cdef unsigned int _tables
    cdef unsigned int _table_step
    cdef unsigned char *_control
    cdef unsigned char *_data
    cdef unsigned char *_segments
    cdef unsigned char *_places
    cdef unsigned char *_slots
    cdef unsigned char *_touched
    cdef int _run(self, unsigned long long limit) except? -1 nogil
    cdef int _submit(self, unsigned int slot) except? -1 nogil
    cdef int _check(self, unsigned int slot) except? -1 nogil
