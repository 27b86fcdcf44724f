from powervio.virtio.driver_ring import *
