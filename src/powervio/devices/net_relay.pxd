from powervio.devices.net_in_hand cimport FrameInHand
from powervio.devices.net_rules cimport ReceiveFilter
from powervio.network.switch_core cimport SwitchCore
from powervio.network.switch_decision cimport Decision
from powervio.virtio.device_queue cimport DeviceQueue
from powervio.virtio.device_ring cimport DeviceRing
from powervio.virtio.staging cimport Staging

cimport cython

@cython.final
cdef class RelayEnd:
    cdef readonly bint usable
    cdef public unsigned int taken
    cdef public bint link_up
    cdef public DeviceQueue receive
    cdef readonly object port
    cdef object _device
    cdef object _receiver
    cdef object _from_driver
    cdef object _to_driver
    cdef int _number
    cdef unsigned int _handle
    cdef unsigned long long _features
    cdef unsigned long long _mtu
    cdef unsigned long long _header_bytes
    cdef bint _mergeable
    cdef bint _direct
    cdef ReceiveFilter _filter
    cdef unsigned long long _turn
    cdef bint _straight
    cdef unsigned long long _frames
    cdef unsigned long long _bytes
    cdef bint _touched
    cdef bint is_straight(self, unsigned long long turn) except? -1
    cdef bint _is_idle(self) except? -1
    cdef void show(self, SwitchCore core) except *

@cython.final
cdef class Relay:
    cdef readonly unsigned long long forwarded
    cdef object _switch
    cdef SwitchCore _core
    cdef Decision _decision
    cdef FrameInHand _hand
    cdef list _ends
    cdef unsigned long long _turn
    cdef bint _busy
    cdef unsigned char *_rows
    cdef unsigned int _row_count
    cdef unsigned char *_segments
    cdef unsigned int _segment_count
    cdef dict _requests
    cdef list _shown
    cdef bint _more
    cdef RelayEnd _end
    cdef DeviceQueue _queue
    cdef Staging _staging
    cdef unsigned char *_base
    cdef bint _open
    cdef unsigned long long _from
    cdef unsigned long long _until
    cdef unsigned long long _to
    cdef unsigned long long _place
    cdef bint _failed
    cdef unsigned char *_heads
    cdef unsigned int _held
    cdef unsigned char *_pieces
    cdef unsigned int _piece_count
    cdef unsigned long long _room
    cdef unsigned char *_scratch
    cdef object _books
    cdef void _take_some(self) except *
    cdef void _account(self, unsigned long long frames, unsigned int gave, unsigned long long total, unsigned int unheard) except *
    cdef int _collect(self) except? -1
    cdef unsigned long long _part_of(self, unsigned long long total) noexcept
    cdef object _request(self, unsigned int row)
    cdef int _give_back(self, unsigned int row) except? -1
    cdef int _bring(self, unsigned int first) except? -1
    cdef int _bring_row(self, unsigned int row) except? -1
    cdef int _close(self) except? -1
    cdef int _bring_alone(self, unsigned int row) except? -1
    cdef int _bring_bytes(self, unsigned int row, unsigned long long offset, unsigned long long length, unsigned long long place) except? -1
    cdef int _pass(self, unsigned int row) except? -1
    cdef unsigned long long _retag(self, unsigned long long begins, int change, unsigned int tci) noexcept
    cdef object _whole(self, unsigned int row, unsigned long long begins, unsigned long long have, int shift)
    cdef int _give(self, RelayEnd other, unsigned int row, unsigned long long begins, unsigned long long have) except? -1
    cdef int _hold(self, RelayEnd other, DeviceQueue queue, unsigned long long needed) except? -1
    cdef void _keep(self, DeviceRing ring) noexcept
    cdef int _leave(self, RelayEnd other, DeviceQueue queue) except? -1
    cdef int _fill(self, RelayEnd other, DeviceQueue queue, unsigned int row, unsigned long long place, unsigned long long staged, unsigned long long needed) except? -1
