from powervio.drivers.block_rings import *
