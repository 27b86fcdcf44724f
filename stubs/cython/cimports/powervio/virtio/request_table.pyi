from powervio.virtio.request_table import *
