from powervio.devices.net_relay_end cimport RelayEnd
from powervio.devices.net_relay_frames cimport RelayFrames
from powervio.virtio.device_queue cimport DeviceQueue
from powervio.virtio.device_ring cimport DeviceRing

cimport cython

@cython.final
cdef class RelayBuffers:
    cdef readonly unsigned int count
    cdef unsigned char *_heads
    cdef unsigned char *_pieces
    cdef unsigned int _piece_count
    cdef unsigned long long _room
    cdef object _books
    cdef void clear(self) noexcept
    cdef int hold(self, RelayEnd other, DeviceQueue queue, unsigned long long needed) except? -1
    cdef void _keep(self, DeviceRing ring) noexcept
    cdef int _leave(self, RelayEnd other, DeviceQueue queue) except? -1
    cdef int fill(self, DeviceQueue queue, RelayFrames frames, unsigned int row, unsigned long long place, unsigned long long staged, unsigned long long needed) except? -1
