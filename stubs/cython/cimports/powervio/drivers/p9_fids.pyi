from powervio.drivers.p9_fids import *
