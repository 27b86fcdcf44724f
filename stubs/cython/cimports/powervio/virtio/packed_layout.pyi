from powervio.virtio.packed_layout import *
