from powervio.drivers.p9_nodes import *
