from powervio.transport.crq.remote cimport RemoteWindow
from powervio.virtio.staging cimport Staging

cimport cython

@cython.final
cdef class RdmaStaging(Staging):
    cdef RemoteWindow _window
    cdef unsigned long long _local
