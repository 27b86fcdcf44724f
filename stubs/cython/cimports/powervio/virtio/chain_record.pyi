from powervio.virtio.chain_record import *
