from powervio.drivers.block_request import *
