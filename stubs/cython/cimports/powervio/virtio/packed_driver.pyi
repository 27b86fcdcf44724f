from powervio.virtio.packed_driver import *
