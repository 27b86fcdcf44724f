from powervio.drivers.p9_tree import *
