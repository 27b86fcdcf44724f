from powervio.virtio.split import *
