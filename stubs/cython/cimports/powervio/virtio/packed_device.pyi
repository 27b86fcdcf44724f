from powervio.virtio.packed_device import *
