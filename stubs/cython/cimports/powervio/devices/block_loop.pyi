from powervio.devices.block_loop import *
