from powervio.drivers.net_rings import *
