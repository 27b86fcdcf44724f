from powervio.network.frame import *
