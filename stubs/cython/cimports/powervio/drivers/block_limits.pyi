from powervio.drivers.block_limits import *
