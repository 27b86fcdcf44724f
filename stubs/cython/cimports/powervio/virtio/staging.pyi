from powervio.virtio.staging import *
