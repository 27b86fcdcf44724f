from powervio.devices.block_table import *
