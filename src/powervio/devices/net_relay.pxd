from powervio.devices.net_in_hand cimport FrameInHand
from powervio.devices.net_relay_buffers cimport RelayBuffers
from powervio.devices.net_relay_end cimport RelayEnd
from powervio.devices.net_relay_frames cimport RelayFrames
from powervio.network.switch_core cimport SwitchCore
from powervio.network.switch_decision cimport Decision
from powervio.virtio.device_queue cimport DeviceQueue

cimport cython

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
    cdef RelayFrames _frames
    cdef RelayBuffers _buffers
    cdef list _shown
    cdef bint _more
    cdef RelayEnd _end
    cdef DeviceQueue _queue
    cdef unsigned char *_base
    cdef unsigned char *_scratch
    cdef object _books
    cdef void _take_some(self) except *
    cdef void _account(self, unsigned long long frames, unsigned int gave, unsigned long long total, unsigned int unheard) except *
    cdef int _give_back(self, unsigned int row) except? -1
    cdef int _pass(self, unsigned int row) except? -1
    cdef unsigned long long _retag(self, unsigned long long begins, int change, unsigned int tci) noexcept
    cdef object _whole(self, unsigned int row, unsigned long long begins, unsigned long long have, int shift)
    cdef int _give(self, RelayEnd other, unsigned int row, unsigned long long begins, unsigned long long have) except? -1
