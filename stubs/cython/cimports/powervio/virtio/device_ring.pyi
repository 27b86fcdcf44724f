from powervio.virtio.device_ring import *
