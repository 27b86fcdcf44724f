from powervio.devices.net_rules cimport ReceiveFilter
from powervio.network.switch_core cimport SwitchCore
from powervio.virtio.device_queue cimport DeviceQueue

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
