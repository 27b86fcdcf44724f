from powervio.virtio.split_device import *
