from powervio.virtio.driver_queue import *
