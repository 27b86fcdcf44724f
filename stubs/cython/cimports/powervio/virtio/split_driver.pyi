from powervio.virtio.split_driver import *
