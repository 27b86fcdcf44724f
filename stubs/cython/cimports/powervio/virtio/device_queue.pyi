from powervio.virtio.device_queue import *
